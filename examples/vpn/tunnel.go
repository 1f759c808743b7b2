//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// wire is the part of the divert handle that a tunnel uses.
type wire interface {
	RecvBatch([]divert.Packet) (int, error)
	SendBatch([]divert.Packet) (int, error)
	DropBatch([]divert.Packet) error
	Accept(*divert.Packet) error
	Close() error
}

// tunnel is the tun.Device of a peer without an interface: a divert handle. WireGuard reads the packets that the host
// sends to the AllowedIPs, and writes the packets from there.
//
// The host sends with its own address in some network, but the other peers expect the address in the tunnel. So tunnel
// exchanges the two: in source addresses on the way out, in destinations on the way in, and in the packets that ICMP
// errors quote.
type tunnel struct {
	*config
	handle *divert.Handle
	wire   wire
	locals [2]atomic.Pointer[netip.Addr] // the host's IPv4 and IPv6 address, nil if it has none
	events chan tun.Event
	close  func() error
	failed atomic.Pointer[error] // the error that ended reading

	// For Read, which one goroutine calls.
	batch      []divert.Packet
	got, next  int
	cutting    cutter           // for datagrams
	segments   packet.Segmenter // for TCP,
	segmenting bool             // if it has any left
	told       told
	links      links
	looked     time.Time // the last look at the host's addresses

	paths paths

	// For Write.
	mu      sync.Mutex
	in      []divert.Packet
	packets [][]byte
	joined  []byte

	out, back, big, refused atomic.Uint64
}

// text returns the filter: packets to the AllowedIPs, except WireGuard's own packets, those with which a host joins its
// own network (DHCP), and link-local addresses.
func (c *config) text() string {
	return fmt.Sprintf("outbound and not loopback and remoteAddr in @allowed and remoteAddr != fe80::/10"+
		" and not (udp.SrcPort == %d or udp.SrcPort == 68 or udp.SrcPort == 546)", c.port)
}

// newTunnel opens the handle.
func newTunnel(c *config) (*tunnel, error) {
	d := newTunnelOn(c, nil)
	allowed := filter.NewAddressSet()
	for _, p := range c.allowed() {
		if err := allowed.Add(filter.Prefix(p)); err != nil {
			return nil, err
		}
		local, err := localAddr(p)
		if err != nil {
			return nil, err
		}
		d.locals[family(local)].Store(&local)
	}
	h, err := divert.Open(c.text(), divert.WithSet("allowed", allowed))
	if err != nil {
		return nil, err
	}
	d.handle, d.wire = h, h
	return d, nil
}

// newTunnelOn returns a tunnel on a handle, or on a stand-in for one.
func newTunnelOn(c *config, w wire) *tunnel {
	d := &tunnel{config: c, wire: w, events: make(chan tun.Event), batch: make([]divert.Packet, divert.MaxBatch), told: told{}}
	d.close = sync.OnceValue(func() error {
		close(d.events)
		return d.wire.Close()
	})
	return d
}

// localAddr returns the host's source address for a network. It sends nothing.
func localAddr(to netip.Prefix) (netip.Addr, error) {
	c, err := net.Dial("udp", netip.AddrPortFrom(to.Addr().Next(), 9).String())
	if to.IsSingleIP() {
		c, err = net.Dial("udp", netip.AddrPortFrom(to.Addr(), 9).String())
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("[Peer] AllowedIPs %v: there must be a route, as packets are taken on their way along it; `ip route add %v dev eth0` makes one: %w", to, to, err)
	}
	defer c.Close()
	a, err := netip.ParseAddrPort(c.LocalAddr().String())
	return a.Addr().Unmap().WithZone(""), err
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// local returns the host's address of the family of a.
func (d *tunnel) local(a netip.Addr) netip.Addr {
	if l := d.locals[family(a)].Load(); l != nil {
		return *l
	}
	return netip.Addr{}
}

// Read reads the next packets that the host sends through the tunnel. It waits for one packet and takes the others that
// are available.
func (d *tunnel) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	for n < len(bufs) {
		if size := d.part(bufs[n][offset:]); size > 0 {
			sizes[n] = size
			n++
			continue
		}
		if d.next == d.got {
			if n > 0 {
				break
			}
			if err := d.receive(); err != nil {
				return 0, err
			}
		}
		p := &d.batch[d.next]
		d.next++
		if !d.outgoing(p) {
			continue
		}
		d.out.Add(1)
		if d.cutting.left() || d.segmenting {
			continue
		}
		sizes[n] = copy(bufs[n][offset:], p.Data)
		n++
	}
	return n, nil
}

