// Package race tells tests whether the race detector is on: it allocates where the code does not, and makes
// pools forget, so allocations cannot be counted with it.
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
