package table

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/packet"
)

// local simulates the sockets of the NAT's host, which have some ports, and counts the ports held.
type local struct {
	taken map[port]bool
	held  map[port]bool
}

func (l *local) Hold(protocol uint8, number uint16) (func(), bool) {
	p := port{protocol, number}
	if l.taken[p] || l.held[p] {
		return nil, false
	}
	l.held[p] = true
	return func() { delete(l.held, p) }, true
}

func testTable(l Limits, taken ...port) (*Table, *local) {
	ports := &local{map[port]bool{}, map[port]bool{}}
	for _, p := range taken {
		ports.taken[p] = true
	}
	return New(l, ports, rand.New(rand.NewPCG(1, 2)).IntN), ports
}

func at(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

var (
	roomy = Limits{Mappings: 1 << 16, PerHost: 1 << 16, Sessions: 1 << 16}
	begin = time.Unix(1e9, 0)
	host  = at("10.0.0.2:5001")
	far   = at("198.51.100.1:53")
)

// TestMapping: an endpoint has one port for all remote hosts, its own if that is free; two endpoints have two.
func TestMapping(t *testing.T) {
	tab, ports := testTable(roomy, port{UDP, 7001})
	for _, remote := range []string{"198.51.100.1:53", "198.51.100.1:54", "198.51.100.2:53"} {
		if got, fresh, err := tab.Out(UDP, host, at(remote), 0, begin); got != 5001 || !fresh || err != nil {
			t.Errorf("to %s: %d, %v, %v", remote, got, fresh, err)
		}
	}
	if _, fresh, _ := tab.Out(UDP, host, far, 0, begin); fresh {
		t.Error("the session is new again")
	}
	for _, other := range []struct {
		inside string
		low    bool
	}{{"10.0.0.3:5001", false}, {"10.0.0.4:5001", false}, {"10.0.0.4:7001", false}, {"10.0.0.5:80", true}, {"10.0.0.6:80", true}, {"10.0.0.7:81", true}} {
		inside := at(other.inside)
		got, _, err := tab.Out(UDP, inside, far, 0, begin)
		if err != nil || got&1 != inside.Port()&1 || got < 1024 != other.low {
			t.Errorf("%v has port %d, %v: another parity or range", inside, got, err)
		}
		if back, ok := tab.Behind(UDP, got); !ok || back != inside {
			t.Errorf("behind port %d is %v", got, back)
		}
	}
	if tab.Len() != 7 || len(ports.held) != 7 {
		t.Errorf("%d mappings hold %d ports", tab.Len(), len(ports.held))
	}
	if tab.Close(); tab.Len() != 0 || len(ports.held) != 0 {
		t.Errorf("in the end %d mappings hold %d ports", tab.Len(), len(ports.held))
	}
}

// TestFiltering: only hosts to which the endpoint has sent may send to it, from any port; to a forwarded port everybody
// may.
func TestFiltering(t *testing.T) {
	tab, _ := testTable(roomy)
	if _, _, err := tab.Out(UDP, host, far, 0, begin); err != nil {
		t.Fatal(err)
	}
	if err := tab.Forward(TCP, 8080, at("10.0.0.9:80")); err != nil {
		t.Fatal(err)
	}
	if tab.Forward(TCP, 8080, host) == nil || tab.Forward(TCP, 8081, at("10.0.0.9:80")) == nil {
		t.Error("two forwards of one")
	}
	for _, row := range []struct {
		protocol uint8
		number   uint16
		from     string
		want     Verdict
	}{
		{UDP, 5001, "198.51.100.1:53", Mapped}, {UDP, 5001, "198.51.100.1:9", Mapped}, {UDP, 5001, "198.51.100.2:53", Filtered},
		{TCP, 5001, "198.51.100.1:53", Unknown}, {UDP, 5002, "198.51.100.1:53", Unknown}, {TCP, 8080, "198.51.100.9:9", Mapped},
	} {
		if _, got := tab.In(row.protocol, row.number, at(row.from), 0, begin); got != row.want {
			t.Errorf("%+v: %v", row, got)
		}
	}
	if got, _, err := tab.Out(TCP, at("10.0.0.9:80"), at("198.51.100.9:9"), 0, begin.Add(time.Hour)); got != 8080 || err != nil {
		t.Errorf("the answer has port %d, %v", got, err)
	}
}

// TestTimeouts checks when mappings end.
func TestTimeouts(t *testing.T) {
	const syn, ack, fin, rst = packet.TCPSyn, packet.TCPAck, packet.TCPFin | packet.TCPAck, packet.TCPRst
	type step struct {
		in    bool
		flags packet.TCPFlags
	}
	for name, row := range map[string]struct {
		protocol uint8
		steps    []step
		want     time.Duration // after the last step, or the last outbound one
	}{
		"UDP":                      {UDP, []step{{false, 0}}, UDPIdle},
		"UDP, prolonged from here": {UDP, []step{{false, 0}, {false, 0}}, UDPIdle},
		"UDP, not from there":      {UDP, []step{{false, 0}, {true, 0}}, UDPIdle - time.Second},
		"echo":                     {ICMP, []step{{false, 0}, {true, 0}}, ICMPIdle - time.Second},
		"SYN":                      {TCP, []step{{false, syn}}, TCPTransitory},
		"established":              {TCP, []step{{false, syn}, {true, syn | ack}, {false, ack}}, TCPEstablished},
		"one FIN":                  {TCP, []step{{false, syn}, {true, syn | ack}, {false, fin}}, TCPEstablished},
		"two FINs":                 {TCP, []step{{false, syn}, {true, syn | ack}, {false, fin}, {true, fin}}, TCPTransitory},
		"reset":                    {TCP, []step{{false, syn}, {true, syn | ack}, {true, rst}}, TCPTransitory},
		"on after a reset":         {TCP, []step{{false, syn}, {true, syn | ack}, {true, rst}, {false, ack}}, TCPEstablished},
		"resets prolong nothing":   {TCP, []step{{false, syn}, {true, syn | ack}, {true, rst}, {false, rst}, {true, rst}}, TCPTransitory - 2*time.Second},
		"a reset of what opens":    {TCP, []step{{false, syn}, {false, rst}}, TCPTransitory - time.Second},
		"again":                    {TCP, []step{{false, syn}, {true, rst}, {false, syn}, {true, syn | ack}, {false, ack}}, TCPEstablished},
	} {
		t.Run(name, func(t *testing.T) {
			tab, _ := testTable(roomy)
			now := begin
			for _, s := range row.steps {
				now = now.Add(time.Second)
				if s.in {
					if _, v := tab.In(row.protocol, host.Port(), far, s.flags, now); v != Mapped {
						t.Fatal(v)
					}
				} else if _, _, err := tab.Out(row.protocol, host, far, s.flags, now); err != nil {
					t.Fatal(err)
				}
			}
			if tab.Expire(now.Add(row.want - 1)); tab.Len() != 1 {
				t.Error("it ended too early")
			}
			if tab.Expire(now.Add(row.want)); tab.Len() != 0 {
				t.Error("it did not end")
			}
		})
	}
}

// TestManyEnd: 10,000 mappings end, and leave nothing behind.
func TestManyEnd(t *testing.T) {
	tab, ports := testTable(roomy)
	for i := range 10_000 {
		inside := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5000)
		if _, _, err := tab.Out(UDP, inside, far, 0, begin.Add(time.Duration(i)*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	if tab.Expire(begin.Add(UDPIdle + 4999*time.Millisecond)); tab.Len() != 5000 {
		t.Errorf("%d left of 10,000, want half", tab.Len())
	}
	if tab.Expire(begin.Add(UDPIdle + 10*time.Second)); tab.Len()+len(tab.inside)+len(tab.hosts)+len(ports.held) != 0 {
		t.Errorf("left: %d mappings, %d endpoints, %d hosts, %d ports", tab.Len(), len(tab.inside), len(tab.hosts), len(ports.held))
	}
}

// TestExhaustion: each limit refuses exactly the excess; so does a lack of ports.
func TestExhaustion(t *testing.T) {
	tab, _ := testTable(Limits{Mappings: 3, PerHost: 2, Sessions: 2})
	for i, row := range []struct {
		inside, remote string
		full           bool
	}{
		{"10.0.0.2:1", "198.51.100.1:1", false}, {"10.0.0.2:1", "198.51.100.1:2", false}, {"10.0.0.2:1", "198.51.100.1:3", true},
		{"10.0.0.2:2", "198.51.100.1:1", false}, {"10.0.0.2:3", "198.51.100.1:1", true},
		{"10.0.0.3:1", "198.51.100.1:1", false}, {"10.0.0.4:1", "198.51.100.1:1", true}, {"10.0.0.2:1", "198.51.100.1:1", false},
	} {
		if _, _, err := tab.Out(UDP, at(row.inside), at(row.remote), 0, begin); errors.Is(err, ErrFull) != row.full {
			t.Errorf("%d: %v", i, err)
		}
	}
	tab, _ = testTable(roomy)
	for i := range 511 { // the even ports below 1024, except 0
		if _, _, err := tab.Out(UDP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80), far, 0, begin); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if _, _, err := tab.Out(UDP, at("10.2.0.1:80"), far, 0, begin); !errors.Is(err, ErrFull) {
		t.Errorf("a port more than there are: %v", err)
	}
}

// model is a plain version of Table: lists, searched from end to end for each question.
type model struct {
	l        Limits
	mappings []modelMapping
}

type modelMapping struct {
	k        key
	number   uint16
	sessions []modelSession
}

type modelSession struct {
	remote netip.AddrPort
	ends   time.Time
}

func (m *model) find(match func(modelMapping) bool) *modelMapping {
	if i := slices.IndexFunc(m.mappings, match); i >= 0 {
		return &m.mappings[i]
	}
	return nil
}

func (m *modelMapping) session(remote netip.AddrPort) *modelSession {
	if i := slices.IndexFunc(m.sessions, func(s modelSession) bool { return s.remote == remote }); i >= 0 {
		return &m.sessions[i]
	}
	return nil
}

// FuzzTable: a table answers like the model for any sequence of calls, for UDP and echoes. TestTimeouts covers the
// states of TCP.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 2, 0, 9, 3, 200, 0, 0, 0, 0, 1, 0, 0})
	f.Add([]byte{0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 5, 0, 0, 7, 0, 1, 1, 1, 3, 255, 0, 3, 255, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		taken := port{UDP, 4000}
		tab, ports := testTable(Limits{Mappings: 6, PerHost: 3, Sessions: 2}, taken)
		m := &model{l: tab.limits}
		now := begin
		for ; len(ops) >= 3; ops = ops[3:] {
			protocol, idle := uint8(UDP), UDPIdle
			if ops[1]&0x80 != 0 {
				protocol, idle = ICMP, ICMPIdle
			}
			inside := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, ops[1] & 3}), 4000+uint16(ops[1]>>2&7))
			remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, ops[2] & 3}), uint16(ops[2]>>2&3))
			k := key{protocol, inside}
			switch ops[0] % 4 {
			case 0:
				number, _, err := tab.Out(protocol, inside, remote, 0, now)
				m.out(t, k, remote, number, err, taken, now.Add(idle))
			case 1:
				number := uint16(4000 + int(ops[1]&15))
				to, verdict := tab.In(protocol, number, remote, 0, now)
				want := m.find(func(e modelMapping) bool { return e.k.protocol == protocol && e.number == number })
				switch {
				case want == nil && verdict == Unknown:
				case want == nil || verdict == Unknown,
					slices.ContainsFunc(want.sessions, func(s modelSession) bool { return s.remote.Addr() == remote.Addr() }) != (verdict == Mapped),
					verdict == Mapped && to != want.k.at:
					t.Fatalf("to port %d from %v: %v, verdict %d; the model has %+v", number, remote, to, verdict, want)
				}
			case 2:
				now = now.Add(time.Duration(ops[1]) * time.Second)
			case 3:
				tab.Expire(now)
				for i := range m.mappings {
					m.mappings[i].sessions = slices.DeleteFunc(m.mappings[i].sessions, func(s modelSession) bool { return !s.ends.After(now) })
				}
				m.mappings = slices.DeleteFunc(m.mappings, func(e modelMapping) bool { return len(e.sessions) == 0 })
			}
			held := len(ports.held)
			for _, e := range m.mappings {
				if got, ok := tab.PortOf(e.k.protocol, e.k.at); !ok || got != e.number {
					t.Fatalf("%v has port %d, %v; the model %d", e.k, got, ok, e.number)
				}
			}
			if tab.Len() != len(m.mappings) || held != len(m.mappings) {
				t.Fatalf("%d mappings hold %d ports; the model has %d", tab.Len(), held, len(m.mappings))
			}
		}
	})
}

