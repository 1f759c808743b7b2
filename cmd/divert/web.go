package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/web"
	"github.com/spf13/cobra"
)

// webFlags determine which sites are blocked, and how.
type webFlags struct {
	ports, quicPorts []uint
	page             string
	closed, nameless bool
	quiet, asJSON    bool

	layer    choice
	priority int16
	engine   choice
	driver   string
	scope    scope
}

func newWeb(a *app) *cobra.Command {
	f := webFlags{layer: choice{names: wordsOf(packetLayers)}, engine: choice{names: wordsOf(engines)}}
	cmd := &cobra.Command{
		Use:   "web [flags] LIST [FILTER]",
		Short: "Block the web sites that a file lists",
		Long: `Block the web sites that a file lists, over HTTP, TLS and QUIC: by the Host of each request, and by the server
name (SNI) of each connection. The packets that begin a connection are held until the name is known, so the server never
sees a byte of a blocked request. HTTP is answered with a page; connections of TLS are reset at both ends; QUIC is answered
so that browsers try TCP at once. One line is printed for each connection that is blocked.

LIST has one name a line; # begins a comment. example.org blocks that name and all below it, *.example.org only those
below. Hosts files (an address with names behind it) are lists, too. The file is read again when it changes, and on SIGHUP.

FILTER says which connections are judged besides the ports: it must hold for the packets of both directions, as processId,
remoteAddr and ifIdx do. --layer forward judges connections that this host routes; both directions must pass it.

A connection that cannot be judged (no whole name within 16 KiB or 2 s, no memory) passes; --fail-closed ends it.
A connection that names nobody passes, too, unless --block-nameless.

On Linux it needs /dev/net/tun, as the answers are injected.`,
		Example: `  divert web blocked.txt
  divert web --json blocked.txt 'processId == 4711'
  divert web --layer forward --fail-closed --block-nameless blocked.txt    on a router`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(a, cmd, args) },
	}
	fl := cmd.Flags()
	fl.UintSliceVar(&f.ports, "port", []uint{80, 443}, "`ports` of servers whose TCP is judged, HTTP and TLS alike")
	fl.UintSliceVar(&f.quicPorts, "quic-port", []uint{443}, "`ports` of servers whose QUIC is judged")
	fl.BoolVar(&f.closed, "fail-closed", false, "end connections that cannot be judged, instead of letting them pass")
	fl.BoolVar(&f.nameless, "block-nameless", false, "block connections that name no host, and other protocols on these ports")
	fl.StringVar(&f.page, "page", "", "`file` with the HTML that answers blocked HTTP requests, at most 8 KiB")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print no connections")
	fl.BoolVar(&f.asJSON, "json", false, "connections, messages and summary as JSON")
	addChoice(cmd, &f.layer, "layer", "where in the network stack connections are judged")
	fl.Int16Var(&f.priority, "priority", 0, "packets meet handles from the highest priority to the lowest, 30000 to -30000")
	addChoice(cmd, &f.engine, "engine", "engine that decides which packets match")
	addDriver(cmd, &f.driver)
	f.scope.addTime(cmd)
	f.scope.addMetrics(cmd)
	return cmd
}

// config turns the flags into a configuration.
func (f *webFlags) config(args []string) (web.Config, error) {
	c := web.Config{
		Hosts: web.NewHosts(), Where: strings.TrimSpace(strings.Join(args[1:], " ")), Layer: packetLayers[f.layer.value],
		FailClosed: f.closed, BlockNameless: f.nameless,
		Options: []divert.Option{divert.WithPriority(f.priority), divert.WithEngine(engines[f.engine.value]), divert.WithDriver(f.driver)},
	}
	if err := checkDriver(f.driver); err != nil {
		return c, err
	}
	var err1, err2 error
	c.Ports, err1 = portsOf("--port", f.ports)
	c.QUICPorts, err2 = portsOf("--quic-port", f.quicPorts)
	if err := errors.Join(err1, err2); err != nil {
		return c, err
	}
	if f.page != "" {
		page, err := readPage(f.page)
		if err != nil {
			return c, err
		}
		c.Page = page
	}
	return c, nil
}

// portsOf validates ports.
func portsOf(flag string, numbers []uint) ([]uint16, error) {
	ports := make([]uint16, len(numbers))
	for i, n := range numbers {
		if n == 0 || n > 65535 {
			return nil, usagef("%s %d: a port is a number from 1 to 65535", flag, n)
		}
		ports[i] = uint16(n)
	}
	if len(ports) == 0 {
		return nil, usagef("%s needs a port", flag)
	}
	return ports, nil
}

// readPage reads the file of --page.
func readPage(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, web.MaxPage+1))
	if err == nil && len(b) > web.MaxPage {
		err = usagef("--page %s: the file is longer than %d bytes", printable(path), web.MaxPage)
	}
	return append([]byte{}, b...), err // an empty page is allowed
}

