//go:build linux

package rules

import (
	"reflect"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/linux/netns"
)

// observed returns the namespace of a new host, and an observer of its handles.
func observed(t *testing.T) (*netns.Namespace, *Observer) {
	t.Helper()
	_, ns := newHost(t)
	o, _, err := Observe(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return ns, o
}

// TestObserverThatLostMessages: a socket that has overflowed drops messages without an error until it is empty. The observer still
// reports handles that open meanwhile.
func TestObserverThatLostMessages(t *testing.T) {
	ns, o := observed(t)
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

// TestObserverThatIsLate: a handle that has closed before the observer has read all about it is told once.
func TestObserverThatIsLate(t *testing.T) {
	ns, o := observed(t)
	var want []Change
	for id := range uint64(3) {
		e := open(t, ns, id+1, 0)
		if err := e.SetFilter("changed"); err != nil {
			t.Fatal(err)
		}
		if err := e.Replace(nil); err != nil { // as handles that close do first
			t.Fatal(err)
		}
		closeAll(t, e)
		want = append(want, Change{Owner: Owner{ID: id + 1}}, Change{Owner{ID: id + 1}, true})
	}
	var got []Change
	var last time.Time
	for begun := time.Now(); time.Since(begun) < 20*time.Second && (len(got) < len(want) || time.Since(last) < time.Second); {
		o.checked = time.Time{} // it is time to look for the dead
		changes, err := o.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			got, last = append(got, Change{Owner{ID: c.ID}, c.Closed}), time.Now()
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("told\n%v, want\n%v", got, want)
	}
}
