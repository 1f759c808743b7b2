package radix

import (
	"errors"
	"sync"
	"sync/atomic"
)

// A Home is where the tables of a set stand.
type Home interface {
	// Make returns memory for so many buckets.
	Make(buckets int) (Memory, error)
	// Publish makes readers outside of this program read the table in that memory, which Make has returned, from now on.
	Publish(Memory) error
}

// heap is the memory of this program.
type heap struct{}

func (heap) Make(buckets int) (Memory, error) {
	return Memory{Words: make([]uint64, buckets*BucketWords)}, nil
}
func (heap) Publish(Memory) error { return nil }

// Set is a set of values. Its methods may be called by several goroutines at once; Contains waits for nobody.
type Set struct {
	table atomic.Pointer[table]

	mu    sync.Mutex // for all that is not Contains
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

// MaxNodes is how many nodes a table may have: 2 GiB with what it takes to find them.
const MaxNodes = 1 << 25

// ErrFull is the error of a set with more than MaxNodes nodes.
var ErrFull = errors.New("the set is too large")

// A table is made for a load of makeLoad and is exchanged at a load of maxLoad, in percent of the room for nodes.
const (
	makeLoad = 35
	maxLoad  = 55
)

// bucketsFor returns how many buckets a table for so many nodes has.
func bucketsFor(nodes int) int { return nodes*100/(makeLoad*perBucket) + 4 }

// full reports whether a table has no more nodes than it should.
func (t *table) full() bool { return t.nodes*100 >= t.buckets*perBucket*maxLoad }

// Add adds the values of the ranges. If it fails nothing is added.
func (s *Set) Add(ranges ...Range) error { return s.change(ranges, true) }

// Remove removes the values of the ranges, whatever they were added with. If it fails nothing is removed.
func (s *Set) Remove(ranges ...Range) error { return s.change(ranges, false) }

func (s *Set) change(ranges []Range, in bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for more := len(ranges); !s.make(ranges, in); more += more/2 + 16 {
		if err := s.grow(more); err != nil { // which leaves out the nodes made in vain
			atomic.AddUint64(&s.order.table.Words[WordChanges], 1) // so that the nodes are older than the next change
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

// make makes the nodes that a change needs, which changes no answer, and reports whether there was room.
func (s *Set) make(ranges []Range, in bool) bool {
	for _, r := range ranges {
		for part := range r.split {
			for p := range part.pieces {
				if s.order.table.above(p.level, p.prefix) == in {
					continue // a value without a node is so anyway
				}
				if !s.order.ensure(p.level, p.prefix) {
					return false
				}
			}
		}
	}
	return true
}

// ensure makes a node and its markers, unless they are there, and reports whether there was room.
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
	at := level - marker // where the levels begin
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

// create makes a node unless it is there.
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

// Grow makes room for so many more nodes, so that adding them costs no exchange of the table.
func (s *Set) Grow(nodes int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.order.table; (t.nodes+nodes)*100 < t.buckets*perBucket*maxLoad {
		return nil
	}
	return s.grow(nodes)
}

// grow exchanges the table for one with room for so many more nodes, without the nodes of no use.
func (s *Set) grow(more int) error {
	o, err := build(s.home, s.order.ranges(), more)
	if err != nil {
		return err
	}
	return s.exchange(o)
}

// exchange makes a table the one in force.
func (s *Set) exchange(o *order) error {
	if err := s.home.Publish(o.table.Memory); err != nil {
		return err
	}
	s.order = *o
	s.table.Store(o.table)
	return nil
}

// Replace makes the values of the ranges, in any order, the only ones. Each look-up meets the old set or the new one. If
// it fails, the old one stays.
func (s *Set) Replace(ranges []Range) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := build(s.home, Join(ranges), 0)
	if err != nil {
		return err
	}
	return s.exchange(o)
}

// Move moves the set to the home that make returns, unless is says that it is in such a home already, and returns its home.
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

// Ranges yields the values of the set in ascending order, as the fewest ranges. It sees the set as it was when it was
// called; changes made meanwhile wait.
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

// Size returns how many bytes the set takes, and how many nodes it has.
func (s *Set) Size() (bytes, nodes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.order.table
	return len(t.Words)*8 + len(s.order.chunks)*4*maxChunk, t.nodes
}
