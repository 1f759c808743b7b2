package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// sockets is the road of sockets: TCP connects are led to listeners on the loopback interface, and datagrams to aliases.
type sockets struct {
	l         *Listener
	detour    *detour.Detour
	listeners []*net.TCPListener // nil if the road does not carry TCP
	datagrams *datagrams         // nil if the road does not carry UDP

	mu     sync.Mutex
	claims map[uint64]claim // by the cookies of the applications' sockets
	last   *detour.Counts   // the counters at the end, once the detour is closed
}

// claim is the record of a connection whose aim was found.
type claim struct {
	conn  *Conn
	ended time.Time // time at which the program closed the connection; zero before
}

// openSockets makes the road of sockets for the part of a filter that it can carry. noTCP and noUDP are the reasons why
// it does not carry TCP or UDP: nil if it does, or if the filter matches none. If it would carry nothing there is no
// road.
func (l *Listener) openSockets(ctx context.Context, text string) (_ *sockets, noTCP, noUDP error) {
	p, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
	if err != nil {
		return nil, err, err
	}
	var tcp, udp *prog.Program
	for _, part := range []struct {
		protocol uint8
		matches  string
		program  **prog.Program
		reason   *error
	}{{packet.ProtocolTCP, "tcp", &tcp, &noTCP}, {packet.ProtocolUDP, "udp", &udp, &noUDP}} {
		if !canMatch(part.matches + " and (" + text + ")") {
			continue
		}
		if *part.reason = l.options.againstSockets(part.protocol); *part.reason == nil {
			*part.program, *part.reason = (*prog.Program)(p).AtConnect(part.protocol)
		}
	}
	if tcp == nil && udp == nil {
		return nil, noTCP, noUDP
	}
	s, err := l.makeSockets(ctx, tcp, udp)
	if err != nil && tcp != nil && udp != nil { // try TCP alone
		noUDP = err
		s, err = l.makeSockets(ctx, tcp, nil)
	} else if err != nil && udp != nil {
		noUDP = err
	}
	if err != nil && tcp != nil {
		noTCP = err
	}
	return s, noTCP, noUDP
}

// makeSockets makes the road for connects and datagrams; one of the programs may be nil.
func (l *Listener) makeSockets(ctx context.Context, tcp, udp *prog.Program) (s *sockets, err error) {
	s = &sockets{l: l, claims: map[uint64]claim{}}
	if udp != nil {
		if s.datagrams, err = s.openDatagrams(ctx, udp); err != nil {
			return nil, err
		}
	}
	if err := s.open(ctx, tcp); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// againstSockets returns why the options keep a protocol off the road of sockets, nil if they do not.
func (o *Options) againstSockets(protocol uint8) error {
	switch {
	case o.Hold && protocol == packet.ProtocolTCP:
		return errors.New("Options.Hold: a connect cannot be held in the kernel")
	case o.Exclude != nil:
		return errors.New("Options.Exclude: the kernel cannot ask it")
	case o.ownOpen:
		return errors.New("Options.Open has the packets of another network")
	case o.Engine == divert.EngineInterpreter:
		return errors.New("Options.Engine is the interpreter, and connects are decided in the kernel")
	}
	return nil
}

// open opens the listeners of TCP, if a program is given for it, and the detour.
func (s *sockets) open(ctx context.Context, tcp *prog.Program) error {
	cfg := detour.Config{TCP: tcp, Max: s.l.options.MaxConns + aimsEnded, BySocket: s.l.options.OwnByDial, RefuseOthers: s.l.options.Road == RoadSockets}
	if tcp != nil {
		for i := range cfg.Ports {
			port, err := s.listen(ctx)
			if err != nil {
				return err
			}
			cfg.Ports[i] = port
		}
	}
	if s.datagrams != nil {
		cfg.UDP = &s.datagrams.led
	}
	var err error
	if s.detour, err = detour.Open(cfg); err != nil {
		return err
	}
	for _, k := range s.listeners {
		if err := s.try(ctx, k); err != nil {
			return fmt.Errorf("a connection over the loopback interface, to try it: %w", err)
		}
	}
	if s.datagrams != nil {
		return s.datagrams.try()
	}
	return nil
}

// carries reports whether the road carries TCP, and returns the ports of the datagram listeners, this one's first, if it
// carries UDP.
func (s *sockets) carries() (tcp bool, ports []uint16) {
	if s.datagrams != nil {
		ports = append([]uint16{s.datagrams.led.Port}, s.detour.Others()...)
	}
	return s.listeners != nil, ports
}

// aimsEnded is the room for aims of connections that have ended, until they are forgotten.
const aimsEnded = 1 << 12

// sameTries is the number of attempts to find a port that is free in both families.
const sameTries = 20

// listen opens a listener for each family at one port of the loopback interface. Without IPv6 there is one for IPv4.
func (s *sockets) listen(ctx context.Context) (port uint16, err error) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false) // sock_diag does not list its sockets
	for range sameTries {
		four, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		at := four.Addr().(*net.TCPAddr).AddrPort()
		six, err := config.Listen(ctx, "tcp6", netip.AddrPortFrom(netip.IPv6Loopback(), at.Port()).String())
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			_ = four.Close()
			continue
		case err == nil:
			s.listeners = append(s.listeners, six.(*net.TCPListener))
		case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT): // then no application connects by IPv6
		default:
			_ = four.Close()
			return 0, err
		}
		s.listeners = append(s.listeners, four.(*net.TCPListener))
		return at.Port(), nil
	}
	return 0, errors.New("no port is free for IPv4 and IPv6 both")
}

