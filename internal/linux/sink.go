//go:build linux

package linux

import (
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// sink is the source of a handle that drops in the kernel, with a queue that takes no packet for those whose sender
// is on this host, see rules.ToNowhere. The queue ends with the process, as the programs do that the other
// rules ask. Receiving waits until shutdown or close.
type sink struct {
	q     *queue.Queue
	empty *backlog.Queue
}

func newSink(h *handle) (*sink, error) {
	q, err := queue.Open(queue.Options{Discard: true, RcvBuf: 4096})
	if err != nil {
		return nil, err
	}
	return &sink{q: q, empty: backlog.New(backlog.Config{Limits: h.cfg.Limits, Now: now})}, nil
}

func (s *sink) actions() []rules.Action {
	return []rules.Action{rules.ToNowhere{Num: s.q.Num()}}
}

func (s *sink) recv(w engine.Wait, ps []packet.Packet) (int, error) { return s.empty.Recv(w, ps) }

func (s *sink) setLimits(engine.Limits) error { return nil } // nothing ever waits

func (s *sink) setFilter(*filter.Program) {}

func (s *sink) drain() { s.empty.Drain() }

func (s *sink) wake() {} // nobody waits in a system call

func (s *sink) yield() error { return nil }

func (s *sink) close() error { return s.q.Close() }

// tally counts as dropped what matched.
func (s *sink) tally(st *engine.Stats) error {
	st.Dropped = st.Matched
	return nil
}
