package web

import (
	"encoding/binary"
	"fmt"
	"html"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// answer is the answer that the client of a blocked connection gets.
type answer struct {
	seq   uint32 // the server's first byte of the answer
	ack   uint32 // bytes that the answer acknowledges
	stamp [2]uint32
	timed bool   // the client sends timestamps
	page  []byte // the response; nil if the client is reset
}

// newAnswer prepares the answer to a packet whose data ends at a sequence number.
func newAnswer(h packet.TCP, end uint32) answer {
	a := answer{seq: h.Ack(), ack: end}
	a.stamp, a.timed = timestamps(h.Options())
	return a
}

// The kinds of TCP options (RFC 9293 section 3.1, RFC 7323, RFC 2018).
const (
	optionEnd           = 0
	optionNone          = 1
	optionWindowScale   = 3
	optionSACKPermitted = 4
	optionSACK          = 5
	optionTimestamps    = 8
)

// findOption returns the data of an option.
func findOption(options []byte, kind byte) (data []byte, ok bool) {
	for len(options) > 0 && options[0] != optionEnd {
		if options[0] == optionNone {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			break
		}
		if options[0] == kind {
			return options[2:options[1]], true
		}
		options = options[options[1]:]
	}
	return nil, false
}

// synOptions reads from a server's SYN whether it allows selective acknowledgments, and the scale of its windows.
func synOptions(options []byte) (sackOK bool, scale uint8) {
	_, sackOK = findOption(options, optionSACKPermitted)
	if b, ok := findOption(options, optionWindowScale); ok && len(b) == 1 {
		scale = min(b[0], 14)
	}
	return sackOK, scale
}

// timestamps returns the timestamps for an answer: the last that the client has seen, and the client's own, which it
// takes for an echo (RFC 7323 section 3).
func timestamps(options []byte) (stamp [2]uint32, ok bool) {
	b, ok := findOption(options, optionTimestamps)
	if !ok || len(b) != 8 {
		return stamp, false
	}
	return [2]uint32{binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b)}, true
}

// options returns the options of an answer: timestamps, and the block of bytes that have arrived, unless it is empty.
func (a *answer) options(from, to uint32) []byte {
	var o []byte
	if a.timed {
		o = append(o, optionNone, optionNone, optionTimestamps, 10)
		o = binary.BigEndian.AppendUint32(o, a.stamp[0])
		o = binary.BigEndian.AppendUint32(o, a.stamp[1])
	}
	if from != to {
		o = append(o, optionNone, optionNone, optionSACK, 10)
		o = binary.BigEndian.AppendUint32(o, from)
		o = binary.BigEndian.AppendUint32(o, to)
	}
	return o
}

// toClient sends a segment to the client in the server's name; p is a packet of the client.
func (f *Filter) toClient(c *connection, p *divert.Packet, s packet.Segment, payload []byte) {
	h := packet.Header{Src: c.key.server, Dst: c.key.client}
	b, err := h.AppendTCP(f.buffer[:0], s, payload)
	if err != nil {
		f.check(err)
		return
	}
	f.buffer = b
	f.send(&divert.Packet{Data: b, Addr: back(p)})
}

// back returns the address of an answer to a packet.
func back(p *divert.Packet) divert.Address {
	a := p.Addr
	a.Outbound = !a.Outbound
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true // already computed
	return a
}

// tellArrived tells the client that the bytes behind the first held packet have arrived, like a server that misses only
// that packet (RFC 2018). A client whose small segments all stay unanswered would send no more of them, and the name
// would never be complete. This promises nothing: the client still sends bytes again that the server does not get.
func (f *Filter) tellArrived(c *connection, s *segment) {
	from, to := c.held[0].dataEnd(), c.held[0].dataEnd()
	for i := range c.held {
		if h := &c.held[i]; !before(to, h.seq) && before(to, h.dataEnd()) {
			to = h.dataEnd()
		}
	}
	if !c.sackOK || from == to {
		return
	}
	var h packet.Parsed
	if !h.Parse(s.packet.Data) {
		return
	}
	tcp := h.TCP(s.packet.Data)
	a := newAnswer(tcp, s.seq)
	f.toClient(c, &s.packet, packet.Segment{Seq: tcp.Ack(), Ack: c.sent.base, Flags: packet.TCPAck, Window: c.window, Options: a.options(from, to)}, nil)
}

// resetServer ends the server's half: the first held byte is the next that the server expects.
func (f *Filter) resetServer(c *connection, p *divert.Packet, tcp packet.TCP) {
	h := packet.Header{Src: c.key.client, Dst: c.key.server}
	b, err := h.AppendTCP(f.buffer[:0], packet.Segment{Seq: c.safe, Ack: tcp.Ack(), Flags: packet.TCPRst | packet.TCPAck}, nil)
	if err != nil {
		f.check(err)
		return
	}
	f.buffer = b
	a := p.Addr
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true
	f.send(&divert.Packet{Data: b, Addr: a})
}

// resetClient ends the client's half.
func (f *Filter) resetClient(p *divert.Packet, h *packet.Parsed) {
	b, ok := packet.AppendReset(f.buffer[:0], p.Data, h)
	if !ok {
		return
	}
	f.buffer = b
	f.send(&divert.Packet{Data: b, Addr: back(p)})
}

// page returns the response to a request.
func (f *Filter) page(method, host string) []byte {
	body := f.config.Page
	if body == nil {
		name := "This site"
		if host != "" {
			name = "<b>" + html.EscapeString(host) + "</b>"
		}
		body = fmt.Appendf(nil, "<!DOCTYPE html>\n<html lang=\"en\"><title>Blocked</title>\n<h1>Blocked</h1>\n<p>%s is blocked on this network.</p>\n</html>\n", name)
	}
	b := fmt.Appendf(nil, "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n", len(body))
	if method == "HEAD" {
		return b
	}
	return append(b, body...)
}

// pagePart is the number of bytes of the page in a segment: they fit any path of IPv6.
const pagePart = 1200

// sendPage sends the page, and ends the server's half of the connection.
func (f *Filter) sendPage(c *connection, p *divert.Packet) {
	a := &c.answer
	s := packet.Segment{Seq: a.seq, Ack: a.ack, Flags: packet.TCPAck, Window: max(c.window, 1), Options: a.options(0, 0)}
	for rest := a.page; len(rest) > 0; {
		n := min(len(rest), pagePart)
		if n == len(rest) {
			s.Flags |= packet.TCPPsh | packet.TCPFin
		}
		f.toClient(c, p, s, rest[:n])
		s.Seq += uint32(n)
		rest = rest[n:]
	}
}

// answerAgain answers a further packet of a blocked connection, which is dropped.
func (f *Filter) answerAgain(c *connection, p *divert.Packet, tcp packet.TCP, s *segment) {
	a := &c.answer
	f.drop(p)
	if a.page == nil {
		f.resetClient(p, &f.parsed)
		return
	}
	a.stamp, a.timed = timestamps(tcp.Options())
	behind := a.seq + uint32(len(a.page)) + 1 // behind the FIN
	switch {
	case len(s.data) == 0 && !s.fin: // the client acknowledges
		return
	case !before(a.ack, s.seq) && before(a.ack, s.end()): // the client goes on sending
		a.ack = s.end()
	case before(tcp.Ack(), behind): // the client has not received the whole page
		f.sendPage(c, p)
		return
	}
	f.toClient(c, p, packet.Segment{Seq: behind, Ack: a.ack, Flags: packet.TCPAck, Window: max(c.window, 1), Options: a.options(0, 0)}, nil)
}
