package flow

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/race"
)

// model is a simple table with the same behaviour: a map, and the order in which flows were seen.
type model struct {
	size    int
	records map[Key]Record
	seen    []Key // the last one last
	totals  Totals
}

func (m *model) see(k Key) {
	m.seen = append(slices.DeleteFunc(m.seen, func(o Key) bool { return o == k }), k)
	if len(m.seen) > m.size {
		m.forget(m.seen[0])
	}
}

func (m *model) forget(k Key) bool {
	_, had := m.records[k]
	delete(m.records, k)
	m.seen = slices.DeleteFunc(m.seen, func(o Key) bool { return o == k })
	return had
}

// expire forgets a flow that has ended.
func (m *model) expire(k Key, now int64) {
	if r, ok := m.records[k]; ok && (now-r.LastSeen > r.Idle || r.Deadline != 0 && now > r.Deadline) {
		m.forget(k)
	}
}

func (m *model) pass(p *Packet, now int64) Verdict {
	m.expire(p.Key, now)
	if p.Begins() {
		m.forget(p.Key)
	}
	r, ok := m.records[p.Key]
	if !ok {
		return Undecided
	}
	way := p.Way()
	r.LastSeen = now
	r.Packets[way]++
	r.Bytes[way] += uint64(p.Bytes)
	if p.Flags&FlagFIN != 0 {
		r.Finished[way] = 1
	}
	if r.Deadline == 0 && (p.Flags&FlagRST != 0 || p.Flags&FlagFIN != 0 && r.Finished == [2]uint8{1, 1}) {
		r.Deadline = now + int64(Linger)
	}
	m.records[p.Key] = r
	m.see(p.Key)
	if r.Verdict == Accept {
		m.totals.Accepted++
		m.totals.AcceptedBytes += uint64(p.Bytes)
	} else {
		m.totals.Dropped++
		m.totals.DroppedBytes += uint64(p.Bytes)
	}
	return r.Verdict
}

// FuzzTable plays sequences of packets and calls on a table and on the model.
func FuzzTable(f *testing.F) {
	seed := rand.New(rand.NewPCG(rand.Uint64(), 1))
	for range 8 {
		script := make([]byte, 8000)
		for i := range script {
			script[i] = byte(seed.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		const size = 5
		idle := Idle{TCP: time.Minute, UDP: 10 * time.Second, ICMP: 3 * time.Second}
		table, m := NewTable(size, idle), &model{size: size, records: map[Key]Record{}}
		now := int64(1)
		for at := 0; at+3 < len(script); at += 4 {
			op, which, flags, step := script[at], script[at+1], script[at+2], script[at+3]
			now += int64(step%32) * int64(time.Second) / 8
			p := Packet{Key: Key{Ports: [2]uint16{uint16(which % 9)}, Protocol: []uint8{6, 17, 1}[which%3]}, Back: flags&64 != 0, Bytes: int(step) + 20}
			if p.Key.Protocol == 6 {
				p.Flags = flags & (FlagFIN | FlagSYN | FlagRST | FlagACK)
			}
			switch {
			case op < 160:
				if got, want := table.Pass(&p, now), m.pass(&p, now); got != want {
					t.Fatalf("step %d: %v, want %v", at, got, want)
				}
			case op < 220:
				v := Accept + Verdict(op&1)
				table.Decide(p.Key, v, now)
				if m.expire(p.Key, now); m.records[p.Key].Verdict != v {
					m.records[p.Key] = Record{LastSeen: now, Idle: idle.Of(p.Key.Protocol), Verdict: v}
				}
				m.see(p.Key)
			case op < 250:
				m.expire(p.Key, now)
				if got, want := table.Forget(p.Key, now), m.forget(p.Key); got != want {
					t.Fatalf("step %d: forgotten %v, want %v", at, got, want)
				}
			default:
				table.Revoke()
				clear(m.records)
				m.seen = nil
			}
			m.expire(p.Key, now)
			got, has := table.Get(p.Key, now)
			want, wants := m.records[p.Key]
			got.Generation = 0
			if has != wants || has && got != want {
				t.Fatalf("step %d: %+v %v, want %+v %v", at, got, has, want, wants)
			}
			if len(table.decided.nodes) > size {
				t.Fatalf("%d flows, room for %d", len(table.decided.nodes), size)
			}
		}
		if got := table.Totals(); got != m.totals {
			t.Errorf("totals %+v, want %+v", got, m.totals)
		}
	})
}

// TestPassAllocatesNothing: neither Pass nor counting known flows allocates.
func TestPassAllocatesNothing(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector allocates")
	}
	table := NewTable(10, DefaultIdle)
	p := Packet{Key: Key{Protocol: 17}, Bytes: 100}
	table.Decide(p.Key, Accept, 0)
	table.Count(&p, 0)
	if n := testing.AllocsPerRun(100, func() {
		if table.Pass(&p, 1) != Accept || table.Count(&p, 1).Packets == 0 {
			t.Error("not there")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPass(b *testing.B) {
	table := NewTable(DefaultSize, DefaultIdle)
	for i := range DefaultSize {
		table.Decide(Key{Addrs: [4]uint64{uint64(i)}, Protocol: 17}, Accept, 0)
	}
	p := Packet{Key: Key{Protocol: 17}, Bytes: 100}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Key.Addrs[0] = uint64(i*7919) % DefaultSize
		table.Pass(&p, 1)
	}
}
