package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/process"
)

// Listener accepts redirected connections. Its methods may be called from several goroutines.
type Listener struct {
	options Options
	handle  *divert.Handle   // nil if the road of sockets carries everything
	kernel  *net.TCPListener // of the road of packets, nil as handle
	port    uint16           // of kernel
	sockets *sockets         // the road of sockets; may be nil
	noTCP   error            // why TCP does not take that road; nil if it does, or the filter matches no TCP, or the road was not asked for
	noUDP   error            // the same for datagrams
	table   *table
	dial    DialFunc
	dials   dials
	cache   process.Cache
	others  []process.Process // given to Spare; guarded by mu

	ctx        context.Context // ends when the Listener does
	cancel     context.CancelCauseFunc
	ready      chan *Conn
	workers    sync.WaitGroup
	background sync.WaitGroup
	closing    sync.Once
	closed     chan struct{} // when Close has done its work
	closeErr   error

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	ending bool // spawn starts nothing more

	redirected, spared, refused, full, strangers atomic.Uint64
}

// backlog is the number of connections that can wait for Accept.
const backlog = 1024

// Listen redirects the TCP connections and UDP exchanges that match the filter and that this host begins from now on. The
// filter is of layer NETWORK and may test values that all packets of a connection share: addresses, ports, protocols,
// interfaces and processId. Listen leaves alone matches that are neither TCP nor UDP or that are inbound, and multicast
// and broadcast datagrams. The Listener belongs to the network namespace of the calling thread. It ends with ctx, or by
// Close.
//
// Connections of this process, its children and their children are not redirected. A process whose parents ended before
// it connected is no longer known as such a child. See also Options.OwnByDial.
//
// The listener's own port is open on all addresses; for TCP on the road of sockets, on loopback addresses only. Traffic
// that reaches it without redirection is refused, reset at once, or dropped (UDP).
//
// Listen fails with a *filter.Error if the filter does not compile, with divert.ErrInvalid if it tests a value that
// differs between packets, or for impossible options, and with the errors of divert.Open, among them divert.ErrNoProcess.
func Listen(ctx context.Context, filter string, o Options) (*Listener, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	l := &Listener{options: o, ready: make(chan *Conn, backlog), closed: make(chan struct{}), conns: map[*Conn]struct{}{}}
	var err error
	if l.dial, err = NewDialer(o.Via, l.dialOwn); err != nil {
		return nil, err
	}
	l.table = newTable(o.MaxConns, 0)
	if err := l.openRoads(ctx, filter); err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	l.start()
	return l, nil
}

// openRoads opens the roads that the filter, the options and the system allow.
func (l *Listener) openRoads(ctx context.Context, text string) (err error) {
	if err := check(text); err != nil {
		return err
	}
	rest := text // the part that goes by packets
	if l.options.Road == RoadSockets || l.options.Road == RoadAuto && runtime.GOOS == "linux" {
		l.sockets, l.noTCP, l.noUDP = l.openSockets(ctx, text)
		if l.sockets != nil {
			tcp, ports := l.sockets.carries()
			rest = besideSockets(text, tcp, ports)
		}
	}
	if l.options.Road == RoadSockets {
		const cannot = "%w: the road of sockets, for %s: %w; RoadAuto would take that of packets"
		switch {
		case l.noTCP != nil:
			err = fmt.Errorf(cannot, divert.ErrNotSupported, "TCP", l.noTCP)
		case l.noUDP != nil:
			err = fmt.Errorf(cannot, divert.ErrNotSupported, "UDP", l.noUDP)
		case l.sockets == nil:
			err = fmt.Errorf("%w: the filter matches neither TCP nor UDP", divert.ErrInvalid)
		}
	} else if l.sockets == nil || canMatch(rest) {
		err = l.openPackets(ctx, rest)
	}
	if err != nil && l.sockets != nil {
		err = errors.Join(err, l.sockets.close())
	}
	return err
}

// openPackets opens the road of packets.
func (l *Listener) openPackets(ctx context.Context, text string) error {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false) // its packets may have other addresses than the connection
	k, err := config.Listen(ctx, "tcp", ":0")
	if err != nil {
		return err
	}
	l.kernel = k.(*net.TCPListener)
	l.port = l.kernel.Addr().(*net.TCPAddr).AddrPort().Port()
	l.table.reserved = l.port
	if err := l.open(text); err != nil {
		return errors.Join(err, k.Close())
	}
	return nil
}

