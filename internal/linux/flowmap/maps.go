//go:build linux

// Package flowmap is the memory that a handle's programs and its process share about flows: the verdicts, which the process
// decides and the programs follow, and the counts that filters ask for. Package codegen makes the programs.
package flowmap

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/flow"
)

// The names by which programs refer to the maps.
const (
	Decided = "divert_flows"  // hash, flow.Key to Entry: flows with a verdict, which only the process puts in and takes out
	Counted = "divert_counts" // LRU hash, flow.Key to flow.Record: flows that filters count, written by the programs
	State   = "divert_state"  // array of one state
	Totals  = "divert_totals" // for each CPU: packets and bytes that were accepted, packets and bytes that were dropped
)

// numbers numbers the maps, for Maps.maps.
var numbers = map[string]int{Decided: 0, Counted: 1, State: 2, Totals: 3}

const numMaps = 4

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

// Entry is the value of the map Decided.
type Entry struct {
	flow.Record
	Place uint32 // where the process notes the flow
	Zero  uint32
}

// totalsSize is the size of the totals of a CPU.
const totalsSize = 32

// state is the value of the map State.
type state struct {
	Decided, Counted uint32
	TCP, UDP, ICMP   int64
}

// local is the most free entries that each CPU keeps for itself (LOCAL_FREE_TARGET of kernel/bpf/bpf_lru_list.c), and the most
// entries in use that it may push out at a time.
const local = 128

// Maps are the maps of a handle. Several goroutines may call its methods at once, except Close and Make; calls that change
// verdicts or generations must not overlap.
type Maps struct {
	maps   [numMaps]atomic.Pointer[ebpf.Map] // by number; nil until it is made
	state  state
	now    atomic.Uint32 // state.Decided, the generation of verdicts, for readers
	size   int
	idle   flow.Idle
	places places
	latest flow.Key // that has a verdict

	next, before Entry // of Decide
}

