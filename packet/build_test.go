package packet

import (
	"errors"
	"net/netip"
	"testing"
)

var (
	near4 = netip.MustParseAddrPort("192.0.2.1:1234")
	far4  = netip.MustParseAddrPort("198.51.100.2:53")
	near6 = netip.MustParseAddrPort("[2001:db8::1]:1234")
	far6  = netip.MustParseAddrPort("[2001:db8::2]:53")
	// The name of near4 at a socket for both families.
	mapped4 = netip.AddrPortFrom(netip.AddrFrom16(near4.Addr().As16()), near4.Port())
)

// whole parses a packet whose checksums must be right.
func whole(t testing.TB, b []byte) *Parsed {
	t.Helper()
	var p Parsed
	if !p.ParseExact(b) || !p.VerifyTransportChecksum(b) || p.Family == 4 && !p.VerifyIPChecksum(b) {
		t.Fatalf("not a packet with right checksums: %x", b)
	}
	return &p
}

func TestAppendTCP(t *testing.T) {
	for _, h := range []Header{{Src: near4, Dst: far4, ID: 77, DF: true, TOS: 0x2E}, {Src: near6, Dst: far6, TTL: 3, TOS: 0x2E, FlowLabel: 0x12345}, {Src: mapped4, Dst: far4}} {
		s := Segment{Seq: 0x01020304, Ack: 0x05060708, Flags: TCPSyn | TCPUrg, Window: 1234, Urgent: 5, Options: []byte{2, 4, 5, 180, 1}}
		b, err := h.AppendTCP([]byte("before"), s, []byte("payload"))
		if err != nil || string(b[:6]) != "before" {
			t.Fatalf("%x, %v", b, err)
		}
		b = b[6:]
		p := whole(t, b)
		g := p.TCP(b)
		if g.SrcPort() != h.Src.Port() || g.DstPort() != h.Dst.Port() || g.Seq() != s.Seq || g.Ack() != s.Ack || g.Flags() != s.Flags ||
			g.Window() != s.Window || g.Urgent() != s.Urgent || string(g.Options()) != "\x02\x04\x05\xb4\x01\x00\x00\x00" || string(p.Payload(b)) != "payload" {
			t.Errorf("the segment is %x", b)
		}
		if ip := p.IPv4(b); ip != nil && (ip.Src() != h.Src.Addr().Unmap() || ip.Dst() != far4.Addr() || ip.ID() != h.ID || ip.DF() != h.DF || ip.TOS() != h.TOS || ip.TTL() != 64) {
			t.Errorf("the IPv4 header is %x", ip)
		}
		if ip := p.IPv6(b); ip != nil && (ip.Src() != near6.Addr() || ip.Dst() != far6.Addr() || ip.HopLimit() != 3 || ip.TrafficClass() != h.TOS || ip.FlowLabel() != h.FlowLabel) {
			t.Errorf("the IPv6 header is %x", ip)
		}
	}
	if _, err := (&Header{Src: near4, Dst: far4}).AppendTCP(nil, Segment{Options: make([]byte, 41)}, nil); !errors.Is(err, ErrTooLong) {
		t.Errorf("41 bytes of options: %v", err)
	}
}

func TestAppendICMP(t *testing.T) {
	for _, h := range []Header{{Src: near4, Dst: far4}, {Src: near6, Dst: far6}} {
		b, err := h.AppendICMP(nil, 8, 1, 0xAABBCCDD, []byte("ping"))
		if err != nil {
			t.Fatal(err)
		}
		p := whole(t, b)
		m := p.ICMP(b)
		if p.Family == 6 {
			m = p.ICMPv6(b)
		}
		if m.Type() != 8 || m.Code() != 1 || m.Body() != 0xAABBCCDD || string(p.Payload(b)) != "ping" {
			t.Errorf("the message is %x", b)
		}
	}
}

func TestAppendUDPBounds(t *testing.T) {
	for _, row := range []struct {
		src, dst netip.AddrPort
		length   int
		want     error
	}{
		{near4, far4, 65507, nil}, {near4, far4, 65508, ErrTooLong}, {near6, far6, 65527, nil}, {near6, far6, 65528, ErrTooLong},
		{near4, far6, 0, ErrFamily}, {netip.AddrPort{}, far4, 0, ErrFamily}, {near4, netip.AddrPort{}, 0, ErrFamily},
	} {
		b, err := (&Header{Src: row.src, Dst: row.dst}).AppendUDP([]byte("x"), make([]byte, row.length))
		switch {
		case !errors.Is(err, row.want):
			t.Errorf("from %v to %v with %d bytes: %v", row.src, row.dst, row.length, err)
		case err != nil && string(b) != "x":
			t.Errorf("from %v to %v with %d bytes: %d bytes are left behind", row.src, row.dst, row.length, len(b))
		case err == nil:
			whole(t, b[1:])
		}
	}
}
