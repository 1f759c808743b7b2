package main

// automaton finds all occurrences of many patterns in one pass (Aho and Corasick, 1975), ignoring case. It is a
// complete table of transitions; bytes that no pattern distinguishes share a column. It is read-only once made.
type automaton struct {
	class [256]uint8
	width int     // columns
	next  []int32 // by state and class: the next state; negative: ^state, where patterns end
	ends  [][]int // by state: the patterns that end there
}

// newAutomaton makes the automaton of patterns, which must not be empty and are identified by index.
func newAutomaton(patterns [][]byte) *automaton {
	a := &automaton{width: 1}
	for _, p := range patterns {
		for _, c := range p {
			if c = lower(c); a.class[c] == 0 && a.width < 256 { // the last byte of 256 shares a column only if all are used
				a.class[c] = uint8(a.width)
				a.width++
			}
		}
	}
	for c := 'A'; c <= 'Z'; c++ {
		a.class[c] = a.class[lower(byte(c))]
	}
	a.grow()
	for i, p := range patterns {
		s := int32(0)
		for _, c := range p {
			at := int(s)*a.width + int(a.class[lower(c)])
			if a.next[at] == 0 {
				a.next[at] = int32(len(a.ends))
				a.grow()
			}
			s = a.next[at]
		}
		a.ends[s] = append(a.ends[s], i)
	}
	a.complete()
	return a
}

// grow adds a state without transitions.
func (a *automaton) grow() {
	a.next = append(a.next, make([]int32, a.width)...)
	a.ends = append(a.ends, nil)
}

// complete turns the tree of patterns into a table, level by level: a state's missing transitions are those of its
// longest proper suffix that is a state.
func (a *automaton) complete() {
	fail := make([]int32, len(a.ends))
	var queue []int32
	for _, s := range a.next[:a.width] {
		if s != 0 {
			queue = append(queue, s)
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		a.ends[s] = append(a.ends[s], a.ends[fail[s]]...)
		for c := range a.width {
			at, other := int(s)*a.width+c, a.next[int(fail[s])*a.width+c]
			if t := a.next[at]; t != 0 {
				fail[t] = other
				queue = append(queue, t)
			} else {
				a.next[at] = other
			}
		}
	}
	for i, s := range a.next {
		if len(a.ends[s]) > 0 {
			a.next[i] = ^s
		}
	}
}

// scan reads bytes starting in a state, 0 at first, and returns the state after them, in which the next bytes of the
// same stream continue. It calls found with each pattern that ends, and the offset in b after its last byte. found may
// be nil.
func (a *automaton) scan(state int32, b []byte, found func(pattern, end int)) int32 {
	next, width := a.next, a.width
	for i, c := range b {
		state = next[int(state)*width+int(a.class[c])]
		if state < 0 {
			state = ^state
			for _, p := range a.ends[state] {
				found(p, i+1)
			}
		}
	}
	return state
}

// lower returns the lower case of an ASCII letter.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
