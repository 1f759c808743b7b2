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

// DialFunc connects to an address. Network is "tcp" or "udp"; the address is numeric, unless it is that of a proxy.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Target is where an application wants to go, and who it is.
type Target struct {
	Network string         // "tcp" or "udp"
	Src     netip.AddrPort // the application's own address
	Dst     netip.AddrPort // an IPv4 address is never a mapped one; a link-local one has the number of its interface as zone

	flow *flow
}

// Process returns the process that began the connection, as it was then. It fails with ErrUnknownProcess, or the errors of
// process.Lookup.
func (t Target) Process() (process.Process, error) { return t.flow.who, t.flow.whoErr }

// Opener opens handles: divert.OpenProgram, or the method OpenProgram of a diverttest.Network.
type Opener func(p *filter.Program, opts ...divert.Option) (*divert.Handle, error)

// Road says by which means connections and datagrams are led to the Listener.
type Road uint8

// The roads.
const (
	// RoadAuto is RoadSockets where the filter, the options and the system allow that, with RoadPackets for what it does not
	// carry, and RoadPackets otherwise. Listener.Description says why.
	RoadAuto Road = iota

	// RoadPackets: packets are rewritten.
	RoadPackets

	// RoadSockets: the addresses that sockets connect and send to are rewritten by eBPF programs on the root of the cgroup
	// hierarchy, so that the kernel carries the bytes to the Listener. It takes Linux, the rights of root on the host, and a
	// filter that is decided at the connect, or when a datagram is sent: no source addresses and ports, interfaces, or
	// loopback. Exclude, Open, and for TCP Hold are not for it. Listen fails with divert.ErrNotSupported and the reason where
	// it cannot be. Sockets of UDP that are connected already are left alone, unlike by RoadAuto. The application's
	// getsockname says an address of this host. What goes to link-local addresses fails with EADDRNOTAVAIL, what sockets send
	// that are bound to a device, or have named an interface, with ENETUNREACH, a connect that exceeds MaxConns with EAGAIN,
	// and a datagram with ENOBUFS.
	RoadSockets
)

// Options says how a Listener works. The zero Options are good for most programs.
type Options struct {
	// Via is a proxy through which Dial connects, nil to connect directly: see NewDialer.
	Via *url.URL

	// Hold keeps the application's connect waiting until Dial's connection stands: the Listener dials by itself when the
	// application does, and answers a refusal with a reset. Accept returns connections whose other half stands already, and Dial
	// hands that out. It concerns TCP; UDP has no connect that could wait.
	Hold bool

	// DialTimeout ends a held connect, 30 s if it is 0. The application is not answered then, as by a host that is not there.
	DialTimeout time.Duration

	// Idle ends an exchange of UDP that has been silent both ways, after 60 s if it is 0.
	Idle time.Duration

	// MaxConns limits the connections and exchanges at a time, 65536 if it is 0. What exceeds it is dropped, never let go past.
	MaxConns int

	// Exclude is asked about the process of each new connection; those for which it returns true are not redirected. It is
	// called by the goroutine that all packets wait for, so it must not block.
	Exclude func(process.Process) bool

	// OwnByDial is for systems on which the process of a packet cannot be known (Windows, Linux without eBPF), where Listen
	// fails with divert.ErrNoProcess without it: of the program's own connections those alone are spared that Dial makes. Any
	// other one that matches the filter is redirected to the program itself; leave it out by the filter.
	OwnByDial bool

	// Connect makes the connections of Dial, to the destination or to the proxy, with a dialer that it is given and whose
	// LocalAddr and Control it must leave alone. If it is nil, d.DialContext does.
	Connect func(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error)

	// Dial makes the other halves instead of connecting to where the applications wanted to go; then Via must be nil. It is given a
	// function that connects to any address, by a connection that is known as the program's own. It may be called
	// by several goroutines at once.
	Dial func(ctx context.Context, t Target, direct DialFunc) (net.Conn, error)

	// Open opens the handle, divert.OpenProgram if it is nil.
	Open Opener

	// Road demands a way to redirect.
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

// ErrUnknownProcess says that nobody knows the process of a connection: it was not asked for (Options.OwnByDial), or the socket
// is older than the Listener and could not be found.
var ErrUnknownProcess = errors.New("redirect: the process is not known")
