//go:build linux

package verdict

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/queue/queuetest"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/packet"
)

// fill makes the lane's socket refuse every message, until the other end is read.
func (l *Lane) fill(t testing.TB) {
	t.Helper()
	v, err := l.q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	for id := uint32(1 << 30); ; id++ {
		if err := v.Add(id, queue.Accept, queue.Option{}); err != nil {
			t.Fatal(err)
		}
		if err := v.Flush(); errors.Is(err, unix.EAGAIN) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// A verdict that the kernel has no memory for is an error for the caller, and its packet does not stay in the kernel's queue: it
// is dropped with the next verdicts.
func TestVerdictsThatFailLeaveNoPacketBehind(t *testing.T) {
	s, there := newTestSender(t)
	l := s.lanes[0]
	var ps []packet.Packet
	for id := range uint32(4) {
		ps = append(ps, *s.capture(t, tcp4, queue.Message{ID: id, Hook: queue.HookPostrouting, Out: 2}))
	}
	l.runs.enter()
	l.runs.begin(0)
	l.runs.received(4)
	l.runs.leave()
	l.fill(t)
	if n, err := s.Send(ps[:2], true); n != 0 || !errors.Is(err, unix.EAGAIN) { // one verdict for both
		t.Errorf("%d accepted, %v", n, err)
	}
	if n, err := s.Send(ps[2:3], false); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%d sent, %v", n, err)
	}
	if c := s.Counts; c.Reinjected.Load() != 0 || c.Failed.Load() != 3 {
		t.Errorf("counted %d sent on, %d failed", c.Reinjected.Load(), c.Failed.Load())
	}
	for queuetest.Verdicts(t, there) != nil {
	}
	if n, err := s.Send(ps[3:], true); n != 1 || err != nil {
		t.Errorf("%d accepted, %v", n, err)
	}
	got := queuetest.Verdicts(t, there)
	if len(got) != 3 || got[0].ID != 3 || got[1] != (queuetest.Verdict{ID: 2}) || got[2] != (queuetest.Verdict{ID: 1}) {
		t.Errorf("verdicts %v, want one on 3 and drops of 2 and up to 1", got)
	}
	if l.owed.there.Load() || l.owed.list != nil {
		t.Errorf("still owed: %v", l.owed.list)
	}
}

// Packets that nobody received, and that are to go on as they were, go on a little later.
func TestPacketsThatPassAreOwedTheirVerdict(t *testing.T) {
	s, there := newTestSender(t)
	p := s.capture(t, tcp4, queue.Message{ID: 7, Hook: queue.HookPostrouting, Out: 2})
	q := s.capture(t, tcp4, queue.Message{ID: 8, Hook: queue.HookPostrouting, Out: 2})
	s.lanes[0].fill(t)
	s.Pass([]packet.Packet{*p})
	for queuetest.Verdicts(t, there) != nil {
	}
	s.Pass([]packet.Packet{*q})
	got := queuetest.Verdicts(t, there)
	if len(got) != 2 || got[1].ID != 7 || got[1].Verdict != got[0].Verdict || got[1].Priority != got[0].Priority {
		t.Errorf("verdicts %v, want the same on 8 and 7", got)
	}
}

// The kernel refuses a verdict on a packet that it has dropped meanwhile.
func TestRefusedVerdictsAreCountedOnce(t *testing.T) {
	var c tally.Counts
	s := NewSender(Config{Counts: &c})
	c.Reinjected.Store(10)
	c.Passed.Store(5)
	s.Refused(reinjectedTag(3))
	s.Refused(PassedTag(2))
	s.Refused(0)
	if c.Reinjected.Load() != 7 || c.Failed.Load() != 3 || c.Passed.Load() != 3 || c.Missing.Load() != 2 {
		t.Errorf("%d sent on, %d failed, %d passed, %d lost", c.Reinjected.Load(), c.Failed.Load(), c.Passed.Load(), c.Missing.Load())
	}
}
