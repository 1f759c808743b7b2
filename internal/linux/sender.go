//go:build linux

package linux

import (
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// sender sends a handle's packets: as a verdict on the queued packet where they are one, else
// as an injection of their own.
type sender struct {
	h       *handle
	key     cursor.Key
	tag     uint32
	queue   *queue.Queue // nil for handles that have none
	waiting *outstanding
	batches sync.Pool // of *queue.Verdicts
	fresh   injector
}

func newSender(h *handle, key cursor.Key, tag uint32) (*sender, error) {
	return &sender{h: h, key: key, tag: tag, fresh: injector{ns: h.ns, key: key}}, nil
}

// attach makes verdicts go to a queue, with room for n packets that were received and not sent on.
func (s *sender) attach(q *queue.Queue, n int) {
	s.queue = q
	s.waiting = newOutstanding(n)
}

func (s *sender) close() { s.fresh.close() }

// batch returns an empty batch of verdicts; it goes back with s.batches.Put.
func (s *sender) batch() (*queue.Verdicts, error) {
	if v, ok := s.batches.Get().(*queue.Verdicts); ok {
		return v, nil
	}
	return s.queue.NewVerdicts()
}

// onward is the verdict that lets a packet go on to the handles below this one.
func (s *sender) onward(priority uint32) (queue.Verdict, queue.Option) {
	if !cursors() || !cursor.Keeps(priority) {
		// The cursor has no place in this packet: it leaves the chain, and lower handles do not see it.
		return queue.Accept, queue.Option{}
	}
	return queue.Repeat, queue.Option{Priority: s.key.Pack(priority), SetPriority: true}
}

// send sends ps. A packet that fails does not hold up the others; the last error is returned.
func (s *sender) send(ps []packet.Packet, unchanged bool) (sent int, last error) {
	var v *queue.Verdicts
	if s.queue != nil {
		var err error
		if v, err = s.batch(); err != nil {
			return 0, closedError(err)
		}
		defer s.batches.Put(v)
	}
	var reinjected, injected uint64
	for i := range ps {
		again, err := s.one(&ps[i], v, unchanged)
		switch {
		case err != nil:
			last = err
		case again:
			reinjected++
		default:
			injected++
		}
	}
	if v != nil {
		if err := v.Flush(); err != nil {
			return 0, closedError(err)
		}
	}
	sent = int(reinjected + injected)
	s.h.counts.reinjected.Add(reinjected)
	s.h.counts.injected.Add(injected)
	s.h.counts.failed.Add(uint64(len(ps) - sent))
	return sent, last
}

// one sends one packet, and reports whether it went on as the packet it was captured as.
func (s *sender) one(p *packet.Packet, v *queue.Verdicts, unchanged bool) (again bool, err error) {
	t := tokenOf(&p.Addr)
	own := v != nil && t.tag == s.tag
	if unchanged && own && p.Addr.Outbound == t.outbound() && !p.Addr.Impostor && s.waiting.claim(t.id) {
		return true, s.onto(v, t, nil)
	}
	data, err := whole(p.Data)
	if err == nil {
		err = finish(data, &p.Addr)
	}
	if err != nil {
		return false, err // the captured packet, if it is one, still waits for a better try
	}
	if own && s.waiting.claim(t.id) {
		if t.holds(data, &p.Addr) && len(data) <= queue.MaxPayload {
			return true, s.onto(v, t, data)
		}
		// It was turned round or sent elsewhere: the captured packet itself ends here.
		if err := v.Add(t.id, queue.Drop, queue.Option{}); err != nil {
			return false, err
		}
	}
	return false, s.fresh.inject(data, &p.Addr, s.h.layer)
}

// onto lets a queued packet go on to the handles below, with other bytes unless data is nil.
func (s *sender) onto(v *queue.Verdicts, t token, data []byte) error {
	verdict, o := s.onward(t.priority)
	o.Payload = data
	return v.Add(t.id, verdict, o)
}

// whole returns the packet at the start of b, by the length in its IP header (specification: api.md 8).
func whole(b []byte) ([]byte, error) {
	if len(b) < packet.IPv4HeaderLen {
		return nil, engine.ErrShortBuffer
	}
	var n int
	switch b[0] >> 4 {
	case 4:
		if n = int(b[2])<<8 | int(b[3]); n < packet.IPv4HeaderLen {
			return nil, engine.ErrInvalid
		}
	case 6:
		if len(b) < packet.IPv6HeaderLen {
			return nil, engine.ErrShortBuffer
		}
		n = (int(b[4])<<8 | int(b[5])) + packet.IPv6HeaderLen
	default:
		return nil, engine.ErrInvalid
	}
	if len(b) < n {
		return nil, engine.ErrShortBuffer
	}
	return b[:n], nil
}

// finish computes the checksums that the address calls missing and counts down the hop limit of another
// program's packet, in this order (specification: api.md 8).
func finish(b []byte, a *packet.Address) error {
	skip := packet.NoICMPChecksum | packet.NoICMPv6Checksum
	if a.IPChecksum {
		skip |= packet.NoIPChecksum
	}
	if a.TCPChecksum {
		skip |= packet.NoTCPChecksum
	}
	if a.UDPChecksum {
		skip |= packet.NoUDPChecksum
	}
	packet.CalcChecksums(b, nil, skip) // a fragment's transport checksum stays: that is no failure of Send
	if a.Impostor && !packet.DecrementTTL(b) {
		return engine.ErrHopLimit
	}
	return nil
}
