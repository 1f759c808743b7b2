//go:build linux

package capture

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/perfbuf"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// copies is the source of a handle that sniffs where the kernel decides: the filter programs copy packets that match into memory
// that is shared with this process, one buffer for each processor, with the time at which they saw them. Copies stay there until
// they are received, and those that are too many or too old are skipped there.
type copies struct {
	Env
	oneQueue
	outlet   *codegen.Outlet
	buffers  *perfbuf.Buffers
	draining atomic.Bool
	drained  atomic.Bool // no more copies come
	cutting  atomic.Bool // TCP too, see Cut
	limits   atomic.Pointer[engine.Limits]

	changing sync.Mutex  // held to change the buffers, also while waiting for mu
	growing  atomic.Bool // they are being changed

	turn   *engine.Turn // of the receiver
	mu     sync.Mutex   // held to receive, or to change the buffers
	size   int          // of each buffer, in bytes
	joiner codegen.Joiner
	slots  slotSizes
	looked int64  // when the buffers were looked into last
	came   uint64 // samples that were taken or skipped,
	bytes  uint64 // and how many bytes they had
	paced  int64  // when most was set,
	before uint64 // and how many had come then
	most   time.Duration
	rhythm rhythm
	pieces pieces
	lends  bool // take may hand out samples where they lie,
	lent   bool // has done so,
	kept   int  // and so many bytes of samples are not given back because of it
	loan   loan
}

// loan says whether the program looks at samples in the buffers.
type loan struct {
	mu     sync.Mutex
	out    bool
	closed bool // the buffers are, but for the memory of what is out
}

// lentPart bounds the samples that are lent, but for the last: a buffer is at least so many times as large, as they leave no
// room for copies.
const lentPart = 8

// bufferSize is the size of each processor's buffer in bytes. Two buffers have room for the whole queue, many for a share of it
// each, and each for some of the longest packets.
func bufferSize(l engine.Limits) int { return max(min(2*l.Size/runtime.NumCPU(), l.Size), 1<<20) }

// watermark is how much a buffer holds, in bytes, when the reader is woken: a quarter of it, or as many of the shortest
// packets as the queue may have, lest a burst be lost before its reader knows of it.
func watermark(size int, l engine.Limits) int { return min(size/4, l.Length*perfbuf.MinSample) }

func newCopies(e Env) (*copies, error) {
	outlet, err := codegen.NewOutlet()
	if err != nil {
		return nil, err
	}
	size := bufferSize(e.Config.Limits)
	buffers, err := perfbuf.Open(outlet, size, watermark(size, e.Config.Limits))
	if err != nil {
		return nil, errors.Join(err, outlet.Close())
	}
	r := &copies{Env: e, outlet: outlet, buffers: buffers, turn: engine.NewTurn(), size: size, slots: slotSizesFor(e.Config.Snap), most: gatherTime}
	r.limits.Store(&e.Config.Limits)
	return r, nil
}

func (r *copies) Wants() Wants {
	return Wants{Ways: []Way{{Take: codegen.TakeAll, Action: rules.ToNobody{}}}, Copies: r.outlet}
}

func (r *copies) RecvQueue(_ int, w engine.Wait, ps []packet.Packet) (int, error) {
	return r.Recv(w, ps)
}

func (r *copies) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	if !r.turn.Take(w) {
		return 0, engine.ErrInterrupted
	}
	defer r.turn.Release()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recv(w, ps)
}

// Lend implements engine.Lender.
func (r *copies) Lend(w engine.Wait, ps []packet.Packet) (n int, lent bool, err error) {
	if !r.turn.Take(w) {
		return 0, false, engine.ErrInterrupted
	}
	defer r.turn.Release()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loan.mu.Lock()
	r.lends = !r.loan.out
	r.loan.mu.Unlock()
	n, err = r.recv(w, ps)
	lent = r.lent
	r.lends, r.lent, r.kept = false, false, 0
	return n, lent, err
}

// GiveBack implements engine.Lender. The kernel gets the memory with the next call that receives.
func (r *copies) GiveBack() {
	r.loan.mu.Lock()
	defer r.loan.mu.Unlock()
	r.loan.out = false
	if r.loan.closed {
		_ = r.buffers.Unmap() // fails only for memory that is not mapped
	}
}

