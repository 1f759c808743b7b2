//go:build linux

package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// Counters are what the kernel counts of a queue.
type Counters struct {
	Total       uint64 // packets without a verdict, received or not
	DroppedFull uint64 // refused because MaxLen packets had no verdict
	DroppedUser uint64 // refused because the socket's receive buffer was full; they have numbers
	LastID      uint32 // the number of the last packet: all that were given numbers
}

// countersPath holds a line for each queue of the calling thread's namespace.
const countersPath = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// Meter reads the counters of the queues of one network namespace. It is for one goroutine at a time.
type Meter struct {
	file *os.File
	buf  []byte
}

// NewMeter opens the counters of the calling thread's namespace.
func NewMeter() (*Meter, error) {
	f, err := os.Open(countersPath)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (needs to be root, or CAP_DAC_READ_SEARCH)", err)
		}
		return nil, fmt.Errorf("counters of the netfilter queues: %w", err)
	}
	return &Meter{file: f, buf: make([]byte, 4096)}, nil
}

// Close closes the meter.
func (m *Meter) Close() error { return m.file.Close() }

// readTries is how often a meter looks for a queue that it does not find.
const readTries = 3

// Read returns the counters of a queue, all zero if it does not exist.
func (m *Meter) Read(num uint16) (Counters, error) {
	for range readTries {
		text, err := m.text()
		if err != nil {
			return Counters{}, fmt.Errorf("counters of the netfilter queues: %w", err)
		}
		if c, ok := parseCounters(text, num); ok {
			return c, nil
		}
		// The kernel gives a page at a time: a line may be passed over when others bind or release queues meanwhile.
	}
	return Counters{}, nil
}

// text reads the lines of all queues.
func (m *Meter) text() ([]byte, error) {
	for n := 0; ; {
		got, err := m.file.ReadAt(m.buf[n:], int64(n)) // fills the buffer or reaches the end
		n += got
		switch {
		case err == io.EOF:
			return m.buf[:n], nil
		case err != nil:
			return nil, err
		}
		m.buf = append(m.buf, make([]byte, len(m.buf))...)
	}
}

// Columns of a queue's line (net/netfilter/nfnetlink_queue.c, seq_show).
const (
	columnNum = iota
	columnPort
	columnTotal
	columnCopyMode
	columnCopyRange
	columnDropped
	columnUserDropped
	columnLastID
	columns
)

// parseCounters finds the line of a queue.
func parseCounters(text []byte, num uint16) (c Counters, ok bool) {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < columns || number(f[columnNum]) != uint64(num) {
			continue
		}
		return Counters{
			Total:       number(f[columnTotal]),
			DroppedFull: number(f[columnDropped]),
			DroppedUser: number(f[columnUserDropped]),
			LastID:      uint32(number(f[columnLastID])),
		}, true
	}
	return c, false
}

// number reads a column, 0 if it is none.
func number(b []byte) uint64 {
	v, _ := strconv.ParseUint(string(b), 10, 64)
	return v
}
