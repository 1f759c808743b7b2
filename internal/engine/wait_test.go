package engine

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// ended is a channel that ends a wait before it begins.
var ended = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func TestWaitEnds(t *testing.T) {
	open := make(chan struct{})
	for _, row := range []struct {
		name string
		w    Wait
		want bool
	}{
		{"nothing ends it", Wait{}, false},
		{"nothing has ended", Wait{open, open}, false},
		{"the context", Wait{ended, open}, true},
		{"the handle", Wait{open, ended}, true},
	} {
		if got := row.w.Ended(); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

// TestTurnIsTakenByOne: of many takers one is inside, and no taker waits for ever, even when others give up.
func TestTurnIsTakenByOne(t *testing.T) {
	turn := NewTurn()
	inside := 0 // also for the race detector
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for round := range 2000 {
				w := Wait{}
				if (i+round)%3 == 0 {
					end := make(chan struct{})
					w.Context = end
					go close(end)
				}
				if !turn.Take(w) {
					continue
				}
				if inside++; inside != 1 {
					t.Errorf("%d at once", inside)
				}
				inside--
				turn.Release()
			}
		})
	}
	all.Wait()
	if !turn.Take(Wait{}) {
		t.Error("in the end it is not free")
	}
}

func TestTurnIsNotWaitedForLonger(t *testing.T) {
	turn := NewTurn()
	turn.Take(Wait{})
	if turn.Take(Wait{Context: ended}) || turn.Take(Wait{Handle: ended}) {
		t.Error("taken twice")
	}
	taken := make(chan bool)
	end := make(chan struct{})
	go func() { taken <- turn.Take(Wait{Handle: end}) }()
	close(end)
	if <-taken {
		t.Error("taken twice")
	}
	turn.Release()
	if !turn.Take(Wait{}) {
		t.Error("not free")
	}
}

// TestDeadlineEndsWaits: a waiter holds an earlier channel; a deadline set later ends that wait too.
func TestDeadlineEndsWaits(t *testing.T) {
	var d Deadline
	woken := make(chan struct{}, 100)
	d.Init(func() { woken <- struct{}{} })
	is := func(what string, c <-chan struct{}, want bool) {
		t.Helper()
		if got := (Wait{Handle: c}).Ended(); got != want {
			t.Errorf("%s: over is %v", what, got)
		}
	}
	set := func(at time.Time) {
		t.Helper()
		if err := d.Set(at); err != nil {
			t.Fatal(err)
		}
	}
	early := d.Passed()
	is("none is set", early, false)
	set(time.Now().Add(time.Hour))
	is("one far away", early, false)
	set(time.Now().Add(time.Millisecond))
	<-early
	<-woken
	is("a call that begins after it", d.Passed(), true)
	set(time.Time{})
	is("it was taken away", d.Passed(), false)
	is("a call that began before keeps its end", early, true)
	early = d.Passed()
	set(time.Unix(1, 0))
	is("set to the past", early, true)
	<-woken
	set(time.Now().Add(time.Hour))
	is("set to the future", d.Passed(), false)
	early = d.Passed()
	d.Close()
	is("closed", early, true)
	<-woken
	if err := d.Set(time.Time{}); err != net.ErrClosed {
		t.Errorf("set after Close: %v", err)
	}
	is("closed for good", d.Passed(), true)
}

// TestDeadlinesReplaceEachOther: the timer of a replaced deadline ends nothing.
func TestDeadlinesReplaceEachOther(t *testing.T) {
	var d Deadline
	d.Init(func() {})
	for range 2000 {
		if err := errors.Join(d.Set(time.Now().Add(time.Microsecond)), d.Set(time.Now().Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
		if (Wait{Handle: d.Passed()}).Ended() {
			t.Fatal("ended by a deadline that was replaced")
		}
	}
	if err := d.Set(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkWait measures the cost of checking a Wait in a receive call.
func BenchmarkWait(b *testing.B) {
	var d Deadline
	d.Init(func() {})
	done := b.Context().Done()
	b.ReportAllocs()
	for b.Loop() {
		if (Wait{Context: done, Handle: d.Passed()}).Ended() {
			b.Fatal("ended")
		}
	}
}

// BenchmarkTurn measures an uncontended Turn.
func BenchmarkTurn(b *testing.B) {
	turn := NewTurn()
	b.ReportAllocs()
	for b.Loop() {
		turn.Take(Wait{})
		turn.Release()
	}
}