// sample takes the next sample, of a size: where it lies, if it may be lent, or else into the memory of the packet that it may
// become.
func (r *copies) sample(p *packet.Packet, size int) (sample []byte, lies bool) {
	if r.lends {
		if sample := r.buffers.Peek(); sample != nil {
			r.buffers.Skip()
			return sample, true
		}
	}
	sample = p.Buffer(r.slots.of(size))[:size]
	r.buffers.Take(sample)
	return sample, false
}

// lend notes that a sample is handed out where it lies.
func (r *copies) lend() {
	if r.lent {
		return
	}
	r.loan.mu.Lock()
	defer r.loan.mu.Unlock()
	r.lent, r.loan.out = true, true
}

// keep notes that a sample of a size was taken or skipped. From the first that is lent on they stay.
func (r *copies) keep(size int) {
	if r.lent {
		r.kept += size
	}
}

// release gives the memory of taken samples back to the kernel, unless the program still looks at some of it.
func (r *copies) release() {
	r.loan.mu.Lock()
	defer r.loan.mu.Unlock()
	if !r.loan.out {
		r.buffers.Release()
	}
}

// recv is Recv while nobody else receives.
func (r *copies) recv(w engine.Wait, ps []packet.Packet) (int, error) {
	for {
		draining := r.draining.Load()
		n, err := r.take(ps)
		switch {
		case n > 0 || err != nil:
			return n, err
		case draining:
			r.drained.Store(true)
			return 0, io.EOF
		case w.Ended():
			return 0, engine.ErrInterrupted
		}
		if r.growing.Load() {
			r.giveWay()
		} else if err := r.wait(); err != nil {
			return 0, err
		}
	}
}

// giveWay lets go of the lock until a change of the buffers has finished.
func (r *copies) giveWay() {
	r.mu.Unlock()
	defer r.mu.Lock()
	r.changing.Lock()
	defer r.changing.Unlock()
}

// rhythm decides how a reader with empty buffers waits: until the first copy comes, which rings the bell, or for a time in which
// copies gather. Waking it costs the sender of a packet more than the copy, so copies gather when they come faster than the
// reader: when many came while it was woken for the first.
type rhythm struct {
	came   uint64 // when it was asked last,
	bytes  uint64
	gather time.Duration // and what it said; 0: the bell
}

// If one wait brings so many copies, or so many bytes, they come faster than the reader, or each takes more of its time than
// being woken.
const (
	burst      = 8
	burstBytes = 64 << 10
)

// next returns for how long copies are to gather now, 0 for the bell. came and bytes count all copies so far; most is the
// longest time. The time begins short, so that a burst delays the next copy little, and grows while many come in it.
func (r *rhythm) next(came, bytes uint64, most time.Duration) time.Duration {
	many := came-r.came >= burst || bytes-r.bytes >= burstBytes
	r.came, r.bytes = came, bytes
	switch {
	case !many:
		r.gather = 0
	case r.gather == 0:
		r.gather = minGatherTime
	default:
		r.gather = min(2*r.gather, most)
	}
	return r.gather
}

// recheckTime is how long after it has begun to wait for the bell the reader looks once more in any case. A processor may let a
// program look for a sleeping reader before others see its copy, and the reader look for copies before others see that it
// sleeps; if both happen at once, within nanoseconds, the copy would otherwise stay unseen. A barrier in the program would
// prevent this, and cost every packet more.
const recheckTime = 10 * time.Millisecond

// wait waits for copies, or until Wake is called. It may return early.
func (r *copies) wait() error {
	if gather := r.rhythm.next(r.came+r.buffers.Lost(), r.bytes, r.most); gather > 0 {
		_, err := r.buffers.Wait(gather)
		return err
	}
	r.buffers.Sleep()
	defer r.buffers.Awake()
	for _, d := range []time.Duration{recheckTime, perfbuf.Forever} {
		if err := r.look(clock.Now()); err != nil || r.buffers.Written() > 0 {
			return err
		}
		if over, err := r.buffers.Wait(d); !over || err != nil {
			return err
		}
	}
	return nil
}

// lookInterval is how long the results of the last look count, in nanoseconds, before the reader looks for newer ones.
const lookInterval = int64(5 * time.Millisecond)

