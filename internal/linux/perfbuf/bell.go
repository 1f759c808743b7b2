//go:build linux

package perfbuf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// bell is the reader's side of the bell of an outlet.
type bell struct {
	fd     int      // of the ring buffer
	maps   [][]byte // the mapped memory
	asleep *uint32
	// Positions in the ring buffer: unsigned long at the beginning of its first and second page (kernel/bpf/ringbuf.c).
	read    *uintptr
	written *uintptr
}

func openBell(o *codegen.Outlet) (*bell, error) {
	b := &bell{fd: o.Bell.FD()}
	page := os.Getpagesize()
	for _, part := range []struct {
		fd, offset, protection int
		at                     func(unsafe.Pointer)
	}{
		{o.Asleep.FD(), 0, unix.PROT_READ | unix.PROT_WRITE, func(p unsafe.Pointer) { b.asleep = (*uint32)(p) }},
		{b.fd, 0, unix.PROT_READ | unix.PROT_WRITE, func(p unsafe.Pointer) { b.read = (*uintptr)(p) }},
		{b.fd, page, unix.PROT_READ, func(p unsafe.Pointer) { b.written = (*uintptr)(p) }},
	} {
		m, err := unix.Mmap(part.fd, int64(part.offset), page, part.protection, unix.MAP_SHARED)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("the bell of the buffers: %w", os.NewSyscallError("mmap", err)), b.close())
		}
		b.maps = append(b.maps, m)
		part.at(unsafe.Pointer(&m[0]))
	}
	return b, nil
}

func (b *bell) close() error {
	if b == nil {
		return nil
	}
	var errs []error
	for _, m := range b.maps {
		errs = append(errs, unix.Munmap(m))
	}
	b.maps = nil
	return errors.Join(errs...)
}

// silence empties the ring buffer.
func (b *bell) silence() { atomic.StoreUintptr(b.read, atomic.LoadUintptr(b.written)) }

// Sleep makes the first copy from now on end a Wait. The caller must Look once more before it waits, for copies
// made just before; and again some time later, see Recheck.
func (b *Buffers) Sleep() { atomic.StoreUint32(b.bell.asleep, 1) }

// Awake undoes Sleep, unless a copy has. Copies end a Wait by the watermark only from now on.
func (b *Buffers) Awake() { atomic.StoreUint32(b.bell.asleep, 0) }
