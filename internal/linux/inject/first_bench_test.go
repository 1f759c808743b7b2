//go:build linux

package inject

import (
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// BenchmarkInboundFirst measures the medians, in microseconds, of what a new Inbound costs: to make it, the first packet,
// until Send returns and until a socket has it, the second packet, and Close.
func BenchmarkInboundFirst(b *testing.B) {
	net := lab.TwoHostsT(b, lab.LinkOptions{})
	index := uint32(net.LinkA.Index())
	conn, err := net.A.ListenPacket("udp", "10.77.0.1:53")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	packet, buf := udp("10.77.0.2", "10.77.0.1", 1000, 53, []byte("x")), make([]byte, 100)
	took := map[string][]float64{}
	for b.Loop() {
		begin := time.Now()
		step := func(name string) {
			took[name] = append(took[name], float64(time.Since(begin))/float64(time.Microsecond))
			begin = time.Now()
		}
		in := inboundOf(b, net.A)
		step("new-µs")
		for _, which := range []string{"first", "second"} {
			if err := in.Send(packet, index); err != nil {
				b.Fatal(err)
			}
			step(which + "-µs")
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				b.Fatal(err)
			}
			if _, _, err := conn.ReadFrom(buf); err != nil {
				b.Fatal(err)
			}
			step(which + "-arrives-µs")
		}
		if err := in.Close(); err != nil {
			b.Fatal(err)
		}
		step("close-µs")
	}
	for name, list := range took {
		slices.Sort(list)
		b.ReportMetric(list[len(list)/2], name)
	}
	b.ReportMetric(0, "ns/op")
}
