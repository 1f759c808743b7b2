package redirect

import (
	"context"
	"io"
	"net"
	"sync"
)

// Relay copies the data between an accepted connection and its other half until both directions have ended, and closes
// both. It also ends with the Listener. The end of one direction ends only that one, and a reset is passed on. Relay
// returns the number of bytes that went each way, and the first error.
func Relay(c *Conn, upstream net.Conn) (sent, received int64, err error) {
	var (
		wait sync.WaitGroup
		once sync.Once
	)
	finish := func(e error) { // the first direction that ends both gives the reason
		once.Do(func() {
			if err = e; e != nil {
				reset(upstream)
				c.Reset()
				return
			}
			_ = upstream.Close()
			_ = c.Close()
		})
	}
	defer context.AfterFunc(c.l.ctx, func() { finish(net.ErrClosed) })() // a finished direction would not notice the end
	ended := func(to net.Conn, e error) {
		if e != nil || c.Network() == "udp" { // an idle exchange ends both ways
			finish(e)
			return
		}
		_ = closeWrite(to)
	}
	wait.Go(func() {
		n, e := io.CopyBuffer(writerOnly(upstream), c, nil)
		sent = n
		ended(upstream, e)
	})
	n, e := copyFrom(c, upstream)
	received = n
	ended(c, e)
	wait.Wait()
	finish(nil)
	return sent, received, err
}

// writerOnly hides the methods of datagram sockets by which io.Copy would turn datagrams into a stream.
func writerOnly(c net.Conn) io.Writer {
	if t, ok := c.(*net.TCPConn); ok {
		return t
	}
	return struct{ io.Writer }{c}
}

func copyFrom(c *Conn, upstream net.Conn) (int64, error) {
	if t, ok := upstream.(*net.TCPConn); ok {
		return c.ReadFrom(t)
	}
	return c.ReadFrom(struct{ io.Reader }{upstream})
}

// reset ends a connection with a reset, if it can.
func reset(c net.Conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		abort(c)
	case *buffered:
		reset(c.Conn)
	default:
		_ = c.Close()
	}
}
