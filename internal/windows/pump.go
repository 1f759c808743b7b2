package windows

import (
	"io"
	"slices"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/packet"
)

// pumpBatch is the number of packets that the pump takes from the driver at a time.
const pumpBatch = 64

// pump continuously takes the packets of a wider filter from the driver, so that packets that do not match need not wait
// for the program: they go back at once. Matching ones go to the inbox.
type pump struct {
	h     *handle
	inbox *backlog.Queue
	stop  chan struct{} // closed to stop it
	done  chan struct{}

	back []packet.Packet // of the current batch, to be sent back; memory for the next batch
	mine []int           // of the current batch, for the program
}

func newPump(h *handle) *pump {
	p := &pump{h: h, inbox: h.newInbox(), stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

// run pumps until receiving ends.
func (p *pump) run() {
	defer close(p.done)
	ps := make([]packet.Packet, pumpBatch)
	for {
		n, s, err := p.h.receive(engine.Wait{Handle: p.stop}, ps)
		if err != nil {
			if err == engine.ErrInterrupted {
				err = io.EOF
			}
			p.inbox.Stop(err)
			return
		}
		p.sort(ps[:n], s)
	}
}

// sort decides about received packets.
func (p *pump) sort(ps []packet.Packet, s *source) {
	program := s.program.Load()
	now := clock()
	p.back, p.mine = p.back[:0], p.mine[:0]
	for i := range ps {
		switch {
		case p.h.flows.Match(&p.h.cfg, program, ps[i].Data, &ps[i].Addr, now):
			p.h.counts.matched.Add(1)
			switch p.h.flows.Pass(ps[i].Data, len(ps[i].Data), now) {
			case flow.Undecided:
				p.mine = append(p.mine, i)
			case flow.Accept:
				if p.h.holds() {
					p.back = append(p.back, packet.Packet{Data: ps[i].Data, Addr: ps[i].Addr})
				}
			}
		case s.plan.reinjects(&p.h.cfg):
			p.back = append(p.back, packet.Packet{Data: ps[i].Data, Addr: ps[i].Addr})
		}
	}
	// Packets that do not match go on before the program gets a later one and can send it on: the order of a flow does
	// not change.
	p.sendBack(p.back)
	clear(p.back)
	for _, i := range p.mine {
		p.h.keepIn(p.inbox, now, &ps[i])
	}
}

// sendBack lets packets go on.
func (p *pump) sendBack(ps []packet.Packet) {
	if len(ps) == 0 {
		return
	}
	n, _ := p.h.send(ps) // only the counters record the error
	p.h.counts.failed.Add(uint64(len(ps) - n))
}

// close stops the pump and lets unreceived packets go on, as the driver does with its own.
func (p *pump) close() {
	close(p.stop)
	p.h.interrupt()
	<-p.done
	left := rest(p.inbox)
	p.h.counts.passed.Add(uint64(len(left)))
	if p.h.newest.Load().plan.reinjects(&p.h.cfg) {
		p.sendBack(left)
	}
}

// newInbox returns a queue in user space with the limits of the handle's queue (specification: api.md 12). Its clock is
// the clock of flows.
func (h *handle) newInbox() *backlog.Queue {
	return backlog.New(backlog.Config{Layer: h.layer, Limits: h.limits, Now: clock, Dropped: func(_ *backlog.Item, why backlog.Reason) {
		if why == backlog.Old {
			h.counts.old.Add(1)
		} else {
			h.counts.full.Add(1)
		}
	}})
}

// keepIn copies a packet with its time of arrival into a queue in user space.
func (h *handle) keepIn(q *backlog.Queue, at int64, p *packet.Packet) {
	if !q.AddAt(at, p.Data, &p.Addr) {
		h.counts.long.Add(1)
	}
}

// rest ends a queue in user space, and returns its packets that are not too old.
func rest(q *backlog.Queue) (left []packet.Packet) {
	q.End(func(i *backlog.Item) { left = append(left, packet.Packet{Data: slices.Clone(i.Data), Addr: i.Addr}) })
	return left
}