func (f *webFlags) run(a *app, cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("web needs a file with the names to block")
	}
	c, err := f.config(args)
	if err != nil {
		return err
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
	r := &report{app: a, json: f.asJSON, scope: &f.scope}
	var printing sync.Mutex          // the list is followed in the background
	again := make(chan os.Signal, 1) // before the list is read: as soon as others can find the program, SIGHUP must not end it
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	told := func(err error) {
		printing.Lock()
		defer printing.Unlock()
		r.listRead(args[0], c.Hosts.Len(), err)
	}
	if err := c.Hosts.Follow(ctx, args[0], told); err != nil {
		var line *web.LineError
		if errors.As(err, &line) {
			return usageError{err}
		}
		return err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-again:
				told(c.Hosts.Load(args[0]))
			}
		}
	}()
	w := &warnings{warn: func(err error) {
		printing.Lock()
		defer printing.Unlock()
		r.warn(err)
	}}
	c.Report = w.add
	if !f.quiet {
		c.Blocked = func(e web.Event) { printBlocked(a.out, e, f.asJSON) }
	}
	b, err := web.Open(c)
	var wrong *filter.Error
	if errors.Is(err, divert.ErrInvalid) && !errors.As(err, &wrong) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	defer b.Close()
	f.scope.metrics.tell(metricsAbout{web: b.Stats})
	printing.Lock()
	r.begin("web", fmt.Sprintf("blocking %s of %s", countOf(uint64(c.Hosts.Len()), "name"), printable(args[0])), c.Where, b.Handle())
	printing.Unlock()
	err = b.Run(ctx)
	printing.Lock()
	defer printing.Unlock()
	f.summary(r, b)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// jsonBlocked is a connection that was blocked, as --json prints it.
type jsonBlocked struct {
	Time     time.Time      `json:"time"`
	Protocol string         `json:"protocol"`        // http, tls, quic, other
	Reason   string         `json:"reason"`          // listed, nameless, ambiguous, too-long, late, no-memory
	Host     string         `json:"host,omitempty"`  // named by the client
	Entry    string         `json:"entry,omitempty"` // the matching entry of the list
	Src      netip.AddrPort `json:"src"`             // the client
	Dst      netip.AddrPort `json:"dst"`
}

// printBlocked prints a connection that was blocked.
func printBlocked(w io.Writer, e web.Event, asJSON bool) {
	if asJSON {
		if b, err := appendJSONLine(nil, jsonBlocked(e)); err == nil {
			_, _ = w.Write(b)
		}
		return
	}
	text := e.Reason
	if e.Host != "" {
		text = e.Host
		if e.Entry != e.Host {
			text += " (" + e.Entry + ")"
		}
	}
	fmt.Fprintf(w, "blocked %s %v > %v %s\n", e.Protocol, e.Src, e.Dst, text)
}

// listRead is the JSON line about a list that was read again.
type listRead struct {
	Event string `json:"event"` // "list"
	File  string `json:"file"`
	Names int    `json:"names"`
}

// listRead reports that a list was read again, or the error.
func (r *report) listRead(file string, names int, err error) {
	switch {
	case err != nil:
		r.warn(fmt.Errorf("%w; the list stays as it was", err))
	case r.json:
		r.line(listRead{"list", file, names})
	default:
		fmt.Fprintf(r.app.errout, "divert: %s was read again, with %s\n", printable(file), countOf(uint64(names), "name"))
	}
}

// webSummary is the JSON line at the end.
type webSummary struct {
	Event      string  `json:"event"` // "summary"
	Seconds    float64 `json:"seconds"`
	HTTP       uint64  `json:"http"` // requests judged
	TLS        uint64  `json:"tls"`  // ClientHellos
	QUIC       uint64  `json:"quic"` // connections
	Blocked    uint64  `json:"blocked"`
	Other      uint64  `json:"other"`       // connections of other protocols that passed
	FailedOpen uint64  `json:"failed_open"` // connections that passed undecided
	Differing  uint64  `json:"differing"`   // packets dropped because they repeated bytes with other contents
	Fragments  uint64  `json:"fragments"`   // fragments of clients that were dropped
}

func (f *webFlags) summary(r *report, b *web.Filter) {
	s, took := b.Stats(), time.Since(r.start)
	if r.json {
		r.line(webSummary{"summary", took.Round(time.Microsecond).Seconds(), s.HTTP, s.TLS, s.QUIC, s.Blocked, s.Other, s.FailedOpen, s.Differing, s.Fragments})
		return
	}
	text := fmt.Sprintf("%s of HTTP, %d of TLS and %d of QUIC judged, %d blocked", countOf(s.HTTP, "name"), s.TLS, s.QUIC, s.Blocked)
	for _, c := range [...]struct {
		n    uint64
		text string
	}{
		{s.Other, "of other protocols passed"}, {s.FailedOpen, "passed because nothing could be said of them"},
		{s.Differing, "packets dropped that were sent again otherwise"}, {s.Fragments, "fragments dropped"},
	} {
		if c.n > 0 {
			text += fmt.Sprintf(", %d %s", c.n, c.text)
		}
	}
	fmt.Fprintf(r.app.errout, "divert: %s in %v\n", text, took.Round(time.Millisecond))
}
