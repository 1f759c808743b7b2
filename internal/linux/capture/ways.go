//go:build linux

package capture

import (
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/verdict"
)

// toQueues are the ways of packets to lanes. With segments everything goes to the second queues.
func toQueues(lanes []*verdict.Lane, segments bool) (ways []Way) {
	for i, l := range lanes {
		share := rules.Share{Index: uint32(i), Of: uint32(len(lanes))}
		if !segments {
			ways = append(ways, Way{codegen.TakeStreams, rules.ToQueue{Num: l.QueueNumber()}, share})
		}
		if !kernel.FinishedSCTP.Has() {
			ways = append(ways, Way{codegen.TakeWhole, rules.ToQueue{Num: l.QueueNumber()}, share})
		}
		ways = append(ways, Way{codegen.TakeRest, rules.ToQueue{Num: l.Halves()[1].QueueNumber()}, share})
	}
	return ways
}
