package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/examples/nat/table"
	"github.com/opendivert/divert/packet"
)

// free is a host without sockets.
type free struct{}

func (free) Hold(uint8, uint16) (func(), bool) { return func() {}, true }

// testNAT is 192.0.2.1 for 10.0.0.0/8, with TCP port 8080 forwarded to 10.0.0.9:80, and fd00:1::/64 for 2001:db8:1::/64.
func testNAT(t testing.TB) *nat {
	t.Helper()
	prefixes, err := table.NewPrefixes(netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("2001:db8:1::/64"))
	if err != nil {
		t.Fatal(err)
	}
	n := &nat{addr: netip.MustParseAddr("192.0.2.1"), inside: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, prefixes: &prefixes}
	n.table = table.New(table.Limits{Mappings: 100, PerHost: 100, Sessions: 100}, free{}, rand.New(rand.NewPCG(1, 2)).IntN)
	if err := n.table.Forward(table.TCP, 8080, netip.MustParseAddrPort("10.0.0.9:80")); err != nil {
		t.Fatal(err)
	}
	return n
}

func ends(src, dst string) *packet.Header {
	return &packet.Header{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), ID: 7, DF: true}
}

func must(t testing.TB) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// received returns a packet as a handle would, with all checksums right.
func received(b []byte) *divert.Packet {
	return &divert.Packet{Data: b, Addr: divert.Address{IPChecksum: true, TCPChecksum: true, UDPChecksum: true}}
}

// whole fails the test unless a packet is valid, with right checksums.
func whole(t testing.TB, p *divert.Packet) (h packet.Parsed) {
	t.Helper()
	if !h.ParseExact(p.Data) || h.Family == 4 && !h.VerifyIPChecksum(p.Data) || !h.VerifyTransportChecksum(p.Data) {
		t.Errorf("% x", p.Data)
	}
	return h
}

var begin = time.Unix(1e9, 0)

// TestEcho: the identifier of an echo is translated, and back again, if another host uses it.
func TestEcho(t *testing.T) {
	n := testNAT(t)
	for i, host := range []string{"10.0.0.2:0", "10.0.0.3:0"} {
		p := received(must(t)(ends(host, "198.51.100.1:0").AppendICMP(nil, 8, 0, 0x1234_0001, []byte("ping"))))
		if a := n.leaving(p, begin); a != send {
			t.Fatal(a)
		}
		h := whole(t, p)
		body := h.ICMP(p.Data).Body()
		if p.Src().Addr() != n.addr || uint16(body) != 1 || (body>>16 == 0x1234) != (i == 0) {
			t.Errorf("from %v: leaves from %v with %#x", host, p.Src(), body)
		}
		back := received(must(t)(ends("198.51.100.1:0", "192.0.2.1:0").AppendICMP(nil, 0, 0, body, []byte("ping"))))
		if a := n.arriving(back, begin); a != send {
			t.Fatal(a)
		}
		h = whole(t, back)
		if back.Dst() != netip.MustParseAddrPort(host) || h.ICMP(back.Data).Body() != 0x1234_0001 {
			t.Errorf("back to %v with %#x", back.Dst(), h.ICMP(back.Data).Body())
		}
	}
	stranger := received(must(t)(ends("198.51.100.1:0", "192.0.2.1:0").AppendICMP(nil, 8, 0, 1, nil)))
	if a := n.arriving(stranger, begin); a != accept {
		t.Errorf("an echo request to the NAT itself: %v", a)
	}
}

