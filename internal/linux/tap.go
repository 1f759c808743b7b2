//go:build linux

package linux

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/clock"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/nflog"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// tap is the source of a handle that sniffs: copies from the packet log. Where the interpreter decides,
// every packet of the handle's paths is copied and what does not match is passed over here.
type tap struct {
	h       *handle
	log     *nflog.Log
	program atomic.Pointer[prog.Program] // nil where the kernel decides

	turn    *engine.Turn // of the one who receives; what follows is guarded by it
	reader  *nfnl.Reader
	slots   [tapSlots][]byte
	got     int            // datagrams in the slots
	next    int            // the first of them that was not begun
	current nflog.Datagram // what is left of the one before
	seq     uint32         // that follows the last copy's
	missed  atomic.Uint64  // copies that are missing between those that came
	pieces  pieces
	cut     nflog.Copy  // of what the pieces are made,
	cutAt   int64       // and when it was received
	drained atomic.Bool // nothing comes any more

	gathers bool // the log
	came    int  // copies of the datagrams in the slots
}

// tapSlots is how many datagrams one system call takes; each holds up to nflog.Threshold packets.
const tapSlots = 8

func newTap(h *handle, interpret bool) (*tap, error) {
	if interpret {
		h.cfg.Snap = 0 // it may have to look at everything
	}
	log, err := nflog.Open(verdict.ReceiveBuffer(h.cfg.Limits), h.cfg.Snap)
	if err != nil {
		return nil, err
	}
	t := &tap{h: h, log: log, turn: engine.NewTurn(), reader: log.NewReader(tapSlots)}
	for i := range t.slots {
		t.slots[i] = make([]byte, nflog.BufferSize)
	}
	if interpret {
		t.program.Store(h.cfg.Program)
	}
	return t, nil
}

func (t *tap) ways() []way {
	return []way{{take: codegen.TakeAll, action: rules.ToLog{Group: t.log.Group()}}}
}

func (t *tap) recv(w engine.Wait, ps []packet.Packet) (int, error) {
	if !t.turn.Take(w) {
		return 0, engine.ErrInterrupted
	}
	defer t.turn.Release()
	for {
		if n := t.take(ps); n > 0 {
			return n, nil
		}
		if err := t.refill(w); err != nil {
			if err == io.EOF {
				t.drained.Store(true)
			}
			return 0, verdict.ClosedError(err)
		}
	}
}

// refill receives datagrams into the slots.
func (t *tap) refill(w engine.Wait) (err error) {
	for i, s := range t.slots {
		t.reader.Slot(i, s)
	}
	if err := t.pace(); err != nil {
		return err
	}
	t.got, t.next, t.came = 0, 0, 0
	t.got, err = t.reader.Recv(w, tapSlots)
	return err
}

// pace lets the log gather copies when the last call has brought as much as there is room for, so that they come faster than
// they are received; and no more when the last datagram was not full.
func (t *tap) pace() error {
	switch {
	case !t.gathers && t.got == tapSlots:
		return t.gather(true)
	case t.gathers && 0 < t.got && t.got < tapSlots && t.came < nflog.Threshold:
		return t.gather(false)
	}
	return nil
}

func (t *tap) gather(on bool) error {
	t.gathers = on
	return t.log.Gather(on)
}

// take moves copies out of the slots.
func (t *tap) take(ps []packet.Packet) (n int) {
	at := clock.Now()
	program := t.program.Load()
	var c nflog.Copy
	for n < len(ps) {
		if t.pieces.left {
			if t.piece(&ps[n]) {
				n++
			}
			continue
		}
		if !t.current.Next(&c) {
			if t.next == t.got {
				break
			}
			length, _ := t.reader.Len(t.next)
			t.current = nflog.Copies(t.slots[t.next][:min(length, nflog.BufferSize)])
			t.next++
			continue
		}
		t.came++
		t.countLost(c.Seq)
		if program == nil && t.begin(&c, at) {
			continue
		}
		p := &ps[n]
		t.address(&p.Addr, &c, at)
		if program != nil {
			if !t.h.mayMatchCounted(program, c.Payload, copied(c.Payload), &p.Addr, at) {
				continue
			}
			if t.h.flows.table.Pass(c.Payload, len(c.Payload), at) != flow.Undecided {
				continue
			}
			t.h.counts.Matched.Add(1)
		}
		p.Data = append(p.Buffer(len(c.Payload))[:0], c.Payload...)
		t.h.retime(p, nil, 0)
		n++
	}
	return n
}

