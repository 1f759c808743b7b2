//go:build linux

package socketfeed

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/linux/eventprog"
	"github.com/opendivert/divert/internal/linux/events"
	"github.com/opendivert/divert/internal/linux/eventsource"
	"github.com/opendivert/divert/internal/linux/flowtable"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/rights"
	"github.com/opendivert/divert/internal/linux/sockdiag"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// feed raises the events of the layers SOCKET and FLOW from the records of programs in the kernel.
type feed struct {
	env       events.Env
	layer     packet.Layer
	cgroup    *cgroup.Cgroup
	source    *eventsource.Source
	destroyer *sockdiag.Destroyer          // nil where nothing is refused
	flows     *flowtable.Table             // nil at SOCKET
	program   atomic.Pointer[prog.Program] // the filter in force
	interpret string                       // why the kernel reports everything and the interpreter decides; "": it does not

	mu       sync.Mutex // held while a record is worked on, and flows are swept
	lost     uint64     // records lost before the flows were last compared with the existing sockets
	compared int64      // when that was
	again    bool       // a flow that had begun by then was reported only later
	stopping atomic.Bool
	quit     chan struct{}
	running  sync.WaitGroup
}

// Open opens the feed in the namespace of the calling thread.
func Open(env events.Env) (_ events.Feed, err error) {
	f := &feed{env: env, layer: env.Program.Layer(), quit: make(chan struct{})}
	if env.Mode == engine.ModeInterpret {
		f.interpret = "as asked for"
	}
	f.program.Store(env.Program)
	sniffs := env.Flags&engine.FlagSniff != 0
	if f.interpret != "" && !sniffs {
		return nil, fmt.Errorf("%w: the interpreter cannot refuse what sockets do; only eBPF programs can", engine.ErrNotSupported)
	}
	if err := eventprog.OnCgroups.Err(); err != nil {
		return nil, needEBPF(f.layer, err)
	}
	if f.cgroup, err = cgroup.Open(); err != nil {
		return nil, needEBPF(f.layer, err)
	}
	defer func() {
		if err != nil {
			f.cgroup.Dir.Close()
		}
	}()
	if !sniffs {
		if f.destroyer, err = sockdiag.NewDestroyer(); err != nil {
			return nil, err
		}
	}
	if f.layer == packet.LayerFlow {
		f.flows = flowtable.New()
	}
	if err = f.openSource(sniffs); err != nil {
		if f.destroyer != nil {
			f.destroyer.Close()
		}
		return nil, err
	}
	f.running.Go(f.run)
	if f.flows != nil {
		f.running.Go(f.sweep)
	}
	return f, nil
}

// openSource opens the source. A filter that is too large for the kernel is the interpreter's, if the mode allows that.
func (f *feed) openSource(sniffs bool) error {
	open := func() (err error) {
		f.source, err = eventsource.Open(eventsource.Config{
			Filter: f.kernelProgram(f.env.Program), Flags: f.env.Flags, Key: f.env.Key,
			Cgroup: f.cgroup.Dir, Events: f.env.Limits.Length,
		})
		return err
	}
	err := open()
	var limit *codegen.LimitError
	switch {
	case !errors.As(err, &limit):
		return err
	case sniffs && f.env.Mode == engine.ModeAuto:
		f.interpret = "because " + limit.Error()
		return open()
	case sniffs:
		return fmt.Errorf("%w: %w; without EngineKernel the interpreter decides", engine.ErrNotSupported, limit)
	}
	return fmt.Errorf("%w: %w; only a program can refuse what sockets do", engine.ErrNotSupported, limit)
}

// needEBPF says that a layer cannot be served without programs in the kernel.
func needEBPF(layer packet.Layer, err error) error {
	return fmt.Errorf("the layer %v: %w: it needs eBPF programs on cgroups: %w", layer, engine.ErrNotSupported, rights.Refusal(err))
}

// kernelProgram returns the filter that the kernel works with.
func (f *feed) kernelProgram(p *prog.Program) *prog.Program {
	if f.interpret != "" {
		return prog.Constant(p.Layer(), true)
	}
	return p
}

// run works on records until the source is closed, or stopped and read to its end.
func (f *feed) run() {
	var r eventmap.Record
	for {
		err := f.source.Read(&r)
		switch {
		case err == nil:
			f.mu.Lock()
			f.record(&r)
			f.mu.Unlock()
		case errors.Is(err, ringbuf.ErrFlushed) && !f.stopping.Load():
		default:
			return
		}
	}
}

