package order

import "math/rand/v2"

// Action is a call on a handle, or another event from outside.
type Action uint8

// The actions.
const (
	Open      Action = iota // with the first filter
	SetFilter               // to the second
	Accept                  // of the packet that has waited longest
	CloseIt
	KillIt
	Send // a packet: the host does, or the handle that injects it
)

func (a Action) String() string {
	return [...]string{"open", "set filter", "accept", "close", "kill", "send"}[a]
}

// Call is an action with the effects that must come before the next one.
type Call struct {
	Action Action
	Handle int
	Packet int     // of Send and Accept
	Comes  []Event // in any order
}

// Walk makes up a sequence of calls of a scenario, until every handle has ended and every packet has met its fate. It fails if a
// promise breaks on the way.
func Walk(sc Scenario, r *rand.Rand) (calls []Call, err error) {
	w := &walk{sc: &sc, s: sc.start()}
	sc.watch = func(e Event) { w.comes = append(w.comes, e) }
	for {
		options := w.options()
		if len(options) == 0 {
			return calls, nil
		}
		c := options[r.IntN(len(options))]
		if w.comes, err = nil, nil; w.do(c) != nil {
			return calls, w.err
		}
		c.Comes = w.comes
		calls = append(calls, c)
	}
}

// walk is a sequence in the making.
type walk struct {
	sc    *Scenario
	s     state
	queue [MaxHandles][]int // packets in the order in which they came
	comes []Event
	err   error
}

// options returns the calls that may follow. Handles may end before the packets have met their fates.
func (w *walk) options() (calls []Call) {
	for h, spec := range w.sc.Handles {
		o := &w.s.handles[h]
		switch {
		case o.phase == unborn:
			calls = append(calls, Call{Action: Open, Handle: h})
			continue
		case o.phase != open:
			continue
		case len(w.queue[h]) > 0:
			calls = append(calls, Call{Action: Accept, Handle: h, Packet: w.queue[h][0]})
		}
		if w.sc.mayChange(&w.s, h) {
			calls = append(calls, Call{Action: SetFilter, Handle: h})
		}
		end := Call{Action: CloseIt, Handle: h}
		if spec.End == Kill {
			end.Action = KillIt
		}
		calls = append(calls, end)
	}
	for i := range w.sc.Packets {
		from := int(w.sc.Packets[i].From)
		if w.s.packets[i].where == unsent && (from < 0 || w.s.handles[from].phase == open) {
			calls = append(calls, Call{Action: Send, Handle: from, Packet: i})
		}
	}
	return calls
}

// do makes a call: all its steps, and those of the packets that they set in motion.
func (w *walk) do(c Call) error {
	switch c.Action {
	case Open:
		w.handle(c.Handle, "reserves its key", "is open")
	case SetFilter:
		w.handle(c.Handle, "begins to change its filter", "swaps its program", "has another filter")
	case Accept, Send:
		w.packet(c.Packet)
	case KillIt:
		w.handle(c.Handle, "is killed", "is buried")
		w.queue[c.Handle] = nil
	case CloseIt:
		w.handle(c.Handle, "begins to close", "has settled")
		for len(w.queue[c.Handle]) > 0 {
			w.packet(w.queue[c.Handle][0])
		}
		w.handle(c.Handle, "gives its queue back", "is closed")
	}
	return w.err
}

// handle takes steps of a handle.
func (w *walk) handle(h int, whats ...string) {
	for _, what := range whats {
		var next *state
		w.sc.handleSteps(&w.s, h, func(t step, n *state, err error) {
			if t.what == what {
				next, w.err = n, err
			}
		})
		w.s = *next
	}
}

// packet takes the steps of a packet until it waits or has met its fate.
func (w *walk) packet(i int) {
	for h, q := range w.queue {
		if len(q) > 0 && q[0] == i {
			w.queue[h] = q[1:]
		}
	}
	for {
		w.sc.packetSteps(&w.s, i, func(_ step, n *state, err error) { w.s, w.err = *n, err })
		switch p := &w.s.packets[i]; {
		case w.err != nil:
			return
		case p.where == waiting:
			w.queue[p.at] = append(w.queue[p.at], i)
			return
		case p.where == arrived || p.where == lost:
			return
		}
	}
}
