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
			for { // until it is in, or has failed
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

// TestTurns holds receive calls to one at a time, and to the order of their arrival.
func TestTurns(t *testing.T) {
	var line turns
	line.interrupt, line.resume = func() {}, func() {}
	var inside atomic.Int32
	var order []int
	var all sync.WaitGroup
	first := &turn{ready: make(chan struct{}, 1)}
	if immediate, ok := line.enter(first); !immediate || !ok {
		t.Fatal("the first call has to wait")
	}
	for i := range 100 {
		c := &turn{request: uintptr(i + 1), ready: make(chan struct{}, 1)}
		if immediate, ok := line.enter(c); immediate || !ok {
			t.Fatal("a call goes before the first has left")
		}
		all.Go(func() {
			defer line.overlapped.Done()
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

// TestTable: numbers are multiples of 4 within their bounds, and not given twice.
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
				length = min(length, maxReceived) // received cut
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

// BenchmarkSplit and BenchmarkDeliver are what the interface adds to a batch of 64 packets of 1400 bytes.
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
