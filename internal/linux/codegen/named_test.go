//go:build linux

package codegen

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/radix"
	"github.com/opendivert/divert/packet"
)

// members returns the values of a program's only named set.
func members(p *prog.Program) *radix.Set { return p.Named()[0].Members.Values() }

// nearValue makes values that often meet.
func nearValue(r *rand.Rand, field string) prog.Value {
	small := [...]uint64{0, 1, 5, 63, 64, 100, 4095, 4096, 65535}[r.IntN(9)]
	switch field {
	case "udp.DstPort":
		return low(small)
	case "tcp.SeqNum":
		return low(small | uint64(r.IntN(3))<<30)
	case "ip.DstAddr":
		return low(mappedPrefix | 10<<24 | small | uint64(r.IntN(3))<<16)
	case "ipv6.SrcAddr":
		return prog.Value{Hi: 0x2001<<48 | small&7, Lo: small << (8 * r.IntN(8))}
	}
	if r.IntN(2) == 0 {
		return nearValue(r, "ip.DstAddr")
	}
	return nearValue(r, "ipv6.SrcAddr")
}

// TestNamedSets changes sets while programs of several kinds work with them, and compares each answer with the interpreter's.
func TestNamedSets(t *testing.T) {
	requireBPF(t)
	for field := range withValue {
		for _, long := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/long=%v", field, long), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, 2))
				for _, text := range []string{field + " in @set", field + " not in @set", "not (length > 0 and " + field + " in @set)"} {
					p := compile(t, text)
					u, err := build(p, Hook{Direction: Inbound}, here(Options{}), long)
					if err != nil {
						t.Fatal(err)
					}
					loaded, err := u.Load()
					if err != nil {
						t.Fatalf("%+v", err)
					}
					defer loaded.Close()
					changeAndCompare(t, p, loaded, field, r)
				}
			})
		}
	}
}

// memberRange returns values of a field as a named set has them.
func memberRange(field string, first, last prog.Value) []radix.Range {
	if strings.HasSuffix(field, "Addr") {
		return []radix.Range{{First: first, Last: last}}
	}
	if last.Lo < first.Lo {
		return nil
	}
	return prog.NumberRanges(first.Lo, last.Lo)
}

func changeAndCompare(t *testing.T, p *prog.Program, loaded *Program, field string, r *rand.Rand) {
	t.Helper()
	matched := 0
	const rounds = 120
	for i := range rounds {
		first := nearValue(r, field)
		last := first
		if r.IntN(3) == 0 {
			last = nearValue(r, field)
		}
		change := memberRange(field, first, last)
		var err error
		switch r.IntN(9) {
		case 0:
			err = members(p).Replace(change)
		case 1:
			err = members(p).Grow(r.IntN(2000))
		case 2, 3, 4:
			err = members(p).Remove(change...)
		default:
			err = members(p).Add(change...)
		}
		if err != nil {
			t.Fatal(err)
		}
		v := first
		if i%2 == 0 {
			v = nearValue(r, field)
		}
		b := withValue[field](v)
		want := p.MatchExact(b, &packet.Address{})
		if want {
			matched++
		}
		if got, err := run(loaded, b); err != nil || got != want {
			t.Fatalf("change %d, value %+v: got %v, %v, want %v", i, v, got, err, want)
		}
	}
	if matched < rounds/10 || matched > rounds*9/10 {
		t.Errorf("%d of %d values matched", matched, rounds)
	}
}

