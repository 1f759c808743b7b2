//go:build linux

package rules

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// The filter of a handle stands in the registry too, for those who list the handles: in rules of the chain
// "handles" that do nothing, a part in each, because a rule has no more than 256 bytes of userdata. Such a
// rule has its owner's comment like any other, and behind it an entry of a type of our own.

const (
	maxUserData = 256                 // NFT_USERDATA_MAXLEN (linux/netfilter/nf_tables.h)
	typeFilter  = userdata.Type(0xD1) // types of libnftnl count up from 0
	partHeader  = 4                   // number of the part, number of all parts
)

// filterParts returns the userdata of the rules that hold the owner's filter.
func (o Owner) filterParts() [][]byte {
	owner := o.userData()
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

// filterPart reads a part of a filter from the userdata of a rule.
func filterPart(data []byte) (index, count int, text string, ok bool) {
	b := entry(data, typeFilter)
	if len(b) < partHeader {
		return 0, 0, "", false
	}
	index, count = int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	return index, count, string(b[partHeader:]), index < count
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
func (f *filterText) add(index, count int, text string) {
	if len(f.parts) < count {
		f.parts = append(f.parts, make([]string, count-len(f.parts))...)
	}
	if index < len(f.parts) {
		f.parts[index] = text
	}
}

// String returns what there is.
func (f *filterText) String() string {
	var text []byte
	for _, p := range f.parts {
		text = append(text, p...)
	}
	return string(text)
}

// SetFilter replaces what the registry tells of the handle's filter.
func (e *Entry) SetFilter(text string) error {
	return e.ns.Do(func() error {
		return change(func(t *tx) error {
			removed := 0
			t.rules[Handles] = slices.DeleteFunc(t.rules[Handles], func(r *nftables.Rule) bool {
				o, ok := parseOwner(r.UserData)
				if _, _, _, part := filterPart(r.UserData); !ok || !part || o.ID != e.ID {
					return false
				}
				t.drop(r)
				removed++
				return true
			})
			e.Filter = text
			e.rules.Add(int32(t.enterFilter(e.Owner) - removed))
			return nil
		})
	})
}

// drop takes a rule of the chain "handles" away.
func (t *tx) drop(r *nftables.Rule) {
	_ = t.conn.DelRule(&nftables.Rule{Table: table, Chain: Handles.ref(), Handle: r.Handle}) // fails only without a handle number
	t.fresh = true
}

// enterFilter adds the rules that hold the owner's filter and returns how many they are.
func (t *tx) enterFilter(o Owner) int {
	parts := o.filterParts()
	for _, data := range parts {
		r := t.rule(o, Handles, nil)
		r.UserData = data
		t.conn.AddRule(r)
	}
	return len(parts)
}

// filters returns the filters of the handles, by id.
func (t *tx) filters() map[uint64]string {
	texts := map[uint64]*filterText{}
	for _, r := range t.rules[Handles] {
		o, ok := parseOwner(r.UserData)
		if !ok {
			continue
		}
		if index, count, text, ok := filterPart(r.UserData); ok {
			if texts[o.ID] == nil {
				texts[o.ID] = &filterText{}
			}
			texts[o.ID].add(index, count, text)
		}
	}
	filters := make(map[uint64]string, len(texts))
	for id, f := range texts {
		filters[id] = f.String()
	}
	return filters
}