// tryWait is the time limit for a connection of the host to itself.
const tryWait = 2 * time.Second

// try connects to a listener: if the loopback interface is down, a firewall blocks it, or sockets cannot be found, the
// road leads nowhere.
func (s *sockets) try(ctx context.Context, k *net.TCPListener) error {
	ctx, cancel := context.WithTimeout(ctx, tryWait)
	defer cancel()
	d := net.Dialer{Control: s.own(new(uint64))}
	c, err := d.DialContext(ctx, "tcp", k.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = k.SetDeadline(time.Now().Add(tryWait))
	in, err := k.AcceptTCP()
	if err != nil {
		return err
	}
	defer in.Close()
	_ = k.SetDeadline(time.Time{})
	return s.detour.Knows(c.(*net.TCPConn))
}

// own returns a function for net.Dialer.Control that marks a socket as the program's own, and stores its cookie.
func (s *sockets) own(cookie *uint64) func(network, address string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		if !s.l.options.OwnByDial {
			return nil
		}
		spare := func(fd uintptr) {
			err = s.unlessClosed(func() (err error) { *cookie, err = s.detour.SpareSocket(int(fd)); return err })
		}
		if e := raw.Control(spare); e != nil {
			return e
		}
		return err
	}
}

// unlessClosed calls f, unless close has removed the detour: then nothing is redirected any more.
func (s *sockets) unlessClosed(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		return nil
	}
	return f()
}

// forget removes the mark of own.
func (s *sockets) forget(cookie uint64) {
	_ = s.unlessClosed(func() error { s.detour.UnspareSocket(cookie); return nil })
}

// spare and unspare let the traffic of a process and its descendants pass, or no longer.
func (s *sockets) spare(id uint32) error {
	return s.unlessClosed(func() error { return s.detour.SpareProcess(id) })
}

func (s *sockets) unspare(id uint32) {
	_ = s.unlessClosed(func() error { s.detour.UnspareProcess(id); return nil })
}

// start serves the listeners, in the background of l.
func (s *sockets) start() {
	for _, k := range s.listeners {
		s.l.background.Go(func() { s.l.accept(k, func(c *net.TCPConn) { s.arrive(c, k) }) })
	}
	if s.datagrams != nil {
		s.datagrams.start()
	}
	s.l.background.Go(s.sweep)
}

