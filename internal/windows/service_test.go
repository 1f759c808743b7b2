package windows

import (
	"errors"
	"strings"
	"testing"
)

// TestStartAfterStop starts a service that was stopped while handles were open.
func TestStartAfterStop(t *testing.T) {
	disabled, marked, other := &Error{Code: errnoServiceDisabled}, &Error{Code: errnoMarkedForDelete}, errors.New("other")
	for _, row := range []struct {
		name   string
		starts []error // one after the other
		stops  int
	}{
		{"it works", []error{nil}, 0},
		{"disabled until it is stopped again", []error{disabled, nil}, 1},
		{"marked until it is stopped again", []error{marked, nil}, 1},
		{"still disabled", []error{disabled, disabled}, 1},
		{"another error", []error{other}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			starts, stops := 0, 0
			err := startOrStopFirst(
				func() error { starts++; return row.starts[starts-1] },
				func() error { stops++; return other })
			if err != row.starts[len(row.starts)-1] || starts != len(row.starts) || stops != row.stops {
				t.Errorf("%v after %d starts and %d stops", err, starts, stops)
			}
		})
	}
}

// TestImagePath resolves the paths that services are registered with.
func TestImagePath(t *testing.T) {
	for _, row := range []struct{ path, want string }{
		{`\??\C:\WinDivert\x64\WinDivert64.sys`, `C:\WinDivert\x64\WinDivert64.sys`},
		{`C:\WinDivert\WinDivert64.sys`, `C:\WinDivert\WinDivert64.sys`},
		{`"C:\Program Files\a\WinDivert64.sys"`, `C:\Program Files\a\WinDivert64.sys`},
		{`\SystemRoot\System32\drivers\WinDivert.sys`, `C:\Windows\System32\drivers\WinDivert.sys`},
		{`System32\drivers\WinDivert.sys`, `C:\Windows\System32\drivers\WinDivert.sys`},
		{`\??\UNC\server\share\WinDivert64.sys`, `\\server\share\WinDivert64.sys`},
		{`\Device\HarddiskVolume2\WinDivert64.sys`, ""}, // its place cannot be known
		{"", ""},
	} {
		if got := imagePath(row.path, `C:\Windows`); got != row.want {
			t.Errorf("%s is %s, want %s", row.path, got, row.want)
		}
	}
}

// TestNotStopped: the error about a driver that does not stop.
func TestNotStopped(t *testing.T) {
	for state, want := range map[uint32]string{
		stopPending: "STOP_PENDING) as long as a program has a handle open",
		4:           "in the state 4", // SERVICE_RUNNING
	} {
		if got := notStopped(state); !strings.Contains(got, want) || !strings.Contains(got, "divert clean") {
			t.Errorf("%d: %s", state, got)
		}
	}
}
