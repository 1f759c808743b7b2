//go:build linux

package linux

import (
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// programs are a filter's programs in the kernel, one for each way of packets. A way on which the filter can
// match nothing has none.
type programs struct {
	byChain map[rules.Chain]*codegen.Program
	times   *times // nil unless the filter asks for the time
}

// hooks describes the place at which a chain's programs run: what is known of its packets, and where the
// rest is found (linux/skbuff.h; which device is which was measured at each hook).
var hooks = map[rules.Chain]codegen.Hook{
	rules.Inbound: {
		Direction: codegen.Inbound, Index: codegen.IndexDevice, Gate: codegen.NotLoopback,
	},
	rules.InboundFragments: {
		Direction: codegen.Inbound, Index: codegen.IndexDevice, Gate: codegen.NotLoopback,
	},
	rules.Outbound: {
		Direction: codegen.Outbound, Index: codegen.IndexDevice, Gate: codegen.LocalOnly,
		Loopback: codegen.LoopbackByInterface,
	},
	rules.Forward: {Direction: codegen.Outbound, Index: codegen.IndexDevice},
}

// load compiles a filter for the ways of a layer's packets and loads the programs.
func load(p *filter.Program, layer packet.Layer, flags uint64, key cursor.Key) (*programs, error) {
	ps := &programs{byChain: map[rules.Chain]*codegen.Program{}}
	correlate := flags&engine.FlagDrop == 0 && asksForTime(p)
	if correlate {
		ps.times = &times{waiting: map[uint64][]int64{}}
	}
	for _, path := range paths(layer, flags) {
		hook := hooks[path.chain]
		hook.Event = packet.EventPacket
		hook.Cursor = codegen.CursorCheck{Enabled: true, Key: key}
		u, err := codegen.Build(p, hook, codegen.Options{Correlate: correlate, CorrelateSize: timesSize})
		if err == nil && u.Outcome != codegen.Never {
			ps.byChain[path.chain], err = u.Load()
			if err == nil && correlate {
				err = ps.times.add(ps.byChain[path.chain].Times())
			}
		}
		if err != nil {
			ps.close()
			return nil, err
		}
	}
	return ps, nil
}

// timesSize is the size of the ring through which a program tells the times of its packets, in bytes: room for
// some more than the longest queue.
const timesSize = 1 << 20

// of returns the program for a chain, and whether the filter can match anything there.
func (ps *programs) of(c rules.Chain) (*codegen.Program, bool) {
	p, ok := ps.byChain[c]
	return p, ok && p != nil
}

// close lets go of the programs; rules that hold them keep them. A nil *programs has none.
func (ps *programs) close() {
	if ps == nil {
		return
	}
	if ps.times != nil {
		ps.times.close()
	}
	for _, p := range ps.byChain {
		if p != nil {
			p.Close()
		}
	}
}
