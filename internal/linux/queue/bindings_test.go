//go:build linux

package queue

import (
	"maps"
	"os"
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

// TestBindings: the kernel tells which socket has bound a queue, and whether any has.
func TestBindings(t *testing.T) {
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(func() error {
		q, err := Open(Options{Snap: 0x1234, FailOpen: true, RcvBuf: 4096})
		if err != nil {
			return err
		}
		defer q.Close()
		port, err := q.Port()
		if err != nil {
			return err
		}
		p, err := NewProber()
		if err != nil {
			return err
		}
		defer p.Close()
		if p.Free(q.Num()) || !p.Free(q.Num()^1) {
			t.Errorf("free %t, the next one %t", p.Free(q.Num()), p.Free(q.Num()^1))
		}
		if all, err := Bindings(); err == nil && !maps.Equal(all, map[uint16]Binding{q.Num(): {Port: port, Snap: 0x1234}}) {
			t.Errorf("%+v, want the queue %d of the port %d", all, q.Num(), port)
		} else if err != nil && !os.IsPermission(err) {
			return err
		}
		q.Close()
		if !p.Free(q.Num()) {
			t.Error("a closed queue is not free")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func FuzzBindings(f *testing.F) {
	f.Add([]byte("36864  24754     0 2  4660     0     0        0  1\n    5   4711     0 2 65531     0     0        9  1\n"))
	f.Add([]byte("5 4711\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for num := range parseBindings(text) {
			if !new(sum).read(text, num) {
				t.Errorf("the queue %d has no counters", num)
			}
		}
	})
}
