//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"sync"
	"time"
)

// half is one of the two TCP connections that are joined.
type half struct {
	net.Conn
	reset func() // aborts it
}

// closeWriter is a connection that can close one direction alone.
type closeWriter interface{ CloseWrite() error }

// buffers holds a buffer for each direction of each connection.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// relayTCP copies data between two halves until both directions have ended, and closes them. The end of one direction
// closes only that direction; a failure, or the end of ctx, resets both.
func relayTCP(ctx context.Context, a, b half) {
	var failed sync.Once
	fail := func() { failed.Do(func() { a.reset(); b.reset() }) }
	defer context.AfterFunc(ctx, fail)()
	copied := func(to, from half) {
		buf := buffers.Get().(*[32 << 10]byte)
		defer buffers.Put(buf)
		// Only Read and Write: with other methods io.CopyBuffer would take a shortcut with its own, larger buffer.
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf[:])
		if w, ok := to.Conn.(closeWriter); ok && err == nil {
			err = w.CloseWrite()
		} else if err == nil {
			err = errors.ErrUnsupported // such a connection can only be closed as a whole
		}
		if err != nil {
			fail()
		}
	}
	var done sync.WaitGroup
	done.Go(func() { copied(a, b) })
	copied(b, a)
	done.Wait()
	_, _ = a.Close(), b.Close()
}

// reset aborts a connection, so that the other end knows that it did not end normally.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// maxDatagram is the longest UDP payload, in bytes.
const maxDatagram = 65527

// datagrams holds a buffer for each direction of each exchange.
var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// relayUDP copies datagrams both ways until there are none for idle, one of the connections fails, or ctx ends. It
// closes both.
func relayUDP(ctx context.Context, a, b net.Conn, idle time.Duration) {
	end := sync.OnceFunc(func() { _, _ = a.Close(), b.Close() })
	defer context.AfterFunc(ctx, end)()
	silent := time.AfterFunc(idle, end)
	defer silent.Stop()
	copied := func(to, from net.Conn) {
		defer end()
		buf := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buf)
		for {
			n, err := from.Read(buf[:])
			if err != nil {
				return
			}
			silent.Reset(idle)
			if _, err := to.Write(buf[:n]); errors.Is(err, net.ErrClosed) {
				return // any other failure loses only this datagram, as a network does
			}
		}
	}
	var done sync.WaitGroup
	done.Go(func() { copied(a, b) })
	copied(b, a)
	done.Wait()
}

// said holds the last line of logNew.
var said struct {
	sync.Mutex
	line string
}

// logNew prints a line unless it equals the last one: the same failure often repeats.
func logNew(line string) {
	said.Lock()
	defer said.Unlock()
	if line != said.line {
		said.line = line
		log.Print(line)
	}
}