// take takes the copies that are there, in the order of their times.
func (r *copies) take(ps []packet.Packet) (n int, err error) {
	at := clock.Now()
	looked := at-r.looked > lookInterval
	if looked {
		if err := r.look(at); err != nil {
			return 0, err
		}
	}
	oldest := at - int64(r.limits.Load().Time)
	for n < len(ps) && r.kept <= r.size/lentPart {
		if r.pieces.left {
			if r.piece(&ps[n]) {
				n++
			}
			continue
		}
		record, ok := r.buffers.Next()
		switch {
		case ok && record.Timestamp < oldest:
			r.skip(&record, &r.Counts.Old)
		case ok:
			if r.fill(&ps[n]) {
				n++
			}
		case n > 0 || looked:
			r.release()
			return n, nil
		default:
			looked = true
			if err := r.look(at); err != nil {
				return 0, err
			}
		}
	}
	r.release()
	return n, nil
}

// look finds new copies, and skips the oldest that exceed the queue's limits.
func (r *copies) look(at int64) error {
	r.looked = at
	if err := r.buffers.Look(at); err != nil {
		return err
	}
	r.pace(r.came+r.buffers.Lost(), at)
	l := r.limits.Load()
	if most := r.buffers.Written(); most <= min(l.Size, l.Length*perfbuf.MinSample) {
		return nil // of any kind
	}
	overhead := engine.Overheads[r.Layer]
	packets, bytes := r.buffers.Count()
	for bytes += packets * overhead; packets > l.Length || bytes > l.Size; {
		record, ok := r.buffers.Next()
		if !ok {
			break // only new copies are left
		}
		if r.skip(&record, &r.Counts.Full) {
			packets, bytes = packets-1, bytes-int(record.Captured)-overhead
		}
	}
	r.release()
	return nil
}

// skip leaves the next sample out, and counts it if it is a packet.
func (r *copies) skip(record *codegen.Record, counter *atomic.Uint64) bool {
	size := r.buffers.Size()
	r.came, r.bytes = r.came+1, r.bytes+uint64(size)
	r.buffers.Skip()
	r.keep(size)
	if record.End() {
		return false
	}
	counter.Add(1)
	return true
}

// How long copies may gather. A buffer that is full up to the watermark wakes the reader at once.
const (
	gatherTime    = 10 * time.Millisecond
	minGatherTime = gatherTime / 20
)

// pace sets the longest time for which copies may gather. It shortens the time while so many packets come that more than a
// quarter of the queue would be full after it: packets would be lost if the reader came a little late. When fewer come it makes
// the time longer again. came counts all packets so far, at is the present time.
func (r *copies) pace(came uint64, at int64) {
	since := at - r.paced
	if since < int64(minGatherTime) {
		return // too short to tell
	}
	r.most = gatherTime
	if n := came - r.before; n > 0 {
		quarter := float64(r.limits.Load().Length) / 4
		r.most = time.Duration(min(max(quarter/float64(n)*float64(since), float64(minGatherTime)), float64(gatherTime)))
	}
	r.before, r.paced = came, at
}

// slotSizes are the sizes of the memory that a packet is received into, in bytes: most packets fit the first, all the
// second.
type slotSizes struct{ usual, longest int }

// sampleAlign is the alignment of samples, in bytes.
const sampleAlign = 8

func slotSizesFor(snap int) slotSizes {
	s := slotSizes{usual: 2 << 10, longest: codegen.RecordSize + codegen.MaxSnap + sampleAlign}
	if snap > 0 {
		s.longest = min(s.longest, codegen.RecordSize+snap+sampleAlign)
	}
	s.usual = min(s.usual, s.longest)
	return s
}

// of returns the size for a sample.
func (s slotSizes) of(size int) int {
	switch {
	case size <= s.usual:
		return s.usual
	case size <= s.longest:
		return s.longest
	}
	return size
}

// longest is the length of the longest packet that an IP header can tell, in bytes.
const longest = packet.IPv6HeaderLen + 0xFFFF

