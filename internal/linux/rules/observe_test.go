//go:build linux

package rules

import (
	"testing"
	"time"
)

// TestObserverThatLostMessages: a socket that has overflowed drops messages without an error until it is empty. The observer still
// reports handles that open meanwhile.
func TestObserverThatLostMessages(t *testing.T) {
	_, ns := newHost(t)
	o, _, err := Observe(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.conn.SetReadBuffer(1); err != nil { // the least the kernel gives
		t.Fatal(err)
	}
	var entries []*Entry
	told := map[uint64]bool{}
	next := func() {
		changes, err := o.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			told[c.ID] = !c.Closed
		}
	}
	for id := range uint64(4) {
		entries = append(entries, open(t, ns, id+1, 0))
	}
	for begun := time.Now(); len(told) < 4; next() {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("told of %v", told)
		}
	}
	entries = append(entries, open(t, ns, 5, 0))
	for begun := time.Now(); !told[5]; next() {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("told of %v", told)
		}
	}
	closeAll(t, entries...)
}
