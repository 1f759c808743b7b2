package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// topPacket makes a packet of a protocol with a length. If both addresses belong to this host it is loopback.
func topPacket(protocol uint8, src, dst string, length int, out bool, pid uint32) divert.Packet {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	b := make([]byte, 20, 64)
	b[0], b[8], b[9] = 0x45, 64, protocol
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	b[2], b[3] = byte(length>>8), byte(length)
	t := make([]byte, 20)
	t[0], t[1], t[2], t[3], t[12] = byte(from.Port()>>8), byte(from.Port()), byte(to.Port()>>8), byte(to.Port()), 0x50
	p := divert.Packet{Data: append(b, t...), Addr: divert.Address{Outbound: out, Loopback: from.Addr().IsLoopback()}}
	p.Addr.SetNetwork(packet.NetworkData{ProcessID: pid})
	return p
}

// sums adds up the processes, and the hosts.
func (c *counter) sums() (procs, hosts topCounts) {
	for _, p := range c.procs {
		procs.plus(p.topCounts)
	}
	procs.plus(c.gone)
	for _, h := range c.hosts {
		hosts.plus(h.topCounts)
	}
	return procs, hosts
}

// TestTopCounts checks that packets of several kinds count for the right processes, flows and hosts.
func TestTopCounts(t *testing.T) {
	now := time.Unix(1000, 0)
	const local, remote = "10.0.0.1:1000", "10.0.0.2:80"
	for _, test := range []struct {
		name    string
		packets []divert.Packet
		procs   map[uint32]topCounts
		total   topCounts
		flows   int
	}{
		{"out and in", []divert.Packet{topPacket(6, local, remote, 100, true, 5), topPacket(6, remote, local, 1000, false, 5)},
			map[uint32]topCounts{5: {1000, 100, 1, 1}}, topCounts{1000, 100, 1, 1}, 1},
		{"the process is known later", []divert.Packet{topPacket(17, remote, local, 300, false, 0), topPacket(17, local, remote, 100, true, 5)},
			map[uint32]topCounts{0: {}, 5: {300, 100, 1, 1}}, topCounts{300, 100, 1, 1}, 1},
		{"it stays known", []divert.Packet{topPacket(17, local, remote, 100, true, 5), topPacket(17, remote, local, 300, false, 0)},
			map[uint32]topCounts{5: {300, 100, 1, 1}}, topCounts{300, 100, 1, 1}, 1},
		{"of the kernel", []divert.Packet{topPacket(1, "10.0.0.1:0", "10.0.0.2:0", 84, true, 0)},
			map[uint32]topCounts{0: {0, 84, 0, 1}}, topCounts{0, 84, 0, 1}, 1},
		{"to itself", []divert.Packet{topPacket(6, "127.0.0.1:1000", "127.0.0.1:80", 100, true, 5), topPacket(6, "127.0.0.1:80", "127.0.0.1:1000", 900, true, 6)},
			map[uint32]topCounts{0: {}, 5: {900, 100, 1, 1}, 6: {100, 900, 1, 1}}, topCounts{1000, 1000, 2, 2}, 1},
		{"to itself, one process", []divert.Packet{topPacket(6, "127.0.0.1:1000", "127.0.0.1:80", 100, true, 5), topPacket(6, "127.0.0.1:80", "127.0.0.1:1000", 900, true, 5)},
			map[uint32]topCounts{0: {}, 5: {1000, 1000, 2, 2}}, topCounts{1000, 1000, 2, 2}, 1},
		{"to itself, known later", []divert.Packet{topPacket(6, "127.0.0.1:1000", "127.0.0.1:80", 100, true, 0), topPacket(6, "127.0.0.1:80", "127.0.0.1:1000", 900, true, 6),
			topPacket(6, "127.0.0.1:1000", "127.0.0.1:80", 50, true, 5)},
			map[uint32]topCounts{0: {}, 5: {900, 150, 1, 2}, 6: {150, 900, 2, 1}}, topCounts{1050, 1050, 3, 3}, 1},
		{"two protocols", []divert.Packet{topPacket(6, local, remote, 100, true, 5), topPacket(17, local, remote, 100, true, 6)},
			map[uint32]topCounts{0: {}, 5: {0, 100, 0, 1}, 6: {0, 100, 0, 1}}, topCounts{0, 200, 0, 2}, 2},
	} {
		c := newCounter(nil, now)
		c.count(test.packets, now)
		for pid, want := range test.procs {
			if p := c.procs[pid]; p == nil && want != (topCounts{}) || p != nil && p.topCounts != want {
				t.Errorf("%s: process %d: %+v, want %+v", test.name, pid, p, want)
			}
		}
		if c.total.topCounts != test.total || len(c.flows) != test.flows {
			t.Errorf("%s: total %+v in %d flows, want %+v in %d", test.name, c.total.topCounts, len(c.flows), test.total, test.flows)
		}
		if procs, hosts := c.sums(); procs != test.total || hosts != test.total {
			t.Errorf("%s: processes %+v, hosts %+v, total %+v", test.name, procs, hosts, test.total)
		}
	}
}

