package redirect

import (
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/opendivert/divert/process"
)

// Conn is a redirected TCP connection or UDP exchange. As a net.Conn it talks to the application: LocalAddr is the
// application's destination, RemoteAddr its own end.
//
// A UDP exchange is all datagrams between the two. Read returns one datagram and cuts it to the buffer, Write sends one,
// up to 65,507 bytes (IPv6: 65,527). Read returns io.EOF when the exchange has been silent for Options.Idle.
type Conn struct {
	net.Conn
	l     *Listener
	flow  *flow
	ended func() // called when the connection is closed; may be nil
	once  sync.Once
	err   error
}

// OriginalDst returns the application's destination. An IPv4 address is never a mapped one.
func (c *Conn) OriginalDst() netip.AddrPort { return c.flow.dst }

// Source returns the application's own address.
func (c *Conn) Source() netip.AddrPort { return c.flow.client }

// Network returns "tcp" or "udp".
func (c *Conn) Network() string { return c.flow.network() }

// Process returns the process that began the connection, as it was then. It fails with ErrUnknownProcess, or the errors
// of process.Lookup.
func (c *Conn) Process() (process.Process, error) { return c.flow.who, c.flow.whoErr }

// LocalAddr returns OriginalDst as a net.Addr.
func (c *Conn) LocalAddr() net.Addr { return c.address(c.flow.dst) }

// RemoteAddr returns Source as a net.Addr.
func (c *Conn) RemoteAddr() net.Addr { return c.address(c.flow.client) }

func (c *Conn) address(a netip.AddrPort) net.Addr {
	if c.flow.exchange != nil {
		return net.UDPAddrFromAddrPort(a)
	}
	return net.TCPAddrFromAddrPort(a)
}

// Close ends the connection in order: the application reads all data written before, and then the end.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.release()
	})
	return c.err
}

// Reset ends the connection by force: the application gets "connection reset", or "connection refused" for a UDP
// exchange.
func (c *Conn) Reset() {
	c.once.Do(func() {
		switch inner := c.Conn.(type) {
		case *net.TCPConn:
			abort(inner)
		case *exchange:
			inner.carrier.refuse()
			c.err = inner.Close()
		}
		c.release()
	})
}

func (c *Conn) release() {
	if up := c.l.table.takeUpstream(c.flow); up != nil { // Dial was never called
		_ = up.Close()
	}
	if c.flow.exchange == nil {
		c.l.table.own(c.flow, false)
	}
	if c.ended != nil {
		c.ended()
	}
	c.l.lose(c)
}

// CloseWrite ends the direction to the application, which reads the end; the other direction goes on. For UDP it does
// nothing.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}

// datagramBuffer holds any datagram.
const datagramBuffer = 1 << 16

// ReadFrom implements io.ReaderFrom: for TCP the kernel may do the copying, for UDP each Read of r makes a datagram.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.ReadFrom(r)
	}
	return io.CopyBuffer(struct{ io.Writer }{c.Conn}, struct{ io.Reader }{r}, make([]byte, datagramBuffer))
}

// WriteTo implements io.WriterTo, as ReadFrom does io.ReaderFrom.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.WriteTo(w)
	}
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{c.Conn}, make([]byte, datagramBuffer))
}
