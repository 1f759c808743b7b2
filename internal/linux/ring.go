//go:build linux

package linux

import (
	"cmp"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/perf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// ring is the source of a handle that sniffs where the kernel decides: the filter programs copy what
// matches into memory that is shared with this process, one buffer for each processor, with the time at
// which they saw it.
type ring struct {
	h        *handle
	outlet   *codegen.Outlet
	reader   *perf.Reader
	draining atomic.Bool
	until    atomic.Pointer[time.Time] // the read deadline

	mu      sync.Mutex // held by the one who receives
	sample  perf.Record
	joiner  codegen.Joiner
	seen    uint64    // samples that were taken out
	looked  time.Time // when the programs' counts were read last
	paced   time.Time // when gather was set,
	matched uint64    // and what the programs had counted then
	gather  time.Duration
	full    bool // the last call returned as many packets as it was asked for
	spare   packet.Packet
	window  []packet.Packet // the first were taken out of the buffers: see take
	waiting int             // how many those are,
	ready   int             // and how many of them are the next in order
	freed   []packet.Packet
	slot    int            // memory for a sample, in bytes
	backlog *backlog.Queue // what was taken out of the buffers and not received yet
}

// ringSize is the size of each processor's buffer in bytes: their sum is about the queue size, and each has
// room for some of the longest packets.
func ringSize(l engine.Limits) int { return max(l.Size/runtime.NumCPU(), 1<<20) }

// watermark is how much a buffer holds, in bytes, when the reader is woken: a quarter of it, or as many of the shortest
// packets as the queue may have, lest a burst be lost before its reader knows of it.
func watermark(size int, l engine.Limits) int { return min(size/4, l.Length*shortSample) }

// shortSample is less than the sample of any packet takes in a buffer, in bytes.
const shortSample = codegen.RecordSize + packet.IPv4HeaderLen

func newRing(h *handle) (*ring, error) {
	outlet, err := codegen.NewOutlet()
	if err != nil {
		return nil, err
	}
	size := ringSize(h.cfg.Limits)
	reader, err := perf.NewReaderWithOptions(outlet.Packets, size, perf.ReaderOptions{Watermark: watermark(size, h.cfg.Limits)})
	if err != nil {
		return nil, errors.Join(err, outlet.Close())
	}
	r := &ring{h: h, outlet: outlet, reader: reader, slot: sampleSize, gather: gatherTime}
	if snap := h.cfg.Snap; snap > 0 {
		r.slot = min(r.slot, codegen.RecordSize+snap+sampleAlign)
	}
	r.backlog = backlog.New(backlog.Config{Limits: h.cfg.Limits, Now: now, Dropped: r.lost})
	return r, nil
}

// lost counts a packet that had to leave the backlog.
func (r *ring) lost(_ *backlog.Item, why backlog.Reason) {
	r.h.counts.lost(why)
}

func (r *ring) actions() []rules.Action { return []rules.Action{rules.ToNobody{}} }

func (r *ring) recv(ps []packet.Packet) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.h.closed.Load() {
			return 0, net.ErrClosed
		}
		draining := r.draining.Load()
		if n, err := r.late(ps); n > 0 || err != nil {
			return n, err
		}
		until, final := r.deadline(draining)
		r.reader.SetDeadline(until)
		n, err := r.take(ps)
		r.full = n == len(ps)
		switch {
		case n > 0:
			return n, nil
		case errors.Is(err, perf.ErrFlushed), errors.Is(err, os.ErrDeadlineExceeded) && (!final || r.draining.Load() != draining):
			continue // to look at the state again
		case errors.Is(err, os.ErrDeadlineExceeded) && draining:
			return 0, eof
		case err != nil:
			return 0, closedError(err)
		}
	}
}

// lookInterval is how often the programs' counts are read while a reader keeps up.
const lookInterval = 5 * time.Millisecond

// late serves a reader that has fallen behind, or was away for long: everything is taken out of the buffers into a
// queue that is bounded as the handle's is to be, and from there what still counts.
func (r *ring) late(ps []packet.Packet) (int, error) {
	now := time.Now()
	away := now.Sub(r.looked)
	if r.backlog.Len() == 0 && (r.full || away > lookInterval) {
		r.looked = now
		c, err := r.outlet.Counter()
		if err != nil {
			return 0, err
		}
		r.pace(c.Matched, now)
		limits, waiting := r.backlog.Limits(), rest(c.Matched, r.seen+c.Failed)
		if waiting < uint64(limits.Length)/2 && away < limits.Time/2 {
			return 0, nil // none of them can be too many, or too old
		}
		r.catchUp()
	}
	return r.backlog.Take(ps)
}

// catchUp moves what the buffers hold to the backlog.
func (r *ring) catchUp() {
	for i := range r.window[:r.waiting] {
		r.backlog.Add(r.window[i].Data, &r.window[i].Addr)
	}
	r.waiting, r.ready = 0, 0
	r.reader.SetDeadline(past)
	for r.read(&r.spare) == nil {
		if r.fill(&r.spare) && !r.backlog.Add(r.spare.Data, &r.spare.Addr) {
			r.h.counts.full.Add(1)
		}
	}
}

// How long a copy may lie in a buffer before a reader that waits gets it. A buffer that is full up to the watermark
// wakes the reader at once; to wake it for every packet would cost the sender of the packet more than the copy.
const (
	gatherTime    = 10 * time.Millisecond
	minGatherTime = gatherTime / 20
)

