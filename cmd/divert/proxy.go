package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/process"
	"github.com/opendivert/divert/redirect"
	"github.com/pires/go-proxyproto"
	"github.com/spf13/cobra"
)

// headerNames are the values of --proxy-protocol; the index is the version.
var headerNames = []string{"none", "v1", "v2"}

// proxyFlags determine where connections go.
type proxyFlags struct {
	to, via string
	header  choice
	noHold  bool
	quiet   bool
	asJSON  bool
	scope   scope

	priority int16
	engine   choice
	road     choice
}

// roadNames are the values of --road, indexed by redirect's roads.
var roadNames = []string{redirect.RoadAuto: "auto", redirect.RoadPackets: "packets", redirect.RoadSockets: "sockets"}

func newProxy(a *app) *cobra.Command {
	f := proxyFlags{header: choice{names: headerNames}, engine: choice{names: wordsOf(engines)}, road: choice{names: roadNames}}
	cmd := &cobra.Command{
		Use:   "proxy (--to ADDR | --via URL) [flags] FILTER",
		Short: "Redirect the connections that match to a local program, or through a proxy",
		Long: `Lead the connections of TCP and the exchanges of UDP that match a filter, and begin from now on,
to another place: to a program that listens at an address, or through a SOCKS 5 or HTTP proxy to where they
wanted to go. The applications notice nothing: they are connected to the address they asked for. One line is
printed for each connection that has ended.

The filter may test addresses, ports, protocols, interfaces and processId, which are the same in all packets of
a connection. Connections of this command, of its children, and of the program that listens at ADDR, with its
children, are left alone.

A connect waits until the other half stands: if that is refused, so is the connect. With --no-hold the
application is connected at once, and reset later.

Where the filter and the system allow it, the addresses are rewritten to which sockets connect (TCP, with --no-hold)
and send (UDP), and the kernel carries the bytes; --road sockets demands it. Otherwise packets are rewritten.

With --proxy-protocol the program at ADDR is told who connects to where, by the PROXY protocol (haproxy.org),
before the first byte of each connection of TCP; UDP is left alone then.`,
		Example: `  divert proxy --to 127.0.0.1:8080 'tcp.DstPort == 80'
  divert proxy --to '[::1]:8443' --proxy-protocol v2 'tcp.DstPort == 443'
  divert proxy --to 127.0.0.1:5353 'udp.DstPort == 53'
  divert proxy --via socks5://user:secret@192.0.2.1:1080 'processId == 4711'
  divert proxy --via http://192.0.2.1:3128 'tcp.DstPort == 443'`,
		Args: filterArguments,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(a, cmd, args) },
	}
	cmd.ValidArgsFunction = (&dialectFlags{layers: packetLayers[:1]}).completeFilter
	fl := cmd.Flags()
	fl.StringVar(&f.to, "to", "", "`address` and port, numeric, of the program that gets the connections")
	fl.StringVar(&f.via, "via", "", "`URL` of a proxy: socks5://user:password@host:port, http://… or https://… (TCP only)")
	addChoice(cmd, &f.header, "proxy-protocol", "version of the PROXY header that --to gets")
	fl.BoolVar(&f.noHold, "no-hold", false, "accept applications' connections before the other half is connected")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print no connections")
	fl.BoolVar(&f.asJSON, "json", false, "connections, messages and summary as JSON")
	fl.Int16Var(&f.priority, "priority", 0, "packets meet handles from the highest priority to the lowest, 30000 to -30000")
	f.scope.addTime(cmd)
	f.scope.addMetrics(cmd)
	addChoice(cmd, &f.engine, "engine", "engine that decides which packets match")
	addChoice(cmd, &f.road, "road", "rewrite packets, or the addresses of sockets (Linux, root; TCP with --no-hold)")
	return cmd
}

