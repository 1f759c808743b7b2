package filter

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// elements reads elements, several a line.
func elements(t testing.TB, text string) []Element {
	t.Helper()
	all, err := ReadElements(strings.NewReader(strings.Join(strings.Fields(text), "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// datagram makes a datagram of UDP with one byte, an x.
func datagram(from, to string) []byte {
	h := packet.Header{Src: netip.MustParseAddrPort(from), Dst: netip.MustParseAddrPort(to)}
	b, err := h.AppendUDP(nil, []byte("x"))
	if err != nil {
		panic(err)
	}
	return b
}

// items of the tests of named sets.
var (
	itemUDP4 = datagram("192.0.2.1:1000", "198.51.100.7:53")
	itemUDP6 = datagram("[2001:db8::1]:1000", "[2001:db8:1::7]:53")
)

// TestNamedSetsMatch checks which items match as sets change.
func TestNamedSetsMatch(t *testing.T) {
	for _, row := range []struct {
		filter, members string
		four, six       bool
	}{
		{"ip.DstAddr in @s", "", false, false},
		{"ip.DstAddr not in @s", "", true, false},
		{"ip.DstAddr in @s", "198.51.100.0/24", true, false},
		{"not ip.DstAddr in @s", "198.51.100.0/24", false, false},
		{"not (ip.DstAddr in @s)", "198.51.100.0/24", false, true},
		{"ip.DstAddr not in @s", "198.51.100.0-198.51.100.6", true, false},
		{"ipv6.DstAddr in @s", "2001:db8:1::/48", false, true},
		{"ipv6.DstAddr in @s", "::/0", false, true},
		{"remoteAddr in @s", "::/0", true, true},
		{"remoteAddr in @s", "::-::fffe:ffff:ffff ::1:0:0:0-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false, true},
		{"remoteAddr in @s", "0.0.0.0/0", true, false},
		{"remoteAddr in @s", "::ffff:198.51.100.7", true, false},
		{"udp.DstPort in @s", "52-54", true, true},
		{"udp.DstPort in @s", "0x35", true, true},
		{"udp.DstPort not in @s", "1-52 54", true, true},
		{"tcp.DstPort not in @s", "", false, false},
		{"packet[-1] in @s", "0x78", true, true},
		{"length in @s", "20-40", true, false},
		{"timestamp in @s", "0-18446744073709551615", true, true},
		{"timestamp in @s", "5000000000-6000000000", true, true},
		{"timestamp in @s", "0-4294967295 6000000000-18446744073709551615", false, false},
		{"ip.SrcAddr in @s or ip.DstAddr in @s", "198.51.100.7", true, false},
	} {
		p, err := Compile(row.filter, packet.LayerNetwork, Extended)
		ok(t, err)
		if names := p.Sets(); !slices.Equal(names, []string{"s"}) || p.Set("other") != nil {
			t.Errorf("%s: sets %q", row.filter, names)
		}
		ok(t, p.Set("s").Add(elements(t, row.members)...))
		a := packet.Address{Outbound: true, Timestamp: 5_500_000_000}
		six := a
		six.IPv6 = true
		if four, six := p.Match(itemUDP4, &a), p.Match(itemUDP6, &six); four != row.four || six != row.six {
			t.Errorf("%s with %s: got %v, %v, want %v, %v", row.filter, row.members, four, six, row.four, row.six)
		}
		text, err := p.Format()
		ok(t, err)
		again, err := Compile(text, packet.LayerNetwork, Extended)
		if err != nil || again.String() != text {
			t.Errorf("%s: became %s, then %v, %v", row.filter, text, again, err)
		}
		if _, err := p.Object(); err == nil || !strings.Contains(err.Error(), "@s") {
			t.Errorf("%s: object: %v", row.filter, err)
		}
	}
}

func TestNegativeTimestampIsInNoSet(t *testing.T) {
	p, err := Compile("timestamp in @s", packet.LayerNetwork, Extended)
	ok(t, err)
	ok(t, p.Set("s").Add(NumberRange(0, 1<<64-1)))
	if p.Match(itemUDP4, &packet.Address{Timestamp: -5}) || !p.Match(itemUDP4, &packet.Address{Timestamp: 5}) {
		t.Error("of the timestamps -5 and 5 only the second is to match")
	}
}

// TestSetFields checks which fields take named sets, and of which kind.
func TestSetFields(t *testing.T) {
	for _, info := range Fields() {
		for _, layer := range info.Layers {
			field := info.Name
			if info.Size > 0 {
				field += "[0]"
			}
			p, err := Compile(field+" in @s", layer, Extended)
			f := prog.Field(words[info.Name].field)
			if takes := f.TakesNamed(); takes != (err == nil) {
				t.Errorf("%s: %v", field, err)
			} else if takes && p.Set("s").HasAddresses() != f.HasAddresses() {
				t.Errorf("%s: set of addresses: %v", field, p.Set("s").HasAddresses())
			}
		}
	}
}

// TestBuiltNamedSets: expressions name sets as texts do.
func TestBuiltNamedSets(t *testing.T) {
	e := RemoteAddr.InSet("blocked").And(TCPDstPort.InSet("ports").Or(IPSrcAddr.InSet("blocked")), Timestamp.InSet("t").Not())
	const want = "remoteAddr in @blocked and (tcp.DstPort in @ports or ip.SrcAddr in @blocked) and not (timestamp in @t)"
	if e.String() != want {
		t.Errorf("got %s", e)
	}
	p, err := e.Compile(packet.LayerNetwork)
	ok(t, err)
	q, err := Compile(want, packet.LayerNetwork, Extended)
	ok(t, err)
	if p.String() != q.String() || !slices.Equal(p.Sets(), []string{"blocked", "ports", "t"}) {
		t.Errorf("got %v with %q, want %v", p, p.Sets(), q)
	}
	for name, e := range map[string]Expr{
		"names are of letters":   RemoteAddr.InSet("a b"),
		"names are of letters,":  RemoteAddr.InSet(""),
		"names are of letters, ": RemoteAddr.InSet("a."),
		"two sets":               RemoteAddr.InSet("a").And(RemotePort.InSet("a")),
	} {
		if _, err := e.Compile(packet.LayerNetwork); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%v: %v", e, err)
		}
	}
}

// TestWithSets: programs share the sets given to them, and keep their own others.
func TestWithSets(t *testing.T) {
	p, err := Compile("remoteAddr in @a and remotePort in @b", packet.LayerNetwork, Extended)
	ok(t, err)
	shared := NewAddressSet()
	q, err := p.WithSets(map[string]*Set{"a": shared, "unknown": NewNumberSet()})
	ok(t, err)
	if q.Set("a") != shared || q.Set("b") != p.Set("b") || p.Set("a") == shared {
		t.Error("the sets are not those that were given, and the others those that there were")
	}
	ok(t, q.Set("b").Add(NumberElement(53)))
	ok(t, shared.Add(Address(netip.MustParseAddr("198.51.100.7"))))
	a := packet.Address{Outbound: true}
	if p.Match(itemUDP4, &a) || !q.Match(itemUDP4, &a) {
		t.Error("the second program is to match, the first is not")
	}
	if _, err := p.WithSets(map[string]*Set{"a": NewNumberSet()}); !errors.Is(err, ErrSetKind) || !strings.Contains(err.Error(), "@a") {
		t.Errorf("a set of numbers for addresses: %v", err)
	}
}

// TestSetElements reads elements, and writes them.
func TestSetElements(t *testing.T) {
	for _, row := range []struct{ text, is string }{
		{"192.0.2.1", ""}, {"192.0.2.0/24", ""}, {"192.0.2.1-192.0.2.9", ""}, {"192.0.2.0-192.0.2.255", "192.0.2.0/24"},
		{"2001:db8::/32", ""}, {"2001:db8::1-2001:db8::5", ""}, {"::ffff:192.0.2.1", "192.0.2.1"}, {"::/0", ""}, {"0.0.0.0/0", ""},
		{"80", ""}, {"0x50", "80"}, {"8000-8999", ""}, {"0-18446744073709551615", ""},
		{"", "<neither an address nor a number"}, {"a", "<neither"}, {"-5", "<neither"}, {"5-", "<neither"}, {"80-70", "<ends before it starts"},
		{"18446744073709551616", "<neither"}, {"192.0.2.1/24", "<192.0.2.0/24"}, {"192.0.2.0/33", "<not a prefix"}, {"192.0.2.9-192.0.2.1", "<ends before"},
		{"192.0.2.9-::1", "<IP version"}, {"fe80::1%eth0", "<zone"}, {"192.0.2.1-5", "<not an address"}, {"192.0.2.1 192.0.2.2", "<neither"},
	} {
		e, err := ParseElement(row.text)
		if want, fails := strings.CutPrefix(row.is, "<"); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %v, %v, want an error with %q", row.text, e, err, want)
			}
			continue
		}
		want := row.is
		if want == "" {
			want = row.text
		}
		if err != nil || e.String() != want {
			t.Errorf("%q: got %v, %v, want %s", row.text, e, err, want)
		}
	}
	for _, e := range []Element{{}, Address(netip.Addr{}), Prefix(netip.Prefix{}), NumberRange(2, 1)} {
		if s := NewAddressSet(); e.Err() == nil || s.Add(e) == nil || s.Remove(e) == nil || s.Replace([]Element{e}) == nil {
			t.Errorf("%v is no element", e)
		}
	}
	if err := NewAddressSet().Add(NumberElement(80)); !errors.Is(err, ErrSetKind) {
		t.Errorf("a number among addresses: %v", err)
	}
}

// TestSetsAreValues: a removed value is gone, whatever element added it.
func TestSetsAreValues(t *testing.T) {
	s := NewAddressSet()
	ok(t, s.Add(elements(t, "10.0.0.0/8 2001:db8::/32")...))
	ok(t, s.Remove(elements(t, "10.0.0.0/9 10.200.0.1 192.0.2.1")...))
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	const want = "10.128.0.0-10.200.0.0\n10.200.0.2-10.255.255.255\n2001:db8::/32\n"
	if err != nil || b.String() != want || n != int64(len(want)) {
		t.Errorf("got %d bytes, %v:\n%s", n, err, &b)
	}
	for text, want := range map[string]bool{"10.200.0.0": true, "10.200.0.1": false, "2001:db8::5": true, "::ffff:10.200.0.2": true} {
		if got := s.Contains(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: got %v", text, got)
		}
	}
	if s.Contains(netip.Addr{}) || s.ContainsNumber(80) {
		t.Error("no address, or a number, is in a set of addresses")
	}
}

func TestReadElementsTellsTheLine(t *testing.T) {
	for _, row := range []struct {
		text string
		n    int // elements, or the line of the error, negative
		says string
	}{
		{"# a list\n\n 192.0.2.0/24  # a network\r\n2001:db8::1\n", 2, ""},
		{"", 0, ""},
		{"192.0.2.1\n\nx\n", -3, `"x" is neither`},
		{"192.0.2.1\n192.0.2.1, 192.0.2.2", -2, "neither"},
		{"\n" + strings.Repeat("1", 1<<17), -2, "longer"},
	} {
		all, err := ReadElements(strings.NewReader(row.text))
		var line *LineError
		switch {
		case row.n >= 0 && (err != nil || len(all) != row.n):
			t.Errorf("%.30q: got %v, %v", row.text, all, err)
		case row.n < 0 && (!errors.As(err, &line) || line.Line != -row.n || !strings.Contains(err.Error(), row.says)):
			t.Errorf("%.30q: got %v", row.text, err)
		}
	}
}

func TestLoadKeepsWhatThereWas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports")
	s := NewNumberSet()
	ok(t, s.Add(NumberElement(7)))
	if err := s.Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	ok(t, os.WriteFile(path, []byte("80\n192.0.2.1\n"), 0o600))
	var line *LineError
	if err := s.Load(path); !errors.As(err, &line) || line.Line != 2 || line.File != path || !errors.Is(err, ErrSetKind) {
		t.Errorf("an address among numbers: %v", err)
	}
	if !s.ContainsNumber(7) || s.ContainsNumber(80) {
		t.Error("a load that failed has changed the set")
	}
	ok(t, os.WriteFile(path, []byte("80\n443\n"), 0o600))
	ok(t, s.Load(path))
	if s.ContainsNumber(7) || !s.ContainsNumber(443) {
		t.Error("the set is not the file's")
	}
}

// TestFollow lets Follow look at a file at times that the test chooses.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports")
	at := time.Now().Add(-time.Hour)
	write := func(text string) {
		ok(t, os.WriteFile(path, []byte(text), 0o600))
		at = at.Add(time.Second)
		ok(t, os.Chtimes(path, at, at))
	}
	write("80\n")
	s := NewNumberSet()
	loaded, err := s.load(path)
	ok(t, err)
	look, done := make(chan time.Time), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan error, 10)
	go func() {
		s.follow(ctx, path, loaded, func(err error) { told <- err }, look)
		close(done)
	}()
	for _, row := range []struct {
		name  string
		do    func()
		fails string // error of the load; "-": no load
		port  uint64 // in the set afterwards
	}{
		{"nothing", func() {}, "-", 80},
		{"it is being written", func() { write("81\n") }, "-", 80},
		{"it is written", func() {}, "", 81},
		{"no more", func() {}, "-", 81},
		{"it is wrong", func() { write("x\n") }, "-", 81},
		{"it stays wrong", func() {}, ":1: ", 81},
		{"still", func() {}, "-", 81},
		{"it goes", func() { ok(t, os.Remove(path)) }, "-", 81},
		{"it is gone", func() {}, "no such file", 81},
		{"still gone", func() {}, "-", 81},
		{"it comes", func() { write("82\n") }, "-", 81},
		{"it is there", func() {}, "", 82},
		{"another takes its place", func() {
			ok(t, os.WriteFile(path+".new", []byte("83\n"), 0o600))
			ok(t, os.Chtimes(path+".new", at, at))
			ok(t, os.Rename(path+".new", path))
		}, "-", 82},
		{"it stays", func() {}, "", 83},
	} {
		row.do()
		look <- time.Time{}
		if row.fails == "-" {
			continue // any report would be taken for the next one
		}
		select {
		case err := <-told:
			if (err == nil) != (row.fails == "") || err != nil && !strings.Contains(err.Error(), row.fails) && !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s: loaded: %v", row.name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not loaded", row.name)
		}
		if !s.ContainsNumber(row.port) {
			t.Fatalf("%s: port %d is not in the set", row.name, row.port)
		}
	}
	look <- time.Time{} // the look before is over
	cancel()
	<-done
	if len(told) > 0 {
		t.Errorf("loaded in the end: %v", <-told)
	}
}

