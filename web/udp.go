package web

import (
	"bytes"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/clienthello"
	"github.com/opendivert/divert/internal/quicinitial"
	"github.com/opendivert/divert/packet"
)

// exchange is the traffic of a client and a server between two ports: one QUIC connection or several.
type exchange struct {
	key      key
	attempts []*attempt // the latest last
	held     []divert.Packet
	turn     uint64 // counts the times that holding began
	refused  bool   // an unreadable datagram was blocked
}

// attempt is a QUIC connection, known from its Initial packets.
type attempt struct {
	id     []byte // the destination ID of the client's first packet, from which the keys are derived
	keys   *quicinitial.Keys
	crypto quicinitial.Stream
	judged int   // bytes of the crypto stream judged
	state  state // judging, passing, blocked; passed once judging has ended
}

// datagram judges a datagram of a client that begins with a long header; the handle gets no others.
func (f *Filter) datagram(k key, p *divert.Packet) {
	x, ok := f.udp.find(k)
	if !ok {
		for f.udp.len() >= f.config.MaxFlows {
			old := f.udp.oldest()
			f.stats.FailedOpen += boolCount(len(old.held) > 0 && !f.config.FailClosed)
			old.forget(f)
		}
		x = &exchange{key: k}
		f.udp.put(k, x)
	}
	switch x.judge(f, p) {
	case blocked:
		if len(x.held) > 0 {
			x.letGo(f, false)
		}
		f.drop(p)
	case judging:
		x.hold(f, p)
	default:
		if !x.undecided() {
			x.letGo(f, true)
		}
		f.accept(p)
	}
}

// undecided reports whether a connection waits for its name.
func (x *exchange) undecided() bool {
	for _, a := range x.attempts {
		if a.state == judging {
			return true
		}
	}
	return false
}

// judge decides on a datagram.
func (x *exchange) judge(f *Filter, p *divert.Packet) state {
	result := passing
	read := false // at least one of its packets was read
	for rest := f.parsed.Payload(p.Data); len(rest) > 0 && rest[0]&0x80 != 0; {
		h, behind, err := quicinitial.Parse(rest)
		rest = behind
		s := x.last()
		if err == nil && h.Initial() {
			s = x.initial(f, p, &h)
		}
		read = read || s != finished
		switch s {
		case blocked:
			return blocked
		case judging:
			result = judging
		}
	}
	if !read && f.config.BlockNameless {
		if !x.refused {
			x.refused = true
			f.blocked(x.key, "quic", reasonNameless, "", "")
		}
		return blocked
	}
	return result
}

// last returns the state for packets that do not show their connection: that of the latest.
func (x *exchange) last() state {
	if n := len(x.attempts); n > 0 {
		return x.attempts[n-1].state
	}
	return finished
}

// initial judges an Initial packet. The state is finished if the packet cannot be read.
func (x *exchange) initial(f *Filter, p *divert.Packet, h *quicinitial.Header) state {
	frames := f.buffer[:0]
	var a *attempt
	for _, old := range x.attempts {
		out, ok := old.keys.Open(frames, h)
		if !ok && bytes.Equal(old.id, h.Dst) {
			return finished // its own keys do not fit: damaged, or made up
		}
		if ok {
			a, frames = old, out
			break
		}
	}
	if a == nil {
		keys, err := quicinitial.NewKeys(h.Version, h.Dst, "client in")
		if err != nil {
			return finished
		}
		out, ok := keys.Open(frames, h)
		if !ok {
			return finished // of a forgotten connection
		}
		frames = out
		a = &attempt{id: bytes.Clone(h.Dst), keys: keys}
		x.add(f, a)
	}
	f.buffer = frames
	if a.state == blocked {
		x.refuse(f, p, h, a)
		return blocked
	}
	if a.state == passed {
		return passing
	}
	size := a.crypto.Len()
	fits := quicinitial.Crypto(frames, func(offset uint64, data []byte) bool { return a.crypto.Add(offset, data, a.judged+maxHead) })
	f.stats.Memory += 2 * (a.crypto.Len() - size)
	reason, host, entry := reasonAmbiguous, "", ""
	if fits {
		a.state, reason, host, entry = f.hellos(a)
	} else {
		a.state = blocked
	}
	if a.state == blocked {
		f.blocked(x.key, "quic", reason, host, entry)
		x.refuse(f, p, h, a)
	}
	return a.state
}