func (f *proxyFlags) run(a *app, cmd *cobra.Command, args []string) error {
	r := report{app: a, json: f.asJSON, start: time.Now()}
	text := filterText(args)
	o := redirect.Options{Hold: !f.noHold, Priority: f.priority, Engine: divert.Engine(f.engine.value), Road: redirect.Road(f.road.value)}
	var to *destination
	switch {
	case f.road.value == int(redirect.RoadSockets) && !f.noHold && matchesTCP(text):
		return usagef("--road sockets needs --no-hold: the kernel cannot hold a connect until the other half is connected")
	case (f.to == "") == (f.via == ""):
		return usagef("proxy needs either --to ADDR or --via URL")
	case f.via != "":
		via, err := url.Parse(f.via)
		if err != nil {
			return usagef("--via: %v", errors.Unwrap(err)) // the outer error shows the password
		}
		if f.header.value != 0 {
			return usagef("--proxy-protocol is for --to")
		}
		o.Via = via
	default:
		at, err := netip.ParseAddrPort(f.to)
		if err != nil || at.Port() == 0 {
			return usagef("--to %s: it must be a numeric address and a port, as in 127.0.0.1:8080 or [::1]:8080", f.to)
		}
		to = &destination{at: at, version: byte(f.header.value), ready: make(chan struct{})}
		o.Dial = to.dial
		if to.version != 0 {
			text = "tcp and (" + text + ")"
		}
	}
	if _, err := filter.Compile(filterText(args), divert.LayerNetwork, filter.Extended); err != nil {
		return err // the error shows the text as the user wrote it
	}
	if err := f.scope.check(); err != nil {
		return err
	}
	if err := f.scope.listenMetrics(); err != nil {
		return err
	}
	defer func() { f.scope.metrics.stop() }()
	ctx, stop := f.scope.until(cmd.Context())
	defer stop()
	l, err := redirect.Listen(ctx, text, o)
	var unknown error
	if errors.Is(err, divert.ErrNoProcess) {
		if to != nil {
			return fmt.Errorf("proxy --to must not redirect the connections of the program at %v, and cannot distinguish them from others: %w", to.at, err)
		}
		// This process connects only through the Listener's Dial, so its own connections are known without processes.
		unknown, o.OwnByDial = err, true
		l, err = redirect.Listen(ctx, text, o)
	}
	if errors.Is(err, divert.ErrInvalid) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if unknown != nil {
		r.warn(fmt.Errorf("only this command's own connections are exempt, those of a proxy on this host are not: %w", unknown))
	}
	if to != nil {
		to.spare = l.Spare
		close(to.ready)
	}
	f.scope.metrics.tell(metricsAbout{proxied: l.Stats})
	f.scope.metrics.start("proxy", text, nil)
	if err := tellReady(); err != nil {
		r.warn(err)
	}
	if f.asJSON {
		r.line(started{"start", "proxy", text, word(divert.LayerNetwork), f.priority, l.Description(), nil})
	} else {
		fmt.Fprintln(a.errout, opening(a.errWidth, "redirecting", fmt.Sprintf(", priority %d", f.priority), l.Description()))
	}
	err = f.serve(ctx, a, l, r.warn)
	f.summary(&r, l)
	return err
}

// matchesTCP reports whether a filter may match TCP connections; a filter that does not compile may.
func matchesTCP(text string) bool {
	p, err := filter.Compile("tcp and ("+text+")", divert.LayerNetwork, filter.Extended)
	if err != nil {
		return true
	}
	accepts, _ := (*prog.Program)(p).Outcomes()
	return accepts
}

