package impair

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
)

// Config has the settings of an Impairer.
type Config struct {
	Rules  []Rule  // for the whole run, or
	Phases []Phase // one after the other; the run ends when the last has passed
	Repeat bool    // begin again with the first phase

	Seed   uint64       // decides which packets are impaired
	Layer  divert.Layer // LayerNetwork or LayerForward
	Strict bool         // the filters are of the strict dialect

	MaxPackets int // most packets held; 0: 65,536
	MaxBytes   int // most bytes held; 0: 64 MiB
	MaxFlows   int // most flows remembered; the packets of a forgotten one count from 0 again; 0: 65,536

	DropHeld bool // drop held packets at the end; otherwise they go on at once

	// Open opens the handle; the default is divert.OpenProgram. Tests use the method of a diverttest.Network. With a
	// single rule the program may have named sets (filter.Program.Set), which Open can fill.
	Open func(*filter.Program, ...divert.Option) (*divert.Handle, error)

	// Report gets the errors of packets that could not be sent on; it may be nil. One goroutine at a time calls it.
	Report func(error)
}

// The defaults of Config.
const (
	defaultPackets = 65536
	defaultBytes   = 64 << 20
	defaultFlows   = 65536
)

// Impairer impairs packets. Its methods may be called from several goroutines.
type Impairer struct {
	handle *divert.Handle
	config Config
	plan   *plan

	cancel  context.CancelFunc // ends Run
	ctx     context.Context
	running sync.Mutex // held by Run
	ran     bool
	begun   time.Time
	wake    chan struct{}

	mu         sync.Mutex
	phase      int // len(plan.phases) when all have passed
	phaseEnd   int64
	flows      *flowTable
	heap       heap
	order      uint64 // number of the next packet held
	heldBytes  int
	free       []*held // for reuse
	ending     bool    // packets received now are not impaired any more
	drained    bool    // and no more packets will come
	broken     error   // reason why the run ends too early
	unimpaired uint64

	sending sync.Mutex // locked before mu is unlocked, so that packets go on in the order of the decisions
	failed  atomic.Uint64
}

// Open opens a handle for the packets that the rules match, with the options given and divert.WithSegments; from now on
// they wait for Run. The options must not change which packets are received, nor cut them: no WithSnapLength, and no
// WithFlags other than Fragments and NoInstall.
//
// It fails with a *RuleError for a wrong rule, which wraps a *SettingError or a *filter.Error, or as divert.Open does.
func Open(c Config, opts ...divert.Option) (*Impairer, error) {
	phases := c.Phases
	switch {
	case c.Layer != divert.LayerNetwork && c.Layer != divert.LayerForward:
		return nil, fmt.Errorf("impair: layer %v has no packets", c.Layer)
	case c.MaxPackets < 0 || c.MaxBytes < 0 || c.MaxFlows < 0:
		return nil, errors.New("impair: the limits cannot be negative")
	case len(phases) > 0 && len(c.Rules) > 0:
		return nil, errors.New("impair: there are rules for the whole run and phases; only one of the two can be")
	case len(phases) == 0:
		phases = []Phase{{Rules: c.Rules}}
		c.Repeat = false
	}
	dialect := filter.Extended
	if c.Strict {
		dialect = filter.Strict
		opts = append(opts, divert.WithStrict())
	}
	p, err := newPlan(phases, c.Repeat, c.Layer, dialect)
	if err != nil {
		return nil, fmt.Errorf("impair: %w", err)
	}
	for _, l := range [...]struct {
		limit *int
		usual int
	}{{&c.MaxPackets, defaultPackets}, {&c.MaxBytes, defaultBytes}, {&c.MaxFlows, defaultFlows}} {
		if *l.limit == 0 {
			*l.limit = l.usual
		}
	}
	if c.Open == nil {
		c.Open = divert.OpenProgram
	}
	opts = append(opts, divert.WithLayer(c.Layer), divert.WithSegments())
	if p.processes {
		opts = append(opts, divert.WithProcessID())
	}
	h, err := c.Open(p.filter, opts...)
	if err != nil {
		return nil, err
	}
	if err := p.bind(h); err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("impair: %w", err)
	}
	if f := h.Flags() &^ (divert.Fragments | divert.NoInstall); f != 0 {
		_ = h.Close()
		return nil, fmt.Errorf("impair: %w: a handle with the flags %v cannot hold packets and send them on", divert.ErrInvalid, f)
	}
	i := &Impairer{handle: h, config: c, plan: p, flows: newFlowTable(c.Seed, c.MaxFlows), wake: make(chan struct{}, 1)}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	return i, nil
}

// Handle returns the handle, for its counters and description. Only the Impairer may receive from it.
func (i *Impairer) Handle() *divert.Handle { return i.handle }

// Close ends Run, as the end of its context does, waits for it, and closes the handle. A second Close returns net.ErrClosed.
func (i *Impairer) Close() error {
	i.cancel()
	i.running.Lock()
	defer i.running.Unlock()
	return i.handle.Close()
}

// errRan is the error of a second Run.
var errRan = errors.New("impair: Run can be called once only")

// Run impairs packets until ctx ends, the last phase has passed, or Close is called. Then held packets go on at once,
// unless Config.DropHeld is set, and packets in the handle's queue go on unimpaired. No more are captured.
//
// At such an end Run returns nil. Otherwise the error is that of receiving, or a *RuleError for a filter that cannot be
// decided outside the kernel; held packets go on then too, if the handle still sends. Run may be called once. It uses the
// namespace and the network of Open.
func (i *Impairer) Run(ctx context.Context) error {
	i.running.Lock()
	defer i.running.Unlock()
	if i.ran {
		return errRan
	}
	i.ran = true
	if i.ctx.Err() != nil {
		return fmt.Errorf("impair: %w", net.ErrClosed)
	}
	i.begun = time.Now()
	_, i.phaseEnd, _ = i.plan.at(0)
	defer context.AfterFunc(ctx, i.end)()
	defer context.AfterFunc(i.ctx, i.end)()
	if d, ends := i.plan.end(); ends {
		defer time.AfterFunc(d, i.end).Stop()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		i.sendDue()
	}()
	err := i.receive()
	i.mu.Lock()
	i.ending, i.drained = true, true
	if err == nil {
		err = i.broken
	}
	i.mu.Unlock()
	i.alarm()
	<-done
	return err
}

// end ends the run.
func (i *Impairer) end() {
	i.mu.Lock()
	i.ending = true
	i.mu.Unlock()
	_ = i.handle.Shutdown(divert.ShutdownRecv) // fails if the handle is closed, which ends the run too
	i.alarm()
}

// alarm wakes sendDue.
func (i *Impairer) alarm() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// now returns the time since the run began.
func (i *Impairer) now() int64 { return int64(time.Since(i.begun)) }
