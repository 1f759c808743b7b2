//go:build linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// ErrFailed is returned if a check failed; the output has the details.
var ErrFailed = errors.New("the demonstration has failed")

// limit is how long the demonstration may take. It takes seconds; beyond this it hangs.
const limit = 2 * time.Minute

// Run runs the demonstration in its own network and returns ErrFailed if a check failed. As an ordinary user it starts
// the program again in a user namespace, as lab.Rootless does. Where network namespaces are unavailable, it returns
// lab.ErrUnavailable with the reason.
func Run(ctx context.Context, o Options) error {
	if done, err := runChild(); done {
		return err
	}
	if err := lab.Rootless(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	pair, err := lab.TwoHosts(lab.LinkOptions{})
	if err != nil {
		return err
	}
	d := &demo{report: report{Options: o}, ctx: ctx, Pair: pair, patience: 2 * time.Second}
	err = errors.Join(d.run(), pair.Close())
	if err == nil && d.failed > 0 {
		err = fmt.Errorf("%w: %d of %d checks", ErrFailed, d.failed, d.checks)
	}
	if err == nil {
		d.printf("\nAll %d checks passed in %.1f s. The network is gone again.\n", d.checks, time.Since(begin).Seconds())
	}
	return err
}

// demo is the state of the demonstration: host A diverts, host B is its peer.
type demo struct {
	report
	*lab.Pair
	ctx      context.Context
	patience time.Duration // how long an answer may take
}

// steps are the parts of the demonstration, in order.
var steps = []struct {
	title string
	run   func(*demo) error
}{
	{"The network", (*demo).network},
	{"1. Capture: copies of real traffic", (*demo).capture},
	{"2. Drop: packets vanish and nobody is told", (*demo).drop},
	{"3. Rewrite: packets change on their way", (*demo).rewrite},
	{"4. Re-inject: every packet through the program, at speed", (*demo).speed},
	{"5. Crash: a program that diverts is killed", (*demo).crash},
}

func (d *demo) run() error {
	for _, s := range steps {
		d.heading(s.title)
		if err := s.run(d); err != nil {
			if d.ctx.Err() != nil {
				err = errors.Join(d.ctx.Err(), err)
			}
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return nil
}

// network introduces the hosts and reports how A's handles are served.
func (d *demo) network() error {
	d.printf("  It is made of network namespaces; the network of this machine is not touched.\n\n")
	for _, l := range []*lab.Link{d.LinkA, d.LinkB} {
		d.printf("    host %v   %-5s %v, %v\n", l.Host(), l.Name(), l.Host().Addr4(), l.Host().Addr6())
	}
	d.printf("\n  A and B are joined by a link. The programs that divert run on A.\n")
	h, err := d.open("false")
	if err != nil {
		return err
	}
	d.printf("  Which packets match is decided by: %s.\n", h.Description())
	return h.Close()
}

// open opens a handle on host A and describes it. A handle that fails to open fails the demonstration.
func (d *demo) open(filter string, opts ...divert.Option) (h *divert.Handle, err error) {
	err = d.A.Do(func() error {
		h, err = divert.Open(filter, opts...)
		return err
	})
	return h, err
}

// show opens the handle that a step is about, and describes it.
func (d *demo) show(filter string, flags divert.Flag, opts ...divert.Option) (*divert.Handle, error) {
	with := ""
	if flags != 0 {
		with = fmt.Sprintf(", divert.%v", flagNames[flags])
	}
	d.printf("  divert.Open(%q%s)\n", filter, with)
	return d.open(filter, append(opts, divert.WithFlags(flags))...)
}

var flagNames = map[divert.Flag]string{divert.Sniff: "Sniff", divert.Drop: "Drop"}

// counters prints a handle's counters, if Verbose is set.
func (d *demo) counters(h *divert.Handle) (divert.Stats, error) {
	s, err := h.Stats()
	if err == nil && d.Verbose {
		d.printf("       counters: %+v\n", s)
	}
	return s, err
}

// counted returns the counters once f holds for them, or after ten seconds. Where the interpreter decides, packets that are
// dropped wait until it comes to them.
func (d *demo) counted(h *divert.Handle, f func(divert.Stats) bool) (divert.Stats, error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s, err := h.Stats(); err != nil || f(s) {
			break
		}
	}
	return d.counters(h)
}

// serve calls f with each batch of packets that a handle receives. The returned function ends the capturing,
// waits until all captured packets have been served, and returns the first error. It does not close the handle.
func serve(h *divert.Handle, f func([]divert.Packet) error) (finish func() error) {
	done := make(chan error, 1)
	go func() {
		var first error
		ps := make([]divert.Packet, 64)
		for {
			n, err := h.RecvBatch(ps)
			if err == io.EOF || errors.Is(err, net.ErrClosed) {
				done <- first
				return
			}
			if err == nil {
				err = f(ps[:n])
			}
			if err != nil && first == nil {
				first = err
			}
		}
	}()
	return func() error { return errors.Join(h.Shutdown(divert.ShutdownRecv), <-done) }
}
