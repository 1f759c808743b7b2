//go:build linux

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Stream returns n pseudo-random bytes, determined by seed.
func Stream(n int64, seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// Digest identifies a stream: its length in bytes and its SHA-256.
type Digest struct {
	Bytes int64
	Sum   [sha256.Size]byte
}

// String returns the length and the first bytes of the hash.
func (d Digest) String() string { return fmt.Sprintf("%d bytes %x", d.Bytes, d.Sum[:6]) }

// DigestOf reads r to its end.
func DigestOf(r io.Reader) (d Digest, err error) {
	h := sha256.New()
	d.Bytes, err = io.Copy(h, r)
	h.Sum(d.Sum[:0])
	return d, err
}

// TransferTCP sends Stream(n, seed) over one TCP connection from a host to an address of another and returns the time
// until the receiver had everything. Port 0 chooses a free one. Every byte must arrive unchanged; otherwise, or if ctx
// ends first, there is an error.
func TransferTCP(ctx context.Context, from, to *Host, dst netip.AddrPort, n int64, seed uint64) (time.Duration, error) {
	want, err := DigestOf(Stream(n, seed))
	if err != nil {
		return 0, err
	}
	l, err := to.Listen("tcp", dst.String())
	if err != nil {
		return 0, err
	}
	defer l.Close()
	begin := time.Now()
	type result struct {
		got Digest
		err error
	}
	received := make(chan result, 1)
	go func() {
		got, err := receiveOne(ctx, l)
		received <- result{got, err}
	}()
	if err := sendStream(ctx, from, l.Addr().String(), n, seed); err != nil {
		l.Close()
		return 0, errors.Join(err, (<-received).err)
	}
	r := <-received
	if r.err != nil {
		return 0, r.err
	}
	if r.got != want {
		return 0, fmt.Errorf("lab: TCP transfer: received %v, sent %v", r.got, want)
	}
	return time.Since(begin), nil
}

// receiveOne accepts one connection and reads it to its end.
func receiveOne(ctx context.Context, l net.Listener) (d Digest, err error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	c, err := l.Accept()
	stop()
	if err != nil {
		return d, errors.Join(ctx.Err(), err)
	}
	defer c.Close()
	err = untilDone(ctx, c.SetDeadline, func() (err error) {
		d, err = DigestOf(c)
		return err
	})
	return d, err
}

// sendStream connects, sends the stream and closes.
func sendStream(ctx context.Context, from *Host, addr string, n int64, seed uint64) error {
	c, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return untilDone(ctx, c.SetDeadline, func() error {
		_, err := io.Copy(c, Stream(n, seed))
		return err
	})
}

// Echo is a server that sends all received data back.
type Echo struct {
	closer io.Closer
	addr   netip.AddrPort
	work   sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool // nil: closed
	served int64
}

// Echo starts an echo server on a literal address; network is "tcp" or "udp", with 4 or 6 if wanted.
func (h *Host) Echo(network, addr string) (*Echo, error) {
	e := &Echo{conns: make(map[net.Conn]bool)}
	if len(network) >= 3 && network[:3] == "udp" {
		c, err := h.ListenPacket(network, addr)
		if err != nil {
			return nil, err
		}
		e.closer, e.addr = c, addrPort(c.LocalAddr())
		e.work.Go(func() { e.datagrams(c) })
		return e, nil
	}
	l, err := h.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	e.closer, e.addr = l, addrPort(l.Addr())
	e.work.Go(func() { e.connections(l) })
	return e, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	p, _ := netip.ParseAddrPort(a.String()) // the zero value for unix sockets
	return p
}

// Addr returns the server's address and port.
func (e *Echo) Addr() netip.AddrPort { return e.addr }

// Served returns the number of datagrams or connections that have reached the server.
func (e *Echo) Served() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.served
}

// Close stops the server and its connections and waits for them.
func (e *Echo) Close() error {
	err := e.closer.Close()
	e.mu.Lock()
	for c := range e.conns {
		c.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.work.Wait()
	return err
}

func (e *Echo) datagrams(c net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		e.mu.Lock()
		e.served++ // before the answer, so that the client sees it counted
		e.mu.Unlock()
		_, _ = c.WriteTo(b[:n], from)
	}
}

func (e *Echo) connections(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		closed := e.conns == nil
		if !closed {
			e.conns[c] = true
			e.served++
		}
		e.mu.Unlock()
		if closed {
			c.Close()
			return
		}
		e.work.Go(func() {
			_, _ = io.Copy(c, c)
			c.Close()
			e.mu.Lock()
			delete(e.conns, c)
			e.mu.Unlock()
		})
	}
}