// begin begins to cut a copy, if it is one of a superpacket: the log does not tell, but the filter program does.
func (t *tap) begin(c *nflog.Copy, at int64) bool {
	told := t.h.times.Load()
	var p packet.Parsed
	if told == nil || !p.Parse(c.Payload) || p.TCPOff >= 0 {
		return false
	}
	size := told.segmentSize(p.FlowHash(c.Payload), len(c.Payload))
	if size == 0 || !t.pieces.begin(c.Payload, size) {
		return false
	}
	t.cut, t.cutAt = *c, at
	t.h.counts.Denied.Add(1) // each segment counts
	return true
}

// piece cuts the next segment out of a superpacket, and reports whether there is one that matches.
func (t *tap) piece(p *packet.Packet) bool {
	if !t.pieces.next(p) {
		return false
	}
	t.cut.Payload = p.Data
	t.address(&p.Addr, &t.cut, t.cutAt)
	t.h.ascribe(p, nil, 0)
	if t.h.refuses(p, len(p.Data), true) {
		return false
	}
	t.h.counts.Matched.Add(1)
	return true
}

// countLost counts what is missing between the copies, which the kernel numbers from 0 on: the receive buffer was full.
// Processors may hand over their copies in another order than they numbered them, so one that comes late was not lost.
func (t *tap) countLost(seq uint32) {
	ahead := int32(seq - t.seq) // numbers wrap around
	switch {
	case ahead >= 0:
		t.missed.Add(uint64(ahead))
		t.seq = seq + 1
	case t.missed.Load() > 0: // else it came twice
		t.missed.Add(^uint64(0))
	}
}

// address describes a copy.
func (t *tap) address(a *packet.Address, c *nflog.Copy, at int64) {
	*a = packet.Address{}
	verdict.Describe(t.h.layer, a, &queue.Message{Hook: queue.Hook(c.Hook), In: c.In, Out: c.Out, Payload: c.Payload, ChecksumNotVerified: true}, at)
	a.Sniffed = true
	// The log does not tell a checksum that is left to the hardware; what stands in the field then does.
	if engine.Unfinished(c.Payload) {
		a.TCPChecksum, a.UDPChecksum = false, false
	}
}

func (t *tap) setLimits(l engine.Limits) error {
	return verdict.ClosedError(t.log.SetReceiveBuffer(verdict.ReceiveBuffer(l)))
}

func (t *tap) setFilter(p *prog.Program) { t.program.Store(p) }

func (t *tap) drain() {
	// What the kernel gathers for a datagram comes within 10 ms.
	time.Sleep(20 * time.Millisecond)
	t.log.Drain()
}

func (t *tap) wake() { t.log.Wake() }

func (t *tap) yield() error { return nil }

func (t *tap) finish() error { return nil } // nothing waits in a queue

func (t *tap) close() error { return t.log.Close() }

// tally counts as waiting what has neither come nor been missed, and as lost what will not come any more: no copy
// behind it shows that it is missing.
func (t *tap) tally(st *engine.Stats) error {
	st.DroppedFull += t.missed.Load()
	if t.program.Load() != nil {
		st.Matched += st.DroppedFull // whether the lost copies would have matched cannot be told any more
		st.Waiting = rest(st.Matched, st.Received+st.DroppedFull+st.Passed)
		return nil
	}
	st.Matched = rest(st.Matched+t.h.counts.Matched.Load(), t.h.counts.Denied.Load())
	if missing := rest(st.Matched, st.Received+st.DroppedFull+st.Passed); t.drained.Load() {
		st.Lost = missing
	} else {
		st.Waiting = missing
	}
	return nil
}
