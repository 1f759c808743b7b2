package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/impair"
)

// topActions drops packets and resets connections of rows. Its handles are below that of top, so dropped packets still
// count.
type topActions struct {
	flags *handleFlags

	dropped map[string]bool // filters of rows
	drop    *divert.Handle  // drops their packets; nil if there are none

	resets context.CancelFunc // ends the runs that reset connections
	runs   sync.WaitGroup     // the runs
	ctx    context.Context
	report func(string) // shows the result of a reset; called by other goroutines
}

func newTopActions(ctx context.Context, flags *handleFlags, report func(string)) *topActions {
	a := &topActions{flags: flags, dropped: map[string]bool{}, report: report}
	a.ctx, a.resets = context.WithCancel(ctx)
	return a
}

// close lets all flows pass again.
func (a *topActions) close() {
	a.resets()
	a.runs.Wait()
	if a.drop != nil {
		_ = a.drop.Close()
		a.drop = nil
	}
}

// priority is the priority of the handles: just below top's own.
func (a *topActions) priority() int16 { return max(a.flags.priority-1, divert.LowestPriority) }

// toggle drops the packets that a filter matches, or lets them pass again, and returns which.
func (a *topActions) toggle(filter string) (dropping bool, err error) {
	if dropping = !a.dropped[filter]; dropping {
		a.dropped[filter] = true
	} else {
		delete(a.dropped, filter)
	}
	if err := a.apply(); err != nil {
		if dropping {
			delete(a.dropped, filter)
		} else {
			a.dropped[filter] = true
		}
		return !dropping, err
	}
	return dropping, nil
}

// apply makes the handle drop the packets of the marked rows.
func (a *topActions) apply() error {
	if len(a.dropped) == 0 {
		if a.drop == nil {
			return nil
		}
		err := a.drop.Close()
		a.drop = nil
		return err
	}
	text := "(" + strings.Join(slices.Sorted(maps.Keys(a.dropped)), ") or (") + ")"
	if a.drop != nil {
		return a.drop.SetFilter(text)
	}
	h, err := divert.Open(text, divert.WithLayer(a.flags.layer()), divert.WithFlags(divert.Drop), divert.WithPriority(a.priority()),
		divert.WithEngine(engines[a.flags.engine.value]), divert.WithDriver(a.flags.driver))
	if err == nil {
		a.drop = h
	}
	return err
}

// topResetTime is how long the connections of a row are reset; each is reset when it sends a packet.
const topResetTime = 10 * time.Second

// reset resets the TCP connections whose packets a filter matches, when they send packets.
func (a *topActions) reset(filter string) error {
	i, err := impair.Open(impair.Config{
		Rules: []impair.Rule{{Filter: "tcp and (" + filter + ")", Reset: 1}}, Layer: a.flags.layer(),
	}, divert.WithPriority(a.priority()), divert.WithEngine(engines[a.flags.engine.value]), divert.WithDriver(a.flags.driver))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.ctx, topResetTime)
	a.runs.Go(func() {
		defer cancel()
		err := i.Run(ctx)
		resets := i.Stats().Rules[0].Reset
		err = errors.Join(err, i.Close())
		switch {
		case a.ctx.Err() != nil: // top ends
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			a.report("resetting failed: " + plain(err))
		default:
			a.report(fmt.Sprintf("%s replaced by resets", countOf(resets, "segment")))
		}
	})
	return nil
}
