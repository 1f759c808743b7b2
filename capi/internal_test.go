//go:build !windows

package main

import (
	"bytes"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestReceivingFromAHandleThatDropsWaits, as with the original: until it is shut down or closed (specification: api.md 6).
func TestReceivingFromAHandleThatDropsWaits(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(h *handle) code
		want code
	}{
		{"shut down", func(h *handle) code { return h.shutdown(uint32(divert.ShutdownRecv)) }, noData},
		{"closed", (*handle).close, operationAborted},
	} {
		t.Run(row.name, func(t *testing.T) {
			d, err := diverttest.New().Open("true", divert.WithFlags(divert.Drop), engine.DropWaits().(divert.Option))
			if err != nil {
				t.Fatal(err)
			}
			h := newHandle(d)
			entered, results := make(chan struct{}), make(chan code)
			go func() {
				close(entered)
				results <- h.recv(&delivery{max: 1})
			}()
			<-entered
			for { // until the call waits, or has failed
				h.turns.mu.Lock()
				in := h.turns.current != nil
				h.turns.mu.Unlock()
				if in {
					break
				}
				select {
				case got := <-results:
					t.Fatalf("it fails at once, with %d", got)
				default:
					runtime.Gosched()
				}
			}
			if result := row.end(h); result != success {
				t.Errorf("ended with %d", result)
			}
			if got := <-results; got != row.want {
				t.Errorf("it returns %d, want %d", got, row.want)
			}
			_ = d.Close()
		})
	}
}

// TestTurns checks that receive calls come one at a time, in the order of their arrival, those of threads and overlapped
// ones alike.
func TestTurns(t *testing.T) {
	var line turns
	line.interrupt, line.resume = func() {}, func() {}
	var inside atomic.Int32
	var order []int
	var all sync.WaitGroup
	first := new(turn)
	if immediate, ok := line.enter(first); !immediate || !ok {
		t.Fatal("the first call has to wait")
	}
	for i := range 100 {
		c := new(turn)
		if i%2 == 1 {
			c = &turn{request: uintptr(i + 1), ready: make(chan struct{}, 1)}
		}
		if immediate, ok := line.enter(c); immediate || !ok {
			t.Fatal("a call goes before the first has left")
		}
		all.Go(func() {
			if c.request != 0 {
				defer line.overlapped.Done()
			} else {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
			}
			if !line.wait(c) {
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two calls at once")
			}
			order = append(order, i)
			inside.Add(-1)
			line.leave(c)
		})
	}
	if !line.cancel(50) || line.cancel(50) || line.cancel(1000) {
		t.Error("cancel does not find what is there, or finds what is not")
	}
	line.leave(first)
	all.Wait()
	if len(order) != 99 {
		t.Errorf("%d calls had their turn, want 99", len(order))
	}
	if !slices.IsSorted(order) || slices.Contains(order, 49) {
		t.Errorf("the calls had their turns in the order %v", order)
	}
	line.close()
	if _, ok := line.enter(first); ok {
		t.Error("a closed line lets a call in")
	}
}

// TestTurnsEnd: waiting calls end when the line is closed, and a call with a time limit ends when its time is over.
func TestTurnsEnd(t *testing.T) {
	var line turns
	first := new(turn)
	line.interrupt, line.resume = func() { go line.leave(first) }, func() {}
	line.enter(first)
	late, waits, overlapped := new(turn), new(turn), &turn{request: 1, ready: make(chan struct{}, 1)}
	var all sync.WaitGroup
	for _, c := range []*turn{late, waits, overlapped} {
		if immediate, ok := line.enter(c); immediate || !ok {
			t.Fatal("a call goes before the first has left")
		}
		all.Go(func() {
			if line.wait(c) {
				t.Error("a call that was cancelled has its turn")
			}
			if c == overlapped {
				line.overlapped.Done()
			}
		})
	}
	line.expire(late)
	if !line.hasExpired(late) || line.hasExpired(waits) {
		t.Error("who has expired is not known")
	}
	line.close()
	all.Wait()
}

// BenchmarkTurns measures the cost of four threads taking turns without a pause.
func BenchmarkTurns(b *testing.B) {
	var line turns
	line.interrupt, line.resume = func() {}, func() {}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	first := new(turn)
	line.enter(first)
	var all, there sync.WaitGroup
	for range 4 {
		there.Add(1)
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			c := new(turn)
			immediate, _ := line.enter(c)
			for there.Done(); ; immediate, _ = line.enter(c) {
				if !immediate {
					if !line.wait(c) {
						b.Error("it is not its turn")
					}
				}
				line.leave(c)
				if left.Add(-1) < 0 {
					return
				}
			}
		})
	}
	there.Wait()
	line.leave(first)
	all.Wait()
}

