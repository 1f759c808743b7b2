package quicinitial_test

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opendivert/divert/internal/clienthello"
	"github.com/opendivert/divert/internal/quicinitial"
	"github.com/opendivert/divert/internal/quicinitial/quictest"
)

// maxHead is the number of bytes of a stream that the tests keep.
const maxHead = 1 << 16

func TestStream(t *testing.T) {
	data := make([]byte, 3000)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for range 50 {
		var s quicinitial.Stream
		parts := quictest.Split(data, 1+rand.IntN(900))
		rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		parts = append(parts, parts[0])
		for _, p := range parts {
			if !s.Add(uint64(p.Offset), p.Data, maxHead) {
				t.Fatal("refused")
			}
		}
		if !bytes.Equal(s.Whole(), data) {
			t.Fatal("put together wrongly")
		}
		if s.Add(10, []byte{data[10] + 1}, maxHead) || s.Add(maxHead-1, []byte{1, 2}, maxHead) || s.Add(1<<61, []byte{1}, maxHead) {
			t.Fatal("took bytes that differ or lie beyond")
		}
	}
}

func FuzzInitial(f *testing.F) {
	id := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for i := range quicinitial.Versions {
		f.Add(quictest.Initial(f, &quicinitial.Versions[i], id, nil, 0, 200, quictest.Part{Data: []byte{1, 0, 0, 4}}))
	}
	f.Add([]byte{0xC0, 0, 0, 0, 1, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		for rest := b; len(rest) > 0; {
			h, behind, err := quicinitial.Parse(rest)
			if err != nil || !h.Initial() {
				break
			}
			if len(behind) >= len(rest) {
				t.Fatal("no progress")
			}
			keys, err := quicinitial.NewKeys(h.Version, h.Dst, "client in")
			if err != nil {
				t.Fatal(err)
			}
			keys.Open(nil, &h)
			rest = behind
		}
		var s quicinitial.Stream
		quicinitial.Crypto(b, func(offset uint64, data []byte) bool { return s.Add(offset, data, maxHead) })
		if s.Len() > maxHead || len(s.Whole()) > s.Len() {
			t.Errorf("%d bytes kept", s.Len())
		}
		if !bytes.Equal(b, before) {
			t.Error("the datagram has changed")
		}
	})
}

func BenchmarkInitial(b *testing.B) {
	hello := quictest.Hello(b, "www.example.org")
	d := quictest.Initial(b, &quicinitial.Versions[0], []byte{1, 2, 3, 4, 5, 6, 7, 8}, nil, 0, 1200, quictest.Part{Data: hello[:min(len(hello), 1000)]})
	for b.Loop() {
		h, _, err := quicinitial.Parse(d)
		if err != nil {
			b.Fatal(err)
		}
		keys, err := quicinitial.NewKeys(h.Version, h.Dst, "client in")
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := keys.Open(nil, &h); !ok {
			b.Fatal("not opened")
		}
	}
}

// TestReader: the name comes out of complete hellos, in pieces of any size and order; other bytes, and contradictory
// pieces, are recognised.
func TestReader(t *testing.T) {
	id := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	hello := quictest.Hello(t, "www.example.org")
	other := quictest.Hello(t, "www.example.com")
	for i := range quicinitial.Versions {
		v := &quicinitial.Versions[i]
		for _, size := range []int{5000, 700, 100, 40} {
			parts := quictest.Split(hello, size)
			rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			var r quicinitial.Reader
			for n := 0; n < len(parts); n += 3 {
				got := r.Read(quictest.Initial(t, v, id, nil, uint8(n), 1200, parts[n:min(n+3, len(parts))]...))
				last := n+3 >= len(parts)
				if last && (got.State != clienthello.Named || got.Name != "www.example.org") || !last && got.State != clienthello.NeedMore {
					t.Errorf("version %d, pieces of %d, datagram %d: %+v", i, size, n, got)
				}
			}
			if got := r.Read([]byte{0x40}); got.Name != "www.example.org" {
				t.Errorf("afterwards: %+v", got)
			}
		}
		half := len(hello) / 2
		first := quictest.Initial(t, v, id, nil, 0, 1200, quictest.Part{Data: hello[:half]})
		var r quicinitial.Reader
		if got := r.Read(first); got.State != clienthello.NeedMore || r.Kept() < 2*half {
			t.Errorf("half: %+v, %d kept", got, r.Kept())
		}
		if got := r.Read(quictest.Initial(t, v, []byte("another!"), nil, 1, 1200, quictest.Part{Data: other})); got.State != clienthello.NeedMore {
			t.Errorf("of another connection: %+v", got)
		}
		if got := r.Read(quictest.Initial(t, v, id, nil, 1, 1200, quictest.Part{Offset: half - 1, Data: append([]byte{hello[half-1] + 1}, hello[half:]...)})); got.State != clienthello.NotTLS {
			t.Errorf("contradiction: %+v", got)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "DNS": {0, 1, 1, 0, 0, 1}, "short header": make([]byte, 100), "version 7": {0xC0, 0, 0, 0, 7, 0, 0, 0}} {
		var r quicinitial.Reader
		if got := r.Read(b); got.State != clienthello.NotTLS {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzReader(f *testing.F) {
	id := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	hello := quictest.Hello(f, "www.example.org")
	for i := range quicinitial.Versions {
		f.Add(quictest.Initial(f, &quicinitial.Versions[i], id, nil, 0, 1200, quictest.Part{Data: hello[:100]}), hello)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var r quicinitial.Reader
		r.Read(a)
		before := r.Kept()
		r.Read(b)
		if before > 2*clienthello.MaxLength+len(a)+16 {
			t.Errorf("%d bytes kept", before)
		}
	})
}
