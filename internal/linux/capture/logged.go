//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/nflog"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/superpacket"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// logged is the source of a handle that sniffs: copies from the packet log. Where the interpreter decides,
// every packet of the handle's paths is copied, and copies that do not match are skipped here.
type logged struct {
	Env
	oneQueue
	log     *nflog.Log
	cutter  *queue.Queue                 // cuts superpackets of UDP that go out; nil where the kernel decides, and at other layers
	tap     *superpacket.Tap             // knows those that come in; nil where the kernel decides, and without rights
	program atomic.Pointer[prog.Program] // nil where the kernel decides

	turn    *engine.Turn // of the receiver; it guards the fields below
	reader  *nfnl.Reader
	slots   [logSlots][]byte
	got     int            // datagrams in the slots
	next    int            // the first of them that was not begun
	current nflog.Datagram // the rest of the last one
	seq     uint32         // that follows the last copy's
	missed  atomic.Uint64  // copies that are missing between those that came
	pieces  pieces
	cut     nflog.Copy  // the copy that is being cut,
	cutAt   int64       // and when it was received
	looked  bool        // the tap knows all that is in the slots
	drained atomic.Bool // nothing comes any more

	gathers bool // the log
	came    int  // copies of the datagrams in the slots
}

// logSlots is how many datagrams one system call takes; each holds up to nflog.Threshold packets.
const logSlots = 8

// newLogged returns the source, and a note where superpackets of UDP stay whole.
func newLogged(e Env, interpret bool) (t *logged, note string, err error) {
	if interpret {
		e.Config.Snap = 0 // it may have to look at everything
	}
	log, err := nflog.Open(verdict.ReceiveBuffer(e.Config.Limits), e.Config.Snap)
	if err != nil {
		return nil, "", err
	}
	t = &logged{Env: e, log: log, turn: engine.NewTurn(), reader: log.NewReader(logSlots)}
	for i := range t.slots {
		t.slots[i] = make([]byte, nflog.BufferSize)
	}
	if interpret {
		t.program.Store(e.Config.Program)
		if note, err = t.openSizes(); err != nil {
			return nil, "", errors.Join(err, t.Close())
		}
	}
	return t, note, nil
}

// openSizes opens what has the datagrams in superpackets come as packets of their own.
func (t *logged) openSizes() (note string, err error) {
	if t.Layer == packet.LayerNetwork {
		if t.cutter, err = queue.Open(queue.Options{Cuts: true, RcvBuf: 4096}); err != nil {
			return "", err
		}
	}
	if t.tap, err = superpacket.Open(verdict.ReceiveBuffer(t.Config.Limits)); err != nil {
		return fmt.Sprintf(", datagrams that came in together come as one packet: %v", err), nil
	}
	return "", nil
}

func (t *logged) Wants() Wants {
	w := Wants{Ways: []Way{{Take: codegen.TakeAll, Action: rules.ToLog{Group: t.log.Group()}}}}
	if t.cutter != nil {
		w.Cutter = rules.ToCutter{Num: t.cutter.Num()}
	}
	return w
}

func (t *logged) RecvQueue(_ int, w engine.Wait, ps []packet.Packet) (int, error) {
	return t.Recv(w, ps)
}

func (t *logged) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
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
func (t *logged) refill(w engine.Wait) (err error) {
	for i, s := range t.slots {
		t.reader.Slot(i, s)
	}
	if err := t.pace(); err != nil {
		return err
	}
	t.got, t.next, t.came = 0, 0, 0
	t.got, err = t.reader.Recv(w, logSlots)
	t.looked = false
	return err
}

// pace lets the log gather copies when the last call has brought as much as there is room for, so that they come faster than
// they are received; and no more when the last datagram was not full.
func (t *logged) pace() error {
	switch {
	case !t.gathers && t.got == logSlots:
		return t.gather(true)
	case t.gathers && 0 < t.got && t.got < logSlots && t.came < nflog.Threshold:
		return t.gather(false)
	}
	return nil
}

func (t *logged) gather(on bool) error {
	t.gathers = on
	return t.log.Gather(on)
}

// take moves copies out of the slots.
func (t *logged) take(ps []packet.Packet) (n int) {
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
		if program == nil && t.begin(&c, at) || program != nil && t.beginTapped(&c, at) {
			continue
		}
		p := &ps[n]
		t.address(&p.Addr, &c, at)
		if program != nil {
			if !t.matches(program, c.Payload, review.Copied(c.Payload), &p.Addr, at) {
				continue
			}
		}
		p.Data = append(p.Buffer(len(c.Payload))[:0], c.Payload...)
		t.Review.Retime(p, nil, 0)
		n++
	}
	return n
}