// TestTopCountsEverything sends random packets, exceeds the limits of flows and hosts, and falls silent for long: the
// sums always equal the total.
func TestTopCountsEverything(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	c.room = topRoom{flows: 200, hosts: 50, procs: 5}
	for i := range 10_000 {
		src, dst := "10.0.0.1", fmt.Sprintf("10.0.%d.2", r.IntN(100))
		if i%10 == 0 {
			src, dst = "127.0.0.1", "127.0.0.1"
		}
		out := r.IntN(2) == 0
		from, to := fmt.Sprintf("%s:%d", src, r.IntN(5)+1), fmt.Sprintf("%s:%d", dst, r.IntN(50)+1)
		if !out && i%10 != 0 {
			from, to = to, from
		}
		protocol := []uint8{6, 17, 1}[r.IntN(3)]
		c.count([]divert.Packet{topPacket(protocol, from, to, 40+r.IntN(1400), out || i%10 == 0, uint32(r.IntN(9)))}, now)
		if i%1000 == 999 {
			now = now.Add(time.Duration(r.IntN(100)) * time.Second)
			c.tick(now)
		}
		if i%100 == 99 {
			if procs, hosts := c.sums(); procs != c.total.topCounts || hosts != c.total.topCounts {
				t.Fatalf("after %d packets: processes %+v, hosts %+v, total %+v", i, procs, hosts, c.total.topCounts)
			}
		}
	}
	if len(c.flows) > c.room.flows+1 || len(c.hosts) > c.room.hosts+1 || len(c.procs) > c.room.procs+1 {
		t.Errorf("%d flows, %d hosts, %d processes are remembered", len(c.flows), len(c.hosts), len(c.procs))
	}
	now = now.Add(10 * time.Minute)
	c.tick(now)
	if len(c.flows) != 0 || len(c.procs) != 0 {
		t.Errorf("%d flows and %d processes after silence", len(c.flows), len(c.procs))
	}
	if procs, hosts := c.sums(); procs != c.total.topCounts || hosts != c.total.topCounts {
		t.Errorf("after silence: processes %+v, hosts %+v, total %+v", procs, hosts, c.total.topCounts)
	}
}

// TestTopExcess counts more flows than the limit.
func TestTopExcess(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	c.room.flows = 20
	for i := range 30 {
		c.count([]divert.Packet{topPacket(17, fmt.Sprintf("10.0.0.1:%d", i+1), "10.0.0.2:80", 100, true, 7)}, now)
	}
	if len(c.flows) != 21 || c.procs[7].BytesOut != 3000 {
		t.Errorf("%d flows, process %+v", len(c.flows), c.procs[7].topCounts)
	}
	rows := c.rows(byFlow, sortTotal, false, 1)
	if rows[0].filter != "" || rows[0].BytesOut != 1000 || endText(rows[0].flow, rows[0].flow.key.remote) != "(others)" {
		t.Errorf("the others: %+v", rows[0])
	}
}

// TestTopUntold counts TCP packets that are too long for the length in their headers, by later sequence numbers.
func TestTopUntold(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	segment := func(seq uint32, length int) divert.Packet {
		p := topPacket(6, "127.0.0.1:1", "127.0.0.1:2", length, true, 5)
		binary.BigEndian.PutUint32(p.Data[24:], seq)
		return p
	}
	c.count([]divert.Packet{
		segment(1000, 140), segment(1100, 0), segment(101_100, 0), segment(101_100, 0), // the last one is a retransmission
		segment(301_100, 40), segment(301_100, 40),
	}, now)
	want := topCounts{0, 140 + 5*40 + 300_000, 0, 6}
	if f := c.rows(byFlow, sortRate, false, 0)[0]; f.topCounts != want {
		t.Errorf("%+v, want %+v", f.topCounts, want)
	}
	if procs, _ := c.sums(); procs != c.total.topCounts {
		t.Errorf("processes %+v, total %+v", procs, c.total.topCounts)
	}
	six := make([]byte, 60)
	six[0], six[6], six[7], six[52] = 0x60, 6, 64, 0x50
	if data, untold := c.parse(six); data == nil || !untold || c.parsed.TCPOff != 40 {
		t.Errorf("IPv6: %v, %v", data, untold)
	}
	for _, b := range [][]byte{nil, {0x45}, make([]byte, 40), six[:39], six[:45]} {
		if data, _ := c.parse(b); data != nil {
			t.Errorf("%x is counted", b)
		}
	}
}

