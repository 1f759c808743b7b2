package windows

import (
	"errors"
	"io"
	"net"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// queue returns the queue in user space; nil if there is none.
func (h *handle) queue() *backlog.Queue {
	if h.pump != nil {
		return h.pump.inbox
	}
	return h.spill.Load()
}

// emptyOld takes the packets of sources that capture nothing any more, and closes them, so that without receive calls
// SetFilter does not accumulate handles of the driver. With a pump, which receives all the time, old sources empty
// themselves. The caller holds h.mu.
func (h *handle) emptyOld() error {
	for s := h.oldest.Load(); h.pump == nil && s != h.newest.Load(); s = h.oldest.Load() {
		if h.spill.Load() == nil {
			h.spill.Store(h.newInbox())
		}
		if err := h.empty(s); err != nil {
			return err
		}
	}
	return nil
}

// empty moves the packets of an old source to the spill, and closes it. Receive calls that find the source wait for that,
// so they get no later packet first; those under way have ended or soon will, because no call waits in an old source.
func (h *handle) empty(s *source) error {
	s.emptying.Lock()
	defer s.emptying.Unlock()
	spill := h.spill.Load()
	ps := make([]packet.Packet, pumpBatch)
	for {
		n, err := s.driver.receive(engine.Wait{}, ps, h.layer)
		for i := range ps[:n] {
			h.counts.matched.Add(1)
			h.keepIn(spill, s.retired, &ps[i]) // the packet came earlier; the exact time is unknown
		}
		switch {
		case n > 0 || err == engine.ErrInterrupted: // the interruption was for other calls
		case errors.Is(err, engine.ErrShortBuffer):
			h.counts.matched.Add(1)
			h.counts.long.Add(1)
		case err == io.EOF || err == net.ErrClosed: // a receive call may have found it empty first
			h.advance(s)
			return nil
		default:
			return err
		}
	}
}

// letGo lets unreceived packets in the spill go on, as the driver does with its own.
func (h *handle) letGo() {
	spill := h.spill.Load()
	if spill == nil {
		return
	}
	left := rest(spill)
	passed := len(left)
	if h.holds() && len(left) > 0 {
		passed, _ = h.sendOn(left) // only the counters record the error
		h.counts.failed.Add(uint64(len(left) - passed))
	}
	h.counts.passed.Add(uint64(passed))
}
