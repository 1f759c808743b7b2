//go:build linux

package codegen

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/flowmap"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Program is a loaded program. Its methods may be called by several goroutines at once, Close
// excepted.
type Program struct {
	program *ebpf.Program
	maps    map[string]*ebpf.Map // the maps that the instructions refer to must stay open
}

// LoadSmall loads a small program, for callers that want to know whether programs can be loaded. It fails as Load does.
func LoadSmall() (*Program, error) {
	u, err := Build(prog.Only(packet.LayerNetwork, prog.FieldIP), Hook{}, Options{})
	if err != nil {
		return nil, err
	}
	return u.Load()
}

// Load loads the program into the kernel (Linux 5.8; CAP_BPF, for sniffing also CAP_PERFMON, or
// CAP_SYS_ADMIN). The errors are *LimitError, if the filter is too large for the verifier, and
// *LoadError; a program that never matches cannot be loaded.
func (u *Unloaded) Load() (*Program, error) {
	if u.Outcome == Never {
		return nil, &LoadError{Err: errors.New("the filter never matches here")}
	}
	kernel.LiftMemlock()
	p := &Program{maps: make(map[string]*ebpf.Map, len(u.Maps))}
	for _, spec := range u.Maps {
		m, err := u.newMap(spec)
		if err != nil {
			p.Close()
			return nil, RefusedSets(spec, err)
		}
		p.maps[spec.Name] = m
	}
	if err := u.named.open(p.maps); err != nil {
		p.Close()
		return nil, err
	}
	code := append(u.Instructions[:0:0], u.Instructions...)
	describe(code)
	for i := range code {
		m, ok := p.maps[code[i].Reference()]
		if !ok {
			continue
		}
		if err := code[i].AssociateMap(m); err != nil {
			p.Close()
			return nil, &LoadError{Err: err}
		}
	}
	var err error
	p.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "divert", Type: ebpf.SocketFilter, Instructions: code, License: "GPL",
	})
	if err != nil {
		p.Close()
		return nil, Refused(err)
	}
	return p, nil
}

// RefusedSets gives the error of making a map its type: *LimitError if it is one of sets and too large, else *LoadError. Some
// kernels take 4 MiB (KMALLOC_MAX_SIZE), others 2 GiB.
func RefusedSets(spec *ebpf.MapSpec, err error) error {
	if spec.Name == setsMap && errors.Is(err, unix.E2BIG) {
		return &LimitError{Limit: "bytes of sets", Have: int(spec.ValueSize), Max: 4 << 20, Err: err}
	}
	return &LoadError{Err: fmt.Errorf("map %s: %w", spec.Name, err)}
}

// Outlet takes the programs' records. Several programs can have one, so that a filter can be replaced by
// another and the records of both are read in one place. A program for which a map is missing here has one
// of its own.
type Outlet struct {
	Packets *ebpf.Map // of sniffing programs: the perf event array
	Counts  *ebpf.Map // of Counter, for each CPU
	Asleep  *ebpf.Map // an array of one number of 32 bits: 1 if the reader sleeps. It can be mapped into memory.
	Bell    *ebpf.Map // a ring buffer in which there is something if a program has woken the reader
	Times   *ebpf.Map // of Options.Correlate: the ring buffer
	Clones  *ebpf.Map // of Options.Clones: how many packets, for each CPU
}

// NewTimes makes an outlet for times: a ring buffer of a size in bytes, a power of two and a multiple of the page size
// (Linux 5.8; CAP_BPF or CAP_SYS_ADMIN).
func NewTimes(size uint32) (*Outlet, error) {
	kernel.LiftMemlock()
	m, err := ebpf.NewMap(timesSpec(size))
	if err != nil {
		return nil, &LoadError{Err: fmt.Errorf("map %s: %w", correlateMap, err)}
	}
	return &Outlet{Times: m}, nil
}

