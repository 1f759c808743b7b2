//go:build linux

package rules

import (
	"net"
	"time"

	"github.com/opendivert/divert/packet"
)

// A handle below which nobody stands can let a packet leave its chain at once; otherwise the packet has to
// pass through the chain once more, with a cursor. So a handle that opens tells the one above it, if that
// had nobody below, and waits for the answer before packets are expected to come. What is told is only
// to look again: anybody may send to an abstract socket.

// Below reports whether a packet that the handle has let go on could still meet another in a chain.
func (e *Entry) Below(c Chain) bool { return e.below.Load()&(1<<c) != 0 }

// lookBelow notes in which chains handles stand below this one. Packets of inbound_fragments meet those of
// inbound after it, whatever their keys.
func (e *Entry) lookBelow(t *tx) {
	var below uint32
	for c := range numChains {
		if t.anyBelow(c, e.Owner) || c == InboundFragments && t.anyBelow(Inbound, Owner{ID: e.ID, Key: 1<<31 - 1}) {
			below |= 1 << c
		}
	}
	e.below.Store(below)
}

// anyBelow reports whether a chain has rules of another handle with a lower key, or rules that packets meet
// behind those of all handles.
func (t *tx) anyBelow(c Chain, o Owner) bool {
	for _, r := range t.rules[c] {
		if p, ok := parseOwner(r.UserData); ok && p.ID != o.ID && (p.Key < o.Key || marks(c, p)) {
			return true
		}
	}
	return false
}

// marks reports whether the owner's rule in a chain is the one that marks forwarded packets for a handle of the
// layer NETWORK.
func marks(c Chain, o Owner) bool { return c == Forward && o.Layer != uint8(packet.LayerForward) }

// above returns the handles for which it makes a difference whether this one is there: in each chain of its
// rules the next higher one, if this is the lowest; and those that see fragments before.
func (t *tx) above(o Owner, places []Chain) []uint64 {
	ids := map[uint64]bool{}
	for _, c := range places {
		if marks(c, o) {
			for _, f := range t.rules[c] {
				if p, ok := parseOwner(f.UserData); ok && !marks(c, p) {
					ids[p.ID] = true
				}
			}
			continue
		}
		if !t.anyBelow(c, o) {
			if next, ok := t.next(c, o); ok {
				ids[next] = true
			}
		}
		if c == Inbound {
			for _, f := range t.rules[InboundFragments] {
				if p, ok := parseOwner(f.UserData); ok {
					ids[p.ID] = true
				}
			}
		}
	}
	delete(ids, o.ID)
	var list []uint64
	for id := range ids {
		list = append(list, id)
	}
	return list
}

// places returns the chains in which a handle has rules.
func (t *tx) places(o Owner) (cs []Chain) {
	for c := range numChains {
		for _, r := range t.rules[c] {
			if p, ok := parseOwner(r.UserData); ok && p.ID == o.ID {
				cs = append(cs, c)
				break
			}
		}
	}
	return cs
}

// next returns the handle with the lowest key above another's in a chain.
func (t *tx) next(c Chain, o Owner) (id uint64, ok bool) {
	lowest := Owner{Key: 1<<31 - 1}
	for _, r := range t.rules[c] {
		if p, is := parseOwner(r.UserData); is && p.ID != o.ID && p.Key > o.Key && p.Key < lowest.Key {
			lowest, ok = p, true
		}
	}
	return lowest.ID, ok
}

// answerTimeout is how long a handle that opens waits for those above to look. A stopped process does not
// answer; it lets no packets go on either.
const answerTimeout = 200 * time.Millisecond

// tell makes the handles look below, and waits for their answers if wanted. It must run in the namespace.
func tell(ids []uint64, wait bool) {
	if len(ids) == 0 {
		return
	}
	// Without an address of its own the socket could get no answer: the empty name makes the kernel choose one.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return // they notice when they look for another reason; until then one below is passed over
	}
	defer conn.Close()
	asked := 0
	for _, id := range ids {
		if _, err := conn.WriteToUnix([]byte{1}, &net.UnixAddr{Name: tokenName(id), Net: "unixgram"}); err == nil {
			asked++
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(answerTimeout))
	for buf := make([]byte, 1); wait && asked > 0; asked-- {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// answer looks below whenever somebody tells to, until the token is released.
func (e *Entry) answer() {
	buf := make([]byte, 1)
	for {
		_, from, err := e.token.conn.ReadFromUnix(buf)
		if err != nil {
			return
		}
		_ = e.ns.Do(func() error {
			t, err := read()
			if err == nil {
				e.lookBelow(t)
			}
			return err
		})
		if from != nil {
			_, _ = e.token.conn.WriteToUnix(buf, from)
		}
	}
}
