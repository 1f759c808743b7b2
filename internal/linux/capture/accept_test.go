//go:build linux

package capture

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/queue/queuetest"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// accepting is a queued source that has received n datagrams of a full-sized packet.
type accepting struct {
	*queued
	r  *verdict.Reader
	ps []packet.Packet
}

// newTestQueued returns a source that receives from a queue of a pair, and the other end.
func newTestQueued(t testing.TB) (*queued, int) {
	t.Helper()
	q, there := queuetest.Pair(t)
	lanes := []*verdict.Lane{verdict.NewLane(queue.Pair{Whole: q, Single: &queue.Queue{Conn: q.Conn}}, 0, 1, 64)}
	e := Env{Layer: packet.LayerNetwork, Counts: &tally.Counts{}, Review: &review.Review{}, FlowDropped: func(*packet.Packet) bool { return false }}
	e.Sender = verdict.NewSender(verdict.Config{Layer: e.Layer, Counts: e.Counts, Key: cursor.NewKey(0, 0), Tag: 0x2a})
	e.Sender.Answer(lanes)
	return &queued{Env: e, lanes: lanes, ages: &ages{}}, there
}

func newAccepting(t testing.TB, n int) *accepting {
	t.Helper()
	q, there := newTestQueued(t)

	r, err := q.lanes[0].Enter()
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 1500)
	copy(payload, unhex(t, tcp4))
	binary.BigEndian.PutUint16(payload[2:], uint16(len(payload)))
	for id := range n {
		if _, err := unix.Write(there, queuetest.Datagram(uint32(id), payload)); err != nil {
			t.Fatal(err)
		}
	}
	ps := make([]packet.Packet, n)
	if got, err := r.Fill(engine.Wait{}, ps); got != n || err != nil {
		t.Fatalf("received %d, %v", got, err)
	}
	return &accepting{q, r, ps}
}

// round accepts the received packets, which can be done again, and forgets that they wait.
func (s *accepting) round(t testing.TB) {
	if n, err := s.accept(s.lanes[0], s.r, s.ps); n != len(s.ps) || err != nil {
		t.Fatalf("%d packets, %v", n, err)
	}
	for i := range s.ps {
		if !s.lanes[0].LetGo(&s.ps[i].Addr) {
			t.Fatalf("packet %d does not wait", i)
		}
	}
}

func TestAccept(t *testing.T) {
	q, there := newTestQueued(t)
	s := q.Sender
	q.ages.expired[0].Store(1<<32 | 3)
	r, err := q.lanes[0].Enter()
	if err != nil {
		t.Fatal(err)
	}
	refused := binary.NativeEndian.AppendUint32(nfnl.AppendHeader(nil, 36, unix.NLMSG_ERROR, 0, 0)[:16], 0xfffffffe)
	refused = append(refused, nfnl.AppendHeader(nil, 32, 0, 0, 0)[:16]...)
	binary.NativeEndian.PutUint32(refused[16+4+8:], 3<<1) // three packets that were sent on
	s.Counts.Reinjected.Store(5)
	cut := queuetest.Cut(queuetest.Datagram(6, unhex(t, tcp4)), 100)
	for _, d := range [][]byte{
		refused, queuetest.Datagram(3, unhex(t, tcp4)), queuetest.Datagram(4, unhex(t, tcp4)), {1, 2, 3}, queuetest.Datagram(5, unhex(t, udp6)), cut,
		queuetest.Datagram(4+64, unhex(t, udp4)),
	} {
		if _, err := unix.Write(there, d); err != nil {
			t.Fatal(err)
		}
	}
	ps := make([]packet.Packet, 10)
	got, err := r.Poll(ps)
	if got != 7 || err != nil {
		t.Fatal(got, err)
	}
	if n, err := q.accept(q.lanes[0], r, ps[:got]); n != 4 || err != nil {
		t.Fatalf("%d packets, %v", n, err)
	}
	for i, want := range []struct {
		id   uint32
		hex  string
		ipv6 bool
	}{{4, tcp4, false}, {5, udp6, true}, {6, tcp4, false}, {4 + 64, udp4, false}} {
		p := &ps[i]
		if string(p.Data) != string(unhex(t, want.hex)) {
			t.Errorf("packet %d is %x", i, p.Data)
		}
		a := &p.Addr
		if !a.Outbound || a.IPv6 != want.ipv6 || a.Loopback || a.TCPChecksum || a.UDPChecksum || !a.IPChecksum || a.Network().IfIdx != 2 {
			t.Errorf("packet %d: %+v", i, a)
		}
		if !s.Captured(a) {
			t.Errorf("packet %d: %+v", i, a)
		}
	}
	// Too old, and the one whose place was needed. The one that is cut may go on whole.
	want := []queuetest.Verdict{{ID: 3}, {ID: 4}}
	dropped := queuetest.Verdicts(t, there)
	if len(dropped) != len(want) {
		t.Fatalf("%v, want %v", dropped, want)
	}
	for i := range want {
		if dropped[i] != want[i] {
			t.Errorf("%v, want %v", dropped[i], want[i])
		}
	}
	if n, err := s.Send(ps[1:4], true); n != 3 || err != nil {
		t.Errorf("%d sent on, %v", n, err)
	}
	on := queuetest.Verdicts(t, there)
	if len(on) != 3 || on[0].ID != 5 || on[1].ID != 6 || on[2].ID != 4+64 {
		t.Errorf("%v went on, want 5, 6 and 68", on)
	}
	c := s.Counts
	if c.Failed.Load() != 3 || c.Reinjected.Load() != 2+3 || c.Old.Load() != 1 || c.Long.Load() != 0 || c.Abandoned.Load() != 1 {
		t.Errorf("counted failed %d, reinjected %d, old %d, long %d, abandoned %d", c.Failed.Load(), c.Reinjected.Load(), c.Old.Load(), c.Long.Load(), c.Abandoned.Load())
	}
}

func TestAcceptAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	s := newAccepting(t, 16)
	s.round(t)
	if n := testing.AllocsPerRun(100, func() { s.round(t) }); n != 0 {
		t.Errorf("accept: %v allocations", n)
	}
}

// BenchmarkAccept measures a packet's way from the datagram's bytes to the caller, without the kernel.
func BenchmarkAccept(b *testing.B) {
	s := newAccepting(b, 16)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%len(s.ps) == 0 {
			s.round(b)
		}
	}
}
