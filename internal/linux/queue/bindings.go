//go:build linux

package queue

import (
	"bytes"
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Binding names the socket that has bound a queue, in the kernel's words.
type Binding struct {
	Port uint32 // of the netlink socket
	Snap int    // bytes of each packet that are handed over at most; 0 for a queue of Options.Discard
}

// Bindings returns the queues of the calling thread's namespace, by number. While others bind and release queues one
// may be missing; those listed are right. Only root, or CAP_DAC_READ_SEARCH, may read it.
func Bindings() (map[uint16]Binding, error) {
	text, err := os.ReadFile(countersPath)
	if err != nil {
		return nil, err
	}
	return parseBindings(text), nil
}

func parseBindings(text []byte) map[uint16]Binding {
	all := map[uint16]Binding{}
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < columns {
			continue
		}
		if num := number(f[columnNum]); num <= math.MaxUint16 {
			all[uint16(num)] = Binding{uint32(number(f[columnPort])), int(number(f[columnCopyRange]))}
		}
	}
	return all
}

// Prober asks the kernel whether queues are bound. It is for one goroutine at a time.
type Prober struct{ conn *nfnl.Conn }

// NewProber returns a prober of the calling thread's namespace.
func NewProber() (*Prober, error) {
	conn, err := nfnl.Dial(4096)
	if err != nil {
		return nil, err
	}
	return &Prober{conn}, nil
}

// Close closes the prober.
func (p *Prober) Close() error { return p.conn.Close() }

// Free reports whether nobody has bound a queue. It asks for a change of nothing: the kernel refuses that with EPERM
// where the queue is another socket's, also if the asker lacks rights, and with ENODEV where there is no such queue
// (net/netfilter/nfnetlink_queue.c, nfqnl_recv_config).
func (p *Prober) Free(num uint16) bool {
	err := p.conn.Request(nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), num))
	return errors.Is(err, unix.ENODEV)
}

// Port returns the port of the queue's socket, which the kernel names as the owner of the queue.
func (q *Queue) Port() (port uint32, err error) {
	closed := q.Control(func(fd uintptr) {
		var name unix.Sockaddr
		if name, err = unix.Getsockname(int(fd)); err == nil {
			port = name.(*unix.SockaddrNetlink).Pid
		}
	})
	return port, errors.Join(closed, os.NewSyscallError("getsockname", err))
}
