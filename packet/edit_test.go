package packet

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// vouched returns a packet whose address vouches for its checksums.
func vouched(b []byte) *Packet {
	return &Packet{Data: b, Addr: Address{IPChecksum: true, TCPChecksum: true, UDPChecksum: true}}
}

func TestSetEnds(t *testing.T) {
	to4, to6 := netip.MustParseAddrPort("203.0.113.9:65535"), netip.MustParseAddrPort("[2001:db8:9::9]:1")
	for _, row := range []struct {
		name    string
		src     netip.AddrPort
		dst, to netip.AddrPort
	}{{"IPv4", near4, far4, to4}, {"IPv6", near6, far6, to6}} {
		h := Header{Src: row.src, Dst: row.dst}
		tcp, _ := h.AppendTCP(nil, Segment{}, []byte("odd"))
		udp, _ := h.AppendUDP(nil, []byte("odd"))
		icmp, _ := h.AppendICMP(nil, 8, 0, 1, []byte("odd"))
		for _, b := range [][]byte{tcp, udp, icmp} {
			p, to := vouched(b), row.to
			if ports := whole(t, b); max(ports.TCPOff, ports.UDPOff) < 0 {
				to = netip.AddrPortFrom(to.Addr(), 0)
			}
			if err := errors.Join(p.SetSrc(to), p.SetDst(netip.AddrPortFrom(row.src.Addr(), to.Port()))); err != nil {
				t.Fatalf("%s: %v", row.name, err)
			}
			whole(t, p.Data)
			if p.Src() != to || p.Dst() != netip.AddrPortFrom(row.src.Addr(), to.Port()) {
				t.Errorf("%s: from %v to %v", row.name, p.Src(), p.Dst())
			}
			if !p.Addr.IPChecksum || !p.Addr.TCPChecksum || !p.Addr.UDPChecksum {
				t.Errorf("%s: the address does not vouch for the checksums any more", row.name)
			}
		}
	}
}

// A checksum that the kernel has left to the hardware stays as it is: Send computes it whole.
func TestSetEndsUnfinished(t *testing.T) {
	b, _ := (&Header{Src: near4, Dst: far4}).AppendUDP(nil, []byte("x"))
	p := &Packet{Data: b, Addr: Address{IPChecksum: true}}
	UDP(b[IPv4HeaderLen:]).SetChecksum(0x1234)
	if err := p.SetDst(near4); err != nil || UDP(b[IPv4HeaderLen:]).Checksum() != 0x1234 || p.Addr.UDPChecksum {
		t.Errorf("%v, %x", err, b)
	}
	UDP(b[IPv4HeaderLen:]).SetChecksum(0)
	p.Addr.UDPChecksum = true
	if err := p.SetDst(far4); err != nil || UDP(b[IPv4HeaderLen:]).Checksum() != 0 {
		t.Errorf("a datagram without checksum has got one: %v, %x", err, b)
	}
}

