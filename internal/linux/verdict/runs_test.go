//go:build linux

package verdict

import "testing"

// TestRuns goes through the cases in which a batch may, and may not, go on with one verdict.
func TestRuns(t *testing.T) {
	var r runs
	if r.next(1) {
		t.Error("a run before anything was received")
	}
	r.enter()
	if !r.alone() {
		t.Fatal("the only reader is not alone")
	}
	r.begin(1)
	r.received(3)
	r.leave()
	if !r.next(1) || r.next(2) {
		t.Error("after packets 1 to 3 came, a run must begin at 1")
	}
	r.end(3)
	r.settled(3)
	if !r.next(4) {
		t.Error("after the run up to 3 the next must begin at 4")
	}

	r.enter()
	r.enter()
	if r.alone() {
		t.Error("of two readers one is alone")
	}
	r.leave()
	r.received(1)
	if r.alone() {
		t.Error("a reader is alone while somebody holds a packet")
	}
	r.settled(1)
	r.begin(0)
	if !r.alone() || !r.next(0) || r.next(1) {
		t.Error("a run past the wrap-around must begin at 0")
	}
}
