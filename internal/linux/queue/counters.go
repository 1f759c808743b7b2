//go:build linux

package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/rights"
)

// Counters are the kernel's counts of a queue. Its counters have 32 bits and wrap around; a Meter that reads them often enough
// adds them up.
type Counters struct {
	Total       uint64 // packets without a verdict, received or not
	DroppedFull uint64 // refused because MaxLen packets had no verdict; they have no numbers
	DroppedUser uint64 // refused because the socket's receive buffer was full; they have numbers
	Numbered    uint64 // given numbers
	LastID      uint32 // the last of these numbers
}

// countersPath holds a line for each queue of the calling thread's namespace.
const countersPath = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// Meter reads the counters of the queues of one network namespace, from the time they are bound on. It is for one
// goroutine at a time.
type Meter struct {
	file *os.File
	buf  []byte
	sums map[uint16]*sum
}

// sum adds up the counters of a queue.
type sum struct {
	total Counters
	last  [3]uint32 // DroppedFull, DroppedUser and LastID, as read last
}

// add adds the counts since the last reading.
func (s *sum) add(full, user, id uint32) {
	s.total.DroppedFull += uint64(full - s.last[0]) // modulo 2^32
	s.total.DroppedUser += uint64(user - s.last[1])
	s.total.Numbered += uint64(id - s.last[2])
	s.total.LastID = id
	s.last = [3]uint32{full, user, id}
}

// NewMeter opens the counters of the calling thread's namespace.
func NewMeter() (*Meter, error) {
	f, err := os.Open(countersPath)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (%s)", err, whyUnreadable())
		}
		return nil, fmt.Errorf("counters of the netfilter queues: %w", err)
	}
	return &Meter{file: f, buf: make([]byte, 4096), sums: map[uint16]*sum{}}, nil
}

// whyUnreadable names the rights needed to read the counters, which belong to the user who is root in the user namespace of the
// network namespace. If that user namespace knew no users yet when the network namespace was made, as when one call
// of clone makes both, they belong to a user outside, and no right that counts inside helps (fs/proc/proc_net.c,
// net_ns_get_ownership).
func whyUnreadable() string {
	const search = 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_DAC_OVERRIDE
	if have, err := rights.Effective(); err == nil && have&search != 0 {
		return "this network namespace is older than the users of its user namespace, so its files belong to nobody here: " +
			"make the network namespace afterwards, inside the user namespace, as unshare --net does"
	}
	return "needs to be root, or CAP_DAC_READ_SEARCH"
}

// Close closes the meter.
func (m *Meter) Close() error { return m.file.Close() }

// readTries is how often a meter looks for a queue that it does not find.
const readTries = 3

// Read returns the counters of a queue. For a queue that no longer exists it returns those of the last call, with no packet
// waiting for a verdict.
func (m *Meter) Read(num uint16) (Counters, error) {
	s := m.sums[num]
	if s == nil {
		s = &sum{}
		m.sums[num] = s
	}
	for range readTries {
		text, err := m.text()
		if err != nil {
			return Counters{}, fmt.Errorf("counters of the netfilter queues: %w", err)
		}
		if s.read(text, num) {
			break
		}
		// The kernel gives a page at a time: a line may be passed over when others bind or release queues meanwhile.
	}
	return s.total, nil
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

// read finds the line of a queue, adds its counters, and reports whether it is there.
func (s *sum) read(text []byte, num uint16) bool {
	s.total.Total = 0
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < columns || number(f[columnNum]) != uint64(num) {
			continue
		}
		s.total.Total = number(f[columnTotal])
		s.add(uint32(number(f[columnDropped])), uint32(number(f[columnUserDropped])), uint32(number(f[columnLastID])))
		return true
	}
	return false
}

// number reads a column, 0 if it is not a number.
func number(b []byte) uint64 {
	v, _ := strconv.ParseUint(string(b), 10, 64)
	return v
}
