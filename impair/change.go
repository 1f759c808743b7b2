package impair

import (
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// corrupt flips a bit of a packet behind its IP headers, extension headers included, and leaves checksums alone. It
// reports whether there is a bit to flip.
func corrupt(p *divert.Packet, parsed *packet.Parsed, bit uint64) bool {
	begin := transportOffset(parsed)
	if begin >= len(p.Data) {
		return false
	}
	if a := &p.Addr; !a.IPChecksum || !a.TCPChecksum || !a.UDPChecksum {
		// The hardware would compute a missing checksum over the flipped bit.
		if packet.CalcChecksums(p.Data, a, 0) {
			a.TCPChecksum, a.UDPChecksum = true, true
		}
	}
	bit %= uint64(len(p.Data)-begin) * 8
	p.Data[begin+int(bit/8)] ^= 1 << (bit % 8)
	return true
}

// transportOffset returns the length of the IP headers.
func transportOffset(p *packet.Parsed) int {
	if at := max(p.TCPOff, p.UDPOff, p.ICMPOff, p.ICMPv6Off); at >= 0 {
		return int(at)
	}
	return int(p.HeaderLen)
}

// reset replaces a TCP segment by resets to both ends. It returns false for packets that are not TCP or must not be
// answered.
func (w *worker) reset(t *transit) bool {
	p := t.packet
	tcp := w.parsed.TCP(p.Data)
	if tcp == nil {
		return false
	}
	back, ok := packet.AppendReset(nil, p.Data, &w.parsed)
	if !ok {
		return false
	}
	a := p.Addr
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true // already computed
	if tcp.Flags()&packet.TCPAck != 0 {                           // else it opens a connection, unknown to the receiver
		h := packet.Header{Src: p.Src(), Dst: p.Dst()}
		on, err := h.AppendTCP(nil, packet.Segment{Seq: tcp.Seq(), Ack: tcp.Ack(), Flags: packet.TCPRst | packet.TCPAck}, nil)
		if err != nil {
			return false
		}
		made := *t
		made.packet, made.way, made.copy, made.whole = &divert.Packet{Data: on, Addr: a}, send, true, true
		w.forward(&made)
	}
	w.drop(&p.Addr)
	a.Outbound = !a.Outbound
	w.add(send, back, &a)
	return true
}
