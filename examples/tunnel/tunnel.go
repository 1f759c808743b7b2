//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/redirect"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// options are the values of the flags.
type options struct {
	filter  string
	via     *url.URL
	proxies []netip.Addr // addresses of the proxy's host
	forward bool
	most    int // connections and exchanges at once
	idle    time.Duration
}

// counts counts connections and exchanges since the start.
type counts struct {
	connections, exchanges atomic.Uint64
	refused                atomic.Uint64 // the proxy did not connect them
	full                   atomic.Uint64 // beyond the limit
}

// String returns the final summary.
func (c *counts) String() string {
	return fmt.Sprintf("%d connections and %d exchanges; %d more were refused by the proxy, %d because there were too many",
		c.connections.Load(), c.exchanges.Load(), c.refused.Load(), c.full.Load())
}

// tunnel terminates connections in a stack and relays them through a proxy.
type tunnel struct {
	options
	counts
	handle *divert.Handle
	whole  *divert.Handle // at LayerForward: nobody reads it; while it is open, datagrams are reassembled
	link   *link
	stack  *stack.Stack
	dial   redirect.DialFunc

	ctx    context.Context // ends the connections
	cancel context.CancelFunc

	mu     sync.Mutex
	busy   int // connections and exchanges, including those that wait for the proxy
	relays sync.WaitGroup
}

// text returns the filter of the tunnel's handle. It excludes the path to the proxy, or packets would loop.
func (o *options) text() string {
	if o.forward {
		return "(tcp or udp) and (" + o.filter + ")"
	}
	return "outbound and not loopback and (tcp or udp) and remoteAddr not in @proxies and (" + o.filter + ")"
}

// newTunnel opens the handle and builds the stack behind it.
func newTunnel(ctx context.Context, o options) (t *tunnel, err error) {
	t = &tunnel{options: o}
	t.ctx, t.cancel = context.WithCancel(ctx)
	if t.dial, err = redirect.NewDialer(o.via, t.dialProxy); err != nil {
		return nil, err
	}
	layer := divert.LayerNetwork
	if o.forward {
		layer = divert.LayerForward
	}
	if _, err := filter.Compile(o.filter, layer, filter.Extended); err != nil {
		return nil, err // the error shows the text as the user wrote it
	}
	opts := []divert.Option{divert.WithLayer(layer)}
	if o.forward {
		// It filters inbound packets for one that nobody sends, and only copies, so it affects nobody.
		if t.whole, err = divert.Open("inbound and udp.DstPort == 0", divert.WithFlags(divert.Sniff|divert.RecvOnly)); err != nil {
			return nil, err
		}
	} else {
		proxies := filter.NewAddressSet()
		for _, a := range o.proxies {
			if err := proxies.Add(filter.Prefix(netip.PrefixFrom(a, a.BitLen()))); err != nil {
				return nil, err
			}
		}
		opts = append(opts, divert.WithSet("proxies", proxies))
	}
	if t.handle, err = divert.Open(o.text(), opts...); err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.link = newLink(t.handle, layer)
	if t.stack, err = newStack(t.link, t.options.most, t.connect, t.exchange); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// The settings of TCP. Windows grow to maxWindow on demand: 4 MiB allow 320 Mb/s at 100 ms. An end that is silent for
// the keepalive time and three intervals is gone.
const (
	window    = 256 << 10
	maxWindow = 4 << 20
	timeWait  = 5 * time.Second // the other end is this host, or near
	keepalive = 2 * time.Minute
	interval  = 20 * time.Second
)

// newStack returns a stack that terminates everything that comes in over the link, whatever its destination. It calls
// connect in a new goroutine for each new TCP connection, at most most at once, and exchange for a UDP datagram that
// belongs to no exchange.
func newStack(l *link, most int, connect func(*tcp.ForwarderRequest), exchange func(*udp.ForwarderRequest) bool) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol},
	})
	sack, moderate, wait := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true), tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &wait,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: window, Max: maxWindow},
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: window, Max: maxWindow},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return nil, fmt.Errorf("the stack refuses %T: %v", option, err)
		}
	}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, window, most, connect).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, exchange).HandlePacket)
	const nic = 1
	if err := s.CreateNIC(nic, l); err != nil {
		return nil, fmt.Errorf("the stack refuses the handle as its interface: %v", err)
	}
	s.SetPromiscuousMode(nic, true) // accepts packets for all addresses,
	s.SetSpoofing(nic, true)        // and sends from all
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	return s, nil
}

// run moves packets from the handle to the stack until ctx ends; then it resets all connections.
func (t *tunnel) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = t.handle.Shutdown(divert.ShutdownRecv) })()
	ps := make([]divert.Packet, divert.MaxBatch)
	var err error
	for {
		var n int
		if n, err = t.handle.RecvBatch(ps); err != nil {
			break
		}
		for i := range ps[:n] {
			if p := &ps[i]; manyHosts(p.Dst().Addr()) {
				_ = t.handle.Accept(p) // fails if the packet is already gone
			} else {
				t.link.deliver(p.Data)
			}
		}
		if err = t.handle.DropBatch(ps[:n]); err != nil { // except those accepted
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, t.close())
}