// FuzzReadElements: elements that are read, written and read again make the same set.
func FuzzReadElements(f *testing.F) {
	f.Add("10.0.0.0/8 # x\n2001:db8::-2001:db8::5\n")
	f.Add("80\n0x10-99\r\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ReadElements(strings.NewReader(text))
		if err != nil {
			if all != nil || err.Error() == "" {
				t.Fatal(all, err)
			}
			return
		}
		for _, e := range all {
			if back, err := ParseElement(e.String()); err != nil || back != e {
				t.Fatalf("%v became %v, %v", e, back, err)
			}
		}
		for _, s := range []*Set{NewAddressSet(), NewNumberSet()} {
			all := slices.DeleteFunc(slices.Clone(all), func(e Element) bool { return e.addresses != s.HasAddresses() })
			ok(t, s.Replace(all))
			var first, second bytes.Buffer
			_, err := s.WriteTo(&first)
			ok(t, err)
			again, err := ReadElements(bytes.NewReader(first.Bytes()))
			ok(t, err)
			slices.Reverse(again)
			other := &Set{}
			if *other = *NewNumberSet(); s.HasAddresses() {
				other = NewAddressSet()
			}
			ok(t, other.Add(again...))
			if _, err := other.WriteTo(&second); err != nil || first.String() != second.String() {
				t.Fatalf("%v\n%s\n%s", err, &first, &second)
			}
		}
	})
}

// BenchmarkMatchNamed matches packets, with sets of two sizes.
func BenchmarkMatchNamed(b *testing.B) {
	for _, n := range []int{10, 1_000_000} {
		p, err := Compile("ip.DstAddr in @s", packet.LayerNetwork, Extended)
		ok(b, err)
		r := rand.New(rand.NewPCG(1, 2))
		all := make([]Element, n)
		for i := range all {
			a := r.Uint32()
			all[i] = Address(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}))
		}
		ok(b, p.Set("s").Replace(all))
		a := packet.Address{Outbound: true}
		b.Run(map[int]string{10: "10", 1_000_000: "1000000"}[n], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Match(itemUDP4, &a)
			}
		})
	}
}
