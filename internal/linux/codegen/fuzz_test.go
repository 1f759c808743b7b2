//go:build linux

package codegen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// anyFields are the fields of a layer with packets that a hook can know.
func anyFields(layer packet.Layer) []filter.FieldInfo {
	var all []filter.FieldInfo
	for _, f := range filter.Fields() {
		for _, l := range f.Layers {
			if l == layer {
				all = append(all, f)
			}
		}
	}
	return all
}

// anyTest returns the text of a test, of every field with every operator. The literals are often those
// that occur in the packet.
func anyTest(r *rand.Rand, fields []filter.FieldInfo, b []byte, dialect filter.Dialect) string {
	f := fields[r.IntN(len(fields))]
	name := f.Name
	if f.Size != 0 {
		name = fmt.Sprintf("%s[%d]", name, r.IntN(60)-20)
	}
	if r.IntN(8) == 0 || f.Kind == filter.KindBool && r.IntN(2) == 0 {
		return [...]string{"", "not "}[r.IntN(2)] + name
	}
	if dialect == filter.Extended && r.IntN(3) == 0 {
		var set []string
		for range 1 + r.IntN(40) {
			v, w := anyValue(r, f, b), anyValue(r, f, b)
			if r.IntN(3) == 0 && !strings.ContainsAny(v+w, "-") {
				v += "-" + w
			}
			set = append(set, v)
		}
		return name + [...]string{" in {", " not in {"}[r.IntN(2)] + strings.Join(set, ", ") + "}"
	}
	op := [...]string{"==", "!=", "<", "<=", ">", ">="}[r.IntN(6)]
	return name + " " + op + " " + anyValue(r, f, b)
}

// anyValue returns a literal for a field.
func anyValue(r *rand.Rand, f filter.FieldInfo, b []byte) string {
	at := func(n int) []byte {
		out := make([]byte, n)
		if len(b) > 0 {
			copy(out, b[r.IntN(len(b)):])
		}
		return out
	}
	switch f.Kind {
	case filter.KindIPv4:
		return fmt.Sprintf("%d.%d.%d.%d", at(1)[0], r.IntN(256), at(1)[0], r.IntN(3))
	case filter.KindIPv6, filter.KindAddr:
		if f.Kind == filter.KindAddr && r.IntN(2) == 0 {
			return fmt.Sprintf("10.0.0.%d", r.IntN(3))
		}
		return [...]string{"2001:db8::1", "2001:db8::1:2", "2001:db8::", "::", "ffff::1", randomIPv6(r)}[r.IntN(6)]
	case filter.KindSigned:
		return fmt.Sprint([...]int64{0, 1, -1, -5, 123456789, 1<<62 - 1, int64(r.Uint64()) / 2}[r.IntN(7)])
	case filter.KindBool:
		return fmt.Sprint(r.IntN(2))
	}
	switch r.IntN(6) {
	case 0:
		return fmt.Sprint(r.IntN(3))
	case 1:
		return fmt.Sprint(at(1)[0])
	case 2:
		return fmt.Sprint(binary.BigEndian.Uint16(at(2)))
	case 3:
		return fmt.Sprint(binary.BigEndian.Uint32(at(4)))
	case 4:
		return f.Max
	}
	return fmt.Sprint(len(b))
}

// anyFilter returns the text of a filter.
func anyFilter(r *rand.Rand, depth int, test func() string) string {
	if depth == 0 || r.IntN(4) == 0 {
		return test()
	}
	sub := func() string { return anyFilter(r, depth-1, test) }
	switch r.IntN(5) {
	case 0:
		return "(" + sub() + "? " + sub() + ": " + sub() + ")"
	case 1, 2:
		return "(" + sub() + " or " + sub() + ")"
	}
	return "(" + sub() + " and " + sub() + ")"
}

// anyCompiled returns a random filter that compiles for the layer, or nil.
func anyCompiled(r *rand.Rand, layer packet.Layer, b []byte) (*prog.Program, string) {
	fields := anyFields(layer)
	dialect := [...]filter.Dialect{filter.Strict, filter.Extended}[r.IntN(2)]
	for range 20 {
		text := anyFilter(r, r.IntN(5), func() string {
			// One test at a time, so that few filters are refused for one of many.
			for range 20 {
				t := anyTest(r, fields, b, dialect)
				if _, err := progtest.Compile(t, layer, dialect); err == nil {
					return t
				}
			}
			return "true"
		})
		if p, err := progtest.Compile(text, layer, dialect); err == nil {
			return p, text
		}
	}
	return nil, ""
}