func (l *Listener) open(text string) error {
	spare := !l.options.OwnByDial
	p, err := compile(text, l.port, spare)
	if err != nil {
		return err
	}
	opts := []divert.Option{divert.WithPriority(l.options.Priority), divert.WithEngine(l.options.Engine), divert.WithQueues(queues()),
		divert.WithQueueLength(16384), divert.WithQueueSize(32 << 20)}
	if spare {
		opts = append(opts, divert.WithProcessID())
	}
	l.handle, err = l.options.Open(p, opts...)
	if errors.Is(err, divert.ErrNoProcess) {
		err = fmt.Errorf("the program's own connections cannot be told from others (Options.OwnByDial is for programs that connect by Dial only): %w", err)
	}
	return err
}

func (l *Listener) start() {
	if l.handle != nil {
		l.serve()
	}
	if l.sockets != nil {
		l.sockets.start()
	}
	l.background.Go(l.sweep)
	context.AfterFunc(l.ctx, func() { _ = l.Close() })
}

// serve serves the road of packets.
func (l *Listener) serve() {
	for i := range l.handle.Queues() {
		l.workers.Go(func() {
			w := &worker{l: l}
			switch err := w.serve(l.handle.Queue(i)); {
			case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			default:
				l.cancel(err)
			}
		})
	}
	l.background.Go(func() { l.accept(l.kernel, l.arrive) })
}

// accept takes connections from the kernel until the listener closes.
func (l *Listener) accept(k *net.TCPListener, arrive func(*net.TCPConn)) {
	for {
		c, err := k.AcceptTCP()
		if err == nil {
			arrive(c)
			continue
		}
		if l.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		select { // out of descriptors: other connections must close first
		case <-time.After(50 * time.Millisecond):
		case <-l.ctx.Done():
			return
		}
	}
}

// arrive finds the flow of a connection that has come by the road of packets.
func (l *Listener) arrive(c *net.TCPConn) {
	f := l.table.findAlias(unmapped(c.RemoteAddr()))
	if f == nil {
		abort(c)
		return
	}
	l.table.own(f, true)
	l.deliver(&Conn{Conn: c, l: l, flow: f})
}

// deliver gives a connection to Accept.
func (l *Listener) deliver(c *Conn) {
	l.keep(c)
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		c.Reset()
	}
}

// unmapped returns the address of an end of a connection, an IPv4 address never as a mapped one, and without a zone.
func unmapped(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// spawn runs f in the background, unless the listener has ended.
func (l *Listener) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ending {
		l.background.Go(f)
	}
	return !l.ending
}

// abort ends a connection with a reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func (l *Listener) keep(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = struct{}{}
}

func (l *Listener) lose(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// Accept waits for the next connection or exchange. It fails with net.ErrClosed after Close, and otherwise with the cause
// of the end: the context's, or the error of the handle, such as divert.ErrRulesGone.
func (l *Listener) Accept() (*Conn, error) {
	select {
	case <-l.ctx.Done():
		return nil, fmt.Errorf("redirect: accept: %w", context.Cause(l.ctx))
	default:
	}
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.ctx.Done():
		return nil, fmt.Errorf("redirect: accept: %w", context.Cause(l.ctx))
	}
}

// closeWait is the longest wait of Close for connections that the program has already closed.
const closeWait = 2 * time.Second

// Close ends the Listener: new connections go directly, and open ones end with a reset. It takes a few seconds at most,
// and leaves no trace on the host. Further calls wait for the first and return its error.
func (l *Listener) Close() error {
	l.closing.Do(func() {
		l.cancel(net.ErrClosed)
		l.closeErr = l.end()
		close(l.closed)
	})
	<-l.closed
	return l.closeErr
}

func (l *Listener) end() (err error) {
	if l.sockets != nil {
		err = l.sockets.detach()
		l.sockets.closeListeners()
	}
	if l.kernel != nil {
		_ = l.kernel.Close()
	}
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	l.background.Wait()
	l.mu.Lock()
	open := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		c.Reset()
	}
	for end := time.Now().Add(closeWait); l.table.open() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond) // the resets are on their way
	}
	if l.handle != nil {
		_ = l.handle.Shutdown(divert.ShutdownRecv)
		err = errors.Join(err, l.handle.Close())
	}
	l.workers.Wait()
	if l.sockets != nil {
		err = errors.Join(err, l.sockets.close())
	}
	for _, c := range l.table.sweep(time.Now().Add(time.Hour)) {
		_ = c.Close()
	}
	return err
}

