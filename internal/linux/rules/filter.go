//go:build linux

package rules

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// The registry holds the filter of each handle too, for lists of the handles: in rules that do nothing, in a chain without a
// hook, a part in each rule, because a rule has no more than 256 bytes of userdata. Each handle has a chain of its own, so a
// process that opens or closes another handle need not read the filters.

const (
	maxUserData = 256                 // NFT_USERDATA_MAXLEN (linux/netfilter/nf_tables.h)
	typeFilter  = userdata.Type(0xD1) // types of libnftnl count up from 0
	partHeader  = 4                   // number of the part, number of all parts

	filterChainFormat   = "filter_%x"
	filterCommentFormat = "divert filter of handle=%x"
)

// filterChain is the name of the chain with the handle's filter.
func (o Owner) filterChain() string { return fmt.Sprintf(filterChainFormat, o.ID) }

// filterChainOf returns the handle whose filter a chain holds.
func filterChainOf(name string) (id uint64, ok bool) { return parseID(filterChainFormat, name) }

// parseID reads the id in a text that was made by a format.
func parseID(format, text string) (id uint64, ok bool) {
	_, err := fmt.Sscanf(text, format, &id)
	return id, err == nil && fmt.Sprintf(format, id) == text
}

// filterParts returns the userdata of the rules that hold the owner's filter.
func (o Owner) filterParts() [][]byte {
	owner := userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf(filterCommentFormat, o.ID))
	size := maxUserData - len(owner) - 2 - partHeader
	count := (len(o.Filter) + size - 1) / size
	parts := make([][]byte, count)
	for i := range parts {
		b := binary.BigEndian.AppendUint16(nil, uint16(i))
		b = binary.BigEndian.AppendUint16(b, uint16(count))
		b = append(b, o.Filter[i*size:min(len(o.Filter), (i+1)*size)]...)
		parts[i] = userdata.Append(append([]byte(nil), owner...), typeFilter, b)
	}
	return parts
}

// filterPart is a part of a handle's filter.
type filterPart struct {
	handle       uint64
	index, count int
	text         string
}

// parseFilterPart reads a part of a filter from the userdata of a rule.
func parseFilterPart(data []byte) (p filterPart, ok bool) {
	text, ok := comment(data)
	if !ok {
		return p, false
	}
	if p.handle, ok = parseID(filterCommentFormat, text); !ok {
		return p, false
	}
	b := entry(data, typeFilter)
	if len(b) < partHeader {
		return p, false
	}
	p.index, p.count = int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	p.text = string(b[partHeader:])
	return p, p.index < p.count
}

// entry returns the value of the first entry of a type in userdata, nil if there is none.
func entry(data []byte, t userdata.Type) []byte {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+int(data[1])]
		if userdata.Type(data[0]) == t {
			return value
		}
		data = data[2+len(value):]
	}
	return nil
}

// filterText puts a filter together from its parts.
type filterText struct{ parts []string }

// add adds a part.
func (f *filterText) add(p filterPart) {
	if len(f.parts) < p.count {
		f.parts = append(f.parts, make([]string, p.count-len(f.parts))...)
	}
	if p.index < len(f.parts) {
		f.parts[p.index] = p.text
	}
}

// String returns the text so far.
func (f *filterText) String() string {
	var text []byte
	for _, p := range f.parts {
		text = append(text, p...)
	}
	return string(text)
}

// SetFilter replaces the handle's filter in the registry.
func (e *Entry) SetFilter(text string) error {
	return e.ns.Do(func() error {
		return change(e.ns, func(t *tx) error {
			e.Filter = text
			if t.filters[e.ID] {
				t.enterFilter(e.Owner)
			}
			return nil // else others have removed the chain
		})
	})
}

// enterFilter makes the owner's filter the one that the registry holds.
func (t *tx) enterFilter(o Owner) {
	chain := o.filterChain()
	if t.filters[o.ID] {
		t.batch.flushChain(chain)
	} else {
		t.batch.newChain(&nftables.Chain{Name: chain})
		t.filters[o.ID] = true
	}
	for _, data := range o.filterParts() {
		t.batch.newRule(chain, &rule{data: data}, 0)
	}
}

// readFilters reads the filters of all handles.
func (t *tx) readFilters() error {
	t.texts = map[uint64]string{}
	for id := range t.filters {
		rules, err := t.conn.rules(Owner{ID: id}.filterChain())
		if err != nil {
			return explain(changedOr(err))
		}
		var f filterText
		for _, r := range rules {
			if p, ok := parseFilterPart(r.data); ok && p.handle == id {
				f.add(p)
			}
		}
		t.texts[id] = f.String()
	}
	return t.unchanged()
}