// FuzzBPFvsInterpreter compares the generated programs with the interpreter.
func FuzzBPFvsInterpreter(f *testing.F) {
	requireBPF(f)
	for seed := range uint64(300) {
		f.Add(seed, []byte(nil))
	}
	f.Fuzz(func(t *testing.T, seed uint64, b []byte) {
		r := rand.New(rand.NewPCG(seed, 7))
		samples := samplePackets()
		if len(b) == 0 || len(b) > 3000 {
			b = mutate(r, samples[r.IntN(len(samples))])
		}
		a := packet.Address{
			Layer: packet.Layer(r.IntN(2)), Outbound: r.IntN(2) == 0, Loopback: r.IntN(2) == 0,
			Impostor: r.IntN(2) == 0, Timestamp: int64(r.Uint64()),
		}
		a.SetNetwork(packet.NetworkData{IfIdx: uint32(r.IntN(4)), SubIfIdx: uint32(r.IntN(2))})
		p, text := anyCompiled(r, a.Layer, b)
		if p == nil {
			return
		}
		h := hookOf(&a)
		if r.IntN(2) == 0 {
			h.Family = familyOf(b)
		}
		h.Processes = a.Layer == packet.LayerNetwork // maps that are empty here
		o := here(Options{Count: true, Correlate: seed%2 == 0, Process: seed%3 == 0 && h.Processes, Bounded: seed%5 == 0, Doubt: seed%4 == 0})
		u, err := build(p, h, o, r.IntN(2) == 0)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		var loaded *Program
		if u.Outcome != Never {
			if loaded, err = u.Load(); err != nil {
				t.Fatalf("%s: %+v", text, err)
			}
			defer loaded.Close()
		}
		for i := range 24 {
			q := b
			if i > 0 {
				q = mutate(r, [][]byte{b, samples[r.IntN(len(samples))]}[r.IntN(2)])
			}
			if h.Family != AnyFamily && familyOf(q) != h.Family {
				continue
			}
			got := false
			if loaded != nil {
				if got, err = run(loaded, q); errors.Is(err, errUnrunnable) {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if o.Bounded && got && PastWalk(q) {
				continue // not decided
			}
			var parsed packet.Parsed
			if o.Doubt && Truncated(q) && parsed.ParseExact(q) && (got || !p.MayMatchHeaders(q, &parsed, &a)) {
				continue // nor that
			}
			if want := parsed.ParseExact(q) && p.MatchKnown(q, &parsed, &a, prog.Known{HasProcess: true, HasCounts: true, Counts: firstOf(q, &parsed)}); got != want {
				t.Fatalf("%s\npacket %x\naddress %+v\nhook %+v\ngot %v, want %v", text, q, a, h, got, want)
			}
		}
	})
}

func FuzzJoiner(f *testing.F) {
	long := make([]byte, RecordSize+MaxSnap)
	binary.NativeEndian.PutUint32(long[8:], MaxSnap+5)
	end := append([]byte(nil), long[:RecordSize+tailSize]...)
	binary.NativeEndian.PutUint32(long[12:], MaxSnap)
	f.Add(end, long)
	f.Add(make([]byte, RecordSize), end[:40])
	f.Add(append(make([]byte, 12), 0xFF, 0xFF, 0xFF, 0xFF), long)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var j Joiner
		for _, sample := range [][]byte{first, second, first} {
			r, b, ok, err := j.Decode(sample)
			if err != nil {
				continue
			}
			if ok && len(b) != int(r.Captured) || r.Captured > r.Length {
				t.Errorf("%+v: %d bytes", r, len(b))
			}
			if n := min(len(b), MaxSnap); !bytes.Equal(b[:n], sample[RecordSize:][:n]) {
				t.Errorf("%+v: other bytes", r)
			}
		}
	})
}

func FuzzDecodeTime(f *testing.F) {
	f.Add(make([]byte, TimeSize))
	f.Fuzz(func(t *testing.T, sample []byte) {
		if _, err := DecodeTime(sample); (err == nil) != (len(sample) >= TimeSize) {
			t.Errorf("%d bytes: %v", len(sample), err)
		}
	})
}
