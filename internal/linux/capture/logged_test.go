//go:build linux

package capture

import "testing"

func TestLostCopiesAreCounted(t *testing.T) {
	rows := []struct {
		name string
		next uint32 // that is expected first
		seqs []uint32
		want uint64
	}{
		{"none", 0, []uint32{0, 1, 2}, 0},
		{"the first ones", 0, []uint32{1000}, 1000},
		{"one", 5, []uint32{5, 7}, 1},
		{"many", 0, []uint32{0, 101, 103}, 101},
		{"past the wrap-around", 1<<32 - 2, []uint32{1<<32 - 2, 1<<32 - 1, 0, 2}, 1},
		{"one that comes late", 5, []uint32{5, 7, 6, 8}, 0},
		{"the first comes late", 0, []uint32{1, 0}, 0},
		{"the first two come late", 0, []uint32{2, 1, 0, 3}, 0},
		{"one that comes twice", 0, []uint32{0, 0, 1, 1}, 0},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			p := logged{seq: row.next}
			for _, seq := range row.seqs {
				p.countLost(seq)
			}
			if got := p.missed.Load(); got != row.want {
				t.Errorf("%d, want %d", got, row.want)
			}
		})
	}
}
