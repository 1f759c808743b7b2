//go:build linux

// Package flowmap is the memory that a handle's programs and its process share about flows: the verdicts, which the process
// decides and the programs follow, and the counts that filters ask for. Package codegen makes the programs.
package flowmap

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/flow"
)

// The names by which programs refer to the maps.
const (
	Decided = "divert_flows"  // LRU hash, flow.Key to flow.Record: flows with a verdict, written by the process
	Counted = "divert_counts" // the same of flows that filters count, written by the programs
	State   = "divert_state"  // array of one state
	Totals  = "divert_totals" // for each CPU: packets and bytes that were accepted, packets and bytes that were dropped
)

// Offsets in a record, in bytes.
const (
	LastSeen   = int16(unsafe.Offsetof(flow.Record{}.LastSeen))
	Packets    = int16(unsafe.Offsetof(flow.Record{}.Packets))
	Bytes      = int16(unsafe.Offsetof(flow.Record{}.Bytes))
	Deadline   = int16(unsafe.Offsetof(flow.Record{}.Deadline))
	IdleTime   = int16(unsafe.Offsetof(flow.Record{}.Idle))
	Generation = int16(unsafe.Offsetof(flow.Record{}.Generation))
	Verdict    = int16(unsafe.Offsetof(flow.Record{}.Verdict))
	Finished   = int16(unsafe.Offsetof(flow.Record{}.Finished))

	KeySize    = int32(unsafe.Sizeof(flow.Key{}))
	RecordSize = int32(unsafe.Sizeof(flow.Record{}))
)

// Offsets in a state.
const (
	DecidedGeneration = 0  // 32 bits
	CountedGeneration = 4  // 32 bits
	IdleTCP           = 8  // 64 bits, nanoseconds
	IdleUDP           = 16 // 64 bits
	IdleICMP          = 24 // 64 bits
	stateSize         = 32
)

// totalsSize is the size of the totals of a CPU.
const totalsSize = 32

// state is the value of the map State.
type state struct {
	Decided, Counted uint32
	TCP, UDP, ICMP   int64
}

// local is how many free entries each CPU keeps for itself, at most (LOCAL_FREE_TARGET of kernel/bpf/bpf_lru_list.c), and
// so many that are not free it may push out at a time.
const local = 128

// Maps are the maps of a handle. Its methods may be called by several goroutines at once, Close and Make excepted; those that
// change generations not at the same time.
type Maps struct {
	maps  map[string]*ebpf.Map
	state state
	size  int
	idle  flow.Idle
}

// New makes the maps for size flows with a verdict, and with counts for as many flows that filters count, but for the tables
// themselves: those are for Make (Linux 5.8; CAP_BPF or CAP_SYS_ADMIN).
func New(size int, idle flow.Idle) (*Maps, error) {
	m := &Maps{
		maps: map[string]*ebpf.Map{}, size: size, idle: idle,
		state: state{Decided: 1, Counted: 1, TCP: int64(idle.TCP), UDP: int64(idle.UDP), ICMP: int64(idle.ICMP)},
	}
	err := m.add(State)
	if err == nil {
		err = m.tell()
	}
	if err == nil {
		err = m.add(Totals)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Make makes a table, Decided or Counted, unless it is there. Its memory is taken at once.
func (m *Maps) Make(table string) error {
	if m.maps[table] != nil {
		return nil
	}
	return m.add(table)
}

func (m *Maps) add(name string) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	spec := Spec(name)
	if spec.Type == ebpf.LRUHash {
		spec.MaxEntries = uint32(m.size + 2*local*(cpus+1)) // so that size flows are kept although the CPUs hold some back
	}
	made, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("a table of %d flows: map %s: %w", m.size, name, err)
	}
	m.maps[name] = made
	return nil
}

// Spec returns the description of the map with a name; a table has room for one flow.
func Spec(name string) *ebpf.MapSpec {
	switch name {
	case State:
		return &ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1}
	case Totals:
		return &ebpf.MapSpec{Name: name, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: totalsSize, MaxEntries: 1}
	}
	return &ebpf.MapSpec{Name: name, Type: ebpf.LRUHash, KeySize: uint32(KeySize), ValueSize: uint32(RecordSize), MaxEntries: 1}
}

// Named returns the map of a name, nil if it is none of these. It belongs to m. A nil m has none.
func (m *Maps) Named(name string) *ebpf.Map {
	if m == nil {
		return nil
	}
	return m.maps[name]
}

// tell makes the programs see the state.
func (m *Maps) tell() error {
	if err := m.maps[State].Put(uint32(0), &m.state); err != nil {
		return fmt.Errorf("state of the flows: %w", err)
	}
	return nil
}

// Decide makes a verdict hold for a flow from the next packet on.
func (m *Maps) Decide(k *flow.Key, v flow.Verdict) error {
	if err := m.Make(Decided); err != nil {
		return err
	}
	r := flow.Record{LastSeen: clock.Now(), Idle: m.idle.Of(k.Protocol), Generation: m.state.Decided, Verdict: v}
	if err := m.maps[Decided].Put(k, &r); err != nil {
		return fmt.Errorf("the verdict of a flow: %w", err)
	}
	return nil
}

// Get returns the record of a flow with a verdict.
func (m *Maps) Get(k *flow.Key) (r flow.Record, ok bool, err error) {
	if m.maps[Decided] == nil {
		return r, false, nil
	}
	switch err := m.maps[Decided].Lookup(k, &r); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return r, false, nil
	case err != nil:
		return r, false, fmt.Errorf("the verdict of a flow: %w", err)
	}
	return r, r.Verdict != flow.Undecided && r.Live(clock.Now(), m.state.Decided), nil
}

// Forget ends what is known of a flow, and reports whether it had a verdict.
func (m *Maps) Forget(k *flow.Key) (had bool, err error) {
	if _, had, err = m.Get(k); err != nil {
		return false, err
	}
	for _, name := range [...]string{Decided, Counted} {
		if m.maps[name] == nil {
			continue
		}
		if err := m.maps[name].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return had, fmt.Errorf("forget a flow: %w", err)
		}
	}
	return had, nil
}

// Revoke ends all verdicts, from the next packet on.
func (m *Maps) Revoke() error {
	m.state.Decided++
	return m.tell()
}

// ForgetAll ends what is known of all flows.
func (m *Maps) ForgetAll() error {
	m.state.Counted++
	return m.Revoke()
}

// Totals returns the sum of the counters of all CPUs.
func (m *Maps) Totals() (sum flow.Totals, err error) {
	var each []flow.Totals
	if err := m.maps[Totals].Lookup(uint32(0), &each); err != nil {
		return sum, fmt.Errorf("totals of the flows: %w", err)
	}
	for _, t := range each {
		sum.Accepted += t.Accepted
		sum.AcceptedBytes += t.AcceptedBytes
		sum.Dropped += t.Dropped
		sum.DroppedBytes += t.DroppedBytes
	}
	return sum, nil
}

// Close releases the maps. Programs that have them keep them.
func (m *Maps) Close() error {
	var errs []error
	for _, each := range m.maps {
		errs = append(errs, each.Close())
	}
	return errors.Join(errs...)
}
