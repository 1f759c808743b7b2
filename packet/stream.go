package packet

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// Stream keeps a TCP connection consistent while a program changes the number of bytes in its segments. Give it each
// packet of the connection, in both directions, in the order of their arrival, before sending it on:
//
//	err := s.Edit(&p, func(fresh []byte) []byte { return bytes.ReplaceAll(fresh, old, new) })
//
// It shifts sequence and acknowledgment numbers, the blocks of selective acknowledgments (RFC 2018) and the window, so
// that each end sees a stream without holes. It remembers each edit until the receiver has acknowledged it, so that
// retransmitted bytes, however they are cut, become the same again. A packet may be dropped or held after Edit; the
// sender will send it again.
//
// A Stream may begin with the connection's SYN or in its middle. In the middle it leaves windows alone, because it does
// not know their scale (RFC 7323). A Stream is for one connection: the zero Stream takes that of its first packet, and a
// new SYN starts it afresh. One goroutine may use it at a time.
//
// If the stream grows, Edit reduces the window offered to the sender by the growth so far, because the receiver takes no
// more than it has offered. Packets should be as they are on the wire: a superpacket of up to 64 KiB can be edited, but
// has little room to grow.
type Stream struct {
	a, b netip.AddrPort
	half [2]half // the bytes of a, the bytes of b
}

// ErrTooManyEdits means that a Stream has reached its limit of remembered edits: the receiver has acknowledged nothing
// for long, or the program does not give its packets to the Stream.
var ErrTooManyEdits = errors.New("too many unacknowledged edits")

// ErrOtherStream means that a packet given to a Stream is of another connection.
var ErrOtherStream = errors.New("not the connection")

// ErrGap means that a Stream has not seen the bytes before a segment: they were lost on the way here, or come late.
var ErrGap = errors.New("bytes before the segment are missing")

// maxEdits is the most edits that a direction remembers. If the Stream sees the receiver's packets, the receiver's window
// bounds them.
const maxEdits = 1 << 14

// half is one direction. Positions count the sender's bytes from base on, in 64 bits; the receiver's positions count the
// same stream as edited.
type half struct {
	known  bool
	base   uint32 // the sequence number at position 0
	gone   int64  // end of the bytes sent on: only later ones may still be edited
	shift  int64  // the receiver's positions less the sender's, before the first edit
	edits  []edit // in order, none wholly acknowledged
	length int64  // number of the sender's bytes given to change,
	became int64  // and of the bytes in their place
	edge   int64  // end of the receiver's window, in its positions; 0: unknown
	begun  bool   // the sender's SYN was seen,
	scales bool   // and it carried a window scale, which counts if both ends sent one
	scale  uint8
}

// edit is an edited part of a stream.
type edit struct {
	at   int64 // the sender's position
	size int64 // of the sender's bytes, at least 1
	by   []byte
}

func (e *edit) end() int64  { return e.at + e.size }
func (e *edit) more() int64 { return int64(len(e.by)) - e.size }

// A sender may retransmit any part of edited bytes, in segments of any size. So each of the sender's bytes stands for an
// equal share of the new bytes, and a part for as many shares.

// place returns the offset in by at which the share of the sender's byte n begins.
func (e *edit) place(n int64) int64 { return n * int64(len(e.by)) / e.size }

// origin maps the byte n of by, which must exist, to a number of the sender's bytes: rounded down, those whose shares end
// at or before n; if up, rounded up.
func (e *edit) origin(n int64, up bool) int64 {
	length := int64(len(e.by))
	if up {
		return (n*e.size + length - 1) / length
	}
	return ((n+1)*e.size - 1) / length
}

// Edit changes p, a TCP packet of the connection, so that it fits the earlier edits. If change is not nil, Edit calls it
// with the part of the payload that passes for the first time, if there is one; change returns the bytes to put in its
// place, of any length, or its argument to leave it. change must not keep or modify its argument. Bytes that passed
// before are replaced as they were then.
//
// It fails with ErrGap if change is not nil and bytes before p were never given to the Stream: once p is sent, edits
// before it could no longer move it. Drop p, which the sender sends again, or give it to the Stream later. With a nil
// change p goes on, and the missing bytes can never be edited. It fails with ErrMalformed if p is not a whole TCP
// segment, ErrFragment, ErrOtherStream, ErrTooLong if the result does not fit, and ErrTooManyEdits; neither p nor the
// edits have changed then.
func (s *Stream) Edit(p *Packet, change func(fresh []byte) []byte) error {
	var h Parsed
	if !h.Parse(p.Data) || h.TCPOff < 0 || h.Truncated || h.headerCut(p.Data) {
		return fmt.Errorf("packet: edit a stream: %w with TCP", ErrMalformed)
	}
	if h.Fragment && (h.MF || h.FragOff > 0) {
		return fmt.Errorf("packet: edit a stream: %w", ErrFragment)
	}
	from, to, err := s.direction(p)
	if err != nil {
		return err
	}
	t := h.TCP(p.Data)
	if t.Flags()&TCPSyn != 0 {
		s.begin(from, t)
	} else if !from.known {
		*from = half{known: true, base: t.Seq()}
	}
	if err := from.send(p, &h, change); err != nil {
		return err
	}
	to.acknowledge(p, from)
	return nil
}

