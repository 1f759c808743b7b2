//go:build linux

package flowmap

import "github.com/opendivert/divert/internal/flow"

// places notes which flows are in the table of verdicts, to find one to make way when the table is full: about the flow whose
// last packet is the oldest. A hand goes over the flows in turn and takes the first that has had no packet since the hand's last
// visit ("clock", "second chance"). Memory grows with the flows, 48 bytes each, and is never copied.
type places struct {
	chunks [][]place // each has room for chunk places
	count  int       // of places
	free   []uint32
	hand   uint32
}

const chunk = 1 << 10

// at returns a place.
func (p *places) at(n uint32) *place { return &p.chunks[n/chunk][n%chunk] }

type place struct {
	key  flow.Key
	seen int64 // the last packet that the hand knows of; 0: none, as the place is free
}

// looks limits how many flows the hand passes. If all of them have had packets since, the one whose last packet is the oldest
// makes way.
const looks = 64

// full reports whether there are size flows.
func (p *places) full(size int) bool { return len(p.free) == 0 && p.count >= size }

// take returns a place that is free, if there are fewer than size flows.
func (p *places) take(size int) (at uint32, ok bool) {
	if p.full(size) {
		return 0, false
	}
	if n := len(p.free); n > 0 {
		at, p.free = p.free[n-1], p.free[:n-1]
		return at, true
	}
	if p.count%chunk == 0 {
		p.chunks = append(p.chunks, make([]place, min(chunk, size-p.count)))
	}
	p.count++
	return uint32(p.count - 1), true
}

// note notes the flow at a place that was taken, and the time of its last packet.
func (p *places) note(at uint32, k *flow.Key, seen int64) { *p.at(at) = place{*k, seen} }

// release gives a place back.
func (p *places) release(at uint32) {
	*p.at(at) = place{}
	p.free = append(p.free, at)
}

// oldest returns the place and the flow that makes way when no place is free. last returns the time of a flow's last packet, 0
// if its verdict does not hold any more.
func (p *places) oldest(last func(*flow.Key) (int64, error)) (uint32, *flow.Key, error) {
	best, least := p.hand, int64(0)
	for i := range min(looks, p.count) {
		at := p.hand
		p.hand = (p.hand + 1) % uint32(p.count)
		one := p.at(at)
		seen, err := last(&one.key)
		if err != nil {
			return 0, nil, err
		}
		if seen <= one.seen {
			return at, &one.key, nil
		}
		if one.seen = seen; i == 0 || seen < least {
			best, least = at, seen
		}
	}
	return best, &p.at(best).key, nil
}