// begin begins to cut a copy, if it is one of a superpacket: the log does not tell, but the filter program does.
func (t *logged) begin(c *nflog.Copy, at int64) bool {
	var p packet.Parsed
	if !t.Review.Tells() || !p.Parse(c.Payload) || p.TCPOff >= 0 {
		return false
	}
	size := t.Review.SegmentSize(p.FlowHash(c.Payload), len(c.Payload))
	if size == 0 || !t.pieces.begin(c.Payload, size) {
		return false
	}
	t.cut, t.cutAt = *c, at
	t.Counts.Denied.Add(1) // each segment counts
	return true
}

// matches reports whether a packet is for the handle, and counts it.
func (t *logged) matches(program *prog.Program, b []byte, length int, a *packet.Address, at int64) bool {
	if !t.mayMatchCounted(program, b, length, a, at) || t.Table.Pass(b, len(b), at) != flow.Undecided {
		return false
	}
	t.Counts.Matched.Add(1)
	return true
}

// beginTapped begins to cut a copy, if it is one of a superpacket that has come in.
func (t *logged) beginTapped(c *nflog.Copy, at int64) bool {
	if t.tap == nil || queue.Hook(c.Hook) == queue.HookPostrouting || !mayBeSuper(c.Payload) || !engine.Unfinished(c.Payload) {
		return false
	}
	if !t.looked {
		t.tap.Look() // the tap has had each packet before the log
		t.looked = true
	}
	size := t.tap.Size(c.Payload)
	if size == 0 || !t.pieces.begin(c.Payload, size) {
		return false
	}
	t.cut, t.cutAt = *c, at
	return true
}

// mayBeSuper reports whether a packet may be a superpacket of UDP that a tap knows.
func mayBeSuper(b []byte) bool {
	if len(b) < packet.IPv4HeaderLen {
		return false
	}
	return b[0]>>4 == 4 && b[9] == packet.ProtocolUDP || b[0]>>4 == 6 && b[6] == packet.ProtocolUDP
}

// piece cuts the next segment out of a superpacket, and reports whether there is one that matches.
func (t *logged) piece(p *packet.Packet) bool {
	if !t.pieces.next(p) {
		return false
	}
	t.cut.Payload = p.Data
	t.address(&p.Addr, &t.cut, t.cutAt)
	if program := t.program.Load(); program != nil {
		return t.matches(program, p.Data, len(p.Data), &p.Addr, t.cutAt)
	}
	t.Review.Ascribe(p, nil, 0)
	if t.Review.Refuses(p, len(p.Data), true) {
		return false
	}
	t.Counts.Matched.Add(1)
	return true
}

// countLost counts the gaps between the copies, which the kernel numbers from 0 on: the receive buffer was full.
// Processors may hand over their copies in another order than they numbered them, so one that comes late was not lost.
func (t *logged) countLost(seq uint32) {
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
func (t *logged) address(a *packet.Address, c *nflog.Copy, at int64) {
	*a = packet.Address{}
	verdict.Describe(t.Layer, a, &queue.Message{Hook: queue.Hook(c.Hook), In: c.In, Out: c.Out, Payload: c.Payload, ChecksumNotVerified: true}, at)
	a.Sniffed = true
	// The log does not tell that a checksum is left to the hardware; the value of the field does.
	if engine.Unfinished(c.Payload) {
		a.TCPChecksum, a.UDPChecksum = false, false
	}
}

func (t *logged) SetLimits(l engine.Limits) error {
	return verdict.ClosedError(t.log.SetReceiveBuffer(verdict.ReceiveBuffer(l)))
}

func (t *logged) SetFilter(p *prog.Program) { t.program.Store(p) }

func (t *logged) Drain() {
	// The kernel gathers copies for a datagram for 10 ms at most.
	time.Sleep(20 * time.Millisecond)
	t.log.Drain()
}

func (t *logged) Wake() { t.log.Wake() }

func (t *logged) Yield() error { return nil }

func (t *logged) Finish() error { return nil } // nothing waits in a queue

func (t *logged) Close() error {
	err := t.log.Close()
	if t.cutter != nil {
		err = errors.Join(err, t.cutter.Close())
	}
	if t.tap != nil {
		err = errors.Join(err, t.tap.Close())
	}
	return err
}

// Tally counts copies that have neither come nor been missed as waiting, and copies that will not come any more as lost: no copy
// behind it shows that it is missing.
func (t *logged) Tally(st *engine.Stats) error {
	st.DroppedFull += t.missed.Load()
	if t.program.Load() != nil {
		st.Matched += st.DroppedFull // whether the lost copies would have matched cannot be told any more
		st.Waiting = rest(st.Matched, st.Received+st.DroppedFull+st.Passed)
		return nil
	}
	st.Matched = rest(st.Matched+t.Counts.Matched.Load(), t.Counts.Denied.Load())
	if missing := rest(st.Matched, st.Received+st.DroppedFull+st.Passed); t.drained.Load() {
		st.Lost = missing
	} else {
		st.Waiting = missing
	}
	return nil
}