// sweep forgets ended connections, and ends idle exchanges.
func (l *Listener) sweep() {
	tick := time.NewTicker(min(5*time.Second, max(l.options.Idle/4, 10*time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case now := <-tick.C:
			for _, c := range l.table.sweep(now) {
				_ = c.Close()
			}
		}
	}
}

// Addr returns the address of one of the kernel's listeners. It is of no use to clients: only redirected connections are
// accepted there.
func (l *Listener) Addr() net.Addr {
	if l.kernel == nil {
		return l.sockets.addr()
	}
	return l.kernel.Addr()
}

// Road returns the road of connections of TCP, or of datagrams if the filter matches no TCP: RoadPackets or RoadSockets.
func (l *Listener) Road() Road {
	if l.sockets == nil {
		return RoadPackets
	}
	if tcp, _ := l.sockets.carries(); !tcp && l.noTCP != nil {
		return RoadPackets
	}
	return RoadSockets
}

// Description tells people how connections and datagrams are redirected, and what does not take the road of sockets, and
// why.
func (l *Listener) Description() string {
	var parts []string
	if l.sockets != nil {
		what := "connects"
		switch tcp, ports := l.sockets.carries(); {
		case tcp && ports != nil:
			what = "connects and datagrams"
		case ports != nil:
			what = "datagrams"
		}
		parts = append(parts, what+" rewritten (eBPF)")
	}
	if l.handle != nil {
		rest := ""
		if l.sockets != nil {
			rest = "the rest: "
		}
		parts = append(parts, rest+"packets rewritten, listening on port "+fmt.Sprint(l.port)+", "+l.handle.Description())
	}
	switch {
	case l.noTCP != nil && l.noUDP != nil && l.noTCP.Error() == l.noUDP.Error():
		parts = append(parts, "connects and datagrams are not rewritten: "+l.noTCP.Error())
	default:
		if l.noTCP != nil {
			parts = append(parts, "connects are not rewritten: "+l.noTCP.Error())
		}
		if l.noUDP != nil {
			parts = append(parts, "datagrams are not rewritten: "+l.noUDP.Error())
		}
	}
	return strings.Join(parts, "; ")
}

// Stats has the counters of a Listener.
type Stats struct {
	Redirected uint64 // connections and exchanges that were redirected
	Spared     uint64 // left alone: of the program or its children, or excluded
	Refused    uint64 // held connections that were refused, or not answered
	Full       uint64 // dropped, or refused, because MaxConns was reached
	Strangers  uint64 // segments, datagrams or connections that reached the listener's ports without redirection, and were refused
}

// Stats returns the counters.
func (l *Listener) Stats() Stats {
	s := Stats{l.redirected.Load(), l.spared.Load(), l.refused.Load(), l.full.Load(), l.strangers.Load()}
	if l.sockets != nil {
		spared, full := l.sockets.counts()
		s.Spared, s.Full = s.Spared+spared, s.Full+full
	}
	return s
}

// lookup returns the process of a connection.
func (l *Listener) lookup(id uint32) (process.Process, error) {
	if id == 0 {
		return process.Process{}, ErrUnknownProcess
	}
	return l.cache.Lookup(id)
}

// Spare leaves the connections of a process and of its descendants alone, like those of the program itself, if they begin
// after its return. The process is a result of process.Lookup. Spare fails where the kernel numbers processes
// differently, and beyond 4096 processes.
func (l *Listener) Spare(p process.Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	others := []process.Process{p}
	for _, o := range l.others {
		switch now, err := process.Lookup(o.ID); {
		case o.ID == p.ID:
		case err == nil && now.Start.Equal(o.Start):
			others = append(others, o)
		case l.sockets != nil: // the process has ended
			l.sockets.unspare(o.ID)
		}
	}
	l.others = others
	if l.sockets != nil {
		if err := l.sockets.spare(p.ID); err != nil {
			return fmt.Errorf("redirect: %w", err)
		}
	}
	return nil
}

// spares reports whether a process's connections are left alone: it is this process or one given to Spare, descends from
// one of these, or was excluded.
func (l *Listener) spares(p process.Process) bool {
	if !l.descends(p) && (l.options.Exclude == nil || !l.options.Exclude(p)) {
		return false
	}
	l.spared.Add(1)
	return true
}

// generations is the number of parents to look at, so that a loop of reused ids ends.
const generations = 64

func (l *Listener) descends(p process.Process) bool {
	l.mu.Lock()
	others := l.others // elements already in it never change
	l.mu.Unlock()
	if l.options.OwnByDial && len(others) == 0 {
		return false
	}
	own := uint32(os.Getpid())
	for range generations {
		if p.ID == own && !l.options.OwnByDial {
			return true
		}
		for _, o := range others {
			if o.ID == p.ID && o.Start.Equal(p.Start) {
				return true
			}
		}
		if p.Parent <= 1 {
			return false
		}
		parent, err := l.cache.Lookup(p.Parent)
		if err != nil || parent.Start.After(p.Start) { // another process has reused the id
			return false
		}
		p = parent
	}
	return false
}