// fill takes the next sample into the memory of the packet that it may become, and reports whether it is one.
func (r *copies) fill(p *packet.Packet) bool {
	size := r.buffers.Size()
	r.came, r.bytes = r.came+1, r.bytes+uint64(size)
	sample, lies := r.sample(p, size)
	defer r.keep(size)
	record, data, ok, err := r.joiner.Decode(sample)
	if err != nil {
		r.Counts.Long.Add(1)
	}
	if err != nil || !ok {
		return false
	}
	superpacket := record.Tag&TagCut != 0
	if snap := uint32(r.Config.Snap); record.Captured < record.Length && (snap == 0 || record.Captured < snap) &&
		(record.Length <= longest || superpacket) {
		r.Counts.Long.Add(1)
		return false
	} // else a packet of BIG TCP, which no sample has room for, comes cut
	later := !superpacket && record.SegmentSize > 0 && record.Captured == record.Length && r.cutting.Load()
	if (superpacket || later) && r.pieces.begin(data, int(record.SegmentSize)) {
		r.pieces.record, r.pieces.decided = record, later
		r.Counts.Denied.Add(1) // each segment counts
		return false
	}
	if p.Data = data; len(data) > codegen.MaxSnap {
		p.Data = append(p.Buffer(len(data))[:0], data...) // it came in two samples
	}
	r.address(p, &record)
	if r.Review.Refuses(p, int(record.Length), superpacket) {
		r.Counts.Denied.Add(1)
		return false
	}
	if lies {
		r.lend()
	}
	return true
}

// address describes a copy.
func (r *copies) address(p *packet.Packet, record *codegen.Record) {
	hook := queue.HookPrerouting
	if record.Tag&^TagCut == uint32(codegen.Outbound) {
		hook = queue.HookPostrouting
	}
	p.Addr = packet.Address{}
	verdict.Describe(r.Layer, &p.Addr, &queue.Message{
		Hook: hook, In: record.Device, Out: record.Device, Payload: p.Data, Length: record.Length, ChecksumNotVerified: true,
	}, record.Timestamp)
	p.Addr.Sniffed = true
	review.SetProcess(&p.Addr, record.Process)
	if engine.Unfinished(p.Data) {
		p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
	}
}

// piece cuts the next segment out of a superpacket, and reports whether there is one that matches.
func (r *copies) piece(p *packet.Packet) bool {
	if !r.pieces.next(p) {
		return false
	}
	r.address(p, &r.pieces.record)
	p.Addr.SetPacketLength(0)
	if !r.pieces.decided && r.Review.Refuses(p, len(p.Data), true) {
		return false
	}
	r.Counts.Matched.Add(1)
	return true
}

// Cut makes superpackets of TCP come in segments from now on. The filter decides on what the stack has, as before.
func (r *copies) Cut() { r.cutting.Store(true) }

func (r *copies) SetLimits(l engine.Limits) error {
	if err := r.grow(l); err != nil {
		return err
	}
	r.limits.Store(&l)
	return nil
}

// grow makes larger buffers if the queue is to have more than these have room for.
func (r *copies) grow(l engine.Limits) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.growing.Store(true)
	defer r.growing.Store(false)
	_ = r.buffers.Wake() // the waiting receiver gives way
	r.mu.Lock()
	defer r.mu.Unlock()
	size := bufferSize(l)
	if size <= r.size || r.Life.Is(life.Closed) {
		return nil
	}
	if err := r.buffers.Grow(size, watermark(size, l)); err != nil {
		return err
	}
	r.size = size
	return nil
}

func (r *copies) SetFilter(*prog.Program) {} // the programs of the rules decide

func (r *copies) Drain() {
	r.draining.Store(true)
	_ = r.buffers.Wake() // wakes the readers
}

func (r *copies) Wake() { _ = r.buffers.Wake() }

func (r *copies) Yield() error { return nil }

func (r *copies) Finish() error { return nil } // nothing waits in a queue

func (r *copies) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loan.mu.Lock()
	defer r.loan.mu.Unlock()
	err := r.buffers.Disconnect()
	if r.loan.closed = true; !r.loan.out {
		err = errors.Join(err, r.buffers.Unmap())
	}
	return errors.Join(err, r.outlet.Close())
}

// Tally takes the counts of the programs.
func (r *copies) Tally(st *engine.Stats) error {
	c, err := r.outlet.Counter()
	if err != nil {
		return err
	}
	st.Matched = rest(c.Matched+r.Counts.Matched.Load(), r.Counts.Denied.Load())
	st.DroppedFull += c.Failed
	if missing := rest(st.Matched, st.Received+st.DroppedFull+st.DroppedOld+st.DroppedLong+st.Passed); r.drained.Load() {
		st.Lost = missing
	} else {
		st.Waiting = missing
	}
	return nil
}

// TagCut marks the copies of packets that are to be cut, beside their direction.
const TagCut = 1 << 8