// TestManyNamedSets: a filter may have as many tests of named sets as a long one has tests, and many sets.
func TestManyNamedSets(t *testing.T) {
	requireBPF(t)
	for _, row := range []struct {
		name string
		text string
	}{
		{"one set", join(3000, " or ", func(i int) string { return turns("tcp.DstPort", "tcp.SrcPort", i) + " in @a" })},
		{"sets", join(40, " or ", func(i int) string { return fmt.Sprintf("%s in @s%d", turns("udp.DstPort", "udp.SrcPort", i), i) })},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := compile(t, row.text)
			u, err := Build(p, Hook{}, here(Options{}))
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			loaded, err := u.Load()
			if err != nil {
				t.Fatalf("%+v", err)
			}
			defer loaded.Close()
			info, err := loaded.program.Info()
			if err != nil {
				t.Fatal(err)
			}
			verified, _ := info.VerifiedInstructions()
			t.Logf("%d instructions, %d verified, loaded in %v", len(u.Instructions), verified, time.Since(start))
			last := p.Named()[len(p.Named())-1].Members.Values()
			b := withValue["udp.DstPort"](low(77))
			if row.name == "one set" {
				b = header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))
			}
			for _, in := range []bool{true, false, true} {
				change := last.Remove
				if in {
					change = last.Add
				}
				if err := change(prog.NumberRanges(0, 65535)...); err != nil {
					t.Fatal(err)
				}
				if got, err := run(loaded, b); err != nil || got != in {
					t.Errorf("got %v, %v, want %v", got, err, in)
				}
			}
		})
	}
}

