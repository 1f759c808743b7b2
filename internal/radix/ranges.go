package radix

import "math/bits"

// ranges returns the values of the set.
func (o *order) ranges() []Range {
	w := rangeWriter{table: o.table}
	for at := range o.from(0, Value{}) {
		level, first := o.table.node(at)
		if first.IsMapped() {
			w.enter(at, level, first)
		}
	}
	w.leave()
	four := w.out
	w = rangeWriter{table: o.table}
	for at := range o.from(0, Value{}) {
		level, first := o.table.node(at)
		if !first.IsMapped() {
			w.enter(at, level, first)
		}
	}
	w.leave()
	return interleave(w.out, four)
}

// rangeWriter walks over nodes in their order.
type rangeWriter struct {
	table *table
	open  []openNode // the nodes that contain the current position, from the top
	next  Value      // the first value not written; meaningless without an open node
	out   []Range
}

type openNode struct {
	bits  uint64
	level int
	last  Value
	first Value
}

// enter goes to a node.
func (w *rangeWriter) enter(at, level int, first Value) {
	w.until(first)
	last := first.or(low(shifts[level] + 6))
	w.open = append(w.open, openNode{w.table.bits(at), level, last, first})
	w.next = first
}

// leave ends the walk.
func (w *rangeWriter) leave() {
	for len(w.open) > 0 {
		w.close()
	}
}

// until writes the ranges before a value.
func (w *rangeWriter) until(v Value) {
	for len(w.open) > 0 {
		n := &w.open[len(w.open)-1]
		if !n.last.Less(v) {
			if w.next.Less(v) {
				w.write(n, v.Prev())
				w.next = v
			}
			return
		}
		w.close()
	}
}

// close writes the rest of the innermost node.
func (w *rangeWriter) close() {
	n := &w.open[len(w.open)-1]
	if !n.last.Less(w.next) && !(w.next == (Value{}) && n.first != (Value{})) {
		w.write(n, n.last)
		w.next = n.last.Next()
	}
	w.open = w.open[:len(w.open)-1]
}

// write writes the values from w.next to last that are in the set according to a node.
func (w *rangeWriter) write(n *openNode, last Value) {
	from, to := part(n.level, w.next), part(n.level, last)
	mask := n.bits & (^uint64(0) >> (63 - to) &^ (1<<from - 1))
	for mask != 0 {
		begin := bits.TrailingZeros64(mask)
		length := bits.TrailingZeros64(^(mask >> begin))
		run := piece{n.level, n.first, (^uint64(0) >> (64 - length)) << begin}
		r := run.block()
		if r.First.Less(w.next) {
			r.First = w.next
		}
		if last.Less(r.Last) {
			r.Last = last
		}
		w.out = appendRange(w.out, r)
		mask &^= run.mask
	}
}

// interleave puts the IPv4 addresses in their place among all others; the other tree has no meaning there.
func interleave(all, four []Range) []Range {
	var out []Range
	for _, r := range all {
		for part := range r.split {
			if part.First.IsMapped() {
				continue
			}
			if !part.First.Less(firstIPv4) {
				for _, f := range four {
					out = appendRange(out, f)
				}
				four = nil
			}
			out = appendRange(out, part)
		}
	}
	for _, f := range four {
		out = appendRange(out, f)
	}
	return out
}
