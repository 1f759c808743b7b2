//go:build linux

package cgroup

import (
	"testing"

	"github.com/opendivert/divert/internal/linux/cursor"
)

func TestProgramNames(t *testing.T) {
	for _, k := range []cursor.Key{cursor.NewKey(-30000, 0), cursor.NewKey(0, 3), cursor.NewKey(30000, 255)} {
		name := ProgramName(k)
		if got, ok := parseProgramName(name); len(name) > 15 || !ok || got != k {
			t.Errorf("%q: %v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "divert_probe", "divert_", "divert_00000g", "divert_0000001", "other_000001"} {
		if k, ok := parseProgramName(name); ok {
			t.Errorf("%q is %v", name, k)
		}
	}
}
