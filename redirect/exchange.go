package redirect

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// exchange is the net.Conn of an exchange of UDP. Datagrams of the application come by deliver; those to it are injected.
type exchange struct {
	l     *Listener
	flow  *flow
	quote []byte // the first datagram's headers, for an ICMP error
	idle  time.Duration

	mu       sync.Mutex
	queue    [][]byte
	bytes    int
	wake     chan struct{} // closed and replaced whenever something changes
	deadline time.Time
	closed   bool
}

// The limits of what waits for Read; what exceeds them is dropped, as by a socket whose buffer is full.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 1 << 20
)

// quoted is how much of a datagram an ICMP error may quote.
const quoted = 1280

// beginUDP begins an exchange and gives it to Accept. It returns nil if there is no room.
func (l *Listener) beginUDP(f *flow, p *divert.Packet) *flow {
	f.exchange = &exchange{l: l, flow: f, idle: l.options.Idle, wake: make(chan struct{}),
		quote: append([]byte(nil), p.Data[:min(len(p.Data), quoted)]...)}
	switch other := l.table.addUDP(f); {
	case other == nil:
		l.full.Add(1)
		return nil
	case other != f:
		return other
	}
	c := &Conn{Conn: f.exchange, l: l, flow: f}
	l.keep(c)
	select {
	case l.ready <- c:
		l.redirected.Add(1)
		return f
	default: // nobody accepts
		l.full.Add(1)
		_ = c.Close()
		return nil
	}
}

func (x *exchange) changed() {
	close(x.wake)
	x.wake = make(chan struct{})
}

// deliver gives a datagram to Read. The memory stays the caller's.
func (x *exchange) deliver(b []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || len(x.queue) >= maxWaiting || x.bytes+len(b) > maxWaitingBytes {
		return
	}
	x.queue = append(x.queue, append([]byte(nil), b...))
	x.bytes += len(b)
	x.changed()
}

// Read returns a datagram.
func (x *exchange) Read(b []byte) (int, error) {
	for {
		x.mu.Lock()
		if x.closed {
			x.mu.Unlock()
			return 0, net.ErrClosed
		}
		now := time.Now()
		if !x.deadline.IsZero() && !x.deadline.After(now) {
			x.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		if len(x.queue) > 0 {
			d := x.queue[0]
			x.queue, x.bytes = x.queue[1:], x.bytes-len(d)
			x.mu.Unlock()
			return copy(b, d), nil
		}
		wake, until := x.wake, time.Unix(x.flow.last.Load(), 0).Add(x.idle+time.Second) // last is in whole seconds
		x.mu.Unlock()
		if !until.After(now) {
			x.l.table.removeUDP(x.flow)
			return 0, io.EOF
		}
		x.wait(wake, until)
	}
}

func (x *exchange) wait(wake <-chan struct{}, until time.Time) {
	x.mu.Lock()
	if !x.deadline.IsZero() && x.deadline.Before(until) {
		until = x.deadline
	}
	x.mu.Unlock()
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	}
}

// Write sends a datagram to the application, from where it wanted to go.
func (x *exchange) Write(b []byte) (int, error) {
	x.mu.Lock()
	closed := x.closed
	x.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	x.flow.last.Store(time.Now().Unix())
	h := packet.Header{Src: x.flow.dst, Dst: x.flow.client}
	d, err := h.AppendUDP(nil, b)
	if err != nil {
		return 0, fmt.Errorf("redirect: write: %w", err)
	}
	if err := x.send(d); err != nil {
		return 0, err
	}
	return len(b), nil
}

// send injects a packet to the application.
func (x *exchange) send(b []byte) error {
	a := x.flow.toward
	a.IPChecksum, a.UDPChecksum, a.TCPChecksum = true, true, true
	return x.l.handle.Send(&divert.Packet{Data: b, Addr: a})
}

// refuse tells the application by ICMP that nothing listens where it wanted to go.
func (x *exchange) refuse() {
	var h packet.Parsed
	if !h.Parse(x.quote) {
		return
	}
	code := uint8(packet.ICMPPortUnreachable)
	if h.Family == 6 {
		code = packet.ICMPv6PortUnreachable
	}
	if b, ok := packet.AppendUnreachable(nil, x.quote, &h, code); ok {
		_ = x.send(b)
	}
}

// Close ends the exchange; the next datagram of the application begins another.
func (x *exchange) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return net.ErrClosed
	}
	x.closed, x.queue = true, nil
	x.changed()
	x.l.table.removeUDP(x.flow)
	return nil
}

// LocalAddr and RemoteAddr are never asked: Conn has its own.
func (x *exchange) LocalAddr() net.Addr  { return net.UDPAddrFromAddrPort(x.flow.dst) }
func (x *exchange) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(x.flow.client) }

// SetDeadline is SetReadDeadline, as Write never waits.
func (x *exchange) SetDeadline(t time.Time) error { return x.SetReadDeadline(t) }

// SetReadDeadline makes Read fail from t on.
func (x *exchange) SetReadDeadline(t time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return net.ErrClosed
	}
	x.deadline = t
	x.changed()
	return nil
}

// SetWriteDeadline does nothing: Write never waits.
func (x *exchange) SetWriteDeadline(time.Time) error { return nil }
