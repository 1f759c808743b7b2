//go:build linux

package processes

import (
	"errors"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/packet"
)

// named returns packets of processes at a time.
func named(at int64, ids ...uint32) []packet.Packet {
	ps := make([]packet.Packet, len(ids))
	for i, id := range ids {
		ps[i].Addr.Timestamp = at
		ps[i].Addr.SetNetwork(packet.NetworkData{ProcessID: id})
	}
	return ps
}

// newNames returns names, and the maps that they come from.
func newNames(t testing.TB) (*Names, *processmap.Maps) {
	t.Helper()
	maps, err := processmap.New()
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { maps.Close() })
	n := &Names{}
	n.Use(&Processes{maps: maps})
	return n, maps
}

func TestNames(t *testing.T) {
	n, maps := newNames(t)
	call := func(id uint32, name string) {
		t.Helper()
		var b [processmap.NameSize]byte
		copy(b[:], name)
		if err := maps.Names.Put(id, b[:]); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(ps []packet.Packet, want ...string) {
		t.Helper()
		n.Ascribe(ps)
		for i := range ps {
			if got := ps[i].Addr.ProcessName(); got != want[i] {
				t.Errorf("packet %d: %q, want %q", i, got, want[i])
			}
		}
	}
	call(7, "curl")
	expect(named(1, 7, 0, 8, 7), "curl", "", "", "curl")
	call(7, "another program")
	expect(named(2, 7), "curl")
	expect(named(3+int64(time.Second), 7, 8), "another program", "")
	for i := range 2 * maxRecent {
		n.Ascribe(named(4, uint32(1000+i)))
	}
	if got := len(n.known.Load().recent); got > maxRecent {
		t.Errorf("%d names are remembered", got)
	}
	n.Use(nil)
	expect(named(5, 7), "")
}

// BenchmarkAscribe names a batch of packets of a few processes.
func BenchmarkAscribe(b *testing.B) {
	for _, processes := range []int{1, 16} {
		b.Run(strconv.Itoa(processes), func(b *testing.B) {
			n, _ := newNames(b)
			ids := make([]uint32, 64)
			for i := range ids {
				ids[i] = uint32(1 + i%processes)
			}
			ps := named(1, ids...)
			b.ReportAllocs()
			for b.Loop() {
				n.Ascribe(ps)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ps)), "ns/packet")
		})
	}
}
