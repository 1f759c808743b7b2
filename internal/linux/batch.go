//go:build linux

package linux

import (
	"errors"
	"os"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// batchReader receives datagrams of a queue into the memory of packets, slot bytes of each.
type batchReader struct {
	r    *nfnl.Reader
	slot int
}

func newBatchReader(q *queue.Queue) *batchReader {
	return &batchReader{r: q.NewReader(maxBatch), slot: queue.BufferSize}
}

// fill waits for datagrams, and receives one into each of ps, at most; see nfnl.Reader.Recv.
func (b *batchReader) fill(w engine.Wait, ps []packet.Packet) (int, error) {
	return b.r.Recv(w, b.slots(ps))
}

// poll is fill without waiting: it returns 0 if no datagram is there.
func (b *batchReader) poll(ps []packet.Packet) (int, error) { return b.r.Poll(b.slots(ps)) }

// slots makes the next call receive into ps, and returns into how many of them.
func (b *batchReader) slots(ps []packet.Packet) int {
	n := min(len(ps), b.r.Cap())
	for i := range ps[:n] {
		b.r.Slot(i, ps[i].Buffer(b.slot))
	}
	return n
}

// datagram returns the datagram that was received into p as the i-th.
func (b *batchReader) datagram(i int, p *packet.Packet) []byte {
	n, _ := b.r.Len(i)
	return p.Buffer(b.slot)[:min(n, b.slot)]
}

// release lets the packets that wait in queues for a reader go on as they were, and counts them as passed if wanted.
func release(lanes []*lane, s *sender, count bool) (err error) {
	for _, l := range lanes {
		err = errors.Join(err, l.release(s, count))
	}
	return err
}

func (l *lane) release(s *sender, count bool) error {
	var m queue.Message
	return l.rest(func(r *reader, _ *packet.Packet, datagram []byte) {
		switch m.Parse(datagram) {
		case queue.KindError:
			s.h.counts.refused(m.Tag)
		case queue.KindPacket:
			l.passOn(s, r.dropsOf(l.of(&m)), &m, count)
		}
	})
}

// maxRest bounds rest where packets come all the time: as many as the two longest queues of a lane hold.
const maxRest = 4 * maxPlaces

// restBatch is how many packets rest takes at a time: each needs memory for the longest.
const restBatch = 32

// rest hands over each datagram that the lane's socket holds, with the packet whose memory it lies in. It does not wait
// for more.
func (l *lane) rest(decide func(r *reader, p *packet.Packet, datagram []byte)) error {
	r, err := l.reader()
	if err != nil {
		return err
	}
	defer l.readers.Put(r)
	ps := make([]packet.Packet, restBatch)
	for done := 0; done < maxRest; {
		got, err := r.poll(ps)
		if got == 0 || err != nil {
			return err
		}
		done += got
		for i := range ps[:got] {
			decide(r, &ps[i], r.datagram(i, &ps[i]))
		}
		if err := l.flushBoth(r); errors.Is(err, os.ErrClosed) {
			return err
		}
	}
	return nil
}

// passOn lets a packet that nobody received go on.
func (l *lane) passOn(s *sender, v *queue.Verdicts, m *queue.Message, count bool) {
	if s.strange(m) {
		s.h.counts.foreign.Add(1)
		s.leave(v, m)
		return
	}
	verdict, o := s.onward(m.Priority)
	if count {
		s.h.counts.passed.Add(1)
		o.Tag = passedTag(1)
	}
	_ = v.Add(m.ID, verdict, o) // fails only for a payload
}
