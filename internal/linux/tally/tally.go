//go:build linux

// Package tally has the counters that user space keeps for a handle.
package tally

import (
	"sync/atomic"

	"github.com/opendivert/divert/internal/backlog"
)

// Counts are the counters of engine.Stats that user space keeps.
type Counts struct {
	Matched, Received, Reinjected, Abandoned, Injected, Failed atomic.Uint64
	Dropped, Full, Old, Long, Passed                           atomic.Uint64
	Missing, Foreign                                           atomic.Uint64
	FlowDropped, FlowDroppedBytes                              atomic.Uint64 // by the verdict of their flow, in user space, where no program could decide
	Denied                                                     atomic.Uint64 // refused by a second look: they did not match
}

// Lost counts a packet or event that had to leave a backlog.
func (c *Counts) Lost(why backlog.Reason) {
	if why == backlog.Old {
		c.Old.Add(1)
	} else {
		c.Full.Add(1)
	}
}
