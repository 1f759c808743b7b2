package divert

import (
	"context"
	"io"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/internal/engine"
)

// Packets returns an iterator over the packets, for one goroutine. Each packet is valid until the next round of the loop.
// The loop ends without an error when the receive half is shut down and the queue is empty. It ends with an error in its
// last round when ctx ends, when receiving fails, and, with net.ErrClosed, after Close, even one within the loop.
//
// When the loop is left, even by a panic, packets that it has received and not handed out stay with the handle for the
// next receive call. After Close the loop hands out nothing more: such packets go on as if they had not been captured.
func (h *Handle) Packets(ctx context.Context) iter.Seq2[*Packet, error] {
	return func(yield func(*Packet, error) bool) { h.iterate(ctx, anyQueue, yield) }
}

// iterate is Packets for a queue.
func (h *Handle) iterate(ctx context.Context, queue int, yield func(*Packet, error) bool) {
	it := &iteration{ps: make([]Packet, iterationBatch)}
	h.left.begin(it)
	defer h.giveBack(it)
	defer h.left.end(it)
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, h.platform().Wake)()
	}
	for {
		if err := h.refill(ctx, queue, it); err != nil {
			if err != io.EOF {
				yield(nil, opError("recv", err))
			}
			return
		}
		for p := it.next(); p != nil; p = it.next() {
			h.cut(p)
			if !yield(p, nil) {
				return
			}
		}
	}
}

// iterationBatch is the number of packets that an iteration receives at a time.
const iterationBatch = 64

// refill receives the next packets for an iteration to hand out.
func (h *Handle) refill(ctx context.Context, queue int, it *iteration) error {
	h.receiving.RLock() // Close comes either before, and receive gets nothing, or after, and finds the packets received
	defer h.receiving.RUnlock()
	h.giveBack(it)
	n, err := h.receive(ctx, queue, it.ps, &it.lent)
	it.batch = it.ps[:n]
	it.taken.Store(0)
	return err
}

// iteration is a loop over Handle.Packets.
type iteration struct {
	ps    []Packet     // memory
	batch []Packet     // received last
	taken atomic.Int32 // number of them handed out; beyond len(batch) once takeBack has taken the rest
	lent  bool         // some of the packets lie in the engine's memory
}

// giveBack returns the engine's memory that packets of the iteration lie in.
func (h *Handle) giveBack(it *iteration) {
	if it.lent {
		it.lent = false
		h.platform().(engine.Lender).GiveBack()
	}
}

// next returns the next packet to be handed out, nil if there is none.
func (it *iteration) next() *Packet {
	if i := int(it.taken.Add(1)) - 1; i < len(it.batch) {
		return &it.batch[i]
	}
	return nil
}

// takeBack returns the packets that were not handed out, and lets none be handed out any more.
func (it *iteration) takeBack() []Packet {
	i := int(it.taken.Swap(math.MaxInt32 / 2)) // next may be called some times more
	return it.batch[min(i, len(it.batch)):]
}

// leftovers holds packets that a handle has received and not handed out: the remains of finished iterations, and the
// undelivered packets of running ones.
type leftovers struct {
	mu         sync.Mutex
	iterations []*iteration
	rest       []Packet     // left behind, the oldest first
	resting    atomic.Int32 // len(rest)
	closed     bool         // sweep has run
}

// begin enters an iteration.
func (l *leftovers) begin(it *iteration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.iterations = append(l.iterations, it)
}

// end removes an iteration and keeps the packets that it has not handed out.
func (l *leftovers) end(it *iteration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.iterations = slices.DeleteFunc(l.iterations, func(other *iteration) bool { return other == it })
	if !l.closed { // else sweep has taken them
		rest := it.takeBack()
		for i := range rest {
			if it.lent {
				rest[i].Data = append(rest[i].Buffer(len(rest[i].Data))[:0], rest[i].Data...)
			}
		}
		l.rest = append(l.rest, rest...)
		l.resting.Store(int32(len(l.rest)))
	}
}

// take moves the oldest leftovers of a queue to ps.
func (l *leftovers) take(q engine.Queues, queue int, ps []Packet) (n int) {
	if l.resting.Load() == 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.rest[:0]
	for i := range l.rest {
		p := &l.rest[i]
		if n == len(ps) || q != nil && queue != anyQueue && q.QueueOf(p) != queue {
			kept = append(kept, *p)
			continue
		}
		ps[n] = *p
		n++
	}
	clear(l.rest[len(kept):]) // their memory is the caller's now
	l.rest = kept
	l.resting.Store(int32(len(kept)))
	return n
}

// count returns the number of packets that finished iterations left behind.
func (l *leftovers) count() uint64 { return uint64(l.resting.Load()) }

// sweep takes all packets not handed out. No receive call runs meanwhile, or afterwards.
func (l *leftovers) sweep() []Packet {
	l.mu.Lock()
	defer l.mu.Unlock()
	ps := l.rest
	for _, it := range l.iterations {
		ps = append(ps, it.takeBack()...)
	}
	l.rest, l.iterations, l.closed = nil, nil, true
	l.resting.Store(0)
	return ps
}
