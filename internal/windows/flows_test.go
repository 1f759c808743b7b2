package windows

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/packet"
)

// TestFlows decides a flow on handles of each kind: the driver decides alone, the interpreter decides, and the filter
// counts.
func TestFlows(t *testing.T) {
	datagram := func(port uint16, back bool) packet.Packet {
		h := packet.Header{Src: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port), Dst: netip.MustParseAddrPort("10.0.0.2:53")}
		if back {
			h.Src, h.Dst = h.Dst, h.Src
		}
		b, err := h.AppendUDP(nil, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		return packet.Packet{Data: b, Addr: packet.Address{Outbound: !back}}
	}
	for _, way := range []struct {
		name, filter string
		mode         engine.Mode
		flags        uint64
	}{
		{"driver", "udp", engine.ModeAuto, 0},
		{"interpreter", "udp", engine.ModeInterpret, 0},
		{"counting", "udp and flow.Packets < 100", engine.ModeAuto, 0},
		{"sniffing", "udp", engine.ModeAuto, engine.FlagSniff},
		{"sniffing, interpreter", "udp", engine.ModeInterpret, engine.FlagSniff},
	} {
		for _, v := range []flow.Verdict{flow.Accept, flow.Drop} {
			sniffs := way.flags != 0
			if sniffs && v == flow.Drop {
				continue
			}
			t.Run(fmt.Sprint(way.name, v), func(t *testing.T) {
				s := newStack(t)
				h := s.handle(way.filter, packet.LayerNetwork, engine.Config{Mode: way.mode, Flags: way.flags, FlowTable: 100})
				come := func(p packet.Packet) []packet.Packet {
					t.Helper()
					p.Addr.Sniffed = sniffs // as the driver sets it
					s.capture(p)
					ps := make([]packet.Packet, 4)
					_ = h.SetReadDeadline(time.Now().Add(10 * time.Second))
					n, err := h.Recv(ps)
					if err != nil || n != 1 {
						t.Fatalf("received %d: %v", n, err)
					}
					return ps[:1]
				}
				p := come(datagram(1, false))
				if err := h.DecideFlow([]packet.Packet{datagram(1, false)}, v); err == nil {
					t.Error("a packet of nobody was decided")
				}
				if err := h.DecideFlow(p, v); err != nil {
					t.Fatal(err)
				}
				for _, back := range []bool{false, true} {
					s.capture(datagram(1, back))
				}
				other := come(datagram(2, false)) // behind the others
				if r, way, ok, err := h.Flow(&p[0]); err != nil || !ok || way != 0 || r.Verdict != v || r.Packets != [2]uint64{1, 1} || r.Bytes != [2]uint64{29, 29} {
					t.Errorf("the flow is %+v %d %v %v", r, way, ok, err)
				}
				if r, _, ok, err := h.Flow(&other[0]); ok || err != nil {
					t.Errorf("another flow is %+v (%v)", r, err)
				}
				passed := map[flow.Verdict]int{flow.Accept: 3, flow.Drop: 0}[v]
				if sniffs {
					passed = 4
				}
				if got := s.numPassed(); got != passed {
					t.Errorf("%d went on, want %d", got, passed)
				}
				st, _ := h.Stats()
				if st.Matched != 4 || st.Received != 2 || st.FlowAccepted+st.FlowDropped != 2 || st.FlowAcceptedBytes+st.FlowDroppedBytes != 58 {
					t.Errorf("counted %+v", st)
				}
				if had, err := h.ForgetFlow(&p[0]); !had || err != nil {
					t.Errorf("forget: %v %v", had, err)
				}
				come(datagram(1, true))
			})
		}
	}
}

// TestFilterThatCountsFirstPackets: the driver delivers all packets, so that those that do not match count too.
func TestFilterThatCountsFirstPackets(t *testing.T) {
	s := newStack(t)
	h := s.handle("udp.PayloadLength > 1 and flow.Packets <= 2", packet.LayerNetwork, engine.Config{FlowTable: 100})
	for _, payload := range []string{"a", "bb", "cc"} {
		b, err := (&packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2")}).AppendUDP(nil, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		s.capture(packet.Packet{Data: b, Addr: packet.Address{Outbound: true}})
	}
	got := recvAll(t, h)
	if len(got) != 1 || string(got[0].Data[28:]) != "bb" {
		t.Errorf("received %d packets", len(got))
	}
}
