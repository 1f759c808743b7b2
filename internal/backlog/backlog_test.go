package backlog

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// overhead is the bytes that a packet counts beyond its own.
const overhead = 63

// start is the start of these tests' clock.
var start = time.Now()

// now is the clock of these tests, in ns.
func now() int64 { return int64(time.Since(start)) }

func newQueue(l engine.Limits, dropped func(*Item, Reason)) *Queue {
	return New(Config{Limits: l, Now: now, Dropped: dropped})
}

// modelled is a packet in the model of a backlog: a number, which fills its bytes, and whether it is too old.
type modelled struct {
	number uint32
	size   int
	old    bool
}

// loss is a packet that the model or the backlog has lost.
type loss struct {
	number uint32
	why    Reason
}

// model is the simplest queue with a backlog's promises.
type model struct {
	limits engine.Limits
	items  []modelled
	lost   []loss
}

func (m *model) bytes() (n int) {
	for _, i := range m.items {
		n += i.size + overhead
	}
	return n
}

func (m *model) add(i modelled) bool {
	if i.size+overhead > m.limits.Size {
		return false
	}
	for len(m.items) > 0 && (len(m.items) >= m.limits.Length || m.bytes()+i.size+overhead > m.limits.Size) {
		m.lost = append(m.lost, loss{m.items[0].number, Full})
		m.items = m.items[1:]
	}
	m.items = append(m.items, i)
	return true
}

func (m *model) take(n int) (got []uint32) {
	for len(got) < n && len(m.items) > 0 {
		i := m.items[0]
		m.items = m.items[1:]
		if i.old {
			m.lost = append(m.lost, loss{i.number, Old})
			continue
		}
		got = append(got, i.number)
	}
	return got
}

// numbered returns size bytes with a number in them; size is at least 4.
func numbered(number uint32, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(number)
	}
	binary.BigEndian.PutUint32(b, number)
	return b
}

func TestBacklogIsTheModel(t *testing.T) {
	const queueTime = time.Hour
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		m := &model{limits: engine.Limits{Length: 1 + random.IntN(200), Time: queueTime, Size: 2000 + random.IntN(20000)}}
		var lost []loss
		q := newQueue(m.limits, func(w *Item, why Reason) {
			lost = append(lost, loss{binary.BigEndian.Uint32(w.Data), why})
		})
		ps := make([]packet.Packet, 10)
		for number := uint32(1); number < 3000; number++ {
			switch random.IntN(20) {
			default:
				i := modelled{number: number, size: 4 + random.IntN(300), old: random.IntN(5) == 0}
				if random.IntN(50) == 0 {
					i.size = m.limits.Size - random.IntN(2*overhead)
				}
				addr := packet.Address{Timestamp: now(), Outbound: i.number%2 == 0}
				if i.old {
					addr.Timestamp -= int64(2 * queueTime)
				}
				if got, want := q.Add(numbered(i.number, i.size), &addr), m.add(i); got != want {
					t.Fatalf("seed %d: add of %d bytes: %t, want %t", seed, i.size, got, want)
				}
			case 0, 1, 2:
				n := 1 + random.IntN(len(ps))
				want := m.take(n)
				got, wait, err := q.take(ps[:n], true)
				if err != nil || got != len(want) || got == 0 && wait == nil {
					t.Fatalf("seed %d: took %d, %v, want %d", seed, got, err, len(want))
				}
				for i, number := range want {
					p := &ps[i]
					if !slices.Equal(p.Data, numbered(number, len(p.Data))) || p.Addr.Outbound != (number%2 == 0) {
						t.Fatalf("seed %d: packet %d is %x", seed, number, p.Data)
					}
				}
			case 3:
				m.limits.Length, m.limits.Size = 1+random.IntN(200), 2000+random.IntN(20000)
				q.SetLimits(m.limits)
			}
			if q.n != len(m.items) || q.bytes != m.bytes() {
				t.Fatalf("seed %d: %d packets of %d bytes, want %d of %d", seed, q.n, q.bytes, len(m.items), m.bytes())
			}
		}
		if !slices.Equal(lost, m.lost) {
			t.Errorf("seed %d: lost %v, want %v", seed, lost, m.lost)
		}
	}
}

