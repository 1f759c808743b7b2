//go:build linux

package lab

// TB is the part of testing.TB that the lab needs; a program that uses the lab does not link package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Need skips the test, with the reason, where labs cannot be built.
func Need(t TB) {
	t.Helper()
	if err := Available(); err != nil {
		t.Skipf("%v", err)
	}
}

// NewT is New for tests: it skips where labs cannot be built and closes the network when the test ends.
func NewT(t TB) *Network {
	t.Helper()
	Need(t)
	n, err := New()
	if err != nil {
		t.Fatalf("%v", err)
	}
	closeAtEnd(t, n)
	return n
}

// TwoHostsT is TwoHosts for tests.
func TwoHostsT(t TB, o LinkOptions) *Pair {
	t.Helper()
	Need(t)
	p, err := TwoHosts(o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	closeAtEnd(t, p.Network)
	return p
}

// HostRouterPeerT is HostRouterPeer for tests.
func HostRouterPeerT(t TB, o LinkOptions) *Routed {
	t.Helper()
	Need(t)
	r, err := HostRouterPeer(o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	closeAtEnd(t, r.Network)
	return r
}

func closeAtEnd(t TB, n *Network) {
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the network: %v", err)
		}
	})
}