// Exchange describes a test of an echo server with datagrams.
type Exchange struct {
	Count int           // datagrams, one after the other; 0: 1
	Size  int           // payload bytes of each, at least 8; 0: 64
	Wait  time.Duration // for each echo, before it counts as lost; 0: 1 s
	Seed  uint64        // of the payload
}

// Exchanged is the result of an Exchange.
type Exchanged struct {
	Sent    int // datagrams sent
	Refused int // datagrams that the kernel refused to send, or that an ICMP error answered
	Echoed  int // datagrams that came back unchanged
	Changed int // datagrams that came back changed
}

// ExchangeUDP sends datagrams to an echo server and counts the answers. Lost and refused datagrams are not an error.
func ExchangeUDP(ctx context.Context, from *Host, to netip.AddrPort, x Exchange) (r Exchanged, err error) {
	x.Count, x.Size = max(x.Count, 1), max(x.Size, 0)
	if x.Size == 0 {
		x.Size = 64
	}
	if x.Size < 8 {
		return r, fmt.Errorf("lab: exchange of %d bytes: %w: 8 are the least", x.Size, os.ErrInvalid)
	}
	if x.Wait <= 0 {
		x.Wait = time.Second
	}
	c, err := from.Dial(ctx, "udp", to.String())
	if err != nil {
		return r, err
	}
	defer c.Close()
	payload, answer := make([]byte, x.Size), make([]byte, 64<<10)
	random := Stream(int64(x.Size)*int64(x.Count), x.Seed)
	for i := range x.Count {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		if _, err := io.ReadFull(random, payload); err != nil {
			return r, err
		}
		binary.BigEndian.PutUint64(payload, uint64(i)) // identifies a late echo of an earlier datagram
		if _, err := c.Write(payload); err != nil {
			r.Refused++
			continue
		}
		r.Sent++
		if err := r.await(ctx, c, payload, answer, x.Wait); err != nil {
			return r, err
		}
	}
	return r, nil
}

// await waits for the echo of payload and counts it.
func (r *Exchanged) await(ctx context.Context, c net.Conn, payload, answer []byte, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		var n int
		err := untilDone(ctx, c.SetReadDeadline, func() (err error) {
			n, err = c.Read(answer)
			return err
		})
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return nil // lost
		case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			r.Refused++
			return nil
		case bytes.Equal(answer[:n], payload):
			r.Echoed++
			return nil
		case n >= 8 && binary.BigEndian.Uint64(answer) < binary.BigEndian.Uint64(payload):
			continue // the echo of an earlier datagram, given up as lost
		}
		r.Changed++
		return nil
	}
}

// Counter counts the datagrams that arrive at a UDP address.
type Counter struct {
	conn net.PacketConn
	done chan struct{}

	mu      sync.Mutex
	packets int64
	bytes   int64
	more    chan struct{} // closed and replaced at each datagram
}

// CountUDP starts a Counter on a literal address. It has a large receive buffer where allowed.
func (h *Host) CountUDP(addr string) (*Counter, error) {
	c, err := h.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	if u, ok := c.(*net.UDPConn); ok {
		raw, err := u.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { setReceiveBuffer(int(fd), 16<<20) })
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	k := &Counter{conn: c, done: make(chan struct{}), more: make(chan struct{})}
	go k.count()
	return k, nil
}

func (k *Counter) count() {
	defer close(k.done)
	b := make([]byte, 64<<10)
	for {
		n, _, err := k.conn.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		k.mu.Lock()
		k.packets++
		k.bytes += int64(n)
		close(k.more)
		k.more = make(chan struct{})
		k.mu.Unlock()
	}
}

// Addr returns the address and port whose datagrams count.
func (k *Counter) Addr() netip.AddrPort { return addrPort(k.conn.LocalAddr()) }

// Count returns the number of datagrams so far and of their payload bytes.
func (k *Counter) Count() (packets, bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.packets, k.bytes
}

// Wait waits until that many datagrams have arrived since the start, or ctx is done.
func (k *Counter) Wait(ctx context.Context, packets int64) error {
	for {
		k.mu.Lock()
		have, more := k.packets, k.more
		k.mu.Unlock()
		if have >= packets {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("lab: %d datagrams of %d: %w", have, packets, ctx.Err())
		}
	}
}

// Close stops the counter and waits for it.
func (k *Counter) Close() error {
	err := k.conn.Close()
	<-k.done
	return err
}
