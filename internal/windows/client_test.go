package windows

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// client is a handle as package divert uses it: with a read deadline, and with receive calls that end before Close.
type client struct {
	*handle
	deadline  engine.Deadline
	receiving sync.RWMutex
	closed    atomic.Bool
}

// newClient returns a client that is closed with the test.
func newClient(t testing.TB, h *handle) *client {
	c := &client{handle: h}
	c.deadline.Init(h.Wake)
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *client) SetReadDeadline(t time.Time) error { return c.deadline.Set(t) }

func (c *client) Recv(ps []packet.Packet) (int, error) {
	c.receiving.RLock()
	defer c.receiving.RUnlock()
	w := engine.Wait{Handle: c.deadline.Passed()}
	n, err := 0, engine.ErrInterrupted
	if !w.Ended() {
		n, err = c.handle.Recv(w, ps)
	}
	switch {
	case c.closed.Load():
		return 0, net.ErrClosed
	case err == engine.ErrInterrupted:
		return 0, os.ErrDeadlineExceeded
	}
	return n, err
}

func (c *client) Close() error {
	c.closed.Store(true)
	c.deadline.Close()
	c.receiving.Lock()
	defer c.receiving.Unlock()
	return c.handle.Close()
}
