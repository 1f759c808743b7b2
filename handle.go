package divert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
)

// Handle is an open handle. Its methods may be called from several goroutines at once; packets come
// to one reader each, in order.
type Handle struct {
	engine   engine.Handle
	layer    Layer
	priority int16
	flags    Flag
	dialect  filter.Dialect
	snap     int // 0: packets are received whole

	mu       sync.Mutex // guards params, deadline and rest
	params   [VersionMajor]uint64
	deadline time.Time
	rest     []Packet // received and not yet returned: what an iteration left behind

	resting    atomic.Int32 // len(rest)
	interrupts atomic.Int32 // receive calls whose context has ended and that have not noticed yet

	singles sync.Pool // of *[1]Packet
}

// Layer returns the handle's layer.
func (h *Handle) Layer() Layer { return h.layer }

// Priority returns the handle's priority.
func (h *Handle) Priority() int16 { return h.priority }

// Flags returns the handle's flags.
func (h *Handle) Flags() Flag { return h.flags }

// Engine says in words how the handle is served, for people to read.
func (h *Handle) Engine() string { return h.engine.Description() }

// single returns a batch of one packet; it goes back with h.singles.Put.
func (h *Handle) single() *[1]Packet {
	if s, ok := h.singles.Get().(*[1]Packet); ok {
		return s
	}
	return new([1]Packet)
}

// Recv waits for a packet or event and copies it to b. It returns the length, which is 0 for events that
// have no data. If b is too small it is filled, the rest of the packet is lost, and the error is
// ErrShortBuffer; the address is good, and Accept with it still lets the whole packet go on.
// A b of no length at all is refused before anything is received.
//
// On Linux only the first 65,531 bytes of a longer packet are received, and its IP header tells its length. Accept lets
// all of it go on, and so does Send if b has not changed; if it has, Send fails with ErrShortBuffer.
//
// It fails with io.EOF when the receive half is shut down and nothing is left, net.ErrClosed after
// Close, os.ErrDeadlineExceeded after the read deadline, and ErrRulesGone when another program has removed
// the handle's rules and nothing is left.
func (h *Handle) Recv(b []byte) (int, Address, error) {
	if len(b) == 0 && h.hasData() {
		return 0, Address{}, opError("recv", ErrShortBuffer)
	}
	s := h.single()
	defer h.singles.Put(s)
	if _, err := h.recv(context.Background(), s[:]); err != nil {
		return 0, Address{}, opError("recv", err)
	}
	n := copy(b, s[0].Data)
	if n < len(s[0].Data) && h.hasData() {
		return n, s[0].Addr, opError("recv", ErrShortBuffer)
	}
	return n, s[0].Addr, nil
}

// hasData reports whether what the handle receives has bytes.
func (h *Handle) hasData() bool { return h.layer != LayerFlow && h.layer != LayerSocket }

// RecvBatch waits for packets and fills 1 to len(ps) of ps with what is there, at most MaxBatch; it does
// not wait for more. Each packet's Data lies in memory of its own Packet and stays valid until that Packet
// is given to a receive call again, so a program that uses the same Packets again allocates nothing.
// With no ps it returns 0 at once. The errors are those of Recv, except ErrShortBuffer.
func (h *Handle) RecvBatch(ps []Packet) (int, error) {
	n, err := h.recv(context.Background(), ps[:min(len(ps), MaxBatch)])
	return n, opError("recv", err)
}

// Queues returns how many queues the handle's flows are shared out to.
func (h *Handle) Queues() int {
	if q, ok := h.engine.(engine.Queues); ok {
		return q.Queues()
	}
	return 1
}

// RecvQueue is RecvBatch for the packets of one queue, 0 to Queues()-1. With one goroutine for each queue the
// packets of a flow keep their order.
func (h *Handle) RecvQueue(queue int, ps []Packet) (int, error) {
	if queue < 0 || queue >= h.Queues() {
		return 0, opError("recv", fmt.Errorf("%w: there is no queue %d; the handle has %d", ErrInvalid, queue, h.Queues()))
	}
	ps = ps[:min(len(ps), MaxBatch)]
	q, ok := h.engine.(engine.Queues)
	if !ok {
		return h.RecvBatch(ps)
	}
	recv := func(ps []Packet) (int, error) { return q.RecvQueue(queue, ps) }
	n, err := h.retry(context.Background(), func() (int, error) { return h.cut(ps, recv) })
	return n, opError("recv", err)
}

// Packets returns an iterator over the packets, for one goroutine. Each is valid until the next round
// of the loop. It ends without an error at the end of a shut-down queue; with an error, as its last round,
// when ctx ends or receiving fails. What it has received but not handed out when the loop is left stays
// with the handle for the next receive call.
func (h *Handle) Packets(ctx context.Context) iter.Seq2[*Packet, error] {
	return func(yield func(*Packet, error) bool) {
		ps := make([]Packet, iterationBatch)
		for {
			n, err := h.recv(ctx, ps)
			if err != nil {
				if err != io.EOF {
					yield(nil, opError("recv", err))
				}
				return
			}
			for i := range ps[:n] {
				if !yield(&ps[i], nil) {
					h.keep(ps[i+1 : n])
					return
				}
			}
		}
	}
}