// serve relays connections until ctx ends.
func (f *proxyFlags) serve(ctx context.Context, a *app, l *redirect.Listener, warn func(error)) error {
	var relays sync.WaitGroup
	w := &warnings{warn: warn}
	for {
		c, err := l.Accept()
		if err != nil {
			err = errors.Join(l.Close(), err)
			relays.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		relays.Go(func() {
			s := stream{Time: time.Now().UTC(), Network: c.Network(), Src: c.Source(), Dst: c.OriginalDst()}
			if p, err := c.Process(); err == nil {
				s.PID, s.Program = p.ID, p.Name
			}
			up, err := l.Dial(ctx, c)
			if err == nil {
				s.Sent, s.Received, err = redirect.Relay(c, up)
			} else {
				c.Reset()
				w.add(err)
			}
			if err != nil {
				s.Error = err.Error()
			}
			s.Seconds = time.Since(s.Time).Seconds()
			if !f.quiet {
				s.print(a.out, f.asJSON)
			}
		})
	}
}

// stream is a connection that has ended, as --json prints it.
type stream struct {
	Time     time.Time      `json:"time"` // when it was accepted
	Seconds  float64        `json:"seconds"`
	Network  string         `json:"network"` // tcp, udp
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"` // the destination that the application chose
	PID      uint32         `json:"pid,omitempty"`
	Program  string         `json:"program,omitempty"`
	Sent     int64          `json:"sent"` // bytes from the application
	Received int64          `json:"received"`
	Error    string         `json:"error,omitempty"`
}

func (s *stream) print(w io.Writer, asJSON bool) {
	if asJSON {
		if b, err := appendJSONLine(nil, s); err == nil {
			_, _ = w.Write(b)
		}
		return
	}
	who := "?"
	if s.PID != 0 {
		who = fmt.Sprintf("%s[%d]", s.Program, s.PID)
	}
	text := fmt.Sprintf("%s %s %v > %v sent %d received %d in %.3f s", who, s.Network, s.Src, s.Dst, s.Sent, s.Received, s.Seconds)
	if s.Error != "" {
		text += ": " + s.Error
	}
	fmt.Fprintln(w, text)
}

// proxySummary is the JSON line at the end.
type proxySummary struct {
	Event      string  `json:"event"` // "summary"
	Seconds    float64 `json:"seconds"`
	Redirected uint64  `json:"redirected"`
	Spared     uint64  `json:"spared"`
	Refused    uint64  `json:"refused"`
	Full       uint64  `json:"full"`
	Strangers  uint64  `json:"strangers"`
}

func (f *proxyFlags) summary(r *report, l *redirect.Listener) {
	s, took := l.Stats(), time.Since(r.start)
	if r.json {
		r.line(proxySummary{"summary", took.Round(time.Microsecond).Seconds(), s.Redirected, s.Spared, s.Refused, s.Full, s.Strangers})
		return
	}
	text := fmt.Sprintf("%s redirected, %d spared, %d refused", countOf(s.Redirected, "connection"), s.Spared, s.Refused)
	if s.Full > 0 {
		text += fmt.Sprintf(", %d dropped because there were too many", s.Full)
	}
	if s.Strangers > 0 {
		text += fmt.Sprintf(", %s of strangers refused", countOf(s.Strangers, "segment"))
	}
	fmt.Fprintf(r.app.errout, "divert: %s in %v\n", text, took.Round(time.Millisecond))
}

// destination is the program that --to names.
type destination struct {
	at      netip.AddrPort
	version byte          // of the PROXY header, 0 for none
	ready   chan struct{} // closed when spare is set
	spare   func(process.Process) error

	mu     sync.Mutex
	owners map[string][]process.Process // processes that listen at the address, by network
}

// dial connects to the program on behalf of an application, and passes on the application's addresses.
func (d *destination) dial(ctx context.Context, t redirect.Target, dial redirect.DialFunc) (net.Conn, error) {
	select {
	case <-d.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := d.find(t.Network); err != nil {
		return nil, err
	}
	c, err := dial(ctx, t.Network, d.at.String())
	if err != nil || d.version == 0 {
		return c, err
	}
	h := proxyproto.HeaderProxyFromAddrs(d.version, net.TCPAddrFromAddrPort(t.Src), net.TCPAddrFromAddrPort(t.Dst))
	if _, err := h.WriteTo(c); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// find looks up the processes that listen at the address, unless the known ones still run, and exempts their
// connections. The program learns of a redirected connection only afterwards, so every connection that it opens for it
// is exempt.
func (d *destination) find(network string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.owners[network] {
		if now, err := process.Lookup(p.ID); err == nil && now.Start.Equal(p.Start) {
			return nil
		}
	}
	if d.owners == nil {
		d.owners = map[string][]process.Process{}
	}
	d.owners[network] = nil
	for _, id := range socketOwners(network, d.at) {
		if p, err := process.Lookup(id); err == nil {
			if err := d.spare(p); err != nil {
				return err
			}
			d.owners[network] = append(d.owners[network], p)
		}
	}
	return nil
}
