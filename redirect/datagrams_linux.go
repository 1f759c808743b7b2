package redirect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// datagrams is the road of UDP sockets: the datagrams of applications go to aliases, which identify the sender and the
// destination.
type datagrams struct {
	s       *sockets
	led     detour.Datagrams
	device  *detour.Device // has the aliases of IPv6; nil without IPv6
	sockets []*net.UDPConn // at one port, of IPv4 and, with device, of IPv6
	raw     []int          // sockets for ICMP errors, as sockets

	mu     sync.Mutex
	spoken map[uint32]*spoken // by alias number
	live   int                // number of those with a Conn
}

// spoken is the traffic of one socket of an application with one destination. It is the carrier of the exchange.
type spoken struct {
	g       *datagrams
	alias   uint32
	family  int    // index into datagrams.sockets
	control []byte // control message that makes an answer come from the alias
	client  atomic.Pointer[netip.AddrPort]
	quote   []byte // beginning of the payload, for ICMP errors to quote

	conn  *Conn     // nil before and after the exchange; guarded by datagrams.mu
	ended time.Time // time since conn is nil; guarded by datagrams.mu
}

// The families, as indices.
const (
	inet4 = iota
	inet6
)

// receiveBuffer is the number of bytes, overhead included, that wait in the kernel before datagrams are lost.
const receiveBuffer = 8 << 20

// openDatagrams makes the road of UDP sockets, without its programs.
func (s *sockets) openDatagrams(ctx context.Context, p *prog.Program) (*datagrams, error) {
	g := &datagrams{s: s, led: detour.Datagrams{Filter: p}, spoken: map[uint32]*spoken{}}
	if err := g.open(ctx); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *datagrams) open(ctx context.Context) (err error) {
	switch six, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp6", "[::1]:0"); {
	case err == nil:
		_ = six.Close()
		if g.device, err = detour.OpenDevice(); err != nil {
			return err
		}
		g.led.Prefix = g.device.Prefix
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT): // no IPv6
	default:
		return err
	}
	for range sameTries {
		if err = g.listen(ctx); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
		g.closeSockets()
		g.sockets, g.led.Port = nil, 0
	}
	if err != nil {
		return err
	}
	for i := range g.sockets {
		fd, err := unix.Socket([]int{unix.AF_INET, unix.AF_INET6}[i], unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket for ICMP errors", err)
		}
		g.raw = append(g.raw, fd)
	}
	return nil
}

// listen opens the sockets at one port.
func (g *datagrams) listen(ctx context.Context) error {
	config := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = prepareListener(int(fd), network == "udp6") }); e != nil {
			return e
		}
		return err
	}}
	for i, network := range []string{"udp4", "udp6"} {
		if i == inet6 && g.device == nil {
			continue
		}
		c, err := config.ListenPacket(ctx, network, net.JoinHostPort("", strconv.Itoa(int(g.led.Port))))
		if err != nil {
			return err
		}
		g.sockets = append(g.sockets, c.(*net.UDPConn))
		g.led.Port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	return nil
}

// prepareListener makes a socket report the destination of each datagram, and answer from any address.
func prepareListener(fd int, six bool) error {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, detour.ListenerPriority); err != nil {
		return os.NewSyscallError("setsockopt SO_PRIORITY", err)
	}
	if !six {
		return os.NewSyscallError("setsockopt IP_PKTINFO", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	}
	const freebind = 78 // IPV6_FREEBIND (linux/in6.h)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, freebind, 1); err != nil {
		return os.NewSyscallError("setsockopt IPV6_FREEBIND", err)
	}
	return os.NewSyscallError("setsockopt IPV6_RECVPKTINFO", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
}