// iterationBatch is how many packets an iteration receives at a time.
const iterationBatch = 64

// keep holds received packets for the next receive call.
func (h *Handle) keep(ps []Packet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rest = append(h.rest, ps...)
	h.resting.Store(int32(len(h.rest)))
}

// kept moves packets that an iteration left behind to ps.
func (h *Handle) kept(ps []Packet) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n = copy(ps, h.rest)
	h.rest = h.rest[n:]
	h.resting.Store(int32(len(h.rest)))
	return n
}

// recv receives until ctx ends.
func (h *Handle) recv(ctx context.Context, ps []Packet) (int, error) {
	if h.resting.Load() > 0 {
		if n := h.kept(ps); n > 0 {
			return n, nil
		}
	}
	if ctx.Done() == nil {
		return h.retry(ctx, func() (int, error) { return h.cut(ps, h.engine.Recv) })
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// The engine knows one deadline for all who receive. When ctx ends it is set to the past for a moment:
	// everybody wakes, and everybody but this call goes on waiting.
	stop := context.AfterFunc(ctx, func() {
		h.interrupts.Add(1)
		_ = h.engine.SetReadDeadline(time.Unix(1, 0)) // fails when closed, which wakes too
	})
	n, err := h.retry(ctx, func() (int, error) { return h.cut(ps, h.engine.Recv) })
	if !stop() {
		h.mu.Lock()
		if h.interrupts.Add(-1) == 0 {
			_ = h.engine.SetReadDeadline(h.deadline)
		}
		h.mu.Unlock()
	}
	return n, err
}

// cut receives, and returns no more of each packet than is wanted.
func (h *Handle) cut(ps []Packet, recv func([]Packet) (int, error)) (int, error) {
	n, err := recv(ps)
	if h.snap > 0 && h.layer != LayerReflect {
		for i := range ps[:n] {
			ps[i].Data = ps[i].Data[:min(len(ps[i].Data), h.snap)]
		}
	}
	return n, err
}

// retry receives, and goes on when it was woken for the sake of another call.
func (h *Handle) retry(ctx context.Context, recv func() (int, error)) (int, error) {
	for {
		n, err := recv()
		if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		h.mu.Lock()
		expired := !h.deadline.IsZero() && !time.Now().Before(h.deadline)
		h.mu.Unlock()
		if expired {
			return 0, os.ErrDeadlineExceeded
		}
		time.Sleep(50 * time.Microsecond) // until the interrupted call has set the deadline back
	}
}

// SetReadDeadline makes receive calls, also those that wait already, fail with os.ErrDeadlineExceeded
// from t on. The zero time takes the deadline away.
func (h *Handle) SetReadDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	if h.interrupts.Load() > 0 {
		return nil // set when the interruption is over
	}
	return opError("set deadline", h.engine.SetReadDeadline(t))
}

// Send injects a packet, an IP header first and as long as the header says. With the address that a packet
// was received with it goes on as that packet, once, past the handles that have seen it; with any other
// address, or when that packet is gone, it is injected anew: on the way out if Outbound is set, else as if
// it came in on the interface of the address.
//
// Checksums that the address calls missing are computed, in b; and the TTL of an impostor is counted
// down there (specification: api.md 8). On Linux the checksum of a packet on a source route is that for its final
// destination, and SCTP's counts as missing if both TCPChecksum and UDPChecksum are false. Send keeps nothing of b. On Linux a received packet of which neither a byte nor
// what the address says of its checksums has changed goes on as with Accept: nothing is copied or computed then.
//
// It fails with ErrShortBuffer or ErrInvalid if b is not a whole packet, ErrHopLimit, ErrTooLarge,
// ErrNoSuchDevice, ErrRecvOnly, ErrShutdown, net.ErrClosed, or what the system says.
func (h *Handle) Send(b []byte, a *Address) error {
	if a == nil {
		return opError("send", fmt.Errorf("%w: the address is nil; it says which way the packet goes", ErrInvalid))
	}
	s := h.single()
	defer h.singles.Put(s)
	s[0].Data, s[0].Addr = b, *a
	_, err := h.engine.Send(s[:])
	s[0].Data = nil
	return opError("send", err)
}

// SendBatch sends packets as Send does, with few system calls, at most MaxBatch. It returns how many were
// accepted; a packet that fails does not keep the others back, and the error is that of the last one.
func (h *Handle) SendBatch(ps []Packet) (int, error) {
	if len(ps) > MaxBatch {
		return 0, opError("send", tooMany(len(ps)))
	}
	n, err := h.engine.Send(ps)
	return n, opError("send", err)
}

// Accept lets a received packet go on as it was, whatever its Data is now; its bytes are not copied back
// to the kernel. If the packet is not waiting any more, Data is injected as Send would; so it is always on
// Windows, where the driver keeps nothing of a packet that was received.
func (h *Handle) Accept(p *Packet) error {
	if p == nil {
		return opError("accept", fmt.Errorf("%w: the packet is nil", ErrInvalid))
	}
	s := h.single()
	defer h.singles.Put(s)
	s[0].Data, s[0].Addr = p.Data, p.Addr
	_, err := h.engine.Accept(s[:])
	s[0].Data = nil
	return opError("accept", err)
}

