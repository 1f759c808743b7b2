package divert

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"time"

	"github.com/opendivert/divert/internal/engine"
)

// Recv waits for a packet or event and copies it to b. It returns the length, which is 0 for events without data. If b is
// too small, Recv fills it and fails with ErrShortBuffer; the address is valid, and Accept with it still lets the whole
// packet go on. Recv refuses an empty b before it receives anything.
//
// Linux hands over at most the first 65,531 bytes of a packet; the IP header has the true length. Accept lets the whole
// packet go on, and so does Send if b has not changed; otherwise Send fails with ErrShortBuffer.
//
// Recv fails with io.EOF when the receive half is shut down and the queue is empty, net.ErrClosed after Close,
// os.ErrDeadlineExceeded after the read deadline, and ErrRulesGone when another program has removed the handle's rules and
// the queue is empty. On a handle with the flag SendOnly or Drop it fails at once with ErrSendOnly or ErrDropOnly, unless one
// of the other errors applies.
func (h *Handle) Recv(b []byte) (int, Address, error) {
	if len(b) == 0 && h.hasData() {
		return 0, Address{}, opError("recv", ErrShortBuffer)
	}
	s := h.single()
	defer h.singles.Put(s)
	if _, err := h.recv(anyQueue, s[:]); err != nil {
		return 0, Address{}, err
	}
	n := copy(b, s[0].Data)
	if n < len(s[0].Data) && h.hasData() {
		h.keepWhole(&s[0])
		return n, s[0].Addr, opError("recv", ErrShortBuffer)
	}
	return n, s[0].Addr, nil
}

// hasData reports whether the handle's packets or events have bytes.
func (h *Handle) hasData() bool { return h.layer != LayerFlow && h.layer != LayerSocket }

// RecvBatch waits for packets and fills 1 to len(ps) of ps with those available, at most MaxBatch; it does not wait for
// more. Each packet's Data lies in memory of its own Packet and stays valid until that Packet is passed to a receive call
// again, so a program that reuses its Packets allocates nothing. With an empty ps it returns at once. The errors are
// those of Recv, except ErrShortBuffer.
func (h *Handle) RecvBatch(ps []Packet) (int, error) { return h.recv(anyQueue, ps) }

// Queues returns the number of queues that share the handle's flows.
func (h *Handle) Queues() int {
	if q, ok := h.platform().(engine.Queues); ok {
		return q.Queues()
	}
	return 1
}

// Queue returns one of the handle's queues, 0 to Queues()-1. Receiving from another fails with ErrInvalid.
func (h *Handle) Queue(number int) *Queue { return &Queue{h, number} }

// Queue is one of the queues that share the handle's flows, see WithQueues. With one goroutine for each queue the packets
// of a flow keep their order. Its methods are those of the handle, for the packets of the queue.
type Queue struct {
	handle *Handle
	number int
}

// check fails if there is no such queue.
func (q *Queue) check() error {
	if q.handle == nil {
		return opError("recv", errUnopened)
	}
	if n := q.handle.Queues(); q.number < 0 || q.number >= n {
		return opError("recv", fmt.Errorf("%w: there is no queue %d; the handle has %d", ErrInvalid, q.number, n))
	}
	return nil
}

// RecvBatch is Handle.RecvBatch.
func (q *Queue) RecvBatch(ps []Packet) (int, error) {
	if err := q.check(); err != nil {
		return 0, err
	}
	return q.handle.recv(q.number, ps)
}

// RecvContext is Handle.RecvContext.
func (q *Queue) RecvContext(ctx context.Context) (*Packet, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	return q.handle.recvOne(ctx, q.number)
}

// Packets is Handle.Packets.
func (q *Queue) Packets(ctx context.Context) iter.Seq2[*Packet, error] {
	return func(yield func(*Packet, error) bool) {
		if err := q.check(); err != nil {
			yield(nil, err)
			return
		}
		q.handle.iterate(ctx, q.number, yield)
	}
}

// RecvContext waits for a packet or event until ctx ends. The caller owns the packet: it lies in memory of its own and stays
// valid, so the caller may hold it or give it to another goroutine. A loop over Packets, or RecvBatch, saves the allocation.
// The errors are those of Recv, except ErrShortBuffer, and ctx.Err.
func (h *Handle) RecvContext(ctx context.Context) (*Packet, error) { return h.recvOne(ctx, anyQueue) }

func (h *Handle) recvOne(ctx context.Context, queue int) (*Packet, error) {
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, h.platform().Wake)()
	}
	s := h.single()
	defer h.singles.Put(s)
	h.receiving.RLock()
	defer h.receiving.RUnlock()
	if _, err := h.receive(ctx, queue, s[:], nil); err != nil {
		return nil, opError("recv", err)
	}
	h.cut(&s[0])
	p := s[0].Clone()
	return &p, nil
}