// TestProcessors: the scheduler gets a processor for each receiving thread, up to a limit, and none if the environment
// sets their number.
func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "1")
	runtime.GOMAXPROCS(1)
	var told, p processors
	for range 5 {
		told.enter()
	}
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors against the word of the environment", n)
	}
	t.Setenv("GOMAXPROCS", "")
	for threads := range 2 * mostProcessors {
		p.enter()
		if n, want := runtime.GOMAXPROCS(0), min(threads+2, mostProcessors); n != want {
			t.Fatalf("%d processors for %d threads, want %d", n, threads+1, want)
		}
	}
	for range 2 * mostProcessors {
		p.leave()
	}
	runtime.GOMAXPROCS(1)
	p.enter()
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors, and there were enough", n)
	}
}

// TestTable: numbers are multiples of 4 within their bounds, and are not reused.
func TestTable(t *testing.T) {
	numbers := table{handles: make(map[uintptr]*handle), last: lastHandle - 10*handleStep}
	seen := make(map[uintptr]bool)
	for range 100 {
		h := new(handle)
		n := numbers.add(h)
		if n < firstHandle || n > lastHandle || n%4 != 0 || seen[n] || numbers.get(n) != h {
			t.Errorf("handle %#x", n)
		}
		seen[n] = true
	}
	for n := range seen {
		if numbers.remove(n) == nil || numbers.remove(n) != nil || numbers.get(n) != nil {
			t.Errorf("handle %#x is not removed, or twice", n)
		}
	}
}

// FuzzSplit: the packets of a batch lie back to back, each as long as its header says, one for each address.
func FuzzSplit(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 21, 19: 0, 20: 1}, uint8(1))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 1, 40: 7}, 0x45, 0, 0, 20), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, addresses uint8) {
		before := bytes.Clone(b)
		addrs := make([]byte, int(addresses)*packet.AddressSize+int(addresses)%packet.AddressSize)
		for i := range addrs {
			addrs[i] = byte(i * 7)
		}
		ps := new(batch)
		n, size, malformed := ps.split(b, addrs)
		if (n == int(addresses)) != (malformed == success) {
			t.Fatalf("%d packets of %d, and %d", n, addresses, malformed)
		}
		at := 0
		for i := range ps[:n] {
			p := &ps[i]
			length := int(p.Data[2])<<8 | int(p.Data[3])
			if p.Data[0]>>4 == 6 {
				length = (int(p.Data[4])<<8 | int(p.Data[5])) + packet.IPv6HeaderLen
			}
			if len(b)-at == maxReceived {
				length = min(length, maxReceived) // longer ones are received cut
			}
			if len(p.Data) != length || !bytes.Equal(p.Data, b[at:at+length]) {
				t.Fatalf("packet %d has %d bytes", i, len(p.Data))
			}
			at += length
		}
		if at != size || !bytes.Equal(b, before) {
			t.Fatalf("size %d, want %d; the caller's memory changed: %v", size, at, !bytes.Equal(b, before))
		}
	})
}

// BenchmarkSplit and BenchmarkDeliver measure the interface's own cost for a batch of 64 packets of 1400 bytes.
func BenchmarkSplit(b *testing.B) {
	one := append([]byte{0x45, 0, 1400 >> 8, 1400 & 0xff}, make([]byte, 1396)...)
	buf, addrs := bytes.Repeat(one, 64), make([]byte, 64*packet.AddressSize)
	ps := new(batch)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		ps.split(buf, addrs)
		ps.forget(64)
	}
}

func BenchmarkDeliver(b *testing.B) {
	h := &handle{divert: new(divert.Handle)}
	for i := range 64 {
		h.held.packets[i].Data = make([]byte, 1400)
	}
	buf, addrs := make([]byte, 64*1500), make([]byte, 64*packet.AddressSize)
	b.SetBytes(64 * 1400)
	b.ReportAllocs()
	for b.Loop() {
		h.held.first, h.held.last = 0, 64
		d := delivery{buf: buf, addrs: addrs, max: 64}
		if h.deliver(&d) != success || d.count != 64 {
			b.Fatal(d.count)
		}
	}
}