// AcceptBatch accepts packets as Accept does, with few system calls, at most MaxBatch. It returns how many
// went on; the error is that of the last one that did not.
func (h *Handle) AcceptBatch(ps []Packet) (int, error) {
	if len(ps) > MaxBatch {
		return 0, opError("accept", tooMany(len(ps)))
	}
	n, err := h.engine.Accept(ps)
	return n, opError("accept", err)
}

func tooMany(n int) error {
	return fmt.Errorf("%w: a batch of %d packets; at most %d", ErrInvalid, n, MaxBatch)
}

// Shutdown ends receiving, sending or both, for good; halves that are ended already stay so. After ShutdownRecv no
// further packet is captured, those that wait can still be received, and then receiving gives io.EOF, also to
// receivers that wait already. After ShutdownSend sending gives ErrShutdown. It fails with ErrInvalid, or
// net.ErrClosed.
func (h *Handle) Shutdown(how How) error {
	if how < ShutdownRecv || how > ShutdownBoth {
		return opError("shutdown", fmt.Errorf("%w: there is no way %d to shut down", ErrInvalid, how))
	}
	return opError("shutdown", h.engine.Shutdown(engine.How(how)))
}

// Close closes the handle. Packets that wait in the queue go on as if they had not been captured; packets
// that were received and not sent are lost. Receivers that wait return net.ErrClosed, and so does a second Close.
func (h *Handle) Close() error {
	h.mu.Lock()
	rest := h.rest
	h.rest = nil
	h.resting.Store(0)
	h.mu.Unlock()
	if r, ok := h.engine.(engine.Returner); ok && len(rest) > 0 {
		r.Return(rest) // what an iteration left behind was not received either
	}
	return opError("close", h.engine.Close())
}

// SetParam sets a limit of the queue, in the parameter's unit. It fails with ErrInvalid for a value out of range or a
// parameter that can only be read, or with net.ErrClosed.
func (h *Handle) SetParam(p Param, v uint64) error {
	if err := checkParam(p, v); err != nil {
		return opError("set param", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	params := h.params
	params[p] = v
	if err := h.engine.SetLimits(limitsOf(params)); err != nil {
		return opError("set param", err)
	}
	h.params = params
	return nil
}

// Param returns a parameter, in its unit, also of a closed handle. It fails with ErrInvalid if there is none such.
func (h *Handle) Param(p Param) (uint64, error) {
	switch p {
	case VersionMajor, VersionMinor:
		return 2, nil
	}
	if p > VersionMinor {
		return 0, opError("param", noSuchParam(p))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.params[p], nil
}

// SetFilter replaces the filter by another, in the dialect the handle was opened with: each packet meets
// the old one or the new one, none neither. If it fails, the old one stays in force.
func (h *Handle) SetFilter(text string) error {
	p, err := filter.Compile(text, h.layer, h.dialect)
	if err == nil {
		err = h.engine.SetFilter(p)
	}
	return opError("set filter", err)
}

// SetProgram is SetFilter for a filter that is compiled already, for the layer of the handle. Another layer's, and a
// nil program, are ErrInvalid. The program is only read, and may serve several handles.
func (h *Handle) SetProgram(p *filter.Program) error {
	var err error
	switch {
	case p == nil:
		err = fmt.Errorf("%w: the program is nil; filter.Compile makes one", ErrInvalid)
	case p.Layer() != h.layer:
		err = fmt.Errorf("%w: a filter of layer %v for a handle of layer %v", ErrInvalid, p.Layer(), h.layer)
	default:
		err = h.engine.SetFilter(p)
	}
	return opError("set filter", err)
}

// Stats counts a handle's packets or events since it was opened. Each packet that matched is in one place:
// Matched = Received + Waiting + Dropped + DroppedFull + DroppedOld + DroppedLong + Passed.
type Stats struct {
	Matched     uint64 // matched the filter
	Received    uint64 // returned by receive calls
	Waiting     uint64 // in the queue now
	Dropped     uint64 // dropped by a handle that drops
	DroppedFull uint64 // lost because the queue was full
	DroppedOld  uint64 // lost because they had waited longer than the queue time
	DroppedLong uint64 // lost because they were longer than the queue can carry
	Passed      uint64 // went on unseen: the queue was full and the handle fails open, or the handle was closing

	Reinjected uint64 // received packets that were sent on
	Abandoned  uint64 // received packets that were not sent on before their place was needed: they are gone
	Injected   uint64 // packets sent that were none of the received ones
	Failed     uint64 // sends that were refused
}

// Stats returns the counters. Each is exact; while packets flow they are not all of one instant. After Close
// they are those of the end.
func (h *Handle) Stats() (Stats, error) {
	s, err := h.engine.Stats()
	return Stats(s), opError("stats", err)
}