func TestBacklogEnds(t *testing.T) {
	ample := engine.Limits{Length: 10, Time: time.Hour, Size: 10000}
	add := func(t *testing.T, q *Queue, want bool) {
		t.Helper()
		if got := q.Add([]byte("packet"), &packet.Address{Timestamp: now()}); got != want {
			t.Errorf("add: %t, want %t", got, want)
		}
	}
	recv := func(t *testing.T, q *Queue, w engine.Wait, want int, wantErr error) {
		t.Helper()
		n, err := q.Recv(w, make([]packet.Packet, 4))
		if n != want || !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
			t.Errorf("recv: %d, %v, want %d, %v", n, err, want, wantErr)
		}
	}
	drain := func(q *Queue) { q.Drain() }
	shut := func(q *Queue) { q.End(func(*Item) {}) }
	over := make(chan struct{})
	close(over)
	t.Run("draining gives the rest, then the end", func(t *testing.T) {
		q := newQueue(ample, nil)
		add(t, q, true)
		drain(q)
		add(t, q, false)
		recv(t, q, engine.Wait{}, 1, nil)
		recv(t, q, engine.Wait{}, 0, io.EOF)
	})
	t.Run("closed gives nothing", func(t *testing.T) {
		q := newQueue(ample, nil)
		add(t, q, true)
		shut(q)
		add(t, q, false)
		recv(t, q, engine.Wait{}, 0, net.ErrClosed)
	})
	t.Run("the end gives the rest, but not what is too old", func(t *testing.T) {
		var rest, old int
		q := newQueue(ample, func(_ *Item, why Reason) {
			if why == Old {
				old++
			}
		})
		add(t, q, true)
		q.Add([]byte("packet"), &packet.Address{Timestamp: now() - int64(2*ample.Time)})
		add(t, q, true)
		q.End(func(i *Item) {
			if rest++; string(i.Data) != "packet" {
				t.Errorf("the rest is %q", i.Data)
			}
		})
		add(t, q, false)
		recv(t, q, engine.Wait{}, 0, net.ErrClosed)
		if rest != 2 || old != 1 || q.Len() != 0 {
			t.Errorf("%d items left and %d too old, want 2 and 1", rest, old)
		}
	})
	t.Run("room is what pushes nothing out", func(t *testing.T) {
		q := newQueue(engine.Limits{Length: 2, Time: time.Hour, Size: 2 * (6 + overhead)}, nil)
		add(t, q, true)
		if !q.Room(6) || q.Room(7) {
			t.Error("there is room for 6 bytes and not for 7")
		}
		add(t, q, true)
		if q.Room(0) {
			t.Error("there is no room behind the limit of the length")
		}
	})
	t.Run("what is there comes without a wait, whatever has ended", func(t *testing.T) {
		q := newQueue(ample, nil)
		add(t, q, true)
		recv(t, q, engine.Wait{Context: over, Handle: over}, 1, nil)
		recv(t, q, engine.Wait{Context: over}, 0, engine.ErrInterrupted)
		recv(t, q, engine.Wait{Handle: over}, 0, engine.ErrInterrupted)
	})
	for _, row := range []struct {
		name string
		wake func(q *Queue, context, handle chan struct{})
		n    int
		err  error
	}{
		{"a packet", func(q *Queue, _, _ chan struct{}) { q.Add([]byte("packet"), &packet.Address{Timestamp: now()}) }, 1, nil},
		{"draining", func(q *Queue, _, _ chan struct{}) { drain(q) }, 0, io.EOF},
		{"the end", func(q *Queue, _, _ chan struct{}) { shut(q) }, 0, net.ErrClosed},
		{"a context", func(_ *Queue, context, _ chan struct{}) { close(context) }, 0, engine.ErrInterrupted},
		{"a deadline", func(_ *Queue, _, handle chan struct{}) { close(handle) }, 0, engine.ErrInterrupted},
	} {
		t.Run(row.name+" wakes readers", func(t *testing.T) {
			q := newQueue(ample, nil)
			w := engine.Wait{}
			context, handle := make(chan struct{}), make(chan struct{})
			w.Context, w.Handle = context, handle
			var wg sync.WaitGroup
			readers := 3
			if row.n > 0 {
				readers = 1
			}
			for range readers {
				wg.Go(func() { recv(t, q, w, row.n, row.err) })
			}
			for { // until they wait
				q.mu.Lock()
				watched := q.watched
				q.mu.Unlock()
				if watched {
					break
				}
				time.Sleep(time.Millisecond)
			}
			row.wake(q, context, handle)
			wg.Wait()
		})
	}
}

func TestBacklogConcurrently(t *testing.T) {
	const packets, readers = 20000, 4
	var dropped, received atomic.Int64
	q := newQueue(engine.Limits{Length: 100, Time: time.Hour, Size: 1 << 20}, func(*Item, Reason) { dropped.Add(1) })
	seen := make([]atomic.Int32, packets)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			ps := make([]packet.Packet, 1+7*i)
			for {
				n, err := q.Recv(engine.Wait{}, ps)
				if errors.Is(err, io.EOF) {
					return
				}
				if n == 0 || err != nil {
					t.Errorf("recv: %d, %v", n, err)
					return
				}
				for i := range ps[:n] {
					number := binary.BigEndian.Uint32(ps[i].Data)
					if seen[number].Add(1) != 1 || !slices.Equal(ps[i].Data, numbered(number, len(ps[i].Data))) {
						t.Errorf("packet %d: received before, or damaged", number)
					}
				}
				received.Add(int64(n))
			}
		})
	}
	for number := range uint32(packets) {
		if !q.Add(numbered(number, 4+int(number%64)), &packet.Address{Timestamp: now()}) {
			t.Fatal("refused")
		}
	}
	q.Drain()
	wg.Wait()
	if got := received.Load() + dropped.Load(); got != packets {
		t.Errorf("%d received and %d dropped of %d", received.Load(), dropped.Load(), packets)
	}
}

func TestBacklogAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	q := newQueue(engine.Limits{Length: 100, Time: time.Hour, Size: 1 << 20}, func(*Item, Reason) {})
	b := numbered(1, 1400)
	ps := make([]packet.Packet, 8)
	addr := packet.Address{Timestamp: now()}
	cycle := func() {
		for range ps {
			q.Add(b, &addr)
		}
		if n, _, err := q.take(ps, true); n != len(ps) || err != nil {
			t.Fatal(n, err)
		}
	}
	for range 100 { // until every place of the ring has its memory
		cycle()
	}
	if n := testing.AllocsPerRun(100, cycle); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkBacklog(b *testing.B) {
	q := newQueue(engine.Limits{Length: 1000, Time: time.Hour, Size: 1 << 22}, func(*Item, Reason) {})
	data := numbered(1, 1400)
	ps := make([]packet.Packet, 1)
	addr := packet.Address{Timestamp: now()}
	b.ReportAllocs()
	for b.Loop() {
		q.Add(data, &addr)
		if n, _, _ := q.take(ps, true); n != 1 {
			b.Fatal(n)
		}
	}
}
