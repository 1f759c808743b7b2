//go:build linux

package linux

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/sockets"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// socketFeed raises the events of the layers SOCKET and FLOW from what programs in the kernel tell.
type socketFeed struct {
	h         *events
	cgroup    *sockets.Cgroup
	source    *sockets.Source
	destroyer *sockets.Destroyer           // nil where nothing is refused
	flows     *flowTable                   // nil at SOCKET
	program   atomic.Pointer[prog.Program] // the filter in force
	interpret string                       // why the kernel tells of everything and the interpreter decides; "": it does not

	mu       sync.Mutex // held while a record is worked on, and flows are swept
	lost     uint64     // records that were lost until the flows were last compared with the sockets that there are
	compared int64      // when that was
	again    bool       // a flow that had begun then was told of only later
	stopping atomic.Bool
	quit     chan struct{}
	running  sync.WaitGroup
}

// newSocketFeed opens the feed in the namespace of the calling thread.
func newSocketFeed(h *events, key cursor.Key) (_ *socketFeed, err error) {
	f := &socketFeed{h: h, quit: make(chan struct{})}
	if h.cfg.Mode == engine.ModeInterpret {
		f.interpret = "as asked for"
	}
	f.program.Store(h.cfg.Program)
	sniffs := h.cfg.Flags&engine.FlagSniff != 0
	if f.interpret != "" && !sniffs {
		return nil, fmt.Errorf("%w: the interpreter cannot refuse what sockets do; only eBPF programs can", engine.ErrNotSupported)
	}
	if err := sockets.Probe(); err != nil {
		return nil, needEBPF(h.layer, err)
	}
	if f.cgroup, err = sockets.OpenCgroup(); err != nil {
		return nil, needEBPF(h.layer, err)
	}
	defer func() {
		if err != nil {
			f.cgroup.Dir.Close()
		}
	}()
	cookie, err := sockets.Cookie()
	if err != nil {
		return nil, needEBPF(h.layer, err)
	}
	if !sniffs {
		if f.destroyer, err = sockets.NewDestroyer(); err != nil {
			return nil, err
		}
	}
	if h.layer == packet.LayerFlow {
		f.flows = newFlowTable()
	}
	open := func() (err error) {
		f.source, err = sockets.Open(sockets.Config{
			Filter: f.kernelProgram(h.cfg.Program), Flags: h.cfg.Flags, Key: key,
			Cookie: cookie, Cgroup: f.cgroup.Dir, Events: h.cfg.Limits.Length,
		})
		return err
	}
	err = open()
	var limit *codegen.LimitError
	switch {
	case !errors.As(err, &limit):
	case sniffs && h.cfg.Mode == engine.ModeAuto:
		f.interpret = "because " + limit.Error()
		err = open()
	case sniffs:
		err = fmt.Errorf("%w: %w; without EngineKernel the interpreter decides", engine.ErrNotSupported, limit)
	default:
		err = fmt.Errorf("%w: %w; only a program can refuse what sockets do", engine.ErrNotSupported, limit)
	}
	if err != nil {
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

// kernelProgram returns the filter that the kernel works with.
func (f *socketFeed) kernelProgram(p *prog.Program) *prog.Program {
	if f.interpret != "" {
		return prog.Constant(p.Layer(), true)
	}
	return p
}

// run works on records until the source is closed, or stopped and read to its end.
func (f *socketFeed) run() {
	var r sockets.Record
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
func (f *socketFeed) record(r *sockets.Record) {
	if r.Destroy && f.destroyer != nil {
		if err := f.destroyer.Destroy(&r.Data); err != nil {
			f.h.counts.Failed.Add(1)
		}
	}
	if f.flows != nil {
		f.flow(r)
		return
	}
	if f.h.cfg.Flags&engine.FlagDrop != 0 {
		f.h.counts.Dropped.Add(1)
		return // what was refused too late for the kernel to do it alone
	}
	a := f.address(r)
	a.Sniffed = !r.Refused
	if f.interpret != "" && !f.program.Load().Match(nil, &a) {
		return
	}
	f.h.raise(nil, &a)
}

// address describes a record (specification: api.md 16 and 17).
func (f *socketFeed) address(r *sockets.Record) packet.Address {
	a := packet.Address{
		Timestamp: r.Time, Layer: f.h.layer, Event: r.Event, Sniffed: true,
		Outbound: !r.Inbound, Loopback: r.Loopback, IPv6: r.IPv6,
	}
	a.SetFlow(r.Data)
	return a
}

// flow works on a record of FLOW.
func (f *socketFeed) flow(r *sockets.Record) {
	if r.End {
		for _, flow := range f.flows.end(r.Data.EndpointID) {
			f.deleted(flow, r.Time)
		}
		return
	}
	if !f.flows.begin(r, f.address(r)) {
		return
	}
	f.again = f.again || r.Time < f.compared
	a := f.address(r)
	if r.Matched && f.interpret == "" || f.interpret != "" && f.program.Load().Match(nil, &a) {
		f.h.raise(nil, &a)
	}
}

// deleted raises the event DELETED of a flow if the filter wants it.
func (f *socketFeed) deleted(flow *flowState, at int64) {
	a := flow.addr
	a.Event, a.Timestamp = packet.EventFlowDeleted, at
	if f.program.Load().Match(nil, &a) {
		f.h.raise(nil, &a)
	}
}

// sweep ends flows of which nothing has been seen for long.
func (f *socketFeed) sweep() {
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
		for _, flow := range f.flows.idle(at, f.source) {
			f.deleted(flow, at)
		}
		f.mu.Unlock()
		f.compare()
	}
}

// compare ends the flows whose sockets are gone, if records were lost: theirs may have been among them.
func (f *socketFeed) compare() {
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
	var live *sockets.Live
	if f.h.ns.Do(func() (err error) { live, err = sockets.ListLive(); return err }) != nil {
		return // the next sweep tries again
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost, f.compared, f.again = c.Lost, at, false
	for _, flow := range f.flows.gone(at, live) {
		f.deleted(flow, at)
	}
}

func (f *socketFeed) setFilter(p *prog.Program) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := keepsOld(f.source.SetFilter(f.kernelProgram(p))); err != nil {
		return err
	}
	f.program.Store(p)
	return nil
}

func (f *socketFeed) stop() error {
	if f.stopping.Swap(true) {
		return nil
	}
	err := f.source.Detach()
	settle() // programs that run now have told by then
	close(f.quit)
	f.source.Flush()
	f.running.Wait()
	if f.flows != nil {
		f.compare()
	}
	return err
}

func (f *socketFeed) close() error {
	errs := []error{f.stop(), f.source.Close(), f.cgroup.Dir.Close()}
	if f.destroyer != nil {
		errs = append(errs, f.destroyer.Close())
	}
	return errors.Join(errs...)
}

func (f *socketFeed) tally(s *engine.Stats) error {
	c, err := f.source.Counts()
	s.DroppedFull += c.Lost
	s.Dropped = c.Dropped + f.h.counts.Dropped.Load()
	s.Failed = f.h.counts.Failed.Load()
	s.Matched += c.Lost + s.Dropped
	return err
}

// describe says how the handle is served and what it cannot see.
func (f *socketFeed) describe() string {
	text := "eBPF on cgroups; " + f.source.Limits()
	if f.interpret != "" {
		text = "interpreter, " + f.interpret + ", behind " + text
	}
	if !f.cgroup.Whole {
		text += "; processes outside of this cgroup namespace are not seen"
	}
	return text
}
