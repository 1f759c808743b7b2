package main

import "testing"

func TestOpening(t *testing.T) {
	const at, decider = " at layer socket, priority 0", "eBPF on cgroups; no BIND for ports that the kernel chooses, nor raw sockets"
	for _, row := range []struct {
		width int
		want  string
	}{
		{0, "divert: watching sockets at layer socket, priority 0 (" + decider + "). Ctrl-C ends."},
		{144, "divert: watching sockets at layer socket, priority 0 (" + decider + "). Ctrl-C ends."},
		{143, "divert: watching sockets at layer socket, priority 0 (eBPF on cgroups). Ctrl-C ends."},
		{80, "divert: watching sockets at layer socket (eBPF on cgroups). Ctrl-C ends."},
		{60, "divert: watching sockets at layer socket. Ctrl-C ends."},
		{40, "divert: watching sockets. Ctrl-C ends."},
		{10, "divert: watching sockets. Ctrl-C ends."},
	} {
		if got := opening(row.width, "watching sockets", at, decider); got != row.want {
			t.Errorf("%d columns: %q, %d bytes, want %q", row.width, got, len(got), row.want)
		}
	}
}
