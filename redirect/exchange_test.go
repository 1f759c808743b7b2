package redirect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// mute is a carrier that carries nothing.
type mute struct{}

func (mute) answer([]byte) error { return nil }
func (mute) refuse()             {}
func (mute) end()                {}

func muteExchange(idle time.Duration) *exchange {
	f := &flow{}
	f.last.Store(time.Now().Unix())
	return newExchange(f, mute{}, idle)
}

// TestExchangeReaders: several readers get each datagram once, in order of the calls, and all learn of the end.
func TestExchangeReaders(t *testing.T) {
	const readers, datagrams = 8, 10000
	for _, end := range []struct {
		want error
		do   func(*exchange)
	}{
		{io.EOF, (*exchange).finish},
		{net.ErrClosed, func(x *exchange) {
			for waitingIn(x) > 0 {
				time.Sleep(time.Millisecond)
			}
			_ = x.Close()
		}},
		{os.ErrDeadlineExceeded, func(x *exchange) {
			for waitingIn(x) > 0 {
				time.Sleep(time.Millisecond)
			}
			_ = x.SetReadDeadline(time.Unix(1, 0))
		}},
	} {
		x := muteExchange(time.Hour)
		var wait sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for range readers {
			wait.Go(func() {
				b := make([]byte, 100)
				for {
					n, err := x.Read(b)
					if err != nil {
						if !errors.Is(err, end.want) {
							t.Errorf("%v, want %v", err, end.want)
						}
						return
					}
					mu.Lock()
					got[string(b[:n])]++
					mu.Unlock()
				}
			})
		}
		for i := range datagrams {
			for waitingIn(x) >= maxWaiting {
				time.Sleep(time.Millisecond)
			}
			x.deliver(fmt.Append(nil, i))
		}
		end.do(x)
		wait.Wait()
		if len(got) != datagrams {
			t.Errorf("%v: %d datagrams have been read", end.want, len(got))
		}
		for d, n := range got {
			if n != 1 {
				t.Errorf("%v: %s was read %d times", end.want, d, n)
			}
		}
	}
}

func waitingIn(x *exchange) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.queue) - x.head
}

// TestExchangeBounds: datagrams beyond the limits are lost, the oldest come first, and each is read as it was delivered
// although memory is reused.
func TestExchangeBounds(t *testing.T) {
	x := muteExchange(time.Hour)
	b := make([]byte, 100)
	for round := range 3 {
		for i := range maxWaiting + 10 {
			x.deliver(fmt.Append(nil, round, " ", i))
		}
		for i := range maxWaiting {
			if n, err := x.Read(b); err != nil || string(b[:n]) != fmt.Sprint(round, " ", i) {
				t.Fatalf("round %d, %d: %q, %v", round, i, b[:n], err)
			}
			if i%3 == 0 { // they come behind the waiting ones
				x.deliver([]byte("later"))
			}
		}
		for waitingIn(x) > 0 {
			if n, err := x.Read(b); err != nil || string(b[:n]) != "later" {
				t.Fatalf("%q, %v", b[:n], err)
			}
		}
	}
	large := make([]byte, maxWaitingBytes/4)
	for range 6 {
		x.deliver(large)
	}
	if n := waitingIn(x); n != 4 {
		t.Errorf("%d large ones wait", n)
	}
}

// TestExchangeIdle: an exchange that is silent ends.
func TestExchangeIdle(t *testing.T) {
	x := muteExchange(0)
	if _, err := x.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// BenchmarkExchange passes a datagram through an exchange.
func BenchmarkExchange(b *testing.B) {
	x := muteExchange(time.Hour)
	d, buffer := make([]byte, 1200), make([]byte, 1500)
	b.ReportAllocs()
	for b.Loop() {
		x.deliver(d)
		if n, err := x.Read(buffer); n != len(d) || err != nil {
			b.Fatal(n, err)
		}
	}
}
