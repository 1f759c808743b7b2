//go:build linux

package perfbuf

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// Buffers are the buffers of a perf event array. One goroutine at a time may read; Wake may be called at any time, also
// after Close.
type Buffers struct {
	array   *ebpf.Map
	bell    *bell
	buffers []*buffer     // those of processors that have another since Grow stay until Close
	poll    []unix.PollFd // those of wake and the bell, and then the buffers'
	rung    uint64
	memory  [][]byte // of buffers that are disconnected

	cut    int64     // the last Look may not have seen all samples of later times
	active []*buffer // those that have a next sample
	oldest *buffer   // whose next sample is the next of all; nil if there is none up to the cut
	turn   int64     // until when that stays so
	lost   uint64
	err    error

	mu   sync.Mutex
	wake int // eventfd, -1 after Close
}

// Open makes the buffers of an outlet for the processors that are online, each of size bytes, which is rounded up to a
// power of two, and connects them (CAP_PERFMON or CAP_SYS_ADMIN). Wait returns when one of them has watermark bytes.
// The outlet must be open for as long as the buffers are in use.
func Open(o *codegen.Outlet, size, watermark int) (*Buffers, error) {
	b := &Buffers{array: o.Packets}
	var err error
	if b.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if b.bell, err = openBell(o); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.poll = []unix.PollFd{{Fd: int32(b.wake), Events: unix.POLLIN}, {Fd: int32(b.bell.fd), Events: unix.POLLIN}}
	if err := b.Grow(size, watermark); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Grow gives the processors other buffers, as Open. The contents of the old ones are still read. After an error some
// processors may have a new one and some the old. Nobody may read while it runs.
func (b *Buffers) Grow(size, watermark int) error {
	for cpu := range int(b.array.MaxEntries()) {
		one, err := open(cpu, size, watermark)
		if errors.Is(err, unix.ENODEV) {
			continue // offline
		}
		if err != nil {
			return fmt.Errorf("perf buffer of processor %d: %w", cpu, err)
		}
		b.buffers = append(b.buffers, one)
		b.poll = append(b.poll, unix.PollFd{Fd: int32(one.fd), Events: unix.POLLIN})
		if err := b.array.Put(uint32(cpu), uint32(one.fd)); err != nil {
			return fmt.Errorf("perf buffer of processor %d: %w", cpu, err)
		}
	}
	return nil
}

// open makes the buffer of a processor.
func open(cpu, size, watermark int) (_ *buffer, err error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_BPF_OUTPUT,
		Bits:        unix.PerfBitWatermark,
		Sample_type: unix.PERF_SAMPLE_RAW,
		Wakeup:      uint32(watermark),
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	b := &buffer{}
	if b.fd, err = unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC); err != nil {
		err = os.NewSyscallError("perf_event_open", err)
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (needs CAP_PERFMON)", err)
		}
		return nil, err
	}
	page := os.Getpagesize()
	pages := 1 << bits.Len(uint((max(size, page)-1)/page))
	b.memory, err = unix.Mmap(b.fd, 0, (1+pages)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("mmap", err), unix.Close(b.fd))
	}
	b.meta = (*unix.PerfEventMmapPage)(unsafe.Pointer(&b.memory[0])) // the first page
	b.data = b.memory[page:]
	return b, nil
}

// Close disconnects and frees the buffers. Nobody may read any more.
func (b *Buffers) Close() error { return errors.Join(b.Disconnect(), b.Unmap()) }

// Disconnect is the part of Close that leaves the memory of samples, for callers that still look at them. Unmap is to follow.
func (b *Buffers) Disconnect() error {
	var errs []error
	for _, one := range b.buffers {
		errs = append(errs, unix.Close(one.fd))
		b.memory = append(b.memory, one.memory)
	}
	b.buffers, b.active, b.oldest = nil, nil, nil
	errs = append(errs, b.bell.close())
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wake >= 0 {
		errs = append(errs, unix.Close(b.wake))
		b.wake = -1
	}
	return errors.Join(errs...)
}

// Unmap frees the memory that Disconnect has left.
func (b *Buffers) Unmap() error {
	var errs []error
	for _, m := range b.memory {
		errs = append(errs, unix.Munmap(m))
	}
	b.memory = nil
	return errors.Join(errs...)
}

// Wake makes Wait return, the next time if nobody is in it.
func (b *Buffers) Wake() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wake < 0 {
		return os.ErrClosed
	}
	one := [8]byte{1, 1, 1, 1, 1, 1, 1, 1} // any number, in any byte order
	if _, err := unix.Write(b.wake, one[:]); err != nil && err != unix.EAGAIN {
		return os.NewSyscallError("write", err)
	}
	return nil
}

// Forever is a time without an end.
const Forever time.Duration = math.MaxInt64