// TestQuotes: errors quote the packet as their receiver sent it, in each of the three directions.
func TestQuotes(t *testing.T) {
	n := testNAT(t)
	inside, far := "10.0.0.2:5000", "198.51.100.1:53"
	sent := must(t)(ends(inside, far).AppendUDP(nil, []byte("query")))
	out := received(bytes.Clone(sent))
	if a := n.leaving(out, begin); a != send {
		t.Fatal(a)
	}
	answer := must(t)(ends(far, "192.0.2.1:5000").AppendUDP(nil, []byte("answer")))
	in := received(bytes.Clone(answer))
	if a := n.arriving(in, begin); a != send {
		t.Fatal(a)
	}
	for name, row := range map[string]struct {
		from, to string
		quoted   []byte // by the error
		does     func(*divert.Packet) action
		src, dst string // the translated addresses
		want     []byte // the translated quotation
	}{
		"from a router outside":  {"203.0.113.1:0", "192.0.2.1:0", out.Data, func(p *divert.Packet) action { return n.arriving(p, begin) }, "203.0.113.1:0", "10.0.0.2:0", sent},
		"from the host inside":   {"10.0.0.2:0", "198.51.100.1:0", in.Data, func(p *divert.Packet) action { return n.leaving(p, begin) }, "192.0.2.1:0", "198.51.100.1:0", answer},
		"from the router itself": {"192.0.2.1:0", "198.51.100.1:0", in.Data, n.own, "192.0.2.1:0", "198.51.100.1:0", answer},
	} {
		t.Run(name, func(t *testing.T) {
			p := received(must(t)(ends(row.from, row.to).AppendICMP(nil, 3, 3, 0, row.quoted)))
			if a := row.does(p); a != send {
				t.Fatal(a)
			}
			h := whole(t, p)
			if p.Src().String() != row.src || p.Dst().String() != row.dst || !bytes.Equal(h.Payload(p.Data), row.want) {
				t.Errorf("%v to %v quotes\n% x, want\n% x", p.Src(), p.Dst(), h.Payload(p.Data), row.want)
			}
		})
	}
	own := received(must(t)(ends("203.0.113.1:0", "192.0.2.1:0").AppendICMP(nil, 3, 3, 0, must(t)(ends("192.0.2.1:9", far).AppendUDP(nil, nil)))))
	if a := n.arriving(own, begin); a != accept {
		t.Errorf("an error about a packet of the NAT's host: %v", a)
	}
}

// TestHairpinError: an error about a packet that took the hairpin goes back that way, and shows no address from behind
// the NAT.
func TestHairpinError(t *testing.T) {
	n := testNAT(t)
	for _, h := range []*packet.Header{ends("10.0.0.2:5000", "198.51.100.1:53"), ends("10.0.0.3:6000", "198.51.100.1:53"), ends("10.0.0.3:6000", "192.0.2.1:5000")} {
		p := received(must(t)(h.AppendUDP(nil, nil)))
		if p.Dst().Addr() == n.addr {
			n.arriving(p, begin)
		} else {
			n.leaving(p, begin)
		}
	}
	sent := must(t)(ends("10.0.0.2:5000", "192.0.2.1:6000").AppendUDP(nil, []byte("anybody?")))
	there := received(bytes.Clone(sent))
	if a := n.arriving(there, begin); a != inject || there.Src().String() != "192.0.2.1:5000" || there.Dst().String() != "10.0.0.3:6000" {
		t.Fatalf("%v: %v > %v", a, there.Src(), there.Dst())
	}
	p := received(must(t)(ends("10.0.0.3:0", "192.0.2.1:0").AppendICMP(nil, 3, 3, 0, there.Data)))
	if a := n.arriving(p, begin); a != inject {
		t.Fatal(a)
	}
	h := whole(t, p)
	packet.IPv4(sent).SetTTL(packet.IPv4(there.Data).TTL())
	packet.IPv4(sent).SetChecksum(0)
	quoted := bytes.Clone(h.Payload(p.Data))
	packet.IPv4(quoted).SetChecksum(0)
	if p.Src().Addr() != n.addr || p.Dst().String() != "10.0.0.2:0" || !bytes.Equal(quoted, sent) {
		t.Errorf("%v to %v quotes\n% x, want\n% x", p.Src(), p.Dst(), quoted, sent)
	}
}

// TestIdentification: the same identification of two hosts becomes two outside; a packet that may not be fragmented
// keeps its own.
func TestIdentification(t *testing.T) {
	n := testNAT(t)
	seen := map[uint16]bool{}
	for range 3 {
		for _, host := range []string{"10.0.0.2:5000", "10.0.0.3:5000"} {
			for _, df := range []bool{false, true} {
				h := ends(host, "198.51.100.1:53")
				h.DF = df
				p := received(must(t)(h.AppendUDP(nil, []byte("data"))))
				if a := n.leaving(p, begin); a != send {
					t.Fatal(a)
				}
				whole(t, p)
				if id := packet.IPv4(p.Data).ID(); df && id != 7 || !df && seen[id] {
					t.Errorf("from %s, DF %v: %d, after %v", host, df, id, seen)
				} else if !df {
					seen[id] = true
				}
			}
		}
	}
}

