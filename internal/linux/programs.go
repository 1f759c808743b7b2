//go:build linux

package linux

import (
	"errors"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
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

// set makes a filter decide from now on and returns the times that its programs tell, nil if the filter asks for
// none. With an outlet the programs copy what matches to it. If it fails, the filter before stays in force.
func (es entries) set(p *filter.Program, cfg *engine.Config, outlet *codegen.Outlet) (told *times, err error) {
	correlate := outlet == nil && cfg.Flags&engine.FlagDrop == 0 && asksForTime(p)
	if correlate {
		told = &times{waiting: map[uint64][]int64{}}
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
		o := codegen.Options{Correlate: correlate, CorrelateSize: timesSize}
		if outlet != nil {
			o = codegen.Options{Sniff: true, Snap: uint32(cfg.Snap), Count: true, Tag: uint32(hook.Direction)}
		}
		u, err := codegen.Build(p, hook, o)
		if err != nil {
			return nil, err
		}
		if u.Outcome == codegen.Never {
			continue
		}
		if loaded[chain], err = u.LoadInto(outlet); err != nil {
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

// timesSize is the size of the ring through which a program tells the times of its packets, in bytes: room for
// some more than the longest queue.
const timesSize = 1 << 20

// close lets go of the entries; rules that hold them match nothing.
func (es entries) close() error {
	var errs []error
	for _, e := range es {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