func TestSetEndsErrors(t *testing.T) {
	tcp4, _ := (&Header{Src: near4, Dst: far4}).AppendTCP(nil, Segment{}, nil)
	tcp6, _ := (&Header{Src: near6, Dst: far6}).AppendTCP(nil, Segment{}, nil)
	icmp, _ := (&Header{Src: near4, Dst: far4}).AppendICMP(nil, 8, 0, 0, nil)
	for _, row := range []struct {
		name string
		b    []byte
		to   netip.AddrPort
		want error
	}{
		{"IPv6 in IPv4", tcp4, far6, ErrFamily},
		{"IPv4 in IPv6", tcp6, far4, ErrFamily},
		{"no address", tcp4, netip.AddrPort{}, ErrFamily},
		{"a port of ICMP", icmp, far4, ErrNoPorts},
		{"a port of a later fragment", change(tcp4, 6, 0, 1), far4, ErrNoPorts},
		{"no packet", []byte("no"), far4, ErrMalformed},
	} {
		p := vouched(slices.Clone(row.b))
		if err := p.SetSrc(row.to); !errors.Is(err, row.want) || !bytes.Equal(p.Data, row.b) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	p := vouched([]byte("no"))
	if p.Src().IsValid() || p.Dst().IsValid() || p.Payload() != nil {
		t.Error("what is no packet has ends")
	}
	if p := vouched(change(tcp4, 6, 0, 1)); p.Src() != netip.AddrPortFrom(near4.Addr(), 0) {
		t.Errorf("a later fragment comes from %v", p.Src())
	}
}

// Where the IP header names a stop on the way, the transport's checksum covers the last stop, and stays.
func TestSetDstOnRoute(t *testing.T) {
	lsrr := []byte{131, 7, 4, 203, 0, 113, 1, 0}
	b4 := append(example(t, "B")[:20:20], append(lsrr, example(t, "B")[20:]...)...)
	b4[0], b4[3] = 0x47, byte(len(b4))
	routing := []byte{ProtocolUDP, 2, 4, 1, 0, 0, 0, 0, 0x20, 1, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9}
	udp6, _ := (&Header{Src: near6, Dst: far6}).AppendUDP(nil, []byte("x"))
	b6 := append(udp6[:40:40], append(routing, udp6[40:]...)...)
	b6[5], b6[6] = byte(len(b6)-40), ProtocolRouting
	for _, row := range []struct {
		name  string
		b     []byte
		to    netip.AddrPort
		at    int  // the checksum
		stays bool // the checksum does
	}{
		{"IPv4 source route", b4, far4, 28 + 6, true},
		{"IPv4 source route at its end", change(b4, 22, 8), far4, 28 + 6, false},
		{"IPv6 segments left", b6, near6, 64 + 6, true},
		{"IPv6 no segments left", change(b6, 43, 0), near6, 64 + 6, false},
	} {
		p := vouched(slices.Clone(row.b))
		before := be.Uint16(p.Data[row.at:])
		if err := p.SetDst(netip.AddrPortFrom(row.to.Addr(), p.Dst().Port())); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if stays := be.Uint16(p.Data[row.at:]) == before; stays != row.stays {
			t.Errorf("%s: the checksum stays: %t", row.name, stays)
		}
	}
}

func TestSetPayload(t *testing.T) {
	for _, id := range []string{"A", "B", "C", "D", "E", "F", "K", "N"} {
		for _, payload := range []string{"", "x", "a longer payload than any of the examples has, of an odd number of bytes"} {
			p := vouched(example(t, id))
			var before Parsed
			before.Parse(p.Data)
			if err := p.SetPayload([]byte(payload)); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			var after Parsed
			if !after.ParseExact(p.Data) || after.HeaderLen != before.HeaderLen || string(p.Payload()) != payload {
				t.Fatalf("%s: %x", id, p.Data)
			}
			if p.Addr.TCPChecksum || p.Addr.UDPChecksum || p.Addr.IPChecksum != (after.Family == 4) {
				t.Errorf("%s: %+v", id, p.Addr)
			}
			if u := after.UDP(p.Data); u != nil && int(u.Length()) != UDPHeaderLen+len(payload) {
				t.Errorf("%s: the UDP header says %d bytes", id, u.Length())
			}
			if after.ICMPOff < 0 && after.ICMPv6Off < 0 {
				after.WriteTransportChecksum(p.Data) // as Send does
			}
			whole(t, p.Data)
		}
	}
}

func TestSetPayloadErrors(t *testing.T) {
	for _, row := range []struct {
		name, id string
		size     int
		want     error
	}{
		{"a first fragment", "G", 1, ErrFragment}, {"a later fragment", "H", 1, ErrFragment}, {"a fragment of IPv6", "I", 1, ErrFragment},
		{"TCP options cut off", "L", 1, ErrMalformed}, {"cut short", "O", 1, ErrMalformed},
		{"too long", "B", 65508, ErrTooLong}, {"too long in IPv6", "F", 65528, ErrTooLong},
	} {
		p := vouched(example(t, row.id))
		if err := p.SetPayload(make([]byte, row.size)); !errors.Is(err, row.want) || !bytes.Equal(p.Data, example(t, row.id)) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// A packet must not grow into the bytes behind it, whatever the capacity of its slice.
func TestSetPayloadMemory(t *testing.T) {
	batch := append(example(t, "B"), example(t, "C")...)
	p := vouched(batch[:len(example(t, "B"))])
	if err := p.SetPayload([]byte("longer than before")); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(batch[len(example(t, "B")):], example(t, "C")) {
		t.Fatal("the packet behind it has changed")
	}
	// The new payload is a part of the packet itself, moved within it.
	if err := p.SetPayload(p.Payload()[7:]); err != nil || string(p.Payload()) != "than before" {
		t.Fatalf("%q, %v", p.Payload(), err)
	}
	b := example(t, "B")
	longer := []byte("longer than before")
	if got := testing.AllocsPerRun(100, func() { p.Data = b; _ = p.SetPayload(longer) }); got > 0 {
		t.Errorf("%v allocations in a packet that has grown before", got)
	}
}

func TestClone(t *testing.T) {
	p := vouched(example(t, "B"))
	c := p.Clone()
	p.Data[0], p.Addr.Outbound = 0, true
	if !bytes.Equal(c.Data, example(t, "B")) || c.Addr.Outbound || !c.Addr.IPChecksum {
		t.Errorf("the copy has changed with the packet: %+v", c)
	}
}

// For any bytes, changes that succeed keep correct checksums correct.
func FuzzEdit(f *testing.F) {
	for _, e := range examples {
		f.Add(unhex(f, e.hex), []byte("payload"), []byte{1, 2, 3, 4}, uint16(99))
	}
	f.Fuzz(func(t *testing.T, b, payload, addr []byte, port uint16) {
		var h Parsed
		ok := h.Parse(b)
		right := ok && h.VerifyTransportChecksum(b)
		rightIP := ok && h.VerifyIPChecksum(b)
		p := vouched(slices.Clone(b))
		a, _ := netip.AddrFromSlice(addr)
		for _, set := range []func(netip.AddrPort) error{p.SetSrc, p.SetDst} {
			before := slices.Clone(p.Data)
			if err := set(netip.AddrPortFrom(a, port)); err != nil && !bytes.Equal(before, p.Data) {
				t.Fatalf("%v, and %x became %x", err, before, p.Data)
			}
		}
		if _, _, led := h.Ends(b); right && !led && !h.VerifyTransportChecksum(p.Data) {
			t.Fatalf("%x became %x", b, p.Data)
		}
		if rightIP && !h.VerifyIPChecksum(p.Data) {
			t.Fatalf("%x became %x", b, p.Data)
		}
		before := slices.Clone(p.Data)
		if err := p.SetPayload(payload); err != nil {
			if !bytes.Equal(before, p.Data) {
				t.Fatalf("%v, and %x became %x", err, before, p.Data)
			}
			return
		}
		if !h.ParseExact(p.Data) || !bytes.Equal(h.Payload(p.Data), payload) && len(payload) > 0 {
			t.Fatalf("%x with the payload %x became %x", before, payload, p.Data)
		}
	})
}
