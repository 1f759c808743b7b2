// Package race tells tests whether the race detector is on: the detector itself allocates, and makes
// pools forget, so tests cannot count allocations with it.
package race

// TB is the part of testing.TB that is needed here.
type TB interface {
	Helper()
	Skip(args ...any)
}

// CannotCount skips a test that counts allocations where that means nothing.
func CannotCount(t TB) {
	t.Helper()
	if Enabled {
		t.Skip("the race detector allocates by itself")
	}
}