// out follows Table.Out, and checks the port that it chose.
func (m *model) out(t *testing.T, k key, remote netip.AddrPort, number uint16, err error, taken port, ends time.Time) {
	t.Helper()
	e := m.find(func(e modelMapping) bool { return e.k == k })
	of := 0 // number of mappings of the host
	for _, other := range m.mappings {
		if other.k.at.Addr() == k.at.Addr() {
			of++
		}
	}
	full := e == nil && (len(m.mappings) >= m.l.Mappings || of >= m.l.PerHost) ||
		e != nil && e.session(remote) == nil && len(e.sessions) >= m.l.Sessions
	if full != (err != nil) {
		t.Fatalf("%v to %v: %v; the model is full: %v", k, remote, err, full)
	}
	if full {
		return
	}
	if e == nil {
		free := func(n uint16) bool {
			return (port{k.protocol, n}) != taken && m.find(func(e modelMapping) bool { return e.k.protocol == k.protocol && e.number == n }) == nil
		}
		own := k.at.Port()
		if !free(number) || free(own) && number != own || k.protocol == UDP && (number&1 != own&1 || number < 1024) {
			t.Fatalf("%v has got port %d", k, number)
		}
		m.mappings = append(m.mappings, modelMapping{k: k, number: number})
		e = &m.mappings[len(m.mappings)-1]
	}
	if number != e.number {
		t.Fatalf("%v has port %d; before it was %d", k, number, e.number)
	}
	s := e.session(remote)
	if s == nil {
		e.sessions = append(e.sessions, modelSession{remote: remote})
		s = &e.sessions[len(e.sessions)-1]
	}
	s.ends = ends
}

