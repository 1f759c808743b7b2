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

// exchange is the net.Conn of a UDP exchange. Datagrams of the application arrive through deliver; those to it go through
// the carrier.
type exchange struct {
	carrier carrier
	flow    *flow
	idle    time.Duration

	wake chan struct{} // has one element after a change; the reader that takes it passes it on if it concerns others too

	mu       sync.Mutex
	queue    [][]byte // datagrams for Read, from head on
	head     int
	free     [][]byte // memory for further datagrams
	bytes    int      // in queue
	deadline time.Time
	over     bool // nothing more comes: Read empties the queue, then returns io.EOF
	closed   bool
}

// carrier brings the datagrams of an exchange to the application. Its methods may be called from several goroutines.
type carrier interface {
	answer(payload []byte) error
	refuse() // tells the application by ICMP that its destination refuses
	end()    // forgets the exchange; may be called again
}

// The limits of the queue for Read; excess datagrams are dropped, as by a socket whose buffer is full.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 1 << 20
	maxFree         = 16   // datagrams whose memory is kept for reuse
	maxFreeBytes    = 2048 // memory kept of one datagram
)

// quoted is the length of the longest quotation in an ICMP error.
const quoted = 1280

// newExchange makes the exchange of a flow.
func newExchange(f *flow, c carrier, idle time.Duration) *exchange {
	f.exchange = &exchange{carrier: c, flow: f, idle: idle, wake: make(chan struct{}, 1)}
	return f.exchange
}

// injected is the carrier of the road of packets.
type injected struct {
	l     *Listener
	flow  *flow
	quote []byte // the first datagram's headers, for an ICMP error
}

// beginUDP begins an exchange with its first datagram and gives it to Accept. It returns nil if there is no room.
func (l *Listener) beginUDP(f *flow, p *divert.Packet) *flow {
	newExchange(f, &injected{l, f, append([]byte(nil), p.Data[:min(len(p.Data), quoted)]...)}, l.options.Idle)
	switch other := l.table.addUDP(f); {
	case other == nil:
		l.full.Add(1)
		return nil
	case other != f:
		return other
	}
	if !l.offer(&Conn{Conn: f.exchange, l: l, flow: f}) {
		return nil
	}
	return f
}

// offer gives an exchange to Accept, or ends it if the backlog is full.
func (l *Listener) offer(c *Conn) bool {
	l.keep(c)
	l.redirected.Add(1) // before a caller of Accept can ask for the count
	select {
	case l.ready <- c:
		return true
	default:
		l.redirected.Add(^uint64(0))
		l.full.Add(1)
		_ = c.Close()
		return false
	}
}

// changed wakes a reader.
func (x *exchange) changed() {
	select {
	case x.wake <- struct{}{}:
	default: // a reader will wake anyway
	}
}

// deliver gives a datagram to Read. The memory remains the caller's.
func (x *exchange) deliver(b []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || x.over || len(x.queue)-x.head >= maxWaiting || x.bytes+len(b) > maxWaitingBytes {
		return
	}
	var d []byte
	if n := len(x.free); n > 0 {
		d, x.free = x.free[n-1][:0], x.free[:n-1]
	}
	if x.head > 0 && len(x.queue) == cap(x.queue) {
		x.queue, x.head = append(x.queue[:0], x.queue[x.head:]...), 0
	}
	x.queue = append(x.queue, append(d, b...))
	x.bytes += len(b)
	x.changed()
}

// next copies the oldest waiting datagram into b. The caller holds the mutex.
func (x *exchange) next(b []byte) int {
	d := x.queue[x.head]
	if x.head++; x.head == len(x.queue) {
		x.queue, x.head = x.queue[:0], 0
	} else {
		x.changed() // there is more, for another reader
	}
	x.bytes -= len(d)
	if len(x.free) < maxFree && cap(d) <= maxFreeBytes {
		x.free = append(x.free, d)
	}
	return copy(b, d)
}

// Read returns a datagram.
func (x *exchange) Read(b []byte) (int, error) {
	for {
		n, until, err := x.poll(b)
		if until.IsZero() {
			if err != nil {
				x.changed() // for other readers too
			}
			return n, err
		}
		x.wait(until)
	}
}

// poll is Read without waiting: if there is nothing yet, it returns the time until which to wait.
func (x *exchange) poll(b []byte) (n int, until time.Time, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	switch {
	case x.closed:
		return 0, until, net.ErrClosed
	case !x.deadline.IsZero() && !x.deadline.After(now):
		return 0, until, os.ErrDeadlineExceeded
	case len(x.queue) > x.head:
		return x.next(b), until, nil
	case x.over:
		return 0, until, io.EOF
	}
	until = time.Unix(x.flow.last.Load(), 0).Add(x.idle + time.Second) // last is in whole seconds
	if !until.After(now) {
		x.carrier.end()
		return 0, time.Time{}, io.EOF
	}
	if !x.deadline.IsZero() && x.deadline.Before(until) {
		until = x.deadline
	}
	return 0, until, nil
}

// timers are stopped timers.
var timers = sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}

// wait waits for a change, until a time.
func (x *exchange) wait(until time.Time) {
	t := timers.Get().(*time.Timer)
	defer timers.Put(t)
	t.Reset(time.Until(until))
	defer t.Stop()
	select {
	case <-x.wake:
	case <-t.C:
	}
}

// Write sends a datagram to the application, in the name of its destination.
func (x *exchange) Write(b []byte) (int, error) {
	x.mu.Lock()
	closed := x.closed
	x.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	x.flow.last.Store(time.Now().Unix())
	if err := x.carrier.answer(b); err != nil {
		return 0, fmt.Errorf("redirect: write: %w", err)
	}
	return len(b), nil
}

// finish ends the exchange for Read: the application has closed its socket.
func (x *exchange) finish() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.over {
		x.over = true
		x.changed()
	}
}

func (c *injected) answer(b []byte) error {
	h := packet.Header{Src: c.flow.dst, Dst: c.flow.client}
	d, err := h.AppendUDP(nil, b)
	if err != nil {
		return err
	}
	return c.send(d)
}

// send injects a packet to the application.
func (c *injected) send(b []byte) error {
	a := c.flow.toward
	a.IPChecksum, a.UDPChecksum, a.TCPChecksum = true, true, true
	return c.l.handle.Send(&divert.Packet{Data: b, Addr: a})
}

func (c *injected) refuse() {
	if b, ok := unreachable(c.quote); ok {
		_ = c.send(b)
	}
}

func (c *injected) end() { c.l.table.removeUDP(c.flow) }

// unreachable returns the ICMP error "port unreachable" that answers a datagram.
func unreachable(datagram []byte) ([]byte, bool) {
	var h packet.Parsed
	if !h.Parse(datagram) {
		return nil, false
	}
	code := uint8(packet.ICMPPortUnreachable)
	if h.Family == 6 {
		code = packet.ICMPv6PortUnreachable
	}
	return packet.AppendUnreachable(nil, datagram, &h, code)
}

// Close ends the exchange; the next datagram of the application begins another.
func (x *exchange) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return net.ErrClosed
	}
	x.closed, x.queue, x.head, x.free = true, nil, 0, nil
	x.changed()
	x.carrier.end()
	return nil
}

// LocalAddr and RemoteAddr are never called: Conn has its own.
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
