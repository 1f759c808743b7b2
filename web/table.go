package web

import (
	"container/list"
	"net/netip"
)

// key identifies a connection: the addresses and ports of its ends.
type key struct{ client, server netip.AddrPort }

func (k key) reversed() key { return key{k.server, k.client} }

// table keeps connections; the least recently used is dropped first.
type table[V any] struct {
	byKey map[key]*list.Element
	order list.List // of *entry[V], the latest in front
}

type entry[V any] struct {
	key   key
	value V
}

// find returns the value of a key, which counts as used now.
func (t *table[V]) find(k key) (v V, ok bool) {
	e, ok := t.byKey[k]
	if !ok {
		return v, false
	}
	t.order.MoveToFront(e)
	return e.Value.(*entry[V]).value, true
}

// put sets the value of a key that is not in the table.
func (t *table[V]) put(k key, v V) {
	if t.byKey == nil {
		t.byKey = make(map[key]*list.Element)
	}
	t.byKey[k] = t.order.PushFront(&entry[V]{k, v})
}

// remove removes a key.
func (t *table[V]) remove(k key) {
	if e, ok := t.byKey[k]; ok {
		t.order.Remove(e)
		delete(t.byKey, k)
	}
}

// oldest removes the least recently used value.
func (t *table[V]) oldest() V {
	e := t.order.Remove(t.order.Back()).(*entry[V])
	delete(t.byKey, e.key)
	return e.value
}

func (t *table[V]) len() int { return len(t.byKey) }
