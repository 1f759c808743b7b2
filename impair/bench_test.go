package impair

import (
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// BenchmarkDecide measures the decisions on a packet of one of 1,000 flows, from parsing to the heap and out of it.
func BenchmarkDecide(b *testing.B) {
	for _, row := range []struct {
		name string
		rule Rule
	}{
		{"loss", Rule{Loss: 0.01}},
		{"runs", Rule{Loss: 0.01, LossRun: 3}},
		{"lag", Rule{Lag: 100 * time.Millisecond}},
		{"all", Rule{Lag: 100 * time.Millisecond, Jitter: 10 * time.Millisecond, Distribution: Normal, Loss: 0.01, LossRun: 3, Duplicate: 0.01, Corrupt: 0.01, Reorder: 0.01, Rate: 1e10}},
	} {
		b.Run(row.name, func(b *testing.B) {
			p, err := newPlan([]Phase{{Rules: []Rule{row.rule}}}, false, divert.LayerNetwork, 0)
			if err != nil {
				b.Fatal(err)
			}
			i := &Impairer{config: Config{MaxPackets: defaultPackets, MaxBytes: defaultBytes}, plan: p, flows: newFlowTable(1, defaultFlows)}
			w := worker{Impairer: i}
			ps := make([]packet.Packet, 1000)
			for n := range ps {
				ps[n].Data = udp(b, uint16(n+1), n, 1000)
				ps[n].Addr = divert.Address{Outbound: true, IPChecksum: true, TCPChecksum: true, UDPChecksum: true}
			}
			var now int64
			step := func(n int) {
				now += 10_000 // 100,000 packets a second
				w.packet(&ps[n%len(ps)], now)
				if n%128 == 0 {
					w.drain(now)
					w.out, w.ways, w.dropped = w.out[:0], w.ways[:0], w.dropped[:0]
					w.recycle()
				}
			}
			for n := range 50_000 {
				step(n)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; b.Loop(); n++ {
				step(n)
			}
		})
	}
}