// direction returns the direction of a packet, and the other one.
func (s *Stream) direction(p *Packet) (from, to *half, err error) {
	src, dst := p.Src(), p.Dst()
	switch {
	case !s.half[0].known && !s.half[1].known:
		s.a, s.b = src, dst
	case s.a == dst && s.b == src:
		return &s.half[1], &s.half[0], nil
	case s.a != src || s.b != dst:
		return nil, nil, fmt.Errorf("packet: from %v to %v: %w from %v to %v", src, dst, ErrOtherStream, s.a, s.b)
	}
	return &s.half[0], &s.half[1], nil
}

// begin takes in a SYN. Unless retransmitted, it begins a connection.
func (s *Stream) begin(from *half, t TCP) {
	if from.known && from.base == t.Seq() {
		return
	}
	if t.Flags()&TCPAck == 0 {
		s.half = [2]half{}
	}
	*from = half{known: true, base: t.Seq(), begun: true}
	for o := range tcpOptions(t.Options()) {
		if o[0] == tcpWindowScale && len(o) == 3 {
			from.scales, from.scale = true, min(o[2], 14) // RFC 7323 section 2.3
		}
	}
}

// position returns the position of a sequence number of the sender: the one nearest to gone with those low 32 bits.
func (h *half) position(seq uint32) int64 { return h.gone + int64(int32(seq-h.base-uint32(h.gone))) }

// send turns a packet of the sender into one for the receiver.
func (h *half) send(p *Packet, parsed *Parsed, change func([]byte) []byte) error {
	t, payload := parsed.TCP(p.Data), parsed.Payload(p.Data)
	begin := h.position(t.Seq())
	data := begin
	if t.Flags()&TCPSyn != 0 {
		data++
	}
	end := data + int64(len(payload))
	edits, length, became := h.edits, h.length, h.became
	if change != nil && t.Flags()&TCPRst == 0 && end > max(data, h.gone) {
		if data > h.gone {
			return fmt.Errorf("packet: edit a stream: %d %w", data-h.gone, ErrGap)
		}
		fresh := payload[max(h.gone-data, 0):]
		by := change(fresh)
		if e, ok := difference(max(data, h.gone), fresh, by); ok {
			if len(edits) >= maxEdits {
				return fmt.Errorf("packet: edit a stream: %w", ErrTooManyEdits)
			}
			edits = append(edits, e)
		}
		length, became = length+int64(len(fresh)), became+int64(len(by))
	}
	now := half{shift: h.shift, edits: edits}
	at, out, changed := now.edited(data, payload)
	if changed {
		if err := p.SetPayload(out); err != nil {
			return err
		}
		t = parsed.TCP(p.Data) // SetPayload may have moved it
	}
	h.edits, h.length, h.became = edits, length, became
	if t.Flags()&TCPFin != 0 {
		end++
	}
	if end > begin { // an empty segment that overtakes others carries no bytes on
		h.gone = max(h.gone, end)
	}
	if end == begin && h.edge > 0 {
		// A receiver ignores segments beyond its window, even their acknowledgment. The sender does not know that the
		// edits have added bytes.
		at = min(at, h.edge)
	}
	seq := h.base + uint32(at-(data-begin))
	if len(payload) > 0 && len(out) == 0 && t.Flags()&(TCPSyn|TCPFin) == 0 {
		// The receiver does not answer an empty segment in its place. An old one makes it send an ACK (RFC 9293 section
		// 3.8.4), which acknowledges the bytes removed.
		seq--
	}
	p.setNumber(parsed, t[4:8], seq)
	return nil
}

// difference returns the edit that turns the bytes at a position into others, without their common beginning and end.
func difference(at int64, fresh, by []byte) (edit, bool) {
	if bytes.Equal(fresh, by) {
		return edit{}, false
	}
	// The edit must contain at least one of the sender's bytes.
	same := 0
	for same < min(len(fresh)-1, len(by)) && fresh[same] == by[same] {
		same++
	}
	fresh, by = fresh[same:], by[same:]
	n := 0
	for n < min(len(fresh)-1, len(by)) && fresh[len(fresh)-1-n] == by[len(by)-1-n] {
		n++
	}
	return edit{at: at + int64(same), size: int64(len(fresh) - n), by: bytes.Clone(by[:len(by)-n])}, true
}

// edited returns the receiver's bytes for those at a position of the sender's, their position there, and whether they
// differ.
func (h *half) edited(data int64, payload []byte) (at int64, out []byte, changed bool) {
	at, next, end := data+h.shift, data, data+int64(len(payload))
	for i := range h.edits {
		e := &h.edits[i]
		switch {
		case e.at > data && e.at >= end:
		case e.end() <= data:
			at += e.more()
		default:
			from, to := max(data-e.at, 0), min(end-e.at, e.size)
			if data > e.at {
				at += e.place(from) - from
			}
			if to > from {
				out = append(out, payload[next-data:max(e.at, data)-data]...)
				out = append(out, e.by[e.place(from):e.place(to)]...)
				next, changed = e.at+to, true
			}
		}
	}
	if !changed {
		return at, payload, false
	}
	return at, append(out, payload[next-data:]...), true
}