func TestTopRates(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	for range 5 {
		c.count([]divert.Packet{topPacket(6, "10.0.0.1:1", "10.0.0.2:80", 1000, true, 5)}, now)
	}
	now = now.Add(2 * time.Second)
	c.tick(now)
	p := c.rows(byProcess, sortRate, false, 0)[0]
	if p.out != 2500 || p.in != 0 || p.packets != 2.5 || p.history[0] != 2500 {
		t.Errorf("%v out, %v in, %v packets", p.out, p.in, p.packets)
	}
	c.tick(now.Add(2 * time.Second))
	if p := c.rows(byProcess, sortRate, false, 0)[0]; p.out != 0 || p.BytesOut != 5000 || p.history[1] != 0 {
		t.Errorf("after silence: %+v", p)
	}
}

// TestTopFinished: an ended connection leaves the list soon, a silent one later.
func TestTopFinished(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	fin := func(out bool) {
		p := topPacket(6, "10.0.0.1:1", "10.0.0.2:80", 40, true, 5)
		if !out {
			p = topPacket(6, "10.0.0.2:80", "10.0.0.1:1", 40, false, 5)
		}
		p.Data[33] = byte(packet.TCPFin | packet.TCPAck)
		c.count([]divert.Packet{p}, now)
	}
	c.count([]divert.Packet{topPacket(6, "10.0.0.1:2", "10.0.0.2:80", 40, true, 5)}, now)
	for i, want := range []int{2, 2, 1, 0} {
		switch i {
		case 0:
			fin(true)
		case 1:
			fin(false)
		case 2:
			now = now.Add(topFinished + time.Second)
		case 3:
			now = now.Add(topSilent)
		}
		c.tick(now.Add(time.Millisecond))
		if len(c.flows) != want {
			t.Errorf("step %d: %d flows, want %d", i, len(c.flows), want)
		}
	}
}

// TestTopFilters: the filters of rows compile and match the packets of the row only.
func TestTopFilters(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, p := range []divert.Packet{
		topPacket(6, "10.0.0.1:1000", "10.0.0.2:80", 40, true, 5), topPacket(17, "10.0.0.1:1000", "10.0.0.2:80", 40, true, 5),
		topPacket(1, "10.0.0.1:0", "10.0.0.2:0", 40, true, 5), topPacket(6, "127.0.0.1:1000", "127.0.0.1:80", 40, true, 5),
	} {
		c := newCounter(nil, now)
		c.count([]divert.Packet{p}, now)
		for _, by := range []topBy{byFlow, byHost} {
			text := c.rows(by, sortRate, false, 0)[0].filter
			prog, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			other := topPacket(6, "10.0.0.1:1000", "10.0.0.3:80", 40, true, 5)
			if !prog.Match(p.Data, &p.Addr) || prog.Match(other.Data, &other.Addr) {
				t.Errorf("%s matches the wrong packets", text)
			}
		}
	}
}

func BenchmarkTopCount(b *testing.B) {
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	var ps []divert.Packet
	for i := range divert.MaxBatch {
		ps = append(ps, topPacket(6, fmt.Sprintf("10.0.0.1:%d", i+1), "10.0.0.2:80", 1000, true, uint32(i%7)))
	}
	b.ReportAllocs()
	for b.Loop() {
		c.count(ps, now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ps)), "ns/packet")
}

func TestTopCountAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	now := time.Unix(1000, 0)
	c := newCounter(nil, now)
	ps := []divert.Packet{topPacket(6, "10.0.0.1:1", "10.0.0.2:80", 1000, true, 5), topPacket(6, "127.0.0.1:1", "127.0.0.1:80", 1000, true, 5)}
	c.count(ps, now)
	if n := testing.AllocsPerRun(100, func() { c.count(ps, now) }); n != 0 {
		t.Errorf("%v allocations for %d packets", n, len(ps))
	}
}

// FuzzTopCount counts arbitrary packets.
func FuzzTopCount(f *testing.F) {
	for _, s := range samples {
		f.Add(s.data, true, false, uint32(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, out, loopback bool, pid uint32) {
		c := newCounter(nil, time.Unix(0, 0))
		p := divert.Packet{Data: data, Addr: divert.Address{Outbound: out || loopback, Loopback: loopback}}
		p.Addr.SetNetwork(packet.NetworkData{ProcessID: pid})
		c.count([]divert.Packet{p, p}, time.Unix(0, 0))
		c.tick(time.Unix(1, 0))
		if procs, hosts := c.sums(); procs != c.total.topCounts || hosts != c.total.topCounts {
			t.Errorf("processes %+v, hosts %+v, total %+v", procs, hosts, c.total.topCounts)
		}
		for by := range topBy(len(topByNames)) {
			for _, r := range c.rows(by, sortName, true, 0) {
				if _, err := filter.Compile(filterText([]string{r.filter}), divert.LayerNetwork, filter.Extended); err != nil {
					t.Errorf("%s: %v", r.filter, err)
				}
			}
		}
	})
}
