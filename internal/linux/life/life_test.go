//go:build linux

package life

import (
	"sync"
	"sync/atomic"
	"testing"
)

var steps = map[string]State{"Lost": Lost, "NoSend": NoSend, "NoRecv": NoRecv, "Closed": Closed}

// TestEveryOrder takes the steps in every order, each twice: each is taken once, and none after Closed.
func TestEveryOrder(t *testing.T) {
	var walk func(path []string)
	walk = func(path []string) {
		var l Life
		taken := map[string]bool{}
		for _, name := range path {
			want := !taken[name] && !taken["Closed"]
			if got := l.Enter(steps[name]); got != want {
				t.Errorf("%v: taking %s says %t", path, name, got)
			}
			if !taken["Closed"] {
				taken[name] = true
			}
			for other, s := range steps {
				if l.Is(s) != taken[other] {
					t.Errorf("%v: behind %s, Is(%s) is %t", path, name, other, l.Is(s))
				}
			}
		}
		if len(path) == 2*len(steps) {
			return
		}
		count := map[string]int{}
		for _, name := range path {
			count[name]++
		}
		for name := range steps {
			if count[name] < 2 {
				walk(append(path[:len(path):len(path)], name))
			}
		}
	}
	walk(nil)
}

func TestOneCallTakesAStep(t *testing.T) {
	var l Life
	var took atomic.Int32
	var work sync.WaitGroup
	for range 16 {
		work.Go(func() {
			if l.Enter(Closed) {
				took.Add(1)
			}
		})
	}
	work.Wait()
	if took.Load() != 1 {
		t.Errorf("%d calls have closed the handle", took.Load())
	}
}
