//go:build linux

package capture

import (
	"math"
	"testing"

	"github.com/opendivert/divert/internal/linux/verdict"
)

func TestTooOld(t *testing.T) {
	rows := []struct {
		name    string
		expired uint64
		id      uint32
		want    bool
	}{
		{"nothing is known", 0, 1, false},
		{"the one that is too old", 1<<32 | 7, 7, true},
		{"one before it", 1<<32 | 7, 6, true},
		{"one after it", 1<<32 | 7, 8, false},
		{"before any packet", 1 << 32, 1, false},
		{"after the wrap-around", 1<<32 | math.MaxUint32, 0, false},
		{"before the wrap-around", 1<<32 | 1, math.MaxUint32, true},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var a ages
			a.expired[0].Store(row.expired)
			if got := a.tooOld(&verdict.Lane{}, row.id); got != row.want {
				t.Errorf("%t", got)
			}
		})
	}
}
