package filter

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// generator makes programs and items out of random numbers that a fuzzed seed determines.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 1))} }

// interesting are literals near which the results of tests change.
var interesting = []prog.Value{
	{}, {Lo: 1}, {Lo: 2}, {Lo: 6}, {Lo: 17}, {Lo: 53}, {Lo: 80}, {Lo: 255}, {Lo: 256}, {Lo: 65535}, {Lo: 65536},
	{Lo: 0x0A010203}, {Lo: 0xFFFF0A010203}, {Lo: 0xFFFFC0000207}, {Lo: 0xFFFF00000000}, {Lo: 0xFFFFFFFFFFFF},
	{Lo: 0xFFFFFFFF}, {Lo: 1 << 32}, {Lo: 1<<32 + 80}, {Lo: 1<<63 - 1}, {Lo: 1 << 63}, {Lo: 1<<64 - 1}, {Hi: 1},
	{Hi: 0x20010db800000000, Lo: 1}, {Hi: 0x20010db800000000, Lo: 2}, {Hi: 1<<64 - 1, Lo: 1<<64 - 1},
}

func (g generator) literal() prog.Value {
	v := interesting[g.IntN(len(interesting))]
	if g.IntN(4) == 0 {
		v.Lo += uint64(g.IntN(5)) - 2
	}
	return v
}

func (g generator) set() *prog.Set {
	ranges := make([]prog.Range, g.IntN(20))
	for i := range ranges {
		v := g.literal()
		ranges[i] = prog.Range{First: v, Last: v}
		if g.IntN(2) == 0 {
			ranges[i].Last.Lo |= uint64(g.IntN(300))
		}
	}
	return prog.NewSet(ranges)
}

// test makes test i of n; own allows features that objects lack.
func (g generator) test(i, n int, own bool) prog.Test {
	t := prog.Test{
		Field: prog.Field(g.IntN(int(prog.NumSpecFields))), Op: prog.Op(g.IntN(6)), Neg: g.IntN(6) == 0, Value: g.literal(),
		Index: int32(g.IntN(80) - 40), Succ: g.target(i, n), Fail: g.target(i, n),
	}
	if g.IntN(50) == 0 {
		t.Index = int32(g.Uint32())
	}
	if own && g.IntN(10) == 0 {
		t.Field = []prog.Field{prog.FieldFlowLabel, prog.FieldFamilyIP, prog.FieldFamilyIPv6}[g.IntN(3)]
	}
	if t.Field.Info().Elem == 0 {
		t.Index = 0
	}
	if own && g.IntN(4) == 0 {
		t.Op, t.Neg, t.Value, t.Set = prog.OpIn+prog.Op(g.IntN(2)), false, prog.Value{}, g.set()
	}
	return t
}

func (g generator) target(i, n int) prog.Target {
	switch k := g.IntN(5); {
	case k == 0:
		return prog.Accept
	case k == 1 || i == n-1:
		return prog.Reject
	}
	return prog.Target(i + 1 + g.IntN(min(n-i-1, 4)))
}

// program makes a program with fields that the layer mostly has: now and then with lists, and with more values than an
// evaluation remembers.
func (g generator) program(layer packet.Layer, own bool) *prog.Program {
	most := 24
	if g.IntN(8) == 0 {
		most = 200
	}
	tests := make([]prog.Test, 1+g.IntN(most))
	for i := range tests {
		if i > 0 && g.IntN(3) == 0 && tests[i-1].Op <= prog.OpNe {
			g.prolong(tests, i)
			continue
		}
		for tests[i] = g.test(i, len(tests), own); !tests[i].Field.Info().Layers.Has(layer) && g.IntN(100) > 0; {
			tests[i] = g.test(i, len(tests), own)
		}
	}
	return prog.New(layer, tests, false)
}

// prolong makes test i the next in the list of the test before it.
func (g generator) prolong(tests []prog.Test, i int) {
	last := &tests[i-1]
	tests[i] = *last
	next, end := &last.Fail, last.Succ
	if last.Op == prog.OpNe {
		next, end = &last.Succ, last.Fail
	}
	if end >= 0 { // this may be this test, or one before it in a program of n
		end = g.target(i, len(tests))
	}
	*next = prog.Target(i)
	tests[i].Value, tests[i].Succ, tests[i].Fail = g.literal(), g.target(i, len(tests)), g.target(i, len(tests))
	if last.Op == prog.OpEq {
		last.Succ, tests[i].Succ = end, end
	} else {
		last.Fail, tests[i].Fail = end, end
	}
}