// Wait waits until a buffer has reached the watermark since the last Wait, a packet was copied since Sleep, Wake is called or
// the time is over, and reports whether the time is over. It may also return for a buffer whose samples have all been taken
// since.
func (b *Buffers) Wait(d time.Duration) (over bool, err error) {
	begin := time.Now()
	n, err := b.ppoll(d)
	for err == unix.EINTR { // by a signal; poll is never taken up again
		n, err = b.ppoll(d - time.Since(begin))
	}
	if err != nil {
		return false, os.NewSyscallError("ppoll", err)
	}
	if n == 0 {
		return true, nil
	}
	for i := range b.poll {
		p := &b.poll[i]
		switch {
		case i == 0 && p.Revents != 0:
			var count [8]byte
			_, _ = unix.Read(int(p.Fd), count[:])
		case i == 1 && p.Revents != 0:
			b.bell.silence()
			b.rung++
		case p.Revents&^unix.POLLIN != 0:
			p.Fd = -1 // its processor is gone, and it would say so forever
		}
	}
	return false, nil
}

func (b *Buffers) ppoll(d time.Duration) (int, error) {
	if d == Forever {
		return unix.Ppoll(b.poll, nil, nil)
	}
	timeout := unix.NsecToTimespec(max(0, d.Nanoseconds()))
	return unix.Ppoll(b.poll, &timeout, nil)
}

// Look finds the samples written up to now, a time of CLOCK_MONOTONIC in nanoseconds that was read before the
// call. Copies with a later time wait for the next Look, so that none comes before its cause.
func (b *Buffers) Look(now int64) error {
	b.cut = now
	b.active = b.active[:0]
	for _, one := range b.buffers {
		if one.look(); b.advance(one) {
			b.active = append(b.active, one)
		}
	}
	b.choose()
	err := b.err
	b.err = nil
	return err
}

// advance goes on to the next sample of a buffer.
func (b *Buffers) advance(one *buffer) bool {
	ok, lost, err := one.next()
	b.lost += lost
	if err != nil {
		b.err = fmt.Errorf("perf buffer: %w", err)
	}
	return ok
}

// choose finds the buffer whose sample is the next.
func (b *Buffers) choose() {
	b.oldest, b.turn = nil, b.cut
	for _, one := range b.active {
		switch at := one.record.Timestamp; {
		case at > b.turn:
		case b.oldest == nil:
			b.oldest = one
		case at < b.oldest.record.Timestamp:
			b.oldest, b.turn = one, b.oldest.record.Timestamp
		default:
			b.turn = at
		}
	}
}

// Next returns the record of the next sample, and false if the last Look found no more. It stays the next until Take or
// Skip.
func (b *Buffers) Next() (r codegen.Record, ok bool) {
	if b.oldest == nil {
		return r, false
	}
	return b.oldest.record, true
}

// Size is how many bytes the next sample has: its record, the copied bytes, and up to 7 more.
func (b *Buffers) Size() int { return b.oldest.size }

// Take copies the next sample into dst, whose length is Size, and goes on to the one after it.
func (b *Buffers) Take(dst []byte) {
	b.oldest.copy(dst, b.oldest.tail+sampleHead)
	b.Skip()
}

// Peek returns the next sample where it lies, nil if it goes around the end of the memory. After Skip it stays there until
// Release, or, if the Buffers are closed before, until Unmap.
func (b *Buffers) Peek() []byte {
	one := b.oldest
	from := int((one.tail + sampleHead) & uint64(len(one.data)-1))
	to := from + one.size
	if to > len(one.data) {
		return nil
	}
	return one.data[from:to:to]
}

// Skip goes on to the sample after the next.
func (b *Buffers) Skip() {
	one := b.oldest
	one.tail += one.step
	switch {
	case !b.advance(one):
		last := len(b.active) - 1
		for i, a := range b.active {
			if a == one {
				b.active[i] = b.active[last]
			}
		}
		b.active = b.active[:last]
		b.choose()
	case one.record.Timestamp > b.turn:
		b.choose()
	}
}

// Release gives the memory of samples that were taken or skipped back to the kernel.
func (b *Buffers) Release() {
	for _, one := range b.buffers {
		one.release()
	}
}

// Written returns how many bytes the last Look found that were not taken or skipped; a packet takes MinSample at
// least.
func (b *Buffers) Written() (bytes int) {
	for _, one := range b.buffers {
		bytes += int(one.head - one.tail)
	}
	return bytes
}

// Count returns the number of those packets, and their bytes.
func (b *Buffers) Count() (packets, bytes int) {
	for _, one := range b.buffers {
		p, n := one.count()
		packets, bytes = packets+p, bytes+n
	}
	return packets, bytes
}

// Rung returns how often copies have ended a Wait because of Sleep.
func (b *Buffers) Rung() uint64 { return b.rung }

// Lost returns how many samples found no room, as far as has been read.
func (b *Buffers) Lost() uint64 { return b.lost }