// acknowledge translates the acknowledgments and the window in a packet of the receiver into the sender's numbers. from
// is the direction of the packet itself.
func (h *half) acknowledge(p *Packet, from *half) {
	var parsed Parsed
	parsed.Parse(p.Data)
	t := parsed.TCP(p.Data)
	if t.Flags()&TCPAck == 0 || !h.known {
		return
	}
	ack := h.received(t.Ack())
	if before := h.sent(ack, false); before != ack {
		p.setNumber(&parsed, t[8:12], h.base+uint32(before))
	}
	if from.begun && h.begun && t.Flags()&TCPSyn == 0 {
		h.setWindow(p, &parsed, t, ack, from.windowScale(h))
	}
	h.setBlocks(p, t)
	h.settle(h.sent(ack, false))
}

// received returns the receiver's position of a sequence number.
func (h *half) received(seq uint32) int64 {
	last := h.gone + h.total()
	return last + int64(int32(seq-h.base-uint32(last)))
}

// total returns the difference of the receiver's positions from the sender's behind all edits.
func (h *half) total() int64 {
	shift := h.shift
	for i := range h.edits {
		shift += h.edits[i].more()
	}
	return shift
}

// sent maps a position of the receiver's to the sender's; within an edit it rounds down, or up if up.
func (h *half) sent(at int64, up bool) int64 {
	shift := h.shift
	for i := range h.edits {
		e := &h.edits[i]
		n := at - e.at - shift // offset in the edit's new bytes
		if n < 0 || n == 0 && len(e.by) > 0 {
			break
		}
		if n < int64(len(e.by)) {
			return e.at + e.origin(n, up)
		}
		shift += e.more()
	}
	return at - shift
}

// windowScale returns the scale of the windows that the sender offers the other end.
func (h *half) windowScale(other *half) uint8 {
	if h.scales && other.scales {
		return h.scale
	}
	return 0
}

// setWindow makes the window end at the same byte for the sender as for the receiver (RFC 9293 section 3.8.6). It assumes
// that the bytes still to come grow at the same rate as those sent so far.
func (h *half) setWindow(p *Packet, parsed *Parsed, t TCP, ack int64, scale uint8) {
	h.edge = ack + int64(t.Window())<<scale
	end := h.sent(h.edge, false)
	if end > h.gone && h.became > h.length {
		end = h.gone + int64(float64(end-h.gone)*float64(h.length)/float64(h.became))
	}
	window := min(max(end-h.sent(ack, false), 0)>>scale, 0xFFFF)
	if uint16(window) != t.Window() {
		var by [2]byte
		be.PutUint16(by[:], uint16(window))
		p.put(parsed, t[14:16], by[:], false, true)
	}
}

// setBlocks translates the blocks of selective acknowledgments into the sender's numbers, and removes those left empty.
func (h *half) setBlocks(p *Packet, t TCP) {
	if h.shift == 0 && len(h.edits) == 0 {
		return
	}
	for o := range tcpOptions(t.Options()) {
		if o[0] != tcpSACK {
			continue
		}
		kept := o[:2]
		for b := o[2:]; len(b) >= 8; b = b[8:] {
			left, right := h.sent(h.received(be.Uint32(b)), true), h.sent(h.received(be.Uint32(b[4:])), false)
			if left < right {
				kept = be.AppendUint32(kept, h.base+uint32(left))
				kept = be.AppendUint32(kept, h.base+uint32(right))
			}
		}
		o[1] = uint8(len(kept))
		if len(kept) == 2 {
			kept = kept[:0]
		}
		for i := len(kept); i < len(o); i++ {
			o[i] = tcpNop
		}
		p.Addr.TCPChecksum = false
	}
}

// settle forgets the edits that the receiver has received whole, up to a position of the sender's.
func (h *half) settle(upTo int64) {
	n := 0
	for n < len(h.edits) && h.edits[n].end() <= upTo {
		h.shift += h.edits[n].more()
		n++
	}
	h.edits = slices.Delete(h.edits, 0, n)
}

// setNumber replaces a 32-bit field of the TCP header and corrects the checksum.
func (p *Packet) setNumber(h *Parsed, field []byte, v uint32) {
	if be.Uint32(field) != v {
		var by [4]byte
		be.PutUint32(by[:], v)
		p.put(h, field, by[:], false, true)
	}
}

// Kinds of TCP options (RFC 9293 section 3.2, RFC 7323 section 2.2, RFC 2018 section 3).
const (
	tcpEnd         = 0
	tcpNop         = 1
	tcpWindowScale = 3
	tcpSACK        = 5
)

// tcpOptions iterates over the options of a TCP header that have a length: each with its kind and length.
func tcpOptions(options []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(options) > 0 && options[0] != tcpEnd {
			if options[0] == tcpNop {
				options = options[1:]
				continue
			}
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				return
			}
			n := int(options[1])
			if !yield(options[:n:n]) {
				return
			}
			options = options[n:]
		}
	}
}