// arrive takes a connection, and finds its flow.
func (s *sockets) arrive(c *net.TCPConn, k *net.TCPListener) {
	from := unmapped(c.RemoteAddr())
	aim, ok, err := s.detour.Find(from, unmapped(c.LocalAddr()))
	if err != nil || !ok {
		if err == nil {
			s.l.strangers.Add(1)
		}
		abort(c)
		return
	}
	f := &flow{ends: ends{from, aim.Dst}, process: aim.Process}
	f.who, f.whoErr = s.l.lookup(aim.Process)
	conn := &Conn{Conn: c, l: s.l, flow: f}
	conn.ended = func() { s.ended(aim.Cookie, conn) }
	s.mu.Lock()
	s.claims[aim.Cookie] = claim{conn: conn}
	s.mu.Unlock()
	s.l.redirected.Add(1)
	s.l.deliver(conn)
}

// ended notes that the program has closed a connection.
func (s *sockets) ended(cookie uint64, c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claims[cookie].conn == c {
		s.claims[cookie] = claim{c, time.Now()}
	}
}

// Times after which an aim is forgotten.
const (
	aimSweep     = 2 * time.Second
	aimReleased  = 2 * time.Second  // the application has closed its socket, and the connection has been accepted
	aimUnclaimed = 60 * time.Second // the application has closed its socket, and nobody has accepted the connection
	aimEnded     = 60 * time.Second // the program has closed the connection, and the application not yet
)

// sweep forgets the aims that are no longer needed.
func (s *sockets) sweep() {
	tick := time.NewTicker(aimSweep)
	defer tick.Stop()
	for {
		select {
		case <-s.l.ctx.Done():
			return
		case now := <-tick.C:
			s.forgetEnded(now, clock.Now())
			if s.datagrams != nil {
				s.datagrams.forgetEnded(now, clock.Now())
			}
		}
	}
}

// forgetEnded does that at a time given by both time.Now and clock.Now.
func (s *sockets) forgetEnded(now time.Time, monotonic int64) {
	released, _ := s.detour.Released() // the next call continues where it stopped
	s.mu.Lock()
	defer s.mu.Unlock()
	for cookie, at := range released {
		_, claimed := s.claims[cookie]
		if age := time.Duration(monotonic - at); claimed && age > aimReleased || age > aimUnclaimed {
			s.detour.Forget(cookie)
			delete(s.claims, cookie)
		}
	}
	for cookie, c := range s.claims {
		if !c.ended.IsZero() && now.Sub(c.ended) > aimEnded {
			s.detour.Forget(cookie)
			delete(s.claims, cookie)
		}
	}
}

// detach lets new connects go directly.
func (s *sockets) detach() error { return s.detour.Detach() }

// closeListeners ends the listeners: nothing new begins. Exchanges can still be answered.
func (s *sockets) closeListeners() {
	for _, k := range s.listeners {
		_ = k.Close()
	}
	if s.datagrams != nil {
		s.datagrams.endReading()
	}
}

// close releases everything except the counters.
func (s *sockets) close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detour != nil {
		c := s.detour.Counts()
		s.last, err = &c, s.detour.Close()
	}
	s.closeListeners()
	if s.datagrams != nil {
		s.datagrams.close()
	}
	return err
}

// counts returns the number of connects that were spared, and of those refused because there were too many.
func (s *sockets) counts() (spared, full uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.last
	if c == nil {
		now := s.detour.Counts()
		c = &now
	}
	return c.Spared, c.Full
}

// addr returns the address of a listener.
func (s *sockets) addr() net.Addr {
	if s.listeners == nil {
		return s.datagrams.sockets[inet4].LocalAddr()
	}
	return s.listeners[0].Addr()
}