// pace shortens the time while so many packets come that more than a quarter of the queue would be full after it: they
// would be lost if the reader came a little late. It makes the time longer again when fewer come.
func (r *ring) pace(matched uint64, now time.Time) {
	since := now.Sub(r.paced)
	if since < minGatherTime {
		return // too short to tell
	}
	r.gather = gatherTime
	if n := rest(matched, r.matched); n > 0 {
		quarter := float64(r.backlog.Limits().Length) / 4
		r.gather = time.Duration(min(max(quarter/float64(n)*float64(since), float64(minGatherTime)), float64(gatherTime)))
	}
	r.matched, r.paced = matched, now
}

// deadline returns until when to wait, and whether that is the read deadline.
func (r *ring) deadline(draining bool) (at time.Time, final bool) {
	if draining {
		return past, true
	}
	at = time.Now().Add(r.gather)
	if t := r.until.Load(); t != nil && !t.IsZero() && t.Before(at) {
		return *t, true
	}
	return at, false
}

// take waits for a sample and takes what else is there. The processors' buffers are read one after the other, so the
// packets are put in the order of their times; and while one is read, an older packet than the last of its may come into
// another. So packets wait in a window, and those that came after the last look at all buffers stay there.
func (r *ring) take(ps []packet.Packet) (int, error) {
	if r.ready == 0 {
		if err := r.fillWindow(max(len(ps), leastWindow)); err != nil {
			return 0, err
		}
	}
	n := min(len(ps), r.ready)
	r.freed = append(r.freed[:0], ps[:n]...)
	copy(ps, r.window[:n])
	copy(r.window, r.window[n:r.waiting])
	r.waiting, r.ready = r.waiting-n, r.ready-n
	copy(r.window[r.waiting:], r.freed)
	return n, nil
}

// leastWindow is how many packets are put in order at a time at least, for receivers of few.
const leastWindow = 64

// fillWindow waits for a sample, unless packets wait in the window, and takes up to size into it.
func (r *ring) fillWindow(size int) error {
	if len(r.window) < size {
		r.window = append(r.window, make([]packet.Packet, size-len(r.window))...)
	}
	err := r.gatherUpTo(size)
	if r.waiting == 0 {
		return err
	}
	if r.waiting >= size {
		r.order(1<<63 - 1)
		return nil
	}
	cut := now()
	_ = r.gatherUpTo(size) // whatever came before the cut is there now
	r.order(cut)
	return nil
}

// gatherUpTo reads samples into the window until it holds so many packets, waiting only for the first.
func (r *ring) gatherUpTo(size int) error {
	if r.waiting > 0 {
		r.reader.SetDeadline(past)
	}
	for r.waiting < size {
		p := &r.window[r.waiting]
		if err := r.read(p); err != nil {
			return err
		}
		if r.fill(p) {
			if r.waiting++; r.waiting == 1 {
				r.reader.SetDeadline(past)
			}
		}
	}
	return nil
}

// order puts the window in order; ready are the packets until cut, but at least one.
func (r *ring) order(cut int64) {
	slices.SortStableFunc(r.window[:r.waiting], func(a, b packet.Packet) int {
		return cmp.Compare(a.Addr.Timestamp, b.Addr.Timestamp)
	})
	r.ready = r.waiting
	for r.ready > 1 && r.window[r.ready-1].Addr.Timestamp > cut {
		r.ready--
	}
}

// What the longest sample takes, in bytes, with its padding.
const (
	sampleAlign = 8
	sampleSize  = codegen.RecordSize + codegen.MaxSnap + sampleAlign
)

// read waits for a sample, which it puts into the memory of the packet that it may become.
func (r *ring) read(p *packet.Packet) error {
	r.sample.RawSample = p.Buffer(r.slot)[:0]
	return r.reader.ReadInto(&r.sample)
}

// fill makes a packet of the sample in its memory, and reports whether it is one.
func (r *ring) fill(p *packet.Packet) bool {
	if r.sample.LostSamples > 0 {
		return false // the programs count what they could not copy
	}
	record, data, ok, err := r.joiner.Decode(r.sample.RawSample)
	if err != nil || !ok {
		return false
	}
	r.seen++
	if snap := uint32(r.h.cfg.Snap); record.Captured < record.Length && (snap == 0 || record.Captured < snap) {
		r.h.counts.long.Add(1)
		return false
	}
	hook := queue.HookPrerouting
	if record.Tag == uint32(codegen.Outbound) {
		hook = queue.HookPostrouting
	}
	if p.Data = data; len(data) > codegen.MaxSnap {
		p.Data = append(p.Buffer(len(data))[:0], data...) // it came in two samples
	}
	p.Addr = packet.Address{}
	r.h.describe(&p.Addr, &queue.Message{
		Hook: hook, In: record.Device, Out: record.Device, Payload: data, ChecksumNotVerified: true,
	}, record.Timestamp)
	p.Addr.Sniffed = true
	setProcess(&p.Addr, record.Process)
	if pending(data) {
		p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
	}
	return true
}

func (r *ring) setDeadline(t time.Time) error {
	r.until.Store(&t)
	return closedError(r.reader.Flush())
}

func (r *ring) setLimits(l engine.Limits) error {
	r.backlog.SetLimits(l)
	return nil
}

func (r *ring) setFilter(*filter.Program) {} // the programs of the rules decide

func (r *ring) drain() {
	r.draining.Store(true)
	_ = r.reader.Flush() // wakes the readers
}

func (r *ring) wake() { _ = r.reader.Flush() }

func (r *ring) yield() error { return nil }

func (r *ring) close() error { return errors.Join(r.reader.Close(), r.outlet.Close()) }

// tally takes the counts of the programs.
func (r *ring) tally(st *engine.Stats) error {
	c, err := r.outlet.Counter()
	if err != nil {
		return err
	}
	st.Matched = c.Matched
	st.DroppedFull += c.Failed
	st.Waiting = rest(st.Matched, st.Received+st.DroppedFull+st.DroppedOld+st.DroppedLong)
	return nil
}
