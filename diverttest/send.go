package diverttest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// token identifies, in an address, the packet that it came with, as in the real engines: in bytes of the layer data that
// the C layout leaves unused at the NETWORK layers.
type token struct {
	tag uint32 // of the handle, never 0
	id  uint64 // counts the packets of the handle, from 1
}

// tokenOffset is the offset of the token in the layer data, behind interface and sub-interface.
const (
	tokenOffset = 8
	tokenSize   = 12
)

func newTag() uint32 { return rand.Uint32() | 1 }

func (t token) put(a *packet.Address) {
	b := a.Union()[tokenOffset:]
	binary.LittleEndian.PutUint32(b[0:], t.tag)
	binary.LittleEndian.PutUint64(b[4:], t.id)
}

// forget removes the token from an address.
func forget(a *packet.Address) { clear(a.Union()[tokenOffset:][:tokenSize]) }

// tokenOf returns the number of the packet that an address came with, 0 if it is not one of this handle.
func (h *handle) tokenOf(a *packet.Address) uint64 {
	b := a.Union()[tokenOffset:]
	if binary.LittleEndian.Uint32(b[0:]) != h.tag {
		return 0
	}
	return binary.LittleEndian.Uint64(b[4:])
}

// held are the packets that were received and not sent on. There is room for as many as may wait in the queue: each
// packet received pushes out the one received that many packets ago.
type held struct {
	packets map[uint64]packet.Packet // by number
	order   []uint64                 // numbers of the last packets received, sent on or not
}

// put adds a packet, and returns the number of packets that gave way.
func (l *held) put(p *packet.Packet, room int) (gone uint64) {
	if l.packets == nil {
		l.packets = make(map[uint64]packet.Packet)
	}
	id := binary.LittleEndian.Uint64(p.Addr.Union()[tokenOffset+4:])
	l.packets[id] = packet.Packet{Data: bytes.Clone(p.Data), Addr: p.Addr}
	l.order = append(l.order, id)
	for len(l.order) > room {
		if _, ok := l.claim(l.order[0]); ok {
			gone++
		}
		l.order = l.order[1:]
	}
	return gone
}

// claim removes a packet and reports whether it was there.
func (l *held) claim(id uint64) (packet.Packet, bool) {
	p, ok := l.packets[id]
	delete(l.packets, id)
	return p, ok
}

// Send implements engine.Handle.
func (h *handle) Send(ps []packet.Packet) (int, error) { return h.send(ps, false) }

// Accept implements engine.Handle.
func (h *handle) Accept(ps []packet.Packet) (int, error) { return h.send(ps, true) }

func (h *handle) send(ps []packet.Packet, unchanged bool) (sent int, last error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	switch { // in the order of api.md 8
	case h.closed:
		return 0, net.ErrClosed
	case h.sendDown:
		return 0, engine.ErrShutdown
	case h.cfg.Flags&engine.FlagRecvOnly != 0:
		return 0, engine.ErrReceiveOnly
	}
	for i := range ps {
		if err := h.one(&ps[i], unchanged); err != nil {
			h.stats.Failed++
			last = err
			continue
		}
		sent++
	}
	return sent, last
}

// Drop implements engine.Dropper.
func (h *handle) Drop(ps []packet.Packet) error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	for i := range ps {
		if _, ok := h.held.claim(h.tokenOf(&ps[i].Addr)); ok {
			h.stats.Abandoned++
		}
	}
	return nil
}

// one sends one packet.
func (h *handle) one(p *packet.Packet, unchanged bool) error {
	id := h.tokenOf(&p.Addr)
	c, waits := h.held.packets[id]
	if unchanged && waits && p.Addr.Outbound == c.Addr.Outbound && !p.Addr.Impostor {
		h.held.claim(id)
		h.stats.Reinjected++
		h.net.carry(c.Data, onward(c.Addr), h.place)
		return nil
	}
	data, err := engine.Whole(p.Data)
	if err == nil && h.net.refuse != nil {
		err = h.net.refuse(p)
	}
	if err == nil {
		err = engine.Finish(data, &p.Addr, waits)
	}
	if err != nil {
		return err // a captured packet still waits for a better try
	}
	again := waits && goesOn(data, &p.Addr, &c)
	a, err := onward(c.Addr), error(nil)
	if again {
		a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true
	} else if a, err = h.net.injected(h.layer, data, &p.Addr); err != nil {
		return err
	}
	h.held.claim(id) // the captured packet, turned round or sent elsewhere, ends here
	if again {
		h.stats.Reinjected++
	} else {
		h.stats.Injected++
	}
	h.net.carry(bytes.Clone(data), a, h.place)
	return nil
}

// goesOn reports whether a sent packet is still the captured one: in the same direction and, if outbound, to the same
// destination, if inbound or routed, on the same interface.
func goesOn(data []byte, a *packet.Address, c *packet.Packet) bool {
	switch {
	case a.Outbound != c.Addr.Outbound:
		return false
	case !a.Outbound:
		return a.Network().IfIdx == c.Addr.Network().IfIdx
	case c.Addr.Layer == packet.LayerForward && a.Network().IfIdx != c.Addr.Network().IfIdx:
		return false
	}
	return destination(data) == destination(c.Data)
}

// destination returns the destination of a packet.
func destination(b []byte) netip.Addr {
	if b[0]>>4 == 6 {
		return packet.IPv6(b).Dst()
	}
	return packet.IPv4(b).Dst()
}

// onward returns the address with which a captured packet goes on: handles below see a packet that divert itself has
// injected (api.md 13).
func onward(a packet.Address) packet.Address {
	forget(&a)
	a.Sniffed, a.Impostor = false, false
	return a
}

// injected returns the address of a newly injected packet (api.md 8). As there are no routes, an outbound packet takes
// the interface of its address, Link if it has none, and Loopback if it goes to the host itself.
func (n *Network) injected(l packet.Layer, data []byte, a *packet.Address) (packet.Address, error) {
	outbound := a.Outbound || l == packet.LayerForward
	d := packet.NetworkData{IfIdx: a.Network().IfIdx, SubIfIdx: a.Network().SubIfIdx}
	switch {
	case l == packet.LayerNetwork && outbound && destination(data).IsLoopback():
		d.IfIdx = Loopback
	case l == packet.LayerNetwork && outbound && !n.devices[d.IfIdx]:
		d.IfIdx = Link
	case !n.devices[d.IfIdx]:
		return packet.Address{}, &interfaceError{d.IfIdx}
	}
	f := fresh(l, outbound, d.IfIdx)
	f.SetNetwork(d)
	f.Loopback = l == packet.LayerNetwork && d.IfIdx == Loopback
	return f, nil
}