// TestPrefixes: the example of RFC 6296 section 3.4 and similar ones, both ways.
func TestPrefixes(t *testing.T) {
	for _, row := range []struct{ inside, outside, a, b string }{
		{"fd01:203:405::/48", "2001:db8:1::/48", "fd01:203:405:1::1234", "2001:db8:1:d550::1234"},
		{"fd77:1::/64", "2001:db8:1::/64", "fd77:1::2", "2001:db8:1:0:cfbe::2"},
	} {
		p, err := NewPrefixes(netip.MustParsePrefix(row.inside), netip.MustParsePrefix(row.outside))
		if err != nil {
			t.Fatal(err)
		}
		a, b := netip.MustParseAddr(row.a), netip.MustParseAddr(row.b)
		if got, ok := p.Out(a); !ok || got != b {
			t.Errorf("%v: %v, want %v", a, got, b)
		}
		if got, ok := p.In(b); !ok || got != a {
			t.Errorf("%v: %v, want %v", b, got, a)
		}
		if got, ok := p.Out(b); ok {
			t.Errorf("%v is not inside: %v", b, got)
		}
	}
	for _, pair := range [][2]string{{"fd00::/48", "2001:db8::/47"}, {"fd00::1/48", "2001:db8::/48"}, {"10.0.0.0/8", "2001:db8::/48"}, {"fd00::/96", "2001:db8::/96"}} {
		if _, err := NewPrefixes(netip.MustParsePrefix(pair[0]), netip.MustParsePrefix(pair[1])); err == nil {
			t.Errorf("%v is taken", pair)
		}
	}
}