// try sends a datagram to an unused alias: if the loopback interface is down, or a firewall blocks it, the road leads
// nowhere.
func (g *datagrams) try() error {
	for family, c := range g.sockets {
		probe := []byte(c.LocalAddr().String())
		to := netip.AddrPortFrom(g.address(family, 1), g.led.Port)
		if _, err := c.WriteToUDPAddrPort(probe, to); err != nil {
			return fmt.Errorf("a datagram to %v, to try it: %w", to, err)
		}
		b, oob := make([]byte, len(probe)+1), make([]byte, controlSize)
		_ = c.SetReadDeadline(time.Now().Add(tryWait))
		for {
			n, m, _, _, err := c.ReadMsgUDPAddrPort(b, oob)
			if err != nil {
				return fmt.Errorf("a datagram to %v, to try it: %w", to, err)
			}
			if alias, ok := g.aliasOf(oob[:m]); ok && alias == 1 && bytes.Equal(b[:n], probe) {
				break
			}
		}
		_ = c.SetReadDeadline(time.Time{})
	}
	return nil
}

// address returns an alias.
func (g *datagrams) address(family int, alias uint32) netip.Addr {
	if family == inet4 {
		return detour.Alias4(alias)
	}
	return g.led.Alias6(alias)
}

// controlSize is room for the control message with the destination of a datagram.
const controlSize = 64

// aliasOf returns the alias that a datagram was sent to, from its control messages: struct in_pktinfo, or in6_pktinfo
// (ip(7), ipv6(7)). ok is false for datagrams from other hosts.
func (g *datagrams) aliasOf(control []byte) (alias uint32, ok bool) {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0, false
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			alias, ok = g.led.Number(netip.AddrFrom4([4]byte(data[8:])))
			return alias, ok && binary.NativeEndian.Uint32(data) == netns.LoopbackIndex
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo && g.device != nil:
			alias, ok = g.led.Number(netip.AddrFrom16([16]byte(data)))
			return alias, ok && binary.NativeEndian.Uint32(data[16:]) == uint32(g.device.Index)
		}
		control = rest
	}
	return 0, false
}

// start serves the sockets, in the background of the Listener.
func (g *datagrams) start() {
	for family := range g.sockets {
		g.s.l.background.Go(func() { g.serve(family) })
	}
}

// serve takes datagrams from the kernel until the listener closes.
func (g *datagrams) serve(family int) {
	l := g.s.l
	b, control := make([]byte, datagramBuffer), make([]byte, controlSize)
	for {
		n, m, _, from, err := g.sockets[family].ReadMsgUDPAddrPort(b, control)
		switch {
		case err == nil:
			g.take(family, b[:n], control[:m], from)
			continue
		case l.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-l.ctx.Done():
			return
		}
	}
}

// take takes a datagram of an application. The memory remains the caller's.
func (g *datagrams) take(family int, b, control []byte, from netip.AddrPort) {
	alias, ok := g.aliasOf(control)
	if !ok {
		g.s.l.strangers.Add(1)
		return
	}
	g.mu.Lock()
	var c *Conn
	p := g.spoken[alias]
	if p != nil {
		c = p.conn
	}
	g.mu.Unlock()
	if c == nil {
		if p, c = g.begin(family, alias, b, from); c == nil {
			return
		}
	}
	if now := p.client.Load(); *now != from {
		at := from
		p.client.Store(&at)
	}
	c.flow.last.Store(time.Now().Unix())
	c.flow.exchange.deliver(b)
}

// begin begins an exchange with its first datagram. It returns nil if the datagram begins none.
func (g *datagrams) begin(family int, alias uint32, b []byte, from netip.AddrPort) (*spoken, *Conn) {
	l := g.s.l
	t, ok, err := g.s.detour.Talk(alias)
	if !ok || err != nil {
		if err == nil {
			l.strangers.Add(1)
		}
		return nil, nil
	}
	f := &flow{ends: ends{from, t.Dst}, process: t.Process}
	f.last.Store(time.Now().Unix())
	f.who, f.whoErr = l.lookup(t.Process)
	p := &spoken{g: g, alias: alias, family: family, control: g.control(family, alias), quote: append([]byte(nil), b[:min(len(b), quoted)]...)}
	p.client.Store(&f.client)
	c := &Conn{l: l, flow: f}
	c.Conn = newExchange(f, p, l.options.Idle)
	p.conn = c
	if !g.add(p) {
		l.full.Add(1)
		return nil, nil
	}
	if !l.offer(c) {
		return nil, nil
	}
	return p, c
}