// part writes the next part of the packet being split to dst, and returns its length, 0 if there is none.
func (d *tunnel) part(dst []byte) (n int) {
	if d.segmenting {
		if n = d.segments.Next(dst); n == 0 {
			d.segmenting = false
		}
	} else if d.cutting.left() {
		n = d.cutting.next(dst)
	}
	return n
}

// receive drops the packets of the last batch, which have been copied, and waits for the next.
func (d *tunnel) receive() (err error) {
	_ = d.wire.DropBatch(d.batch[:d.got]) // fails only if the handle is closed
	d.got, d.next = 0, 0
	if d.got, err = d.wire.RecvBatch(d.batch); err == nil {
		return nil
	}
	cause := err // a copy, so that err is not allocated with each batch
	d.failed.Store(&cause)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return os.ErrClosed
	}
	return err
}

// outgoing gives a packet of the host the tunnel's address as source. It reports whether the packet goes through the
// tunnel.
func (d *tunnel) outgoing(p *divert.Packet) bool {
	var h packet.Parsed
	if !h.ParseExact(p.Data) {
		return false
	}
	src, dst := p.Src(), p.Dst().Addr()
	if outside(&h, p.Data, dst) {
		_ = d.wire.Accept(p) // if that fails the packet is gone
		return false
	}
	inside, local := d.inside(dst), d.local(dst)
	if src.Addr() != local && !d.moved(src.Addr(), local) {
		if d.refused.Add(1) == 1 {
			log.Printf("packets from %v do not go through the tunnel: %v is the address of this host that stands for %v", src.Addr(), local, inside)
		}
		return false
	}
	// TCP may arrive in packets of 64 KiB, to be segmented by the last device on the path.
	limit := d.mtu
	if h.TCPOff >= 0 {
		limit = d.paths.mtu(dst, d.mtu, time.Now())
	} else if len(p.Data) > limit && d.tell(p, &h) {
		return false
	}
	if err := p.SetSrc(netip.AddrPortFrom(inside, src.Port())); err != nil {
		d.refused.Add(1)
		return false
	}
	mapQuote(p.Data, &h, src.Addr(), inside)
	clamp(p.Data, &h, d.mtu)
	if len(p.Data) > limit && h.TCPOff >= 0 {
		var err error
		d.segments, err = packet.NewSegmenter(p.Data, limit-int(h.HeaderLen))
		d.segmenting = err == nil // with checksums
		return d.counted(d.segmenting)
	}
	if h.TCPOff >= 0 && !p.Addr.TCPChecksum || h.UDPOff >= 0 && !p.Addr.UDPChecksum {
		h.WriteTransportChecksum(p.Data)
	}
	if len(p.Data) > limit {
		d.cutting = cut(p.Data, limit)
		return d.counted(d.cutting.left())
	}
	return true
}

// counted counts a packet that cannot go on.
func (d *tunnel) counted(ok bool) bool {
	if !ok {
		d.refused.Add(1)
	}
	return ok
}

// moved reports whether the host has moved to the address src, and no longer has the former one.
func (d *tunnel) moved(src, former netip.Addr) bool {
	if time.Since(d.looked) < time.Second/2 {
		return false
	}
	d.looked = time.Now()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == former {
			return false
		}
	}
	d.locals[family(src)].Store(&src)
	return true
}

// tell sends the host an error if a packet is too long for the tunnel and may not be fragmented. It reports whether the
// packet ends here.
func (d *tunnel) tell(p *divert.Packet, h *packet.Parsed) bool {
	if ip := h.IPv4(p.Data); ip != nil && !ip.DF() {
		return false
	}
	// Only hosts fragment IPv6 packets, and this one would have: its link has a smaller MTU, or it knows the limit.
	if h.Family == 6 && (len(p.Data) > d.links.mtu(p.Addr.Network().IfIdx) || d.told.before(p.Dst().Addr(), time.Now())) {
		return false
	}
	d.big.Add(1)
	if message, err := tooBig(nil, p.Data, h, d.mtu); err == nil {
		_, _ = d.wire.SendBatch([]divert.Packet{{Data: message, Addr: toward(h.Family == 6)}})
	}
	return true
}

