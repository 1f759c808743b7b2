//go:build linux

package verdict

import (
	"sync/atomic"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// runs tracks the highest number of a queue up to which every packet has its verdict. One verdict for "all up to n" then lets a
// whole batch go on, which costs the kernel less than one for each. It must never reach a packet that somebody still holds, so
// it is used only for packets that follow each other without a gap, from the first without a verdict on.
//
// Every count errs on the safe side: while there may be another receiver or holder, each packet gets a verdict of its own.
type runs struct {
	readers atomic.Int32  // receive calls under way: they may hold numbers that nobody knows of yet
	open    atomic.Int64  // packets received whose verdicts have not reached the kernel
	low     atomic.Uint64 // 1<<32 | the last number up to which all have their verdicts; 0: unknown
}

func (r *runs) enter() { r.readers.Add(1) }
func (r *runs) leave() { r.readers.Add(-1) }

// alone reports whether no other receive call is under way, and every packet received before has its
// verdict.
func (r *runs) alone() bool { return r.readers.Load() == 1 && r.open.Load() == 0 }

// begin notes the first number of a batch received alone: the packets before it have their verdicts. The kernel
// hands packets over in the order of their numbers.
func (r *runs) begin(first uint32) { r.low.Store(1<<32 | uint64(first-1)) }

// received counts packets that were handed out, and settled those that have their verdicts.
func (r *runs) received(n int) { r.open.Add(int64(n)) }
func (r *runs) settled(n int)  { r.open.Add(int64(-n)) }

// next reports whether the number is the first without a verdict.
func (r *runs) next(id uint32) bool { return r.low.Load() == 1<<32|uint64(id-1) }

// end notes that all up to a number have their verdicts.
func (r *runs) end(id uint32) { r.low.Store(1<<32 | uint64(id)) }

// run lets packets at the start of ps go on with one verdict, as far as they follow each other and are as they were captured,
// which unchanged asserts. It returns their number. They are of one device: when it goes down, the kernel has dropped all of
// them, and refuses the verdict, or none. Forwarded packets may be of several devices: else the two directions of a flow would
// have no run in common.
func (s *Sender) run(ps []packet.Packet, v *verdicts, unchanged bool) (int, error) {
	first := tokenOf(&ps[0].Addr)
	l := s.laneOf(&first)
	if l == nil || !l.runs.next(first.id) || !unchanged && first.digest == 0 {
		return 0, nil
	}
	n := 0
	for ; n < len(ps); n++ {
		a := &ps[n].Addr
		t := tokenOf(a)
		follows := t.tag == first.tag && t.lane == first.lane && t.id == first.id+uint32(n) &&
			t.hook == first.hook && (t.ifIdx == first.ifIdx || t.hook == queue.HookForward) &&
			t.priority == first.priority && !t.severed && a.Outbound == t.outbound() && !a.Impostor
		if !follows || !unchanged && !v.compare(&ps[n], &t) || !v.claim(l, &t) {
			break
		}
	}
	if n == 0 {
		return 0, nil
	}
	b, err := v.on(l)
	if err != nil {
		return 0, err
	}
	last := first.id + uint32(n-1)
	verdict, o := s.onward(first.priority)
	o.Tag = reinjectedTag(n)
	v.lanes[l.Index].upTo, v.lanes[l.Index].run = last, true
	b.AddUpTo(last, verdict, o)
	return n, nil
}
