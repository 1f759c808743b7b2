package impair

import "github.com/opendivert/divert"

// A way is the treatment of a packet when its time has come.
type way uint8

const (
	accept way = iota // goes on unchanged
	send              // goes on changed, or is injected
	drop              // ends
)

// held is a packet that waits for its time.
type held struct {
	when   int64  // nanoseconds since the run began
	order  uint64 // order among packets of the same time
	index  int    // in the heap
	packet divert.Packet
	way    way
	rule   *rule

	// For a packet that lets others pass:
	flow       *flow
	until      uint64 // it goes on behind this packet of its flow
	prev, next *held  // others of the flow
	own        int64  // time at which it goes on if the others do not come
}

// heap is a heap of packets, the next one first. It does not use container/heap, which would call every comparison
// through an interface.
type heap []*held

func (a *held) before(b *held) bool { return a.when < b.when || a.when == b.when && a.order < b.order }

func (h *heap) push(e *held) {
	*h = append(*h, e)
	e.index = len(*h) - 1
	h.up(e.index)
}

// pop removes the first packet and returns it.
func (h *heap) pop() *held {
	q := *h
	first, last := q[0], len(q)-1
	q[0] = q[last]
	q[0].index = 0
	q[last] = nil
	*h = q[:last]
	if last > 0 {
		h.down(0)
	}
	return first
}

// sooner restores the order after a packet's time has become earlier.
func (h *heap) sooner(e *held) { h.up(e.index) }

func (h *heap) up(i int) {
	q := *h
	for i > 0 {
		parent := (i - 1) / 2
		if !q[i].before(q[parent]) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h *heap) down(i int) {
	q := *h
	for {
		child := 2*i + 1
		if child >= len(q) {
			return
		}
		if child+1 < len(q) && q[child+1].before(q[child]) {
			child++
		}
		if !q[child].before(q[i]) {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h *heap) swap(i, j int) {
	q := *h
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
