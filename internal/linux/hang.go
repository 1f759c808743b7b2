//go:build linux

package linux

import (
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/hang"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
)

// checkHang refuses a guard for programs that hang where there can be none.
func (h *handle) checkHang(mode engine.Mode, p *prog.Program) error {
	if h.cfg.Hang.After != 0 && mode == engine.ModeInterpret {
		return fmt.Errorf("%w: what becomes of packets while the program hangs is decided in the kernel, and here it does not decide (%s)",
			engine.ErrNotSupported, h.decider)
	}
	return h.checkCounting(p)
}

// checkCounting refuses filters that count flows for a guard that drops: the rule that drops would count a packet, and the rule
// behind it once more.
func (h *handle) checkCounting(p *prog.Program) error {
	if h.cfg.Hang.Drop && p.CountsFlows() {
		return fmt.Errorf("%w: packets cannot be dropped while the program hangs by a filter that counts flows; they can pass", engine.ErrNotSupported)
	}
	return nil
}

// guardHang opens the guard, if there is to be one. It runs in the handle's namespace.
func (h *handle) guardHang() (err error) {
	c := &h.cfg.Hang
	if c.After == 0 {
		return nil
	}
	if h.hang, err = hang.Open(c.After, c.Drop); err != nil || !c.Drop {
		return err
	}
	return h.openNowhere()
}

// openNowhere opens the queue that packets are dropped by. It runs in the handle's namespace.
func (h *handle) openNowhere() (err error) {
	if h.nowhere == nil {
		h.nowhere, err = queue.Open(queue.Options{Discard: true, RcvBuf: 4096})
	}
	return err
}

// guarded returns a rule as the guard wants it: with the guard's question at its end, and behind a rule that drops if the guard
// does. Rules that do not lead to a queue of the program stay as they are.
func (h *handle) guarded(r rules.Rule, take codegen.Take) []rules.Rule {
	if _, queues := r.Action.(rules.ToQueue); h.hang == nil || !queues {
		return []rules.Rule{r}
	}
	segments := take == codegen.TakeRest
	r.Last = h.hang.Last(segments)
	if !h.hang.Drops() {
		return []rules.Rule{r}
	}
	drop := r
	drop.First, drop.Last = h.hang.Dropping(segments)
	drop.Action, drop.Silent = rules.ToNowhere{Num: h.nowhere.Num()}, true
	return []rules.Rule{drop, r}
}

// tallyHang adds the packets that were led past the queue, which matched too.
func (h *handle) tallyHang(s *engine.Stats) {
	if h.hang == nil {
		return
	}
	n := h.hang.Packets()
	if h.hang.Drops() {
		s.HangDropped = n
	} else {
		s.HangPassed = n
	}
	s.Matched += n
}