// hellos judges the complete hellos of a connection: after HelloRetryRequest a second one follows the first (RFC 9001
// section 4.1.3). reason, host and entry are those of a blocked one.
func (f *Filter) hellos(a *attempt) (to state, reason, host, entry string) {
	for {
		b := a.crypto.Whole()[a.judged:]
		hello := clienthello.Message(b)
		if hello.State == clienthello.Named || hello.State == clienthello.NoName {
			f.stats.QUIC += boolCount(a.judged == 0)
		}
		switch {
		case hello.State == clienthello.NotTLS:
			return blocked, reasonAmbiguous, "", ""
		case hello.State == clienthello.NeedMore && a.judged > 0 && a.judged == a.crypto.Len():
			return passing, "", "", ""
		case hello.State == clienthello.NeedMore:
			return judging, "", "", ""
		case hello.State == clienthello.Named:
			if entry, listed := f.config.Hosts.Match(hello.Name); listed {
				return blocked, reasonListed, hello.Name, entry
			}
		case f.config.BlockNameless:
			return blocked, reasonNameless, "", ""
		}
		a.judged += helloLength(b)
	}
}

// add remembers a connection and drops the oldest if there are too many.
func (x *exchange) add(f *Filter, a *attempt) {
	if len(x.attempts) == maxAttempts {
		f.stats.Memory -= 2 * x.attempts[0].crypto.Len()
		x.attempts = append(x.attempts[:0], x.attempts[1:]...)
	}
	x.attempts = append(x.attempts, a)
}

// refuse answers an Initial packet of a blocked connection.
func (x *exchange) refuse(f *Filter, p *divert.Packet, h *quicinitial.Header, a *attempt) {
	payload, err := quicinitial.Refusal(nil, h, a.id)
	if err != nil {
		f.check(err)
		return
	}
	header := packet.Header{Src: x.key.server, Dst: x.key.client}
	b, err := header.AppendUDP(nil, payload)
	if err != nil {
		f.check(err)
		return
	}
	f.send(&divert.Packet{Data: b, Addr: back(p)})
}

// hold keeps a datagram until the name is known.
func (x *exchange) hold(f *Filter, p *divert.Packet) {
	switch {
	case len(x.held) == maxHeldUDP:
		f.drop(p)
		return
	case f.stats.Memory+len(p.Data) > f.config.MaxMemory:
		x.giveUp(f, reasonNoMemory)
		if f.config.FailClosed {
			f.drop(p)
		} else {
			f.accept(p)
		}
		return
	}
	if len(x.held) == 0 {
		x.turn++
		turn := x.turn
		f.wait(func() {
			if x.turn == turn && len(x.held) > 0 {
				x.giveUp(f, reasonLate)
			}
		})
	}
	x.held = append(x.held, f.held(p))
}

// giveUp ends the wait: all undecided connections pass, or are blocked.
func (x *exchange) giveUp(f *Filter, reason string) {
	to := passed
	if f.config.FailClosed {
		to = blocked
		f.blocked(x.key, "quic", reason, "", "")
	} else {
		f.stats.FailedOpen++
	}
	for _, a := range x.attempts {
		if a.state == judging {
			a.state = to
		}
	}
	x.letGo(f, !f.config.FailClosed)
}

// forget frees the memory of an exchange removed from the table.
func (x *exchange) forget(f *Filter) {
	x.letGo(f, !f.config.FailClosed)
	for _, a := range x.attempts {
		f.stats.Memory -= 2 * a.crypto.Len()
	}
}

// letGo sends the held datagrams on, or drops them.
func (x *exchange) letGo(f *Filter, on bool) {
	for i := range x.held {
		f.release(&x.held[i], on)
	}
	x.held = nil
}
