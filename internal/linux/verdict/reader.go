//go:build linux

package verdict

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
	return &batchReader{r: q.NewReader(MaxBatch), slot: queue.BufferSize}
}

// Fill waits for datagrams, and receives one into each of ps, at most; see nfnl.Reader.Recv.
func (b *batchReader) Fill(w engine.Wait, ps []packet.Packet) (int, error) {
	return b.r.Recv(w, b.slots(ps))
}

// Poll is fill without waiting: it returns 0 if no datagram is there.
func (b *batchReader) Poll(ps []packet.Packet) (int, error) { return b.r.Poll(b.slots(ps)) }

// slots makes the next call receive into ps, and returns into how many of them.
func (b *batchReader) slots(ps []packet.Packet) int {
	n := min(len(ps), b.r.Cap())
	for i := range ps[:n] {
		b.r.Slot(i, ps[i].Buffer(b.slot))
	}
	return n
}

// Datagram returns the datagram that was received into p as the i-th.
func (b *batchReader) Datagram(i int, p *packet.Packet) []byte {
	n, _ := b.r.Len(i)
	return p.Buffer(b.slot)[:min(n, b.slot)]
}

// Release lets the packets that wait in queues for a reader go on as they were, and counts them as passed. It drops those that
// tooOld reports by their number, and counts them as too old. If tooOld is nil, no filter has matched the packets yet: all go
// on, and none is counted.
func Release(lanes []*Lane, s *Sender, tooOld func(l *Lane, id uint32) bool) (err error) {
	for _, l := range lanes {
		err = errors.Join(err, l.release(s, tooOld))
	}
	return err
}

func (l *Lane) release(s *Sender, tooOld func(l *Lane, id uint32) bool) error {
	var m queue.Message
	return l.Rest(func(r *Reader, p *packet.Packet, datagram []byte) {
		switch m.Parse(datagram) {
		case queue.KindError:
			s.Refused(m.Tag)
		case queue.KindPacket:
			l.Of(&m).passOn(s, r, p, &m, tooOld)
		}
	})
}

// maxRest bounds rest where packets come all the time: as many as the two longest queues of a lane hold.
const maxRest = 4 * MaxPlaces

// RestBatch is how many packets rest takes at a time: each needs memory for the longest.
const RestBatch = 32

// Rest hands over each datagram that the lane's socket holds, with the packet whose memory it lies in. It does not wait
// for more.
func (l *Lane) Rest(decide func(r *Reader, p *packet.Packet, datagram []byte)) error {
	r, err := l.Reader()
	if err != nil {
		return err
	}
	defer l.readers.Put(r)
	ps := make([]packet.Packet, RestBatch)
	for done := 0; done < maxRest; {
		got, err := r.Poll(ps)
		if got == 0 || err != nil {
			return err
		}
		done += got
		for i := range ps[:got] {
			decide(r, &ps[i], r.Datagram(i, &ps[i]))
		}
		if err := l.FlushBoth(r); errors.Is(err, os.ErrClosed) {
			return err
		}
	}
	return nil
}

// passOn lets a packet that nobody received go on, whose payload lies in the memory of p, unless it is too old; see Release.
func (l *Lane) passOn(s *Sender, r *Reader, p *packet.Packet, m *queue.Message, tooOld func(l *Lane, id uint32) bool) {
	v := r.DropsOf(l)
	if s.Strange(m) {
		s.Counts.Foreign.Add(1)
		s.Leave(v, m)
		return
	}
	tag := uint32(0)
	if tooOld != nil {
		if tooOld(l, m.ID) {
			s.Counts.Old.Add(1)
			_ = v.Add(m.ID, queue.Drop, queue.Option{})
			return
		}
		s.Counts.Passed.Add(1)
		tag = PassedTag(1)
	}
	s.Deliver(l, p, m, 0)
	s.PassOn(v, p.Data, &p.Addr, tag)
}