// record works on one record.
func (f *feed) record(r *eventmap.Record) {
	if r.Destroy && f.destroyer != nil {
		if err := f.destroyer.Destroy(&r.Data); err != nil {
			f.env.Failed.Add(1)
		}
	}
	if f.flows != nil {
		f.flow(r)
		return
	}
	if f.env.Flags&engine.FlagDrop != 0 {
		f.env.Dropped.Add(1)
		return // operations refused too late for the kernel to do it alone
	}
	a := f.address(r)
	a.Sniffed = !r.Refused
	if f.interpret != "" && !f.program.Load().Match(nil, &a) {
		return
	}
	f.env.Raise(nil, &a)
}

// address describes a record (specification: api.md 16 and 17).
func (f *feed) address(r *eventmap.Record) packet.Address {
	a := packet.Address{
		Timestamp: r.Time, Layer: f.layer, Event: r.Event, Sniffed: true,
		Outbound: !r.Inbound, Loopback: r.Loopback, IPv6: r.IPv6,
	}
	a.SetFlow(r.Data)
	a.SetProcessName(r.Name)
	return a
}

// flow works on a record of FLOW.
func (f *feed) flow(r *eventmap.Record) {
	if r.End {
		for _, flow := range f.flows.End(r.Data.EndpointID) {
			f.deleted(flow, r.Time)
		}
		return
	}
	if !f.flows.Begin(r, f.address(r)) {
		return
	}
	f.again = f.again || r.Time < f.compared
	a := f.address(r)
	if r.Matched && f.interpret == "" || f.interpret != "" && f.program.Load().Match(nil, &a) {
		f.env.Raise(nil, &a)
	}
}

// deleted raises the event DELETED of a flow if the filter wants it.
func (f *feed) deleted(flow *flowtable.Flow, at int64) {
	a := flow.Addr
	a.Event, a.Timestamp = packet.EventFlowDeleted, at
	if f.program.Load().Match(nil, &a) {
		f.env.Raise(nil, &a)
	}
}

// sweepInterval is how often idle flows are looked for.
const sweepInterval = time.Second

// sweep ends flows of which nothing has been seen for long.
func (f *feed) sweep() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-f.quit:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		at := clock.Now()
		for _, flow := range f.flows.Idle(at, f.source) {
			f.deleted(flow, at)
		}
		f.mu.Unlock()
		f.compare()
	}
}

// compare ends the flows whose sockets are gone, if records were lost: theirs may have been among them.
func (f *feed) compare() {
	c, err := f.source.Counts()
	if err != nil {
		return
	}
	f.mu.Lock()
	needless := c.Lost == f.lost && !f.again
	f.mu.Unlock()
	if needless {
		return
	}
	at := clock.Now()
	var live *sockdiag.Live
	if f.env.Namespace.Do(func() (err error) { live, err = sockdiag.ListLive(); return err }) != nil {
		return // the next sweep tries again
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost, f.compared, f.again = c.Lost, at, false
	for _, flow := range f.flows.Gone(at, live) {
		f.deleted(flow, at)
	}
}

// SetFilter implements events.Feed.
func (f *feed) SetFilter(p *prog.Program) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := codegen.KeepsOld(f.source.SetFilter(f.kernelProgram(p))); err != nil {
		return err
	}
	f.program.Store(p)
	return nil
}

// Stop implements events.Feed.
func (f *feed) Stop() error {
	if f.stopping.Swap(true) {
		return nil
	}
	err := f.source.Detach()
	kernel.Settle() // programs that run now have sent their records by then
	close(f.quit)
	f.source.Flush()
	f.running.Wait()
	if f.flows != nil {
		f.compare()
	}
	return err
}

// Close implements events.Feed.
func (f *feed) Close() error {
	errs := []error{f.Stop(), f.source.Close(), f.cgroup.Dir.Close()}
	if f.destroyer != nil {
		errs = append(errs, f.destroyer.Close())
	}
	return errors.Join(errs...)
}

// Tally implements events.Feed.
func (f *feed) Tally(s *engine.Stats) error {
	c, err := f.source.Counts()
	s.DroppedFull += c.Lost
	s.Dropped = c.Dropped + f.env.Dropped.Load()
	s.Failed = f.env.Failed.Load()
	s.Matched += c.Lost + s.Dropped
	return err
}

// Describe implements events.Feed.
func (f *feed) Describe() string {
	text := "eBPF on cgroups; " + f.source.Limits()
	if f.interpret != "" {
		text = "interpreter, " + f.interpret + ", behind " + text
	}
	if !f.cgroup.Whole {
		text += "; processes outside of this cgroup namespace are not seen"
	}
	return text
}