// SetReadDeadline makes receive calls, waiting ones too, fail with os.ErrDeadlineExceeded from t on. The zero time removes
// the deadline. It fails with net.ErrClosed after Close.
func (h *Handle) SetReadDeadline(t time.Time) error {
	if h.engine == nil {
		return opError("set deadline", errUnopened)
	}
	return opError("set deadline", h.deadline.Set(t))
}

// anyQueue stands for all queues of a handle.
const anyQueue = -1

// recv is RecvBatch for a queue.
func (h *Handle) recv(queue int, ps []Packet) (int, error) {
	h.receiving.RLock()
	defer h.receiving.RUnlock()
	n, err := h.receive(context.Background(), queue, ps[:min(len(ps), MaxBatch)], nil)
	for i := range ps[:n] {
		h.cut(&ps[i])
	}
	return n, opError("recv", err)
}

// receive receives from a queue until ctx ends. The caller holds h.receiving, and cuts the packets. If lent is not nil,
// the packets may lie in the engine's memory; receive then sets it.
func (h *Handle) receive(ctx context.Context, queue int, ps []Packet, lent *bool) (int, error) {
	if h.engine == nil {
		return 0, errUnopened
	}
	w := engine.Wait{Context: ctx.Done(), Handle: h.deadline.Passed()}
	switch {
	case h.closed.Load():
		return 0, net.ErrClosed
	case h.flags&SendOnly != 0:
		return 0, ErrSendOnly
	case h.flags&Drop != 0 && !h.dropWaits:
		return 0, h.nothing()
	case len(ps) == 0:
		return 0, nil
	case w.Ended():
		return 0, h.ended(ctx)
	}
	n, err := h.next(queue, w, ps, lent)
	switch {
	case h.closed.Load():
		if n > 0 {
			h.platform().Return(ps[:n]) // the engine stays open until this call has left
		}
		return 0, net.ErrClosed
	case err == engine.ErrInterrupted:
		return 0, h.ended(ctx)
	}
	return n, err
}

// poll is receive of any queue without waiting: it fails with engine.ErrInterrupted if nothing is there. See engine.Poll.
func (h *Handle) poll(ps []Packet) (int, error) {
	h.receiving.RLock()
	defer h.receiving.RUnlock()
	switch {
	case h.closed.Load():
		return 0, net.ErrClosed
	case h.flags&SendOnly != 0:
		return 0, ErrSendOnly
	}
	return h.next(anyQueue, engine.Wait{Handle: over}, ps, nil)
}

// nothing returns the reason why a handle that drops receives nothing: ErrDropOnly, unless the engine knows more.
func (h *Handle) nothing() error {
	if h.recvDown.Load() {
		return io.EOF
	}
	_, err := h.platform().Recv(engine.Wait{Handle: over}, make([]Packet, 1))
	if err == engine.ErrInterrupted {
		return ErrDropOnly
	}
	return err
}

// over ends a wait before it begins.
var over = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// next takes packets that iterations have left behind, or else receives; lent is that of receive.
func (h *Handle) next(queue int, w engine.Wait, ps []Packet, lent *bool) (n int, err error) {
	q, _ := h.platform().(engine.Queues)
	if n := h.left.take(q, queue, ps); n > 0 {
		return n, nil
	}
	one := queue == anyQueue || q == nil || q.Queues() == 1
	if l, ok := h.platform().(engine.Lender); ok && lent != nil && one {
		n, *lent, err = l.Lend(w, ps)
		return n, err
	}
	if q != nil && queue != anyQueue {
		return q.RecvQueue(queue, w, ps)
	}
	return h.platform().Recv(w, ps)
}

// ended returns the reason why the wait of a receive call has ended.
func (h *Handle) ended(ctx context.Context) error {
	if h.closed.Load() {
		return net.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.ErrDeadlineExceeded
}

// cut shortens a packet to the handle's snap length.
func (h *Handle) cut(p *Packet) {
	if h.snap > 0 && h.layer != LayerReflect && len(p.Data) > h.snap {
		h.keepWhole(p)
		p.Data = p.Data[:h.snap]
	}
}

// keepWhole has the engine keep a packet that is about to be cut, if Accept needs that to let the whole packet go on.
func (h *Handle) keepWhole(p *Packet) {
	if k, ok := h.platform().(engine.Keeper); ok && h.flags&(Sniff|RecvOnly) == 0 {
		k.Keep(p)
	}
}
