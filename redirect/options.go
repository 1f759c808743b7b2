package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/process"
)

// DialFunc connects to an address. Network is "tcp" or "udp"; the address is numeric, except a proxy's.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Target is the destination of an application's connection, and the application.
type Target struct {
	Network string         // "tcp" or "udp"
	Src     netip.AddrPort // the application's own address
	Dst     netip.AddrPort // an IPv4 address is never a mapped one; a link-local one has its interface index as zone

	flow *flow
}

// Process returns the process that began the connection, as it was then. It fails with ErrUnknownProcess, or the errors of
// process.Lookup.
func (t Target) Process() (process.Process, error) { return t.flow.who, t.flow.whoErr }

// Opener opens handles: divert.OpenProgram, or the method OpenProgram of a diverttest.Network.
type Opener func(p *filter.Program, opts ...divert.Option) (*divert.Handle, error)

// Road is a means of leading connections and datagrams to the Listener.
type Road uint8

// The roads.
const (
	// RoadAuto is RoadSockets where the filter, the options and the system allow it, with RoadPackets for the rest;
	// otherwise RoadPackets alone. Listener.Description gives the reason.
	RoadAuto Road = iota

	// RoadPackets: packets are rewritten.
	RoadPackets

	// RoadSockets: eBPF programs on the root of the cgroup hierarchy rewrite the addresses that sockets connect and send
	// to, so that the kernel carries the bytes to the Listener. It needs Linux, the rights of root on the host, and a
	// filter that can be decided at the connect, or when a datagram is sent: no source addresses and ports, interfaces,
	// or loopback. It excludes the options Exclude and Open, and for TCP Hold. Listen fails with divert.ErrNotSupported
	// and the reason where the road is impossible.
	//
	// UDP sockets that were connected before are left alone, unlike with RoadAuto. The application's getsockname returns
	// an address of this host. Calls can fail for the application: to link-local addresses with EADDRNOTAVAIL; from
	// sockets that are bound to a device, or have named an interface, with ENETUNREACH; beyond MaxConns a connect with
	// EAGAIN, and a datagram with ENOBUFS.
	// and a datagram with ENOBUFS.
	RoadSockets
)

// Options has the settings of a Listener. The zero Options suit most programs.
type Options struct {
	// Via is a proxy through which Dial connects, see NewDialer; nil to connect directly.
	Via *url.URL

	// Hold keeps the application's connect waiting until Dial's connection stands: the Listener dials by itself when the
	// application does, and answers a refusal with a reset. Accept returns connections whose other half already stands;
	// Dial returns that half. Hold concerns TCP only; UDP has no connect that could wait.
	Hold bool

	// DialTimeout ends a held connect, by default after 30 s. The application then gets no answer, as from a missing
	// host.
	DialTimeout time.Duration

	// Idle ends a UDP exchange that has been silent both ways, by default after 60 s.
	Idle time.Duration

	// MaxConns limits the simultaneous connections and exchanges, by default to 65536. Further ones are dropped; they
	// never pass.
	MaxConns int

	// Exclude is called with the process of each new connection, which is not redirected if Exclude returns true. All
	// packets wait for that goroutine, so Exclude must not block.
	Exclude func(process.Process) bool

	// OwnByDial is for systems that cannot know the process of a packet (Windows, Linux without eBPF), where Listen
	// otherwise fails with divert.ErrNoProcess. With it, only those of the program's own connections that Dial makes are
	// spared. Any other one that matches the filter is redirected to the program itself; exclude it by the filter.
	OwnByDial bool

	// Connect makes the connections of Dial, to the destination or to the proxy, with the dialer d, whose LocalAddr and
	// Control it must leave alone. The default is d.DialContext.
	Connect func(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error)

	// Dial makes the other halves instead of connecting to the applications' destinations; Via must then be nil. direct
	// connects to any address, by a connection that is known as the program's own. Dial may be called by several
	// goroutines at once.
	Dial func(ctx context.Context, t Target, direct DialFunc) (net.Conn, error)

	// Open opens the handle; the default is divert.OpenProgram.
	Open Opener

	// Road selects a road, by default RoadAuto.
	Road Road

	ownOpen bool // Open was given

	// Priority is that of the handle, see divert.WithPriority.
	Priority int16

	// Engine decides which packets match, see divert.WithEngine.
	Engine divert.Engine
}

// The defaults of Options.
const (
	defaultDialTimeout = 30 * time.Second
	defaultIdle        = 60 * time.Second
	defaultMaxConns    = 1 << 16
)

// complete checks the options and fills in the defaults.
func (o *Options) complete() error {
	switch {
	case o.DialTimeout < 0 || o.Idle < 0 || o.MaxConns < 0:
		return fmt.Errorf("%w: DialTimeout, Idle and MaxConns must not be negative", divert.ErrInvalid)
	case o.Dial != nil && o.Via != nil:
		return fmt.Errorf("%w: Dial and Via exclude each other: both say how to reach destinations", divert.ErrInvalid)
	case o.Road > RoadSockets:
		return fmt.Errorf("%w: there is no road %d", divert.ErrInvalid, o.Road)
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.Idle == 0 {
		o.Idle = defaultIdle
	}
	if o.MaxConns == 0 {
		o.MaxConns = defaultMaxConns
	}
	if o.Connect == nil {
		o.Connect = func(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error) {
			return d.DialContext(ctx, network, address)
		}
	}
	if o.ownOpen = o.Open != nil; !o.ownOpen {
		o.Open = divert.OpenProgram
	}
	return nil
}

// ErrUnknownProcess means that the process of a connection is unknown: with Options.OwnByDial, or because the socket is
// older than the Listener and could not be found.
var ErrUnknownProcess = errors.New("redirect: the process is not known")
