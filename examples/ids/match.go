package main

import (
	"bytes"
	"regexp"
)

// test is a content or a pcre of a rule. A relative test counts from the end of the previous match in the same buffer.
type test struct {
	content []byte         // nil for a pcre
	folded  []byte         // content in lower case
	re      *regexp.Regexp // for a pcre

	negated, nocase, relative, fast bool
	atStart, atEnd                  bool

	offset, depth    int // from the beginning of the buffer; depth -1: to the end
	distance, within int // from the previous match; within -1: to the end
}

// maxSteps is how many positions a rule may try in a buffer, as in Suricata; beyond that it does not match.
const maxSteps = 3000

// matcher tries the tests of a rule on a buffer.
type matcher struct {
	buffer []byte
	folded []byte // in lower case, made on demand
	steps  int
}

// match reports whether the tests match one after the other; last is the end of the previous match.
func (m *matcher) match(tests []test, last int) bool {
	if len(tests) == 0 {
		return true
	}
	t := &tests[0]
	from, to := t.bounds(last, len(m.buffer))
	for at := from; ; {
		if m.steps++; m.steps > maxSteps {
			return false
		}
		begin, end := m.find(t, at, to)
		if t.negated {
			return begin < 0 && m.match(tests[1:], last)
		}
		if begin < 0 {
			return false
		}
		if m.match(tests[1:], end) {
			return true
		}
		if len(tests) == 1 || !tests[1].relative {
			return false // another position would not help the other tests
		}
		at = begin + 1
	}
}

// bounds returns the range in which a test must match.
func (t *test) bounds(last, length int) (from, to int) {
	from, to = t.offset, length
	if t.depth >= 0 {
		to = min(to, t.offset+t.depth)
	}
	if t.relative {
		from = max(from, last+t.distance)
		if t.within >= 0 {
			to = min(to, last+t.distance+t.within)
		}
	}
	return max(from, 0), to
}

// find returns the first match within a range, -1 if there is none.
func (m *matcher) find(t *test, from, to int) (begin, end int) {
	if from > to {
		return -1, -1
	}
	if t.re != nil {
		at := t.re.FindIndex(m.buffer[from:to])
		if at == nil {
			return -1, -1
		}
		return from + at[0], from + at[1]
	}
	b, content := m.buffer, t.content
	if t.nocase {
		if m.folded == nil {
			m.folded = fold(m.buffer)
		}
		b, content = m.folded, t.folded
	}
	if t.atEnd {
		from = max(from, len(b)-len(content))
	}
	if from > to {
		return -1, -1
	}
	i := bytes.Index(b[from:to], content)
	if i < 0 {
		return -1, -1
	}
	return from + i, from + i + len(content)
}

// fold returns b with ASCII letters in lower case.
func fold(b []byte) []byte {
	f := make([]byte, len(b))
	for i, c := range b {
		f[i] = lower(c)
	}
	return f
}
