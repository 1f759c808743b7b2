//go:build linux

package linux

import (
	"errors"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// entries are a handle's programs in the kernel, one for each way of packets.
type entries map[rules.Chain]*codegen.Entry

// place is where a chain's programs run: what is known of its packets, and where the rest is found
// (linux/skbuff.h; which device is which was measured at each hook).
type place struct {
	gate codegen.Gate
	hook codegen.Hook
}

var places = map[rules.Chain]place{
	rules.Inbound:          {codegen.NotLoopback, codegen.Hook{Direction: codegen.Inbound, Index: codegen.IndexDevice}},
	rules.InboundFragments: {codegen.NotLoopback, codegen.Hook{Direction: codegen.Inbound, Index: codegen.IndexDevice}},
	rules.Outbound: {codegen.LocalOnly, codegen.Hook{
		Direction: codegen.Outbound, Index: codegen.IndexDevice, Loopback: codegen.LoopbackByInterface,
	}},
	rules.Forward: {codegen.NoGate, codegen.Hook{Direction: codegen.Outbound, Index: codegen.IndexDevice}},
}

// newEntries loads the entries of a handle; no filter is set yet.
func newEntries(layer packet.Layer, flags uint64, key cursor.Key) (entries, error) {
	es := entries{}
	for _, chain := range paths(layer, flags) {
		e, err := codegen.NewEntry(key, places[chain].gate)
		if err != nil {
			es.close()
			return nil, err
		}
		es[chain] = e
	}
	return es, nil
}

// setting is what a filter's programs work with.
type setting struct {
	outlet    *codegen.Outlet    // what matches is copied there; nil: it is not copied
	processes *codegen.Processes // nil: the processes of packets are not known
	tell      bool               // of each packet that matches, the process
	drops     bool               // nobody is to hear of the packets
	snap      int                // bytes of each packet to copy at most, 0: all
}

// set makes a filter decide from now on and returns what its programs tell of packets that are not copied, nil if
// they tell nothing. If it fails, the filter before stays in force.
func (es entries) set(p *filter.Program, s setting) (told *times, err error) {
	clock := asksForTime(p)
	correlate := s.outlet == nil && !s.drops && (clock || s.tell)
	if correlate {
		told = newTimes(clock)
		defer func() {
			if err != nil {
				told.close()
			}
		}()
	}
	loaded := map[rules.Chain]*codegen.Program{}
	defer func() {
		for _, program := range loaded {
			program.Close()
		}
	}()
	for chain := range es {
		hook := places[chain].hook
		hook.Event = packet.EventPacket
		hook.Processes = s.processes != nil
		o := codegen.Options{Correlate: correlate, CorrelateSize: timesSize, Process: s.tell}
		if s.outlet != nil {
			o = codegen.Options{Sniff: true, Snap: uint32(s.snap), Count: true, Tag: uint32(hook.Direction), Process: s.tell}
		}
		o.Bounded = bounded()
		u, err := codegen.Build(p, hook, o)
		if err != nil {
			return nil, err
		}
		if u.Outcome == codegen.Never {
			continue
		}
		if loaded[chain], err = u.LoadInto(s.outlet, s.processes); err != nil {
			delete(loaded, chain)
			return nil, err
		}
		if correlate {
			if err := told.add(loaded[chain].Times()); err != nil {
				return nil, err
			}
		}
	}
	return told, es.put(loaded)
}

// put sets the programs; where there is none, nothing matches.
func (es entries) put(loaded map[rules.Chain]*codegen.Program) error {
	for chain, e := range es {
		var err error
		if program := loaded[chain]; program != nil {
			err = e.Set(program)
		} else {
			err = e.Clear()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clear makes nothing match from now on.
func (es entries) clear() error { return es.put(nil) }

// timesSize is the size of the ring through which a program tells of its packets, in bytes: room for
// twice as many as the longest queue has.
const timesSize = 1 << 20

// close lets go of the entries; rules that hold them match nothing.
func (es entries) close() error {
	var errs []error
	for _, e := range es {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
