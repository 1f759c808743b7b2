package windows

import (
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestMatchesDoNotOvertake: a program gets a packet only after earlier packets that do not match have gone on.
func TestMatchesDoNotOvertake(t *testing.T) {
	s := newStack(t)
	h := s.handle("udp.DstPort == 53", packet.LayerNetwork, engine.Config{Mode: engine.ModeInterpret})
	const before = 20
	for i := range 300 {
		passed := make(chan int, 1)
		_ = h.SetReadDeadline(time.Now().Add(10 * time.Second))
		go func() {
			ps := make([]packet.Packet, 1)
			if n, err := h.Recv(ps); err != nil || n != 1 {
				t.Errorf("received %d: %v", n, err)
			}
			passed <- s.numPassed()
		}()
		for n := range before + 1 {
			to := packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:9"), Dst: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(53+before-n))}
			b, err := to.AppendUDP(nil, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			s.capture(packet.Packet{Data: b, Addr: packet.Address{Outbound: true}})
		}
		if got, want := <-passed, before*(i+1); got != want {
			t.Fatalf("round %d: the match came when %d packets of %d before it had gone on", i+1, got, want)
		}
	}
}