// packet makes a packet out of one of the worked examples.
func (g generator) packet(t testing.TB) []byte {
	names := []string{"A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L", "M", "N", "O"}
	b := mustHex(t, packetHex[names[g.IntN(len(names))]])
	for range g.IntN(3) {
		b[g.IntN(len(b))] = byte(g.Uint32())
	}
	if g.IntN(4) == 0 {
		b = b[:g.IntN(len(b)+1)]
	}
	return b
}

func (g generator) address(layer packet.Layer) *packet.Address {
	var raw [packet.AddressSize]byte
	for i := range raw {
		if g.IntN(2) == 0 {
			raw[i] = byte(g.Uint32())
		}
	}
	if g.IntN(2) == 0 { // an IPv4 address that occurs in literals
		copy(raw[36:], []byte{3, 2, 1, 10, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		raw[72] = []byte{1, 6, 17, 58}[g.IntN(4)]
	}
	var a packet.Address
	if err := a.UnmarshalBinary(raw[:]); err != nil {
		panic(err)
	}
	a.Layer = layer
	a.Event = packet.Event(g.IntN(10))
	if a.Timestamp = int64(g.Uint64()); g.IntN(2) == 0 {
		a.Timestamp = int64(g.IntN(5) - 2)
	}
	return &a
}

// checkMatch evaluates in every possible way and compares the results.
func checkMatch(t *testing.T, p *prog.Program, b []byte, a *packet.Address) {
	t.Helper()
	want, ok := reference(p, b, a)
	if got := p.Match(b, a); got != want {
		t.Fatalf("Match = %v, want %v (executable: %v)\n%s%x\n%+v", got, want, ok, p.Listing(), b, a)
	}
	var parsed packet.Parsed
	isPacket := parsed.Parse(b)
	if got := p.MatchParsed(b, &parsed, a); got != want {
		t.Fatalf("MatchParsed = %v, want %v\n%s%x", got, want, p.Listing(), b)
	}
	exact := p.MatchExact(b, a)
	if p.Layer() <= packet.LayerForward && (!isPacket || parsed.Truncated || parsed.Extended) {
		want = false
	}
	if exact != want {
		t.Fatalf("MatchExact = %v, want %v\n%s%x", exact, want, p.Listing(), b)
	}
	checkEval(t, p, b, a)
}

// checkEval compares Eval and Explain with Match.
func checkEval(t *testing.T, p *prog.Program, b []byte, a *packet.Address) {
	t.Helper()
	var parsed packet.Parsed
	onPackets := p.Layer() <= packet.LayerForward
	isPacket := onPackets && parsed.Parse(b)
	if !onPackets {
		b = nil
	}
	fits := *a
	fits.IPv6 = a.IPv6 && !onPackets || parsed.Family == 6
	match, err := p.Eval(b, &fits)
	steps, explainErr := p.Explain(b, &fits)
	want, ok := reference(p, b, &fits)
	var fieldError *prog.FieldError
	switch {
	case onPackets && !isPacket:
		if !errors.Is(err, prog.ErrNotPacket) || !errors.Is(explainErr, prog.ErrNotPacket) {
			t.Fatalf("no packet: %v, %v", err, explainErr)
		}
		return
	case !ok:
		if !errors.As(err, &fieldError) || !errors.As(explainErr, &fieldError) {
			t.Fatalf("foreign field: %v, %v", err, explainErr)
		}
		return
	}
	if err != nil || explainErr != nil || match != want {
		t.Fatalf("Eval = %v, %v, want %v; Explain %v\n%s", match, err, want, explainErr, p.Listing())
	}
	last := steps[len(steps)-1]
	if (last.Next == prog.Accept) != want || last.Next >= 0 || steps[0].Index != 0 {
		t.Fatalf("Explain ends with %v, want %v\n%v", last, want, steps)
	}
	for i, s := range steps {
		if i > 0 && steps[i-1].Next != prog.Target(s.Index) || s.Result && !s.Present {
			t.Fatalf("step %d: %v after %v", i, s, steps[max(0, i-1)])
		}
		if v := (item{b, onlyPacket(&parsed), &fits}).value(&s.Test); (v != nil) != s.Present {
			t.Fatalf("step %v: present %v, want %v", s, s.Present, v)
		} else if v != nil && (v.Sign() < 0) != s.Neg {
			t.Fatalf("step %v: negative %v, want %v", s, s.Neg, v)
		} else if v != nil && new(item).same(s.Value, v.Bytes()) == false {
			t.Fatalf("step %v: value %v, want %v", s, s.Value, v)
		}
	}
}

// onlyPacket returns nil for an event.
func onlyPacket(p *packet.Parsed) *packet.Parsed {
	if p.Family == 0 {
		return nil
	}
	return p
}

func (*item) same(v prog.Value, magnitude []byte) bool {
	var ip [16]byte
	copy(ip[16-len(magnitude):], magnitude)
	return valueFromBytes(ip) == v
}

func FuzzMatch(f *testing.F) {
	for i, e := range compiledExamples {
		f.Add(uint64(i), uint8(e.layer), e.filter, mustHex(f, packetHex["A"]))
	}
	f.Fuzz(func(t *testing.T, seed uint64, layer uint8, text string, b []byte) {
		l := packet.Layer(layer) % packet.NumLayers
		g := newGenerator(seed)
		programs := []*prog.Program{g.program(l, true)}
		for _, d := range []Dialect{Strict, Extended} {
			if p, err := compiled(text, l, d); err == nil && p.Len() < 1000 {
				programs = append(programs, p)
			}
		}
		for _, p := range programs {
			if len(b) < 1<<17 {
				checkMatch(t, p, b, g.address(l))
			}
			for range 3 {
				checkMatch(t, p, g.packet(t), g.address(l))
			}
		}
	})
}

// TestMatchModel runs the fuzz test's checks on random programs and items for some seconds.
func TestMatchModel(t *testing.T) {
	rounds := 20000
	if testing.Short() {
		rounds = 2000
	}
	for seed := range rounds {
		g := newGenerator(uint64(seed))
		layer := packet.Layer(seed) % packet.NumLayers
		p := g.program(layer, true)
		for range 4 {
			checkMatch(t, p, g.packet(t), g.address(layer))
		}
	}
}

// checkLower compares a program with its lowered form, in the original's instructions.
func checkLower(t *testing.T, g generator, p *prog.Program) {
	t.Helper()
	if slices.ContainsFunc(p.Tests(), func(t prog.Test) bool { return !t.Field.Info().Layers.Has(p.Layer()) }) {
		return // an empty set is lowered to a constant, which executes anywhere
	}
	lowered, err := p.Lower()
	var lowerError *prog.LowerError
	if errors.As(err, &lowerError) {
		if p.Tests()[lowerError.Test].Field != prog.FieldFlowLabel {
			t.Fatalf("Lower: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, test := range lowered.Tests() {
		if test.Op > prog.OpGe || test.Field >= prog.NumSpecFields || test.Succ >= 0 && int(test.Succ) <= i {
			t.Fatalf("lowered test %d: %+v", i, test)
		}
	}
	for range 3 {
		b, a := g.packet(t), g.address(p.Layer())
		if l := p.Layer(); l == packet.LayerFlow || l == packet.LayerSocket {
			a.IPv6 = !a.Flow().LocalAddr.Is4() // lowered tests of the family read it
		}
		if p.Match(b, a) != lowered.Match(b, a) {
			t.Fatalf("lowered it decides otherwise\n%s\n%s%x", p.Listing(), lowered.Listing(), b)
		}
	}
}

func TestLower(t *testing.T) {
	for seed := range 5000 {
		g := newGenerator(uint64(seed))
		checkLower(t, g, g.program(packet.Layer(seed)%packet.NumLayers, true))
	}
}

func FuzzObject(f *testing.F) {
	for i, e := range compiledExamples {
		f.Add(uint64(i), e.object)
	}
	for _, s := range []string{"", "@", "@WinDiv_", "@WinDiv_WW", "@WinDiv_0W0X_0e0X00W000WAX", "@WinDiv_WX_eXWWAX\x00"} {
		f.Add(uint64(0), s)
	}
	f.Fuzz(func(t *testing.T, seed uint64, object string) {
		g := newGenerator(seed)
		for layer := range packet.NumLayers {
			checkObject(t, g, g.program(layer, false))
			if p, err := parseObject(object, layer); err == nil {
				checkObject(t, g, p)
			} else if kindOf(err) != ErrBadObject {
				t.Fatal(err)
			}
		}
	})
}

// checkObject turns a program into its object and its instructions and back.
func checkObject(t *testing.T, g generator, p *prog.Program) {
	t.Helper()
	object, err := p.Object()
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseObject(object, p.Layer())
	if err != nil {
		t.Fatalf("%s: %v", object, err)
	}
	if twice, err := again.Object(); twice != object || err != nil {
		t.Fatalf("%s becomes %s, %v", object, twice, err)
	}
	raw, err := p.AppendInstructions(nil)
	if err != nil || len(raw) != prog.InstructionSize*p.Len() {
		t.Fatal(err, len(raw))
	}
	binary, err := prog.ParseInstructions(raw, p.Layer())
	if err != nil {
		t.Fatalf("%x: %v", raw, err)
	}
	if twice, _ := binary.AppendInstructions(nil); !bytes.Equal(raw, twice) {
		t.Fatalf("%x becomes %x", raw, twice)
	}
	// Literals keep every part that their comparison uses.
	b, a := g.packet(t), g.address(p.Layer())
	if isWhole(p) {
		if match := p.Match(b, a); again.Match(b, a) != match || binary.Match(b, a) != match {
			t.Fatalf("%s decides otherwise than\n%s", object, p.Listing())
		}
	}
	_, _ = p.DriverCheck(), p.Hints()
}

// isWhole reports whether the object carries every literal of the program. Literals of IPv4 addresses and of 64-bit
// fields lose their upper parts, but no compiler sets those.
func isWhole(p *prog.Program) bool {
	return !slices.ContainsFunc(p.Tests(), func(t prog.Test) bool {
		switch kind := t.Field.Info().Kind; {
		case kind == prog.KindIPv4:
			return !t.Value.IsMapped()
		case t.Field.Info().Wide && kind == prog.KindNumber || kind == prog.KindSigned && t.Field.Info().Wide:
			return t.Value.Hi != 0
		}
		return false
	})
}

func FuzzInstructions(f *testing.F) {
	for _, e := range compiledExamples {
		raw, err := mustCompile(f, e.filter, e.layer, Strict).AppendInstructions(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := prog.ParseInstructions(raw, packet.LayerNetwork)
		if err != nil {
			return
		}
		if again, err := p.AppendInstructions(nil); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x becomes %x, %v", raw, again, err)
		}
	})
}

func FuzzFormat(f *testing.F) {
	for i, e := range compiledExamples {
		f.Add(uint64(i), uint8(e.layer), e.filter)
	}
	for i, text := range []string{
		"remoteAddr in {10.0.0.0/8, fe80::/10, ::1} and not (tcp.DstPort in {1-5, 80} or udp)",
		"ipv6.SrcAddr in {::ffff:0:0/100, ::ffff:1.2.3.4-::ffff:1.2.3.9}", "localAddr not in {::fffe:ffff:ffff, 0.0.0.0}",
		"not (tcp? udp: not (icmp and ip))", "ip.Id in {1, 5-9} or packet[3] not in {0x10-0x20}",
		`not iface in {"a", "b\"", "\x1b\\"} or tcp`, `process not in {"curl", "\xff", "é"} and not (iface == "lo")`,
	} {
		f.Add(uint64(i), uint8(packet.LayerNetwork), text)
	}
	f.Fuzz(func(t *testing.T, seed uint64, layer uint8, text string) {
		l := packet.Layer(layer) % packet.NumLayers
		for _, d := range []Dialect{Strict, Extended} {
			if p, err := compiled(text, l, d); err == nil && p.Len() < 300 && text[0] != '@' {
				checkFormat(t, newGenerator(seed), p, d)
			}
		}
		// Objects may have parts that no text compiles to; these must only do no harm.
		if _, err := newGenerator(seed).program(l, true).Format(); err != nil && !errors.Is(err, prog.ErrFormatTooLong) {
			t.Fatal(err)
		}
	})
}

// checkFormat compiles the text of a program again and compares the decisions.
func checkFormat(t *testing.T, g generator, p *prog.Program, d Dialect) {
	t.Helper()
	text, err := p.Format()
	if errors.Is(err, prog.ErrFormatTooLong) || len(text) > 1<<20 {
		return
	}
	again, err := compiled(text, p.Layer(), d)
	if kind := kindOf(err); kind == ErrTooLong || kind == ErrTooDeep || kind == ErrUnexpectedToken && d == Strict {
		return // a test that several others lead to is printed more than once
	}
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	if signed := slices.ContainsFunc(p.Tests(), func(t prog.Test) bool { return t.Neg }); signed {
		return // quirk: some literals lose their sign
	}
	for range 8 {
		b, a := g.packet(t), g.address(p.Layer())
		if match := p.Match(b, a); again.Match(b, a) != match {
			t.Fatalf("matches %v, otherwise than its text %s\n%s%x", match, text, p.Listing(), b)
		}
	}
}
