package radix

import (
	"fmt"
	"slices"
)

// nodes calls f for each node of a table of ascending disjoint ranges, with the bits that a range sets in it, 0 for a
// marker. Nodes of one level come in the order of their prefixes, the same one several times.
func nodes(ranges []Range, f func(p piece)) {
	for _, r := range ranges {
		for part := range r.split {
			for p := range part.pieces {
				base := 0
				if p.prefix.IsMapped() {
					base = IPv4Levels
				}
				at := base
				for step := 16; step > 0; step >>= 1 {
					if (p.level-base)&step == 0 {
						continue
					}
					if at += step; at == p.level {
						f(p)
						break
					}
					f(piece{level: at, prefix: p.prefix.and(masks[at])})
				}
			}
		}
	}
}

// Join returns the values of ranges, which may come in any order, overlap and touch, as ranges in ascending order that
// neither overlap nor touch. It neither changes nor keeps the argument.
func Join(ranges []Range) []Range {
	sorted := make([]Range, 0, len(ranges))
	for _, r := range ranges {
		if !r.Last.Less(r.First) {
			sorted = append(sorted, r)
		}
	}
	slices.SortFunc(sorted, func(a, b Range) int { return a.First.Compare(b.First) })
	out := sorted[:0]
	for _, r := range sorted {
		out = appendRange(out, r)
	}
	return out
}

// appendRange appends a range that does not begin before the last one, and joins the two if they overlap or touch.
func appendRange(out []Range, r Range) []Range {
	n := len(out)
	if n == 0 || out[n-1].Last != lastValue && out[n-1].Last.Next().Less(r.First) {
		return append(out, r)
	}
	if out[n-1].Last.Less(r.Last) {
		out[n-1].Last = r.Last
	}
	return out
}

// build makes a table of the values of ascending disjoint ranges, with room for more nodes. As no range covers another,
// no node lies below a set bit.
func build(home Home, ranges []Range, more int) (*order, error) {
	count := 0
	var last [Levels + 1]Value
	var seen [Levels + 1]bool
	nodes(ranges, func(p piece) {
		if !seen[p.level] || last[p.level] != p.prefix {
			count++
		}
		seen[p.level], last[p.level] = true, p.prefix
	})
	for room := count + more; ; room += room/4 + 16 {
		if room > MaxNodes {
			return nil, fmt.Errorf("%w: %d nodes; at most %d are possible", ErrFull, room, MaxNodes)
		}
		m, err := home.Make(bucketsFor(room) + extraBuckets)
		if err != nil {
			return nil, err
		}
		o := &order{table: newTable(m)}
		if o.fill(ranges) {
			return o, nil
		}
	}
}

// fill fills an empty table, and reports whether there was room.
func (o *order) fill(ranges []Range) bool {
	var refs [Levels + 1][]uint32 // ascending
	fits := true
	nodes(ranges, func(p piece) {
		if at := o.table.find(p.level, p.prefix); at != 0 {
			o.table.setBits(at, o.table.bits(at)|p.mask)
		} else if at = o.table.insert(p.level, p.prefix, p.mask); at != 0 {
			refs[p.level] = append(refs[p.level], uint32(at/NodeWords))
		} else {
			fits = false
		}
	})
	if fits {
		o.merge(refs[:])
	}
	return fits
}

// merge makes the order from nodes sorted by level.
func (o *order) merge(refs [][]uint32) {
	var heads []head
	for _, r := range refs {
		if h := (head{refs: r}); h.next(o.table) {
			heads = append(heads, h)
		}
	}
	var chunk []uint32
	for len(heads) > 0 {
		least := 0
		for i := range heads { // in the order of levels, so the first of equals wins
			if heads[i].first.Less(heads[least].first) {
				least = i
			}
		}
		if len(chunk) == maxChunk*3/4 {
			o.chunks, chunk = append(o.chunks, chunk), nil
		}
		if chunk == nil {
			chunk = make([]uint32, 0, maxChunk)
		}
		chunk = append(chunk, heads[least].ref)
		if !heads[least].next(o.table) {
			heads = slices.Delete(heads, least, least+1)
		}
	}
	if chunk != nil {
		o.chunks = append(o.chunks, chunk)
	}
}

// head is the first of the nodes of a level still to be merged.
type head struct {
	ref   uint32
	first Value
	refs  []uint32 // the nodes behind it
}

// next goes to the next node, if there is one.
func (h *head) next(t *table) bool {
	if len(h.refs) == 0 {
		return false
	}
	h.ref, h.refs = h.refs[0], h.refs[1:]
	_, h.first = t.node(int(h.ref) * NodeWords)
	return true
}
