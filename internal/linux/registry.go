//go:build linux

package linux

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// registry raises the events of the layer REFLECT from the table of handles.
type registry struct {
	h        *events
	observer *rules.Observer
	program  atomic.Pointer[prog.Program]
	stopping atomic.Bool
	running  sync.WaitGroup
}

// newRegistry opens the feed. The events OPEN of the handles that are open already have been raised when it
// returns, so that a handle that is shut down at once lists them (specification: api.md 9).
func newRegistry(h *events) (*registry, error) {
	r := &registry{h: h}
	r.program.Store(h.cfg.Program)
	observer, open, err := rules.Observe(h.ns)
	if err != nil {
		return nil, err
	}
	r.observer = observer
	for _, o := range open {
		r.raise(rules.Change{Owner: o})
	}
	r.running.Go(r.run)
	return r, nil
}

// run raises events until the observer is closed.
func (r *registry) run() {
	for {
		changes, err := r.observer.Next()
		for _, c := range changes {
			r.raise(c)
		}
		switch {
		case err == nil:
		case r.stopping.Load():
			return
		default:
			r.h.counts.Failed.Add(1)
			time.Sleep(retryInterval) // rules are changed all the time, or memory is short
		}
	}
}

// retryInterval is how long the feed waits when the table cannot be read.
const retryInterval = 200 * time.Millisecond

// raise raises the event of a change if the filter matches it (specification: api.md 18).
func (r *registry) raise(c rules.Change) {
	a := packet.Address{
		Timestamp: clock.Now(), Layer: packet.LayerReflect, Event: packet.EventReflectOpen, Sniffed: true,
	}
	if c.Closed {
		a.Event = packet.EventReflectClose
	}
	a.SetReflect(packet.ReflectData{
		Timestamp: c.Opened, ProcessID: uint32(c.Process), Layer: packet.Layer(c.Layer), Flags: c.Flags, Priority: c.Priority,
	})
	if r.program.Load().Match(nil, &a) {
		r.h.raise(append([]byte(c.Filter), 0), &a)
	}
}

func (r *registry) setFilter(p *prog.Program) error {
	r.program.Store(p)
	return nil
}

func (r *registry) stop() error {
	if r.stopping.Swap(true) {
		return nil
	}
	err := r.observer.Close()
	r.running.Wait()
	return err
}

func (r *registry) close() error { return r.stop() }

func (r *registry) tally(s *engine.Stats) error {
	s.Failed = r.h.counts.Failed.Load()
	return nil
}

func (r *registry) describe() string { return "the nftables table of handles" }
