//go:build linux

package perfbuf

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// The length of struct perf_event_header (linux/perf_event.h): type (32 bits), misc and size (16 each), in host byte order. The
// size is a multiple of 8 and counts the header.
const headerSize = 8

// A sample has its header, the length of the program's data (32 bits), and the data; a record of losses has the id of the event
// and the number of lost samples (64 bits each).
const (
	sampleHead = headerSize + 4
	lostSize   = headerSize + 16
)

// MinSample is a lower bound of the bytes that the sample of a packet takes.
const MinSample = (sampleHead + codegen.RecordSize + packet.IPv4HeaderLen) &^ 7

// buffer is that of one processor. Positions count the bytes ever written, and so do not wrap.
type buffer struct {
	fd     int
	memory []byte // the mapped memory
	meta   *unix.PerfEventMmapPage
	data   []byte // of memory; its length is a power of two

	head     uint64 // the end of the data at the last look
	tail     uint64 // the end of the data that was read
	released uint64 // the tail that the kernel knows of

	// The next sample, which stands at the tail, if next says that there is one.
	record codegen.Record
	size   int    // bytes that the program wrote, some of them padding
	step   uint64 // bytes from the tail to the next record
}

// look finds the end of the written data.
func (b *buffer) look() { b.head = atomic.LoadUint64(&b.meta.Data_head) }

// release gives the memory of the data that was read back to the kernel.
func (b *buffer) release() {
	if b.released != b.tail {
		b.released = b.tail
		atomic.StoreUint64(&b.meta.Data_tail, b.tail)
	}
}

// next goes on to the next sample, past other records, and reports whether there is one, and how many samples the kernel says
// were lost before it. After an unreadable record, an error, everything written counts as read.
func (b *buffer) next() (ok bool, lost uint64, err error) {
	for b.tail != b.head {
		header := b.aligned(b.tail)
		kind, size := binary.NativeEndian.Uint32(header), uint64(binary.NativeEndian.Uint16(header[6:]))
		written := b.head - b.tail
		if size < headerSize || size%8 != 0 || size > written {
			err = fmt.Errorf("a record of %d bytes where %d were written", size, written)
			b.tail = b.head
			return false, lost, err
		}
		b.step = size
		switch {
		case kind == unix.PERF_RECORD_LOST && size >= lostSize:
			lost += binary.NativeEndian.Uint64(b.aligned(b.tail + headerSize + 8))
		case kind == unix.PERF_RECORD_SAMPLE && size >= sampleHead+codegen.RecordSize:
			if b.size = int(binary.NativeEndian.Uint32(b.aligned(b.tail + headerSize))); codegen.RecordSize <= b.size && uint64(b.size) <= size-sampleHead {
				var record [codegen.RecordSize]byte
				b.copy(record[:], b.tail+sampleHead)
				b.record = codegen.DecodeRecord(&record)
				return true, lost, nil
			}
		}
		b.tail += size // no sample of ours
	}
	return false, lost, nil
}

// aligned returns the 8 bytes at a multiple of 8, which do not wrap.
func (b *buffer) aligned(at uint64) []byte {
	i := at & uint64(len(b.data)-1)
	return b.data[i : i+8]
}

// copy copies from a position on, around the end of the memory.
func (b *buffer) copy(dst []byte, at uint64) {
	n := copy(dst, b.data[at&uint64(len(b.data)-1):])
	copy(dst[n:], b.data)
}

// count returns how many packets there are from the tail on and how many bytes of them.
func (b *buffer) count() (packets, bytes int) {
	scan := *b
	for {
		ok, _, err := scan.next()
		if !ok || err != nil {
			return packets, bytes
		}
		if !scan.record.End() {
			packets++
			bytes += int(scan.record.Captured)
		}
		scan.tail += scan.step
	}
}
