package radix

import "slices"

// maxChunk is the most nodes in a chunk.
const maxChunk = 512

// order holds the offsets of a table's nodes, in nodes, in the order of their first values; nodes with the same first
// value are in the order of their levels. It is kept in chunks, so that adding one costs little.
type order struct {
	table  *table
	chunks [][]uint32
}

// compare returns the order of the node at an offset relative to one of a level and prefix.
func (o *order) compare(ref uint32, level int, first Value) int {
	l, p := o.table.node(int(ref) * NodeWords)
	switch {
	case p == first:
		return l - level
	case p.Less(first):
		return -1
	}
	return 1
}

// search returns the position of the first node that is not before the node of a level and prefix.
func (o *order) search(level int, first Value) (chunk, i int) {
	before := func(ref uint32, _ struct{}) int {
		if o.compare(ref, level, first) < 0 {
			return -1
		}
		return 1
	}
	chunk, _ = slices.BinarySearchFunc(o.chunks, struct{}{}, func(c []uint32, _ struct{}) int { return before(c[len(c)-1], struct{}{}) })
	if chunk == len(o.chunks) {
		return chunk, 0
	}
	i, _ = slices.BinarySearchFunc(o.chunks[chunk], struct{}{}, before)
	return chunk, i
}

// add adds the node at an offset.
func (o *order) add(at int) {
	level, first := o.table.node(at)
	chunk, i := o.search(level, first)
	if chunk == len(o.chunks) { // behind all
		if chunk == 0 || len(o.chunks[chunk-1]) == maxChunk {
			o.chunks = append(o.chunks, append(make([]uint32, 0, maxChunk), uint32(at/NodeWords)))
			return
		}
		chunk--
		i = len(o.chunks[chunk])
	}
	c := slices.Insert(o.chunks[chunk], i, uint32(at/NodeWords))
	if len(c) > maxChunk {
		half := len(c) / 2
		upper := append(make([]uint32, 0, maxChunk), c[half:]...)
		o.chunks = slices.Insert(o.chunks, chunk+1, upper)
		c = append(make([]uint32, 0, maxChunk), c[:half]...)
	}
	o.chunks[chunk] = c
}

// from yields the offsets of nodes from the node of a level and prefix on.
func (o *order) from(level int, first Value) func(yield func(at int) bool) {
	return func(yield func(at int) bool) {
		chunk, i := o.search(level, first)
		for ; chunk < len(o.chunks); chunk, i = chunk+1, 0 {
			for _, ref := range o.chunks[chunk][i:] {
				if !yield(int(ref) * NodeWords) {
					return
				}
			}
		}
	}
}