// TestUnsolicited: an unsolicited SYN is answered after 6 s, by an ICMP error. It is not answered if a socket of the
// NAT's host takes it, or if the endpoint opens the connection meanwhile, which is then open both ways.
func TestUnsolicited(t *testing.T) {
	const near, nat, far = "10.0.0.2:5000", "192.0.2.1:5000", "198.51.100.1:6000"
	type step struct {
		after    time.Duration // since the beginning
		src, dst string
		flags    packet.TCPFlags
		want     action
	}
	syn := func(after time.Duration, want action) step { return step{after, far, nat, packet.TCPSyn, want} }
	reset := func(want action) step { return step{0, nat, far, packet.TCPRst | packet.TCPAck, want} }
	// The endpoint has a port with another host.
	mapped := step{0, near, "203.0.113.1:80", packet.TCPSyn, send}
	for name, row := range map[string]struct {
		steps []step
		want  time.Duration // time of the answer; 0: never
	}{
		"no mapping, nobody there":      {[]step{syn(0, accept), reset(drop)}, patient},
		"sent again":                    {[]step{syn(0, accept), reset(drop), syn(time.Second, accept), reset(drop)}, patient},
		"a socket of the host":          {[]step{syn(0, accept), {0, far, nat, packet.TCPAck, acceptFlow}}, 0},
		"which resets it":               {[]step{syn(0, accept), {0, far, nat, packet.TCPAck, acceptFlow}, reset(accept)}, 0},
		"the host says nothing":         {[]step{syn(0, accept)}, 0},
		"another reset of the host":     {[]step{syn(0, accept), {0, nat, "198.51.100.1:6001", packet.TCPRst, accept}}, 0},
		"a mapping, for others":         {[]step{mapped, syn(0, drop)}, patient},
		"both open it":                  {[]step{syn(0, accept), reset(drop), {time.Second, near, far, packet.TCPSyn, send}, syn(time.Second, send)}, 0},
		"both, before the host's reset": {[]step{syn(0, accept), {0, near, far, packet.TCPSyn, send}, reset(drop), syn(time.Second, send)}, 0},
		"both open it, with a mapping":  {[]step{mapped, syn(0, drop), {time.Second, near, far, packet.TCPSyn, send}, syn(time.Second, send)}, 0},
		"it opens another one":          {[]step{mapped, syn(0, drop), {time.Second, near, "203.0.113.1:81", packet.TCPSyn, send}}, patient},
		"too late":                      {[]step{syn(0, accept), reset(drop), {patient, near, "203.0.113.1:81", packet.TCPSyn, send}}, patient},
		"no SYN":                        {[]step{mapped, {0, far, nat, packet.TCPAck, drop}}, 0},
		"a forwarded port":              {[]step{{0, far, "192.0.2.1:8080", packet.TCPSyn, send}}, 0},
		"from behind, by the hairpin":   {[]step{mapped, {0, "10.0.0.3:6000", nat, packet.TCPSyn, drop}}, patient},
		"both, by the hairpin":          {[]step{mapped, {0, "10.0.0.3:6000", nat, packet.TCPSyn, drop}, {0, near, "192.0.2.1:6000", packet.TCPSyn, inject}}, 0},
		"the NAT's own, from behind it": {[]step{{0, "10.0.0.3:6000", nat, packet.TCPSyn, accept}, {0, nat, "10.0.0.3:6000", packet.TCPRst, accept}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := testNAT(t)
			var first *divert.Packet
			for i, s := range row.steps {
				p := received(must(t)(ends(s.src, s.dst).AppendTCP(nil, packet.Segment{Flags: s.flags}, nil)))
				if first == nil && s.flags == packet.TCPSyn && s.dst == nat {
					first = received(bytes.Clone(p.Data))
				}
				var got action
				switch now := begin.Add(s.after); {
				case p.Src().Addr() == n.addr:
					got = n.own(p)
				case p.Dst().Addr() == n.addr:
					got = n.arriving(p, now)
				default:
					got = n.leaving(p, now)
				}
				if got != s.want {
					t.Fatalf("step %d: %v, want %v", i, got, s.want)
				}
			}
			if early := n.syns.due(begin.Add(patient - 1)); len(early) != 0 {
				t.Errorf("answered before its time: % x", early)
			}
			answers := n.syns.due(begin.Add(patient))
			if row.want == 0 {
				if len(answers) != 0 {
					t.Errorf("answered: % x", answers)
				}
			} else if len(answers) != 1 {
				t.Errorf("%d answers", len(answers))
			} else {
				p := received(answers[0])
				h := whole(t, p)
				icmp := h.ICMP(p.Data)
				if icmp == nil || icmp.Type() != 3 || icmp.Code() != 3 || p.Src().Addr() != n.addr || p.Dst().Addr() != first.Src().Addr() || !bytes.HasPrefix(first.Data, h.Payload(p.Data)) {
					t.Errorf("answered % x", p.Data)
				}
			}
			if more := n.syns.due(begin.Add(time.Hour)); len(more)+len(n.syns.byPair)+len(n.syns.queue) != 0 {
				t.Errorf("left: %d answers, %d, %d", len(more), len(n.syns.byPair), len(n.syns.queue))
			}
		})
	}
}

