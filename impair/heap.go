package impair

import "github.com/opendivert/divert"

// A way is how a packet goes on.
type way uint8

const (
	accept way = iota // as it came
	send              // with other bytes, or anew
	drop              // not at all
)

// held is a packet that waits for its time.
type held struct {
	when   int64  // nanoseconds since the run began
	order  uint64 // among those of one time
	index  int    // in the heap
	packet divert.Packet
	way    way
	rule   *rule

	// For a packet that lets others pass:
	flow       *flow
	until      uint64 // it goes on behind this packet of its flow
	prev, next *held  // others of the flow
	own        int64  // when it would go on otherwise
}

// heap is a heap of packets, the next one first. It is written out because container/heap would call every comparison through
// an interface.
type heap []*held

func (a *held) before(b *held) bool { return a.when < b.when || a.when == b.when && a.order < b.order }

func (h *heap) push(e *held) {
	*h = append(*h, e)
	e.index = len(*h) - 1
	h.up(e.index)
}

// pop takes out the first packet.
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

// sooner moves a packet that goes on sooner than it was to.
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