// FuzzPrefixes: every address translates back to itself, and its sum is kept.
func FuzzPrefixes(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), uint8(48))
	f.Add([]byte{15: 1}, uint8(64))
	f.Fuzz(func(t *testing.T, b []byte, bits uint8) {
		if len(b) < 16 || bits < 1 || bits > 64 {
			return
		}
		cut := func(text string) netip.Prefix {
			return netip.PrefixFrom(netip.MustParseAddr(text), int(bits)).Masked()
		}
		p, err := NewPrefixes(cut("fd12:3456:789a:bcde::"), cut("2001:db8:1234:5678::"))
		if err != nil {
			t.Fatal(err)
		}
		// An address with these bytes after the prefix.
		raw := [16]byte(b)
		inside := p.inside.Addr().As16()
		for i := range int(bits) {
			bit := byte(0x80) >> (i % 8)
			raw[i/8] = raw[i/8]&^bit | inside[i/8]&bit
		}
		a := netip.AddrFrom16(raw)
		out, ok := p.Out(a)
		if !ok {
			return
		}
		back, ok := p.In(out)
		o := out.As16()
		if !p.outside.Contains(out) || packet.Sum(raw[:], 0)%0xFFFF != packet.Sum(o[:], 0)%0xFFFF {
			t.Errorf("%v became %v", a, out)
		}
		if !ok || back != a {
			t.Errorf("%v became %v and then %v, %v", a, out, back, ok)
		}
	})
}

// BenchmarkOut measures a packet of a known session among 10,000 mappings.
func BenchmarkOut(b *testing.B) {
	tab, _ := testTable(roomy)
	for i := range 10_000 {
		inside := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5000)
		if _, _, err := tab.Out(UDP, inside, far, 0, begin); err != nil {
			b.Fatal(err)
		}
	}
	inside := at("10.0.1.1:5000")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := tab.Out(UDP, inside, far, 0, begin); err != nil {
			b.Fatal(err)
		}
	}
}