// TestManyUnsolicited: only mostSYNs wait; the host answers the others itself.
func TestManyUnsolicited(t *testing.T) {
	n := testNAT(t)
	for i := range 2 * mostSYNs {
		far := fmt.Sprintf("198.51.100.1:%d", 1000+i)
		if a := n.arriving(received(must(t)(ends(far, "192.0.2.1:5000").AppendTCP(nil, packet.Segment{Flags: packet.TCPSyn}, nil))), begin); a != accept {
			t.Fatal(a)
		}
		want := drop
		if i >= mostSYNs {
			want = accept
		}
		if a := n.own(received(must(t)(ends("192.0.2.1:5000", far).AppendTCP(nil, packet.Segment{Flags: packet.TCPRst}, nil)))); a != want {
			t.Fatalf("the reset of SYN %d: %v", i, a)
		}
	}
	if got := len(n.syns.due(begin.Add(patient))); got != mostSYNs {
		t.Errorf("%d are answered", got)
	}
}

// TestOthers: packets that cannot be translated are refused on the way out, and are the NAT's own on the way in.
func TestOthers(t *testing.T) {
	n := testNAT(t)
	esp := must(t)(ends("10.0.0.2:1", "198.51.100.1:2").AppendUDP(nil, nil))
	packet.IPv4(esp).SetProtocol(50)
	if a := n.leaving(received(esp), begin); a != refuse {
		t.Errorf("another protocol, out: %v", a)
	}
	packet.IPv4(esp).SetDst(n.addr)
	if a := n.arriving(received(esp), begin); a != accept {
		t.Errorf("another protocol, in: %v", a)
	}
	own := received(must(t)(ends("198.51.100.1:80", "192.0.2.1:4000").AppendTCP(nil, packet.Segment{Flags: packet.TCPAck}, nil)))
	if a := n.arriving(own, begin); a != acceptFlow {
		t.Errorf("the NAT's own: %v", a)
	}
}

// FuzzNAT: whatever arrives on either side, everything sent on is a valid packet, and none leaves with an address from
// behind the NAT.
func FuzzNAT(f *testing.F) {
	for _, h := range []*packet.Header{ends("10.0.0.2:5000", "198.51.100.1:53"), ends("198.51.100.1:53", "192.0.2.1:5000"), ends("10.0.0.2:1", "192.0.2.1:8080"),
		ends("[fd00:1::2]:1", "[2001:db8::1]:2"), ends("[2001:db8::1]:2", "[2001:db8:1:0:cfbe::2]:1")} {
		udp := must(f)(h.AppendUDP(nil, []byte("data")))
		f.Add(udp, uint8(0))
		f.Add(must(f)(h.AppendTCP(nil, packet.Segment{Flags: packet.TCPSyn}, nil)), uint8(1))
		f.Add(must(f)(h.AppendICMP(nil, 3, 4, 1400, udp)), uint8(2))
		f.Add(must(f)(h.AppendICMP(nil, 8, 0, 1, nil)), uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, way uint8) {
		n := testNAT(t)
		known := received(must(t)(ends("10.0.0.2:5000", "198.51.100.1:53").AppendUDP(nil, nil)))
		n.leaving(known, begin)
		p := received(bytes.Clone(b))
		var a action
		switch way % 3 {
		case 0:
			a = n.leaving(p, begin)
		case 1:
			a = n.arriving(p, begin)
		case 2:
			a = n.own(p)
		}
		if a != send && a != inject && a != route {
			return
		}
		var h packet.Parsed
		if !h.ParseExact(p.Data) || len(p.Data) != len(b) {
			t.Fatalf("sent % x", p.Data)
		}
		if way%3 == 0 && h.Family == 4 && p.Src().Addr() != n.addr {
			t.Errorf("leaves from %v", p.Src())
		}
	})
}

// BenchmarkLeaving measures a packet of 1,400 bytes.
func BenchmarkLeaving(b *testing.B) {
	n := testNAT(b)
	data := must(b)(ends("10.0.0.2:5000", "198.51.100.1:53").AppendUDP(nil, make([]byte, 1400)))
	p := received(bytes.Clone(data))
	b.ReportAllocs()
	for b.Loop() {
		copy(p.Data, data)
		if a := n.leaving(p, begin); a != send {
			b.Fatal(a)
		}
	}
}
