//go:build linux

package linux

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// queued is the source of a handle whose packets the kernel has chosen: they are received from the queue
// straight into the caller's memory.
type queued struct {
	h        *handle
	q        *queue.Queue
	readers  sync.Pool // of *reader
	draining atomic.Bool
	ages     *ages
}

// reader is what one receive call at a time needs.
type reader struct {
	*batchReader
	drops *queue.Verdicts
}

// maxBatch is how many packets a receive call takes at most.
const maxBatch = 256

// queueOptions are the options of a queue that honours the limits, with room for as many packets again
// that were received and not sent on.
func queueOptions(cfg *engine.Config, l engine.Limits) queue.Options {
	return queue.Options{MaxLen: uint32(2 * l.Length), FailOpen: cfg.FailOpen, RcvBuf: receiveBuffer(l)}
}

// receiveBuffer is the socket buffer for a queue of the given size, in bytes. The kernel counts the memory
// behind a packet, which is about twice its bytes for large ones and some 1 KiB for small ones.
func receiveBuffer(l engine.Limits) int { return 2*l.Size + 1024*l.Length }

func newQueued(h *handle) (*queued, error) {
	q, err := queue.Open(queueOptions(&h.cfg, h.cfg.Limits))
	if err != nil {
		return nil, err
	}
	ages, err := watchAges(q.Num(), h.cfg.Limits.Time)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	h.sender.attach(q, h.cfg.Limits.Length)
	return &queued{h: h, q: q, ages: ages}, nil
}

func (s *queued) action() rules.Action { return rules.ToQueue{Num: s.q.Num(), Count: 1} }

// reader returns a reader; it goes back with s.readers.Put.
func (s *queued) reader() (*reader, error) {
	if r, ok := s.readers.Get().(*reader); ok {
		return r, nil
	}
	drops, err := s.q.NewVerdicts()
	if err != nil {
		return nil, err
	}
	return &reader{batchReader: newBatchReader(s.q), drops: drops}, nil
}

func (s *queued) recv(ps []packet.Packet) (int, error) {
	r, err := s.reader()
	if err != nil {
		return 0, closedError(err)
	}
	defer s.readers.Put(r)
	for {
		draining := s.draining.Load()
		got, err := r.fill(ps, !draining)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && (s.draining.Load() || s.h.closed.Load()):
			if s.h.closed.Load() {
				return 0, net.ErrClosed
			}
			continue
		case err != nil:
			return 0, closedError(err)
		case got == 0 && draining:
			return 0, eof
		}
		n := s.sort(r, ps[:got])
		if err := r.drops.Flush(); err != nil {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// sort puts the packets among the datagrams in ps first and returns how many they are.
func (s *queued) sort(r *reader, ps []packet.Packet) (n int) {
	at := now()
	var m queue.Message
	for i := range ps {
		switch m.Parse(r.datagram(i, &ps[i])) {
		case queue.KindError:
			s.h.counts.failed.Add(1)
			continue
		case queue.KindOther:
			continue
		}
		if s.ages.tooOld(m.ID) {
			s.h.counts.old.Add(1)
			_ = r.drops.Add(m.ID, queue.Drop, queue.Option{})
			continue
		}
		if int(m.Length) > len(m.Payload) {
			// The rest is not to be had, so it cannot be given back either.
			s.h.counts.long.Add(1)
			_ = r.drops.Add(m.ID, queue.Drop, queue.Option{})
			continue
		}
		if n != i {
			ps[n], ps[i] = ps[i], ps[n]
		}
		s.h.deliver(&ps[n], &m, at)
		s.h.retime(&ps[n])
		if gone, gaveWay := s.h.sender.waiting.put(m.ID); gaveWay {
			s.h.counts.abandoned.Add(1)
			_ = r.drops.Add(gone, queue.Drop, queue.Option{})
		}
		n++
	}
	return n
}

// deliver makes a packet of a message whose payload lies in the packet's memory.
func (h *handle) deliver(p *packet.Packet, m *queue.Message, at int64) {
	p.Data = m.Payload
	p.Addr = packet.Address{}
	h.describe(&p.Addr, m, at)
	t := token{
		tag: h.sender.tag, id: m.ID, priority: m.Priority, hook: m.Hook, gso: m.GSO,
		ifIdx: p.Addr.Network().IfIdx, dst: destination(m.Payload),
	}
	t.put(&p.Addr)
}

// loopbackIfIndex is the index of lo in every namespace.
const loopbackIfIndex = 1

// describe fills an address from a message, without the token (specification: api.md 14.3).
func (h *handle) describe(a *packet.Address, m *queue.Message, at int64) {
	a.Timestamp = at
	a.Layer = h.layer
	a.Event = packet.EventPacket
	a.Outbound = m.Hook != queue.HookPrerouting
	a.IPv6 = len(m.Payload) > 0 && m.Payload[0]>>4 == 6
	ifIdx := m.Out
	if !a.Outbound {
		ifIdx = m.In
	}
	a.Loopback = a.Outbound && ifIdx == loopbackIfIndex && m.Hook == queue.HookPostrouting
	a.SetNetwork(packet.NetworkData{IfIdx: ifIdx})
	// The header checksum is always in the packet. Of the transport checksum the kernel says when it left
	// it to the hardware (the field then holds a partial sum), and when the hardware has
	// verified it on the way in.
	trusted := !m.ChecksumNotReady && (a.Outbound || m.ChecksumNotVerified)
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, trusted, trusted
}

func (s *queued) setDeadline(t time.Time) error {
	if s.draining.Load() {
		return nil // nothing waits any more
	}
	return closedError(s.q.SetReadDeadline(t))
}

func (s *queued) setLimits(l engine.Limits) error {
	s.ages.limit.Store(int64(l.Time))
	return closedError(s.q.Configure(queueOptions(&s.h.cfg, l)))
}

func (s *queued) setFilter(*filter.Program) {} // the programs of the rules decide

func (s *queued) drain() {
	s.draining.Store(true)
	_ = s.q.SetReadDeadline(past) // wakes the readers
}

// close gives the packets that nobody received back to the stack, as they were.
func (s *queued) close() error {
	_ = s.q.SetReadDeadline(past)
	s.ages.close()
	passed, err := release(s.q, s.h.sender)
	s.h.counts.passed.Add(passed)
	return errors.Join(err, s.q.Close())
}

// closedError is what a call on a closed handle returns, whatever noticed it.
func closedError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// tally adds what the kernel counts.
func (s *queued) tally(st *engine.Stats) error {
	c, err := s.ages.counters()
	if err != nil {
		return err
	}
	st.DroppedFull += c.DroppedFull + c.DroppedUser
	st.Waiting = rest(c.Total, s.h.sender.waiting.count())
	st.Passed += rest(st.Matched, st.Received+st.Waiting+st.DroppedFull+st.DroppedOld+st.DroppedLong+st.Passed)
	return nil
}

// rest is a-b, or 0 where the counters were read at moments that do not fit.
func rest(a, b uint64) uint64 { return a - min(a, b) }