// add enters an exchange, if there is room.
func (g *datagrams) add(p *spoken) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.live >= g.s.l.options.MaxConns {
		return false
	}
	g.live++
	g.spoken[p.alias] = p
	return true
}

// control returns the control message that makes a datagram come from an alias.
func (g *datagrams) control(family int, alias uint32) []byte {
	if family == inet4 {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: g.address(family, alias).As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: g.address(family, alias).As16()})
}

func (p *spoken) answer(b []byte) error {
	_, _, err := p.g.sockets[p.family].WriteMsgUDPAddrPort(b, p.control, *p.client.Load())
	return err
}

// refuse writes the ICMP error in the name of the alias's host: the kernel finds the socket by the quoted datagram.
func (p *spoken) refuse() {
	to := *p.client.Load()
	h := packet.Header{Src: to, Dst: netip.AddrPortFrom(p.g.address(p.family, p.alias), p.g.led.Port)}
	datagram, err := h.AppendUDP(nil, p.quote)
	if err != nil {
		return
	}
	b, ok := unreachable(datagram)
	if !ok {
		return
	}
	var at unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16()}
	if p.family == inet4 {
		at = &unix.SockaddrInet4{Addr: to.Addr().As4()}
	}
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	if p.family < len(p.g.raw) { // else the socket is closed
		_ = unix.Sendto(p.g.raw[p.family], b, unix.MSG_DONTWAIT, at)
	}
}

func (p *spoken) end() {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	if p.conn != nil {
		p.conn, p.ended = nil, time.Now()
		p.g.live--
	}
}

// forgetEnded forgets the records of sockets that the applications have closed, and of exchanges that have ended, at a
// time given by both time.Now and clock.Now. A socket that is connected to its alias needs the alias as long as it is
// open.
func (g *datagrams) forgetEnded(now time.Time, monotonic int64) {
	d := g.s.detour
	talks, released, _ := d.Talks() // the next call continues where it stopped
	gone := func(cookie uint64) bool {
		at, ok := released[cookie]
		return ok && time.Duration(monotonic-at) > aimReleased
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for alias, t := range talks {
		p := g.spoken[alias]
		switch {
		case p == nil && !gone(t.Cookie):
			g.spoken[alias] = &spoken{g: g, alias: alias, ended: now} // its first datagram is still under way, or lost
		case gone(t.Cookie), p.conn == nil && now.Sub(p.ended) > aimEnded && (!t.Connected || !d.Speaks(t.Cookie)):
			d.ForgetTalk(alias, t)
			g.drop(alias)
		}
	}
	for alias, p := range g.spoken {
		if _, ok := talks[alias]; !ok && p.conn == nil && now.Sub(p.ended) > aimEnded {
			g.drop(alias)
		}
	}
	for cookie := range released {
		if gone(cookie) {
			d.ForgetSpeaker(cookie)
		}
	}
}

// drop forgets the record of an alias. The caller holds the mutex.
func (g *datagrams) drop(alias uint32) {
	p := g.spoken[alias]
	delete(g.spoken, alias)
	if p != nil && p.conn != nil {
		p.conn.flow.exchange.finish()
	}
}

// closeSockets closes the sockets of datagrams.
func (g *datagrams) closeSockets() {
	for _, c := range g.sockets {
		_ = c.Close()
	}
}

// endReading makes serve return. Answers can still be sent.
func (g *datagrams) endReading() {
	for _, c := range g.sockets {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
}

// close releases everything.
func (g *datagrams) close() {
	g.closeSockets()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, fd := range g.raw {
		_ = unix.Close(fd)
	}
	g.raw = nil
	if g.device != nil {
		_ = g.device.Close()
		g.device = nil
	}
}
