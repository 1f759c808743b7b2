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

// half is one of the two connections of TCP that make one.
type half struct {
	net.Conn
	reset func() // ends it by force
}

// closeWriter is a connection that can end one direction alone.
type closeWriter interface{ CloseWrite() error }

// buffers are of one direction of one connection each.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// relayTCP copies what two halves say to each other until both directions have ended, and closes them. The end of one direction
// ends that one alone; a failure, and the end of ctx, resets both.
func relayTCP(ctx context.Context, a, b half) {
	var failed sync.Once
	fail := func() { failed.Do(func() { a.reset(); b.reset() }) }
	defer context.AfterFunc(ctx, fail)()
	copied := func(to, from half) {
		buf := buffers.Get().(*[32 << 10]byte)
		defer buffers.Put(buf)
		// Only Read and Write: io.CopyBuffer would use a larger buffer of its own where they know a shortcut.
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf[:])
		if w, ok := to.Conn.(closeWriter); ok && err == nil {
			err = w.CloseWrite()
		} else if err == nil {
			err = errors.ErrUnsupported // such a connection can only end as a whole
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

// reset ends a connection by force, so that the other end knows it did not end well.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// maxDatagram is the longest payload of UDP, in bytes.
const maxDatagram = 65527

// datagrams are of one direction of one exchange each.
var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// relayUDP copies datagrams both ways until there was none for idle, one of the connections fails, or ctx ends. It closes both.
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
				return // any other failure loses this datagram alone, as a network does
			}
		}
	}
	var done sync.WaitGroup
	done.Go(func() { copied(a, b) })
	copied(b, a)
	done.Wait()
}

// said is the last line of logNew.
var said struct {
	sync.Mutex
	line string
}

// logNew prints a line unless it was the last one: the same failure often repeats.
func logNew(line string) {
	said.Lock()
	defer said.Unlock()
	if line != said.line {
		said.line = line
		log.Print(line)
	}
}