// toward returns the address for packets injected to the host: they go over its loopback interface, which accepts any
// source and any length.
func toward(ipv6 bool) divert.Address {
	return divert.Address{Layer: divert.LayerNetwork, Event: divert.EventPacket, Outbound: true, Loopback: true, IPv6: ipv6,
		IPChecksum: true, TCPChecksum: true, UDPChecksum: true}
}

// Write passes packets from the tunnel to the host.
func (d *tunnel) Write(bufs [][]byte, offset int) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.packets = d.packets[:0]
	for _, b := range bufs {
		if b = b[offset:]; d.incoming(b) {
			d.packets = append(d.packets, b)
		} else {
			d.refused.Add(1)
		}
	}
	d.back.Add(uint64(len(d.packets)))
	d.in, d.joined = d.in[:0], d.joined[:0]
	var failed error
	for rest := d.packets; len(rest) > 0; {
		if cap(d.joined)-len(d.joined) < divert.MaxPacket || len(d.in) == divert.MaxBatch {
			failed = errors.Join(failed, d.send())
		}
		begin, n := len(d.joined), 0
		d.joined, n = packet.AppendJoined(d.joined, rest...)
		d.in = append(d.in, divert.Packet{Data: d.joined[begin:], Addr: toward(rest[0][0]>>4 == 6)})
		rest = rest[n:]
	}
	return len(bufs), errors.Join(failed, d.send())
}

// send injects the packets gathered by Write.
func (d *tunnel) send() (err error) {
	if len(d.in) > 0 {
		_, err = d.wire.SendBatch(d.in)
	}
	if cap(d.joined) == 0 {
		d.joined = make([]byte, 0, 4*divert.MaxPacket)
	}
	clear(d.in)
	d.in, d.joined = d.in[:0], d.joined[:0]
	return err
}

// incoming gives a packet for the tunnel's address the host's address. It reports whether the packet is for the host.
func (d *tunnel) incoming(b []byte) bool {
	var h packet.Parsed
	if !h.ParseExact(b) {
		return false
	}
	p := divert.Packet{Data: b, Addr: toward(h.Family == 6)}
	dst := p.Dst()
	local := d.local(dst.Addr())
	if dst.Addr() != d.inside(dst.Addr()) || !local.IsValid() || p.SetDst(netip.AddrPortFrom(local, dst.Port())) != nil {
		return false
	}
	mapQuote(b, &h, dst.Addr(), local)
	if far, mtu := narrower(b, &h); mtu > 0 {
		d.paths.note(far, mtu, d.mtu, time.Now())
	}
	clamp(b, &h, d.mtu)
	return true
}

// Close ends reading and writing.
func (d *tunnel) Close() error { return d.close() }

// failure returns why reading ended, nil if it was closed.
func (d *tunnel) failure() error {
	if err := d.failed.Load(); err != nil && !errors.Is(*err, net.ErrClosed) {
		return *err
	}
	return errors.New("WireGuard has ended")
}

// summary returns the totals of the tunnel.
func (d *tunnel) summary() string {
	return fmt.Sprintf("%d packets went through the tunnel, %d came; %d were too long, %d did not belong there",
		d.out.Load(), d.back.Load(), d.big.Load(), d.refused.Load())
}

// The rest of tun.Device.

func (d *tunnel) File() *os.File           { return nil }
func (d *tunnel) MTU() (int, error)        { return d.mtu, nil }
func (d *tunnel) Name() (string, error)    { return "divert", nil }
func (d *tunnel) Events() <-chan tun.Event { return d.events }
func (d *tunnel) BatchSize() int           { return conn.IdealBatchSize }

// links caches the MTU of network interfaces for a second.
type links struct {
	index uint32
	bytes int
	at    time.Time
}

func (l *links) mtu(index uint32) int {
	if l.index != index || time.Since(l.at) > time.Second {
		*l = links{index, maxMTU, time.Now()}
		if i, err := net.InterfaceByIndex(int(index)); err == nil {
			l.bytes = i.MTU
		}
	}
	return l.bytes
}