// close ends all connections, then the handles.
func (t *tunnel) close() (err error) {
	t.mu.Lock()
	t.cancel()
	t.mu.Unlock()
	t.relays.Wait()
	if t.stack != nil {
		t.stack.Destroy()
	}
	for _, h := range []*divert.Handle{t.handle, t.whole} {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}
	return err
}

// manyHosts reports whether an address may be more than one host's, so that a proxy cannot reach it.
func manyHosts(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// dialProxy connects to the proxy, and to its UDP relay. The relay must have one of the proxy's addresses: packets to
// others go through the tunnel.
func (t *tunnel) dialProxy(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "udp" && !t.forward {
		if a, err := netip.ParseAddrPort(address); err != nil || !slices.Contains(t.proxies, a.Addr().Unmap()) {
			return nil, fmt.Errorf("the proxy relays UDP at %s, which is not an address of %s: name that host in -via", address, t.via.Hostname())
		}
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// take reserves a place for a connection or exchange; give returns it.
func (t *tunnel) take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy >= t.most {
		t.full.Add(1)
		return false
	}
	t.busy++
	return true
}

func (t *tunnel) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy--
}

// relay runs f, which must end soon after t.ctx; close waits for it. relay does not run f if the tunnel is closing.
func (t *tunnel) relay(f func()) bool {
	t.mu.Lock()
	open := t.ctx.Err() == nil
	if open {
		t.relays.Add(1)
	}
	t.mu.Unlock()
	if open {
		defer t.relays.Done()
		f()
	}
	return open
}

// dialTimeout limits the proxy's time to connect.
const dialTimeout = 15 * time.Second

func (t *tunnel) dialTo(network string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, dialTimeout)
	defer cancel()
	up, err := t.dial(ctx, network, to.String())
	if err != nil {
		t.refused.Add(1)
		if t.ctx.Err() == nil {
			logNew(fmt.Sprintf("%s %v: %v", network, to, err))
		}
	}
	return up, err
}

// ends returns the application's address of a connection, and its destination.
func ends(id stack.TransportEndpointID) (client, to netip.AddrPort) {
	addrPort := func(a tcpip.Address, port uint16) netip.AddrPort {
		addr, _ := netip.AddrFromSlice(a.AsSlice())
		return netip.AddrPortFrom(addr, port)
	}
	return addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
}

// connect relays a TCP connection: it connects to the destination first, and accepts the application's half only then.
// If the destination refuses, so does connect.
func (t *tunnel) connect(r *tcp.ForwarderRequest) {
	if !t.take() {
		r.Complete(true)
		return
	}
	defer t.give()
	_, to := ends(r.ID())
	up, err := t.dialTo("tcp", to)
	if err != nil {
		r.Complete(true)
		return
	}
	var queue waiter.Queue
	ep, failure := r.CreateEndpoint(&queue)
	r.Complete(failure != nil)
	if failure != nil { // the application has gone
		_ = up.Close()
		return
	}
	t.connections.Add(1)
	ep.SocketOptions().SetKeepAlive(true)
	idle, step := tcpip.KeepaliveIdleOption(keepalive), tcpip.KeepaliveIntervalOption(interval)
	_, _ = ep.SetSockOpt(&idle), ep.SetSockOpt(&step) // cannot fail: they are TCP options
	a, b := half{gonet.NewTCPConn(&queue, ep), ep.Abort}, half{up, func() { reset(up) }}
	if !t.relay(func() { relayTCP(t.ctx, a, b) }) {
		a.reset()
		b.reset()
	}
}

// exchange begins a UDP exchange with the datagram of r. If it returns false, the sender gets an error: the port is
// unreachable.
func (t *tunnel) exchange(r *udp.ForwarderRequest) bool {
	if t.ctx.Err() != nil || !t.take() {
		return false
	}
	var queue waiter.Queue
	ep, failure := r.CreateEndpoint(&queue)
	if failure != nil {
		t.give()
		return false
	}
	client, to := ends(r.ID())
	c := gonet.NewUDPConn(&queue, ep)
	go func() {
		defer t.give()
		up, err := t.dialTo("udp", to)
		if err != nil {
			_ = c.Close()
			t.unreachable(client, to)
			return
		}
		t.exchanges.Add(1)
		if !t.relay(func() { relayUDP(t.ctx, c, up, t.idle) }) {
			_, _ = c.Close(), up.Close()
		}
	}()
	return true
}

// unreachable sends the sender of a datagram the error that nothing listens at its destination.
func (t *tunnel) unreachable(client, to netip.AddrPort) {
	h := packet.Header{Src: client, Dst: to}
	code := uint8(packet.ICMPPortUnreachable)
	if to.Addr().Is6() {
		code = packet.ICMPv6PortUnreachable
	}
	quoted, err := h.AppendUDP(nil, nil) // only the ports matter
	var p packet.Parsed
	if err != nil || !p.Parse(quoted) {
		return
	}
	if message, ok := packet.AppendUnreachable(nil, quoted, &p, code); ok {
		a := t.link.toward
		a.IPv6, a.IPChecksum = to.Addr().Is6(), true
		_, _ = t.handle.SendBatch([]divert.Packet{{Data: message, Addr: a}})
	}
}
