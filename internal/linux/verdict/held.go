//go:build linux

package verdict

import (
	"sync"
	"time"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// held gives up the packets of this host that a program has received and does not send on.
//
// A program may drop a packet by not sending it, but then the kernel's queue still holds it. The sender feels that: a held
// packet counts against the buffer of its socket, so that a sender of UDP stops for good after a hundred of them, and TCP does
// not send again while it believes the packet to wait in a queue of its own host (net/ipv4/tcp_output.c,
// skb_still_in_host_queue). So packets that have been held for a while are dropped in the kernel. A program that sends such a
// packet later all the same has its bytes, and injects them anew.
//
// How long a while is depends on the program: one that sends late makes it longer, one that never does makes it shorter.
// Packets of other hosts may stay as long as there is room: nobody waits for them here.
type held struct {
	s *Sender

	mu       sync.Mutex
	packets  []holding // a ring, in the order of their times; it grows up to room
	head     int
	count    int
	room     int
	patience time.Duration
	never    int         // packets given up since one was sent late
	timer    *time.Timer // runs while there are packets
	closed   bool
}

// holding is a packet that a receive call has returned.
type holding struct {
	at        int64 // when, ns of the monotonic clock
	id, place uint32
	lane      uint8
}

// Bounds of how long a packet is held before it is given up. The first must be below 200 ms, after which TCP sends again
// for the first time (TCP_RTO_MIN of include/net/tcp.h).
const (
	firstPatience = 100 * time.Millisecond
	leastPatience = time.Millisecond
	mostPatience  = time.Second

	neverLate = 64 // packets given up in a row that make patience shorter
)

// newHeld returns a held for the packets of a sender's lanes. It is nil for handles whose packets hold up nobody: those that
// copy or drop, and those of the layer FORWARD.
func newHeld(s *Sender) *held {
	if len(s.lanes) == 0 || s.Layer != packet.LayerNetwork {
		return nil
	}
	h := &held{s: s, packets: make([]holding, 64), patience: firstPatience}
	if s.Flags&engine.FlagRecvOnly != 0 {
		h.patience = leastPatience // nothing will be sent on
	}
	for _, l := range s.lanes {
		h.room += len(l.waiting.slots)
	}
	h.timer = time.AfterFunc(time.Hour, h.giveUp)
	h.timer.Stop()
	return h
}

// received notes packets that a receive call is about to return.
func (h *held) received(ps []packet.Packet) {
	if h == nil {
		return
	}
	var at int64
	for i := range ps {
		a := &ps[i].Addr
		if !a.Outbound {
			continue
		}
		if at == 0 {
			at = clock.Now()
			h.mu.Lock()
		}
		t := tokenOf(a)
		if t.cut {
			h.patience = mostPatience // the program does not have all of its bytes, so it cannot inject it
		}
		h.makeRoom()
		h.packets[(h.head+h.count)%len(h.packets)] = holding{at: at, id: t.id, place: t.place, lane: t.lane}
		if h.count++; h.count == 1 && !h.closed {
			h.timer.Reset(h.patience)
		}
	}
	if at != 0 {
		h.mu.Unlock()
	}
}

// makeRoom makes room for one more packet. h.mu is held.
func (h *held) makeRoom() {
	switch {
	case h.count < len(h.packets):
	case h.count >= h.room:
		h.pop() // another packet has taken its place
	default:
		more := make([]holding, 0, 2*h.count)
		more = append(append(more, h.packets[h.head:]...), h.packets[:h.head]...)
		h.packets, h.head = more[:cap(more)], 0
	}
}

// pop takes out the packet that is held the longest. h.mu is held.
func (h *held) pop() holding {
	p := h.packets[h.head]
	h.head = (h.head + 1) % len(h.packets)
	h.count--
	return p
}

// giveUp drops the packets that have been held for too long.
func (h *held) giveUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	var drops [MaxLanes]*queue.Verdicts
	var dropped [MaxLanes]int
	for oldest := clock.Now() - int64(h.patience); h.count > 0 && h.packets[h.head].at <= oldest; {
		p := h.pop()
		l := h.s.lanes[p.lane]
		if !l.waiting.giveUp(p.place, p.id) {
			continue // it has been sent
		}
		if drops[p.lane] == nil {
			b, err := l.batch()
			if err != nil {
				break // the queue is closed
			}
			drops[p.lane] = b
		}
		_ = drops[p.lane].Add(p.id, queue.Drop, queue.Option{}) // fails only for a payload
		dropped[p.lane]++
	}
	for i, b := range drops {
		if b == nil {
			continue
		}
		l := h.s.lanes[i]
		h.s.Counts.Abandoned.Add(uint64(dropped[i]))
		_, _ = l.flush(b) // verdicts that the kernel had no memory for are owed
		l.batches.Put(b)
		l.runs.settled(dropped[i])
		if h.never += dropped[i]; h.never >= neverLate {
			h.never, h.patience = 0, max(h.patience/2, leastPatience)
		}
	}
	if h.count > 0 {
		h.timer.Reset(max(time.Duration(h.packets[h.head].at-clock.Now())+h.patience, leastPatience))
	}
}

// late reports whether a packet that is to be sent was given up, and learns from it. It reports each packet once.
func (h *held) late(l *Lane, t *token) bool {
	if h == nil || l == nil || !l.waiting.takeGivenUp(t.place, t.id) {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.never, h.patience = 0, min(2*h.patience, mostPatience)
	h.s.Counts.Abandoned.Add(^uint64(0))
	return true
}

// close ends giving up.
func (h *held) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.timer.Stop()
}
