//go:build linux

package registry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/events"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// feed raises the events.
type feed struct {
	env      events.Env
	observer *rules.Observer
	program  atomic.Pointer[prog.Program]
	stopping atomic.Bool
	running  sync.WaitGroup
}

// Open opens the feed. The events OPEN of the handles that are open already have been raised when it
// returns, so that a handle that is shut down at once lists them (specification: api.md 9).
func Open(env events.Env) (events.Feed, error) {
	f := &feed{env: env}
	f.program.Store(env.Program)
	observer, open, err := rules.Observe(env.Namespace)
	if err != nil {
		return nil, err
	}
	f.observer = observer
	for _, o := range open {
		f.raise(rules.Change{Owner: o})
	}
	f.running.Go(f.run)
	return f, nil
}

// run raises events until the observer is closed.
func (f *feed) run() {
	for {
		changes, err := f.observer.Next()
		for _, c := range changes {
			f.raise(c)
		}
		switch {
		case err == nil:
		case f.stopping.Load():
			return
		default:
			f.env.Failed.Add(1)
			time.Sleep(retryInterval) // rules are changed all the time, or memory is short
		}
	}
}

// retryInterval is how long the feed waits when the table cannot be read.
const retryInterval = 200 * time.Millisecond

// raise raises the event of a change if the filter matches it (specification: api.md 18).
func (f *feed) raise(c rules.Change) {
	a := packet.Address{
		Timestamp: clock.Now(), Layer: packet.LayerReflect, Event: packet.EventReflectOpen, Sniffed: true,
	}
	if c.Closed {
		a.Event = packet.EventReflectClose
	}
	a.SetReflect(packet.ReflectData{
		Timestamp: c.Opened, ProcessID: uint32(c.Process), Layer: packet.Layer(c.Layer), Flags: c.Flags, Priority: c.Priority,
	})
	if f.program.Load().Match(nil, &a) {
		f.env.Raise(append([]byte(c.Filter), 0), &a)
	}
}

// SetFilter implements events.Feed.
func (f *feed) SetFilter(p *prog.Program) error {
	f.program.Store(p)
	return nil
}

// Stop implements events.Feed.
func (f *feed) Stop() error {
	if f.stopping.Swap(true) {
		return nil
	}
	err := f.observer.Close()
	f.running.Wait()
	return err
}

// Close implements events.Feed.
func (f *feed) Close() error { return f.Stop() }

// Tally implements events.Feed.
func (f *feed) Tally(s *engine.Stats) error {
	s.Failed = f.env.Failed.Load()
	return nil
}

// Describe implements events.Feed.
func (f *feed) Describe() string { return "the nftables table of handles" }