// TestProgramsMeetNoOtherState: packets meet a value that is always in the set, while others come and go around it and the
// set is exchanged.
func TestProgramsMeetNoOtherState(t *testing.T) {
	requireBPF(t)
	for _, field := range []string{"ip.DstAddr", "ipv6.SrcAddr"} {
		p := compile(t, field+" in @set")
		u, err := Build(p, Hook{}, here(Options{}))
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := u.Load()
		if err != nil {
			t.Fatalf("%+v", err)
		}
		defer loaded.Close()
		v := prog.Value{Lo: mappedPrefix | 0x0A000105}
		if field == "ipv6.SrcAddr" {
			v = prog.Value{Hi: 0x20010db8 << 32, Lo: 0x105}
		}
		s := members(p)
		at := func(n uint64) radix.Value { return radix.Value{Hi: v.Hi, Lo: v.Lo + n} }
		always := radix.Range{First: at(0), Last: at(0)}
		if err := s.Add(always); err != nil {
			t.Fatal(err)
		}
		stop, done := make(chan struct{}), make(chan error)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				var err error
				switch i % 5 {
				case 0:
					err = s.Add(radix.Range{First: at(0), Last: at(0xFFFFFF)})
				case 1:
					err = s.Remove(radix.Range{First: at(1), Last: at(0xFFFFFF)})
				case 2:
					err = s.Add(radix.Range{First: at(0), Last: at(40)})
				case 3:
					err = s.Remove(radix.Range{First: at(1), Last: at(50)})
				default:
					if i%500 == 4 {
						err = s.Replace([]radix.Range{always})
					}
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
		b := withValue[field](v)
		for range 20_000 {
			if got, err := run(loaded, b); err != nil || !got {
				t.Errorf("%s: got %v, %v", field, got, err)
				break
			}
		}
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestSetsAreShared: several programs have one set, and a set that moves into the kernel keeps its values.
func TestSetsAreShared(t *testing.T) {
	requireBPF(t)
	set := filter.NewNumberSet()
	if err := set.Add(filter.NumberElement(53)); err != nil {
		t.Fatal(err)
	}
	var all []*Program
	for _, text := range []string{"udp.DstPort in @a", "udp and remotePort != 1 and udp.DstPort in @b"} {
		p, err := filter.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		if p, err = p.WithSets(map[string]*filter.Set{"a": set, "b": set}); err != nil {
			t.Fatal(err)
		}
		u, err := Build((*prog.Program)(p), Hook{Direction: Inbound}, here(Options{}))
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := u.Load()
		if err != nil {
			t.Fatalf("%+v", err)
		}
		defer loaded.Close()
		all = append(all, loaded)
	}
	for _, port := range []uint64{53, 54, 53} {
		for i, p := range all {
			for _, x := range []uint64{53, 54} {
				if got, err := run(p, withValue["udp.DstPort"](low(x))); err != nil || got != (x == port) {
					t.Errorf("set of %d, program %d, port %d: got %v, %v", port, i, x, got, err)
				}
			}
		}
		next := 107 - port
		if err := set.Replace([]filter.Element{filter.NumberElement(next)}); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkNamedSets reports the time of a look-up in the kernel, with the whole program and beyond a program of the same fields
// without one, for addresses that are members and for others.
func BenchmarkNamedSets(b *testing.B) {
	requireBPF(b)
	for _, six := range []bool{false, true} {
		field := "ip.DstAddr"
		if six {
			field = "ipv6.SrcAddr"
		}
		for _, n := range []int{10, 1_000_000} {
			r := rand.New(rand.NewPCG(3, uint64(n)))
			ranges := make([]radix.Range, n)
			for i := range ranges {
				v, host := radix.Value{Lo: mappedPrefix | r.Uint64()&0xFFFFFFFF}, []uint64{0, 0, 255, 255, 15, 4095}[r.IntN(6)]
				last := radix.Value{Lo: v.Lo | host}
				if v.Lo &^= host; six {
					v = radix.Value{Hi: 0x2000<<48 | r.Uint64()>>8}
					last = radix.Value{Hi: v.Hi, Lo: ^uint64(0)}
				}
				ranges[i] = radix.Range{First: v, Last: last}
			}
			p := compiled(b, field+" in @set")
			u, err := Build(p, Hook{}, here(Options{}))
			if err != nil {
				b.Fatal(err)
			}
			loaded, err := u.Load()
			if err != nil {
				b.Fatal(err)
			}
			if err := members(p).Replace(ranges); err != nil {
				b.Fatal(err)
			}
			for name, change := range map[string]uint64{"member": 0, "other": 0x00A5_5A00} {
				v := prog.Value(ranges[0].First)
				if v.Lo ^= change; six {
					v.Lo, v.Hi = v.Lo^change, v.Hi^change
				}
				packet := withValue[field](v)
				if got, err := run(loaded, packet); err != nil || got != (change == 0) {
					b.Fatal(name, got, err)
				}
				b.Run(fmt.Sprintf("%s/%d/%s", field, n, name), func(b *testing.B) {
					start := time.Now()
					if _, err := loaded.program.Run(&ebpf.RunOptions{Data: frame(packet), Repeat: uint32(b.N)}); err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns/op")
				})
			}
			loaded.Close()
		}
	}
}

// TestNamedSetsOfAllFields asks a set about every field that takes one, in packets of many kinds.
func TestNamedSetsOfAllFields(t *testing.T) {
	requireBPF(t)
	r := rand.New(rand.NewPCG(5, 5))
	for _, info := range filter.Fields() {
		field := info.Name
		if info.Size > 0 {
			field += "[1]"
		}
		p, err := filter.Compile(field+" in @set", packet.LayerNetwork, filter.Extended)
		if err != nil || strings.HasPrefix(field, "flow.") || field == "processId" { // what a hook has besides is tested with it
			continue
		}
		q := (*prog.Program)(p)
		a := packet.Address{Outbound: true, Timestamp: 1 << 40}
		h := hookOf(&a)
		u, err := Build(q, h, here(Options{}))
		if err != nil {
			t.Errorf("%s: %v", field, err)
			continue
		}
		loaded, err := u.Load()
		if err != nil {
			t.Errorf("%s: %v", field, err)
			continue
		}
		for round := range 3 {
			var ranges []radix.Range
			for n := uint64(0); n < 1<<17; n += 1 + r.Uint64N(100) { // half of the small numbers
				ranges = append(ranges, memberRange(field, prog.Value{Lo: n}, prog.Value{Lo: n + r.Uint64N(50)})...)
			}
			ranges = append(ranges, prog.NumberRanges(1<<20, 1<<50)...)
			if q.Named()[0].Members.Addresses() {
				ranges = []radix.Range{{First: radix.Value{Lo: mappedPrefix}, Last: radix.Value{Lo: mappedPrefix | r.Uint64()>>32}}, {First: radix.Value{Hi: r.Uint64()}, Last: radix.Value{Hi: 1<<64 - 1}}}
			}
			if err := members(q).Replace(ranges); err != nil {
				t.Fatal(err)
			}
			for i, b := range samplePackets() {
				want := q.MatchExact(b, &a)
				if got, err := run(loaded, b); err != errUnrunnable && (err != nil || got != want) {
					t.Errorf("%s, round %d, packet %d: got %v, %v, want %v", field, round, i, got, err, want)
				}
			}
		}
		loaded.Close()
	}
}
