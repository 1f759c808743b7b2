//go:build linux

package linux

import (
	"errors"

	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// batchReader receives datagrams of a queue into the memory of packets.
type batchReader struct{ r *nfnl.Reader }

func newBatchReader(q *queue.Queue) *batchReader { return &batchReader{q.NewReader(maxBatch)} }

// fill receives one datagram into each of ps, at most, and returns how many; wait says whether to
// wait for the first.
func (b *batchReader) fill(ps []packet.Packet, wait bool) (int, error) {
	n := min(len(ps), b.r.Cap())
	for i := range ps[:n] {
		b.r.Slot(i, ps[i].Buffer(queue.BufferSize))
	}
	if wait {
		return b.r.Recv(n)
	}
	return b.r.Poll(n)
}

// datagram returns the datagram that was received into p as the i-th.
func (b *batchReader) datagram(i int, p *packet.Packet) []byte {
	n, _ := b.r.Len(i)
	return p.Buffer(queue.BufferSize)[:min(n, queue.BufferSize)]
}

// release lets the packets that wait in queues for a reader go on as they were.
func release(lanes []*lane, s *sender) (err error) {
	for _, l := range lanes {
		err = errors.Join(err, l.release(s))
	}
	return err
}

// maxReleased bounds a release that more packets come to all the time: more than the longest queue holds.
const maxReleased = 4 * 16384

func (l *lane) release(s *sender) error {
	verdicts, err := l.batch()
	if err != nil {
		return err
	}
	defer l.batches.Put(verdicts)
	r := newBatchReader(l.q)
	ps := make([]packet.Packet, maxBatch)
	for passed := 0; passed < maxReleased; {
		got, err := r.fill(ps, false)
		if got == 0 || err != nil {
			return err
		}
		var m queue.Message
		for i := range ps[:got] {
			if m.Parse(r.datagram(i, &ps[i])) == queue.KindPacket {
				verdict, o := s.onward(m.Hook, m.Priority)
				_ = verdicts.Add(m.ID, verdict, o) // fails only together with Flush
				passed++
			}
		}
		if err := verdicts.Flush(); err != nil {
			return err
		}
	}
	return nil
}