// NewOutlet makes an outlet for copies (CAP_BPF or CAP_SYS_ADMIN).
func NewOutlet() (*Outlet, error) {
	kernel.LiftMemlock()
	o := &Outlet{}
	for _, part := range []struct {
		m    **ebpf.Map
		spec *ebpf.MapSpec
	}{{&o.Packets, packetsSpec()}, {&o.Counts, counterSpec()}, {&o.Asleep, asleepSpec()}, {&o.Bell, bellSpec()}} {
		m, err := ebpf.NewMap(part.spec)
		if err != nil {
			return nil, errors.Join(&LoadError{Err: fmt.Errorf("map %s: %w", part.spec.Name, err)}, o.Close())
		}
		*part.m = m
	}
	return o, nil
}

// named returns the outlet's map of a name, nil if it has none.
func (o *Outlet) named(name string) *ebpf.Map {
	if o == nil {
		return nil
	}
	return map[string]*ebpf.Map{packetsMap: o.Packets, counterMap: o.Counts, asleepMap: o.Asleep, bellMap: o.Bell, correlateMap: o.Times, clonesMap: o.Clones}[name]
}

// Counter returns the sum of the counters of all CPUs.
func (o *Outlet) Counter() (Counter, error) { return sumCounter(o.Counts) }

// Close releases the maps. Programs that have the outlet keep it.
func (o *Outlet) Close() error {
	return errors.Join(o.Packets.Close(), o.Counts.Close(), o.Asleep.Close(), o.Bell.Close(), o.Times.Close(), o.Clones.Close())
}

// LoadInto is Load for a program whose copies and counts go to an outlet, and which looks processes up in maps
// that others keep, instead of maps of its own. Either may be nil.
func (u *Unloaded) LoadInto(o *Outlet, ps *processmap.Maps) (*Program, error) {
	into := *u
	into.outlet, into.processes = o, ps
	return into.Load()
}

// WithFlows returns the program with the maps of flows that others keep, which it must have for Options.Flows.
func (u *Unloaded) WithFlows(m *flowmap.Maps) *Unloaded {
	with := *u
	with.flows = m
	return &with
}

// newMap makes a map of the program, or takes the outlet's or one of processes or flows.
func (u *Unloaded) newMap(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if m := u.flows.Named(spec.Name); m != nil {
		return m.Clone()
	}
	if m := u.processes.Named(spec.Name); m != nil {
		return m.Clone()
	}
	if m := u.outlet.named(spec.Name); m != nil {
		return m.Clone()
	}
	return newMap(spec)
}

// newMap makes a map. A map that programs only read is frozen, so that nobody else writes it either.
func newMap(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	if spec.Flags&flagReadOnlyProgram != 0 {
		if err := m.Freeze(); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// CloseMaps releases the descriptors of the maps, which the program itself keeps alive. Its methods find none any more.
func (p *Program) CloseMaps() error {
	var errs []error
	for _, m := range p.maps {
		errs = append(errs, m.Close())
	}
	p.maps = nil
	return errors.Join(errs...)
}

// Close releases the program and its maps. A rule that holds the program keeps it alive.
func (p *Program) Close() error {
	var errs []error
	if p.program != nil {
		errs = append(errs, p.program.Close())
	}
	return errors.Join(append(errs, p.CloseMaps())...)
}

// FD returns the file descriptor of the program. It belongs to the program: do not close it.
func (p *Program) FD() int { return p.program.FD() }

// Packets returns the perf event array that a sniffing program copies packets to, otherwise nil. It
// belongs to the program.
func (p *Program) Packets() *ebpf.Map { return p.maps[packetsMap] }

// Times returns the ring buffer of Options.Correlate, otherwise nil. It belongs to the program.
func (p *Program) Times() *ebpf.Map { return p.maps[correlateMap] }

// Counter returns the sum of the counters of all CPUs, zero without Options.Count.
func (p *Program) Counter() (Counter, error) {
	m := p.maps[counterMap]
	if m == nil {
		return Counter{}, nil
	}
	return sumCounter(m)
}

// sumCounter adds up the counters of all CPUs.
func sumCounter(m *ebpf.Map) (Counter, error) {
	var perCPU []Counter
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		return Counter{}, fmt.Errorf("codegen: counter: %w", err)
	}
	var sum Counter
	for _, c := range perCPU {
		sum.Matched += c.Matched
		sum.Failed += c.Failed
	}
	return sum, nil
}
