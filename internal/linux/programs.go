//go:build linux

package linux

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// entries are a handle's programs in the kernel.
type entries struct {
	at       map[rules.Chain]*codegen.Entry   // one for each way of packets
	programs map[rules.Chain]*codegen.Program // those of the filter in force; where there is none, nothing matches
}

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
func newEntries(layer packet.Layer, flags uint64, key cursor.Key) (*entries, error) {
	es := &entries{at: map[rules.Chain]*codegen.Entry{}}
	for _, chain := range paths(layer, flags) {
		e, err := codegen.NewEntry(key, places[chain].gate)
		if err != nil {
			es.close()
			return nil, err
		}
		es.at[chain] = e
	}
	return es, nil
}

// setting is what a filter's programs work with.
type setting struct {
	outlet     *codegen.Outlet     // what matches is copied there; nil: it is not copied
	times      *ebpf.Map           // what matches and is not copied is told of there; nil: it is not told of
	clones     *codegen.Outlet     // with cloneCheck
	cloneCheck *codegen.CloneCheck // nil: none
	processes  *codegen.Processes  // nil: the processes of packets are not known
	tell       bool                // of each packet that matches, the process
	drops      bool                // nobody is to hear of the packets
	snap       int                 // bytes of each packet to copy at most, 0: all
}

// set makes a filter decide from now on. If it fails, the filter before stays in force.
func (es *entries) set(p *filter.Program, s setting) (err error) {
	loaded := map[rules.Chain]*codegen.Program{}
	defer func() {
		if err != nil {
			err = errors.Join(err, closePrograms(loaded))
		}
	}()
	for chain := range es.at {
		hook := places[chain].hook
		hook.Event = packet.EventPacket
		hook.Processes = s.processes != nil
		o, outlet := codegen.Options{Correlate: s.times != nil, Process: s.tell}, &codegen.Outlet{Times: s.times}
		if s.cloneCheck != nil && clonesCome(chain) {
			o.Clones, outlet.Clones = s.cloneCheck, s.clones.Clones
		}
		if s.outlet != nil {
			o = codegen.Options{Sniff: true, Snap: uint32(s.snap), Count: true, Tag: uint32(hook.Direction), Process: s.tell}
			outlet = s.outlet
		}
		o.Bounded = bounded()
		u, err := codegen.Build(p, hook, o)
		if err != nil {
			return err
		}
		if u.Outcome == codegen.Never {
			continue
		}
		program, err := u.LoadInto(outlet, s.processes)
		if err != nil {
			return err
		}
		loaded[chain] = program
		if err := program.CloseMaps(); err != nil {
			return err
		}
	}
	return es.put(loaded)
}

// put sets the programs; where there is none, nothing matches. If it fails, those before are in force.
func (es *entries) put(loaded map[rules.Chain]*codegen.Program) error {
	var done []rules.Chain
	for chain, e := range es.at {
		err := setEntry(e, loaded[chain])
		if err == nil {
			done = append(done, chain)
			continue
		}
		for _, before := range done {
			if back := setEntry(es.at[before], es.programs[before]); back != nil {
				err = errors.Join(err, fmt.Errorf("the filter before is not in force everywhere, close the handle: %w", back))
			}
		}
		return err
	}
	before := es.programs
	es.programs = loaded
	return closePrograms(before)
}

// setEntry sets the program of one entry, or none. Tests make it fail.
var setEntry = func(e *codegen.Entry, p *codegen.Program) error {
	if p == nil {
		return e.Clear()
	}
	return e.Set(p)
}

// closePrograms lets go of programs.
func closePrograms(programs map[rules.Chain]*codegen.Program) error {
	var errs []error
	for _, p := range programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// clear makes nothing match from now on.
func (es *entries) clear() error { return es.put(nil) }

// close lets go of the entries; rules that hold them match nothing.
func (es *entries) close() error {
	if es == nil {
		return nil
	}
	errs := []error{closePrograms(es.programs)}
	for _, e := range es.at {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
