package redirect

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
)

// Dial connects to the destination of an accepted connection, directly, through Options.Via, or by Options.Dial. If the
// Listener holds connections, the other half stands already, and Dial returns it, once.
func (l *Listener) Dial(ctx context.Context, c *Conn) (net.Conn, error) {
	if up := l.table.takeUpstream(c.flow); up != nil {
		return up, nil
	}
	up, err := l.dialFlow(ctx, c.flow)
	if err != nil {
		return nil, fmt.Errorf("redirect: dial %v: %w", c.flow.dst, err)
	}
	return up, nil
}

// DialContext connects to any numeric address, as Dial does, but never through Options.Via. It is for programs with
// Options.OwnByDial; others may use any dialer.
func (l *Listener) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return l.dialOwn(ctx, network, address)
}

// target returns the destination of a flow's application.
func (l *Listener) target(f *flow) Target {
	t := Target{Network: f.network(), Src: f.client, Dst: f.dst, flow: f}
	if a := f.dst.Addr(); a.Is6() && a.IsLinkLocalUnicast() {
		t.Dst = netip.AddrPortFrom(a.WithZone(strconv.Itoa(int(f.ifIdx))), f.dst.Port())
	}
	return t
}

// dialFlow makes the other half of a flow.
func (l *Listener) dialFlow(ctx context.Context, f *flow) (net.Conn, error) {
	t := l.target(f)
	if l.options.Dial != nil {
		return l.options.Dial(ctx, t, l.dialOwn)
	}
	return l.dial(ctx, t.Network, t.Dst.String())
}

// dialOwn connects so that the connection is known as the program's own before its first packet leaves.
func (l *Listener) dialOwn(ctx context.Context, network, address string) (net.Conn, error) {
	if !l.options.OwnByDial {
		return l.options.Connect(ctx, &net.Dialer{}, network, address)
	}
	var cookie uint64
	control := func(string, string, syscall.RawConn) error { return nil }
	if l.sockets != nil {
		control = l.sockets.own(&cookie)
	}
	c, known, err := l.dialKnown(ctx, network, address, control)
	forget := sync.OnceFunc(func() {
		if l.sockets != nil {
			l.sockets.forget(cookie)
		}
		for _, k := range known {
			l.dials.remove(k)
		}
	})
	if u, ok := c.(*net.UDPConn); ok && err == nil {
		return &ownUDP{u, forget}, nil
	}
	forget() // for TCP only the connect and the first segment count
	return c, err
}

// ownUDP is a socket whose port is known as the program's until it is closed.
type ownUDP struct {
	*net.UDPConn
	forget func()
}

// Close closes the socket.
func (c *ownUDP) Close() error {
	defer c.forget()
	return c.UDPConn.Close()
}

// dials are the ports that the program connects from, where only the port distinguishes its connections.
type dials struct {
	mu    sync.RWMutex
	ports map[dialKey]int
}

// dialKey identifies the program's sockets. Sockets of different families may have the same port.
type dialKey struct {
	port    uint16
	network string // tcp or udp
	six     bool   // IPv6
}

func (d *dials) add(k dialKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ports == nil {
		d.ports = map[dialKey]int{}
	}
	d.ports[k]++
}

func (d *dials) remove(k dialKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ports[k]--; d.ports[k] <= 0 {
		delete(d.ports, k)
	}
}

func (d *dials) has(k dialKey) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.ports[k] > 0
}
