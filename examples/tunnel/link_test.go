//go:build linux

package main

import (
	"net/netip"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// sink receives the packets that a link injects.
type sink struct {
	t       testing.TB
	packets int
}

// SendBatch checks that packets are whole, with checksums as marked.
func (s *sink) SendBatch(ps []divert.Packet) (int, error) {
	for i := range ps {
		var p packet.Parsed
		if b := ps[i].Data; !p.ParseExact(b) || ps[i].Addr.TCPChecksum && !p.Fragment && !p.VerifyTransportChecksum(b) {
			s.t.Errorf("sent % x", b)
		}
	}
	s.packets += len(ps)
	return len(ps), nil
}

// refuse returns a link with a stack that refuses everything.
func refuse(t testing.TB) (*link, *sink) {
	s := &sink{t: t}
	l := newLink(s, divert.LayerNetwork)
	st, err := newStack(l, 1, func(r *tcp.ForwarderRequest) { r.Complete(false) }, func(*udp.ForwarderRequest) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Destroy)
	return l, s
}

// FuzzDeliver: the stack survives every captured packet, and its answers are valid packets.
func FuzzDeliver(f *testing.F) {
	for _, ends := range [][2]string{{"192.0.2.1:40000", "198.51.100.1:80"}, {"[2001:db8::1]:40000", "[2001:db8:1::1]:80"}} {
		h := packet.Header{Src: netip.MustParseAddrPort(ends[0]), Dst: netip.MustParseAddrPort(ends[1])}
		for _, flags := range []packet.TCPFlags{packet.TCPSyn, packet.TCPAck} {
			b, err := h.AppendTCP(nil, packet.Segment{Seq: 7, Flags: flags, Options: []byte{2, 4, 5, 180, 4, 2, 1, 1}}, nil)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
		b, err := h.AppendUDP(nil, []byte("a query"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	l, _ := refuse(f)
	f.Fuzz(func(t *testing.T, b []byte) { l.deliver(b) })
}

// TestAnswers: packets without a receiver are answered, over the loopback interface.
func TestAnswers(t *testing.T) {
	l, s := refuse(t)
	h := packet.Header{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("198.51.100.1:80")}
	segment, err := h.AppendTCP(nil, packet.Segment{Seq: 7, Ack: 9, Flags: packet.TCPAck}, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	l.deliver(segment)
	datagram, err := h.AppendUDP(nil, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	l.deliver(datagram)
	if s.packets != 2 {
		t.Errorf("%d answers, want a reset and an ICMP error", s.packets)
	}
}

// BenchmarkDeliver measures the way of a captured packet into the stack, and of an answer out of it.
func BenchmarkDeliver(b *testing.B) {
	l, _ := refuse(b)
	h := packet.Header{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("198.51.100.1:80")}
	segment, err := h.AppendTCP(nil, packet.Segment{Seq: 7, Ack: 9, Flags: packet.TCPAck}, make([]byte, 1400))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(segment)))
	b.ReportAllocs()
	for b.Loop() {
		l.deliver(segment)
	}
}