// New makes the maps for size flows with a verdict and as many flows that filters count, without the tables, which Make makes
// (Linux 5.8; CAP_BPF or CAP_SYS_ADMIN).
func New(size int, idle flow.Idle) (*Maps, error) {
	m := &Maps{
		size: size, idle: idle,
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

// Make makes a table, Decided or Counted, unless it is there. Counted takes its memory at once, Decided with each flow.
func (m *Maps) Make(table string) error {
	if m.Named(table) != nil {
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
	switch name {
	case Decided:
		spec.MaxEntries = uint32(m.size)
	case Counted:
		spec.MaxEntries = uint32(m.size + 2*local*(cpus+1)) // so that size flows are kept although the CPUs hold some back
	}
	made, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("a table of %d flows: map %s: %w", m.size, name, err)
	}
	m.maps[numbers[name]].Store(made)
	return nil
}

// Spec returns the description of the map with a name; a table has room for one flow.
func Spec(name string) *ebpf.MapSpec {
	switch name {
	case State:
		return &ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1}
	case Totals:
		return &ebpf.MapSpec{Name: name, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: totalsSize, MaxEntries: 1}
	case Decided:
		return &ebpf.MapSpec{
			Name: name, Type: ebpf.Hash, KeySize: uint32(KeySize), ValueSize: uint32(unsafe.Sizeof(Entry{})), MaxEntries: 1,
			Flags: unix.BPF_F_NO_PREALLOC, // all of its memory at once would take milliseconds
		}
	}
	return &ebpf.MapSpec{Name: name, Type: ebpf.LRUHash, KeySize: uint32(KeySize), ValueSize: uint32(RecordSize), MaxEntries: 1}
}

// Named returns the map with a name, nil if there is none. It belongs to m. A nil m has no maps.
func (m *Maps) Named(name string) *ebpf.Map {
	number, ok := numbers[name]
	if m == nil || !ok {
		return nil
	}
	return m.maps[number].Load()
}

// tell writes the state where the programs read it.
func (m *Maps) tell() error {
	m.now.Store(m.state.Decided)
	if err := m.Named(State).Put(uint32(0), &m.state); err != nil {
		return fmt.Errorf("state of the flows: %w", err)
	}
	return nil
}

// Decide makes a verdict hold for a flow from the next packet on. If it holds already, its counters go on. If there is no room,
// a flow makes way that has had no packet for long.
func (m *Maps) Decide(k *flow.Key, v flow.Verdict) error {
	if err := m.Make(Decided); err != nil {
		return err
	}
	e := &m.next
	*e = Entry{Record: flow.Record{LastSeen: clock.Now(), Idle: m.idle.Of(k.Protocol), Generation: m.state.Decided, Verdict: v}}
	// A flow that has a place needs no other. Packets that waited for their verdict follow each other, so this may be the latest
	// flow again.
	if *k == m.latest || m.places.full(m.size) {
		done, err := m.decideAgain(k, e)
		if done || err != nil {
			return err
		}
	}
	var err error
	if e.Place, err = m.place(); err != nil {
		return err
	}
	err = m.put(k, e, ebpf.UpdateNoExist)
	if err == nil {
		m.places.note(e.Place, k, e.LastSeen)
		m.latest = *k
		return nil
	}
	m.places.release(e.Place)
	if errors.Is(err, ebpf.ErrKeyExist) {
		m.latest = *k
		_, err = m.decideAgain(k, e)
		return err
	}
	return fmt.Errorf("the verdict of a flow: %w", err)
}

// decideAgain replaces the entry of a flow that has one, unless it says the same.
func (m *Maps) decideAgain(k *flow.Key, e *Entry) (done bool, err error) {
	before := &m.before
	known, err := m.entry(k, before)
	switch {
	case !known || err != nil:
		return false, err
	case before.Verdict == e.Verdict && m.holds(before):
		return true, nil
	}
	e.Place = before.Place
	if err := m.put(k, e, ebpf.UpdateExist); err != nil {
		return false, fmt.Errorf("the verdict of a flow: %w", err)
	}
	m.places.note(e.Place, k, e.LastSeen)
	return true, nil
}

// put writes an entry. The kernel keeps memory for some entries ready on each CPU; on some kernels a thread refills it
// (PREEMPT_RT, kernel/bpf/memalloc.c), and put gives that thread time.
func (m *Maps) put(k *flow.Key, e *Entry, how ebpf.MapUpdateFlags) (err error) {
	for range 3 {
		if err = m.Named(Decided).Update(k, e, how); !errors.Is(err, unix.ENOMEM) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// place returns a place for one more flow.
func (m *Maps) place() (uint32, error) {
	if at, ok := m.places.take(m.size); ok {
		return at, nil
	}
	at, k, err := m.places.oldest(func(k *flow.Key) (seen int64, err error) {
		e := &m.before
		known, err := m.entry(k, e)
		if err != nil || !known || !m.holds(e) {
			return 0, err
		}
		return e.LastSeen, nil
	})
	if err != nil {
		return 0, err
	}
	if err := m.remove(Decided, k); err != nil {
		return 0, err
	}
	return at, nil
}

// remove takes a flow out of a table.
func (m *Maps) remove(table string, k *flow.Key) error {
	of := m.Named(table)
	if of == nil {
		return nil
	}
	if err := of.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget a flow: %w", err)
	}
	return nil
}

// entry reads the entry of a flow, even if its verdict does not hold any more.
func (m *Maps) entry(k *flow.Key, e *Entry) (known bool, err error) {
	table := m.Named(Decided)
	if table == nil {
		return false, nil
	}
	switch err := table.Lookup(k, e); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("the verdict of a flow: %w", err)
	}
	return true, nil
}

// holds reports whether a verdict holds.
func (m *Maps) holds(e *Entry) bool {
	return e.Verdict != flow.Undecided && e.Live(clock.Now(), m.now.Load())
}

// Get returns the record of a flow with a verdict.
func (m *Maps) Get(k *flow.Key) (r flow.Record, ok bool, err error) {
	var e Entry
	known, err := m.entry(k, &e)
	return e.Record, known && m.holds(&e), err
}

// Forget removes a flow with its verdict and counts, and reports whether it had a verdict.
func (m *Maps) Forget(k *flow.Key) (had bool, err error) {
	var e Entry
	known, err := m.entry(k, &e)
	if err != nil {
		return false, err
	}
	if known {
		if err := m.remove(Decided, k); err != nil {
			return m.holds(&e), err
		}
		m.places.release(e.Place)
	}
	return known && m.holds(&e), m.remove(Counted, k)
}

// Revoke ends all verdicts, from the next packet on.
func (m *Maps) Revoke() error {
	m.state.Decided++
	return m.tell()
}

// ForgetAll removes all flows.
func (m *Maps) ForgetAll() error {
	m.state.Counted++
	return m.Revoke()
}

// Totals returns the sum of the counters of all CPUs.
func (m *Maps) Totals() (sum flow.Totals, err error) {
	var each []flow.Totals
	if err := m.Named(Totals).Lookup(uint32(0), &each); err != nil {
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
	for i := range m.maps {
		errs = append(errs, m.maps[i].Load().Close()) // nil has nothing to close
	}
	return errors.Join(errs...)
}
