package radix

import (
	"errors"
	"sync"
	"sync/atomic"
)

// A Home is a place for the tables of a set.
type Home interface {
	// Make returns memory for that many buckets.
	Make(buckets int) (Memory, error)
	// Publish makes readers outside this program use the table in that memory, a result of Make, from now on.
	Publish(Memory) error
}

// heap is the memory of this program.
type heap struct{}

func (heap) Make(buckets int) (Memory, error) {
	return Memory{Words: make([]uint64, buckets*BucketWords)}, nil
}
func (heap) Publish(Memory) error { return nil }

// Set is a set of values. Its methods may be called by several goroutines at once; Contains never blocks.
type Set struct {
	table atomic.Pointer[table]

	mu    sync.Mutex // for all methods but Contains
	order order
	home  Home
}

// New returns an empty set.
func New() *Set {
	s := &Set{home: heap{}}
	m, _ := s.home.Make(bucketsFor(0) + extraBuckets)
	t := newTable(m)
	s.table.Store(t)
	s.order.table = t
	return s
}

// Contains reports whether a value is in the set. It allocates nothing.
func (s *Set) Contains(v Value) bool {
	t := s.table.Load()
	for {
		before := t.changes()
		is := t.contains(v)
		if t.changes()-before < 2 {
			return is
		}
	}
}

// MaxNodes is the most nodes of a table: 2 GiB with the index that finds them.
const MaxNodes = 1 << 25

// ErrFull is the error of a set with more than MaxNodes nodes.
var ErrFull = errors.New("the set is too large")

// A table is made for a load of makeLoad and replaced at a load of maxLoad, in percent of the room for nodes.
const (
	makeLoad = 35
	maxLoad  = 55
)

// bucketsFor returns the number of buckets of a table for that many nodes.
func bucketsFor(nodes int) int { return nodes*100/(makeLoad*perBucket) + 4 }

// full reports whether a table should take no more nodes.
func (t *table) full() bool { return t.nodes*100 >= t.buckets*perBucket*maxLoad }

// Add adds the values of the ranges. If it fails nothing is added.
func (s *Set) Add(ranges ...Range) error { return s.change(ranges, true) }

// Remove removes the values of the ranges, however they were added. If it fails nothing is removed.
func (s *Set) Remove(ranges ...Range) error { return s.change(ranges, false) }

func (s *Set) change(ranges []Range, in bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for more := len(ranges); !s.make(ranges, in); more += more/2 + 16 {
		if err := s.grow(more); err != nil { // the new table omits nodes made in vain
			atomic.AddUint64(&s.order.table.Words[WordChanges], 1) // the nodes must be older than the next change
			return err
		}
	}
	atomic.AddUint64(&s.order.table.Words[WordChanges], 1)
	for _, r := range ranges {
		for part := range r.split {
			for p := range part.pieces {
				s.mark(&p, in)
			}
		}
	}
	return nil
}

// make makes the nodes for a change, without changing any answer, and reports whether there was room.
func (s *Set) make(ranges []Range, in bool) bool {
	for _, r := range ranges {
		for part := range r.split {
			for p := range part.pieces {
				if s.order.table.above(p.level, p.prefix) == in {
					continue // a value without a node is not in the set
				}
				if !s.order.ensure(p.level, p.prefix) {
					return false
				}
			}
		}
	}
	return true
}

// ensure makes a node and its markers, unless they exist, and reports whether there was room.
func (o *order) ensure(level int, prefix Value) bool {
	t := o.table
	if t.find(level, prefix) != 0 {
		return true // with its markers
	}
	if t.full() {
		return false
	}
	first := 16
	if prefix.IsMapped() {
		first = 4
	}
	marker := level
	if prefix.IsMapped() {
		marker -= IPv4Levels
	}
	at := level - marker // level at which the tree begins
	for step := first; step > 0; step >>= 1 {
		if marker&step == 0 {
			continue
		}
		at += step
		if !o.create(at, prefix.and(masks[at])) {
			return false
		}
	}
	return true
}

// create makes a node unless it exists.
func (o *order) create(level int, prefix Value) bool {
	t := o.table
	if t.find(level, prefix) != 0 {
		return true
	}
	content := uint64(0)
	if t.above(level, prefix) {
		content = ^uint64(0)
	}
	at := t.insert(level, prefix, content)
	if at == 0 {
		return false
	}
	o.add(at)
	return true
}

// mark sets or clears the bits of a piece, and all bits of the nodes below it.
func (s *Set) mark(p *piece, in bool) {
	t := s.order.table
	if at := t.find(p.level, p.prefix); at != 0 {
		if in {
			t.setBits(at, t.bits(at)|p.mask)
		} else {
			t.setBits(at, t.bits(at)&^p.mask)
		}
	}
	if p.level == Levels {
		return
	}
	content := uint64(0)
	if in {
		content = ^uint64(0)
	}
	block := p.block()
	for at := range s.order.from(p.level+1, block.First) {
		level, first := t.node(at)
		if block.Last.Less(first) {
			return
		}
		if level > p.level && first.IsMapped() == p.prefix.IsMapped() {
			t.setBits(at, content)
		}
	}
}

// Grow makes room for that many more nodes, so that adding them does not replace the table.
func (s *Set) Grow(nodes int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.order.table; (t.nodes+nodes)*100 < t.buckets*perBucket*maxLoad {
		return nil
	}
	return s.grow(nodes)
}

// grow replaces the table by one with room for that many more nodes, without useless nodes.
func (s *Set) grow(more int) error {
	o, err := build(s.home, s.order.ranges(), more)
	if err != nil {
		return err
	}
	return s.exchange(o)
}

// exchange puts a table in force.
func (s *Set) exchange(o *order) error {
	if err := s.home.Publish(o.table.Memory); err != nil {
		return err
	}
	s.order = *o
	s.table.Store(o.table)
	return nil
}

// Replace makes the values of the ranges, in any order, the only members. Each look-up meets the old set or the new one.
// If it fails, the old set stays.
func (s *Set) Replace(ranges []Range) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := build(s.home, Join(ranges), 0)
	if err != nil {
		return err
	}
	return s.exchange(o)
}

// Move moves the set to a home from make and returns the home, unless is reports that its home is suitable already.
func (s *Set) Move(make func() (Home, error), is func(Home) bool) (Home, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is(s.home) {
		return s.home, nil
	}
	home, err := make()
	if err != nil {
		return nil, err
	}
	o, err := build(home, s.order.ranges(), 0)
	if err != nil {
		return nil, err
	}
	before := s.home
	s.home = home
	if err := s.exchange(o); err != nil {
		s.home = before
		return nil, err
	}
	return home, nil
}

// Ranges yields the values of the set in ascending order, as the fewest ranges. It sees the set at the time of the call;
// changes made meanwhile wait.
func (s *Set) Ranges(yield func(Range) bool) {
	s.mu.Lock()
	ranges := s.order.ranges()
	s.mu.Unlock()
	for _, r := range ranges {
		if !yield(r) {
			return
		}
	}
}

// Size returns the memory of the set in bytes, and the number of its nodes.
func (s *Set) Size() (bytes, nodes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.order.table
	return len(t.Words)*8 + len(s.order.chunks)*4*maxChunk, t.nodes
}
