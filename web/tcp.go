package web

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// state is the decision on a TCP connection.
type state uint8

const (
	judging  state = iota
	passing        // it may go on; the server has not acknowledged all judged bytes
	passed         // it goes on, in the kernel
	blocked        // the filter has ended it
	finished       // the client has reset it
)

// connection is a TCP connection, seen from the client's side.
type connection struct {
	key    key
	state  state
	begun  bool // the SYN was seen
	stream stream
	sent   transcript // the judged bytes
	start  uint32     // sequence number of the first byte
	safe   uint32     // bytes before it may go on
	held   []segment  // by sequence number
	late   uint64     // counts the times that holding began

	sackOK      bool   // the server's SYN allows selective acknowledgments
	windowScale uint8  // that of the server
	window      uint16 // the server's last, unscaled
	ack         uint32 // the client's acknowledgment number in the last request's last packet
	requests    int
	reply       []byte // beginning of the server's reply to a hello that offers early data
	answer      answer // if it is blocked
}

// segment is a held packet.
type segment struct {
	seq    uint32
	data   []byte // a part of the packet
	fin    bool
	packet divert.Packet
}

// end returns the sequence number behind a segment.
func (s *segment) end() uint32 {
	end := s.seq + uint32(len(s.data))
	if s.fin {
		end++
	}
	return end
}

// segment judges a packet of TCP.
func (f *Filter) segment(k key, p *divert.Packet) {
	tcp := f.parsed.TCP(p.Data)
	flags := tcp.Flags()
	opens := flags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn
	c, known := f.tcp.find(k)
	if !known && !opens {
		if c, ok := f.tcp.find(k.reversed()); ok {
			f.fromServer(c, p, tcp)
			return
		}
	}
	if !slices.Contains(f.config.Ports, k.server.Port()) {
		f.accept(p)
		return
	}
	if opens {
		f.open(c, k, p, tcp)
		return
	}
	if c == nil {
		if f.parsed.PayloadLen == 0 {
			f.accept(p)
			return
		}
		c = f.remember(k, tcp.Seq())
	}
	f.fromClient(c, p, tcp)
}

// remember adds a connection whose first byte has the sequence number start.
func (f *Filter) remember(k key, start uint32) *connection {
	for f.tcp.len() >= f.config.MaxFlows {
		old := f.tcp.oldest()
		f.stats.FailedOpen += boolCount(len(old.held) > 0 && !f.config.FailClosed)
		f.letGo(old, !f.config.FailClosed)
	}
	c := &connection{key: k, start: start, safe: start}
	c.sent.base = start
	f.tcp.put(k, c)
	return c
}

func boolCount(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// open takes the SYN of a client. It removes data from the SYN (RFC 7413): the server then acknowledges the SYN alone,
// and the client sends the data again.
func (f *Filter) open(c *connection, k key, p *divert.Packet, tcp packet.TCP) {
	if c == nil || !c.begun || c.start != tcp.Seq()+1 || c.state != judging || c.sent.end() != c.start {
		if c != nil {
			f.letGo(c, false)
			f.tcp.remove(k)
		}
		c = f.remember(k, tcp.Seq()+1)
		c.begun = true
	}
	if f.parsed.PayloadLen == 0 {
		f.accept(p)
		return
	}
	if err := p.SetPayload(nil); err != nil {
		f.check(err)
		f.drop(p)
		return
	}
	f.send(p)
}

// fromServer takes in a packet of the server, which goes on.
func (f *Filter) fromServer(c *connection, p *divert.Packet, tcp packet.TCP) {
	switch flags := tcp.Flags(); {
	case c.state == blocked:
		f.drop(p) // the client has our answer
		return
	case flags&packet.TCPAck == 0:
	case flags&packet.TCPSyn != 0:
		c.sackOK, c.windowScale = synOptions(tcp.Options())
		c.window = uint16(0xFFFF >> c.windowScale)
	default:
		c.window = tcp.Window()
		f.acknowledged(c, tcp.Ack())
		if c.stream.early {
			c.answered(tcp.Seq(), f.parsed.Payload(p.Data))
		}
	}
	switch {
	case c.state == passed, c.state == passing && !c.sent.fixed():
		f.acceptFlow(p)
		c.state = passed
	default:
		f.accept(p)
	}
}

// serverHello is the number of bytes of a server's answer that show whether it wants another hello: the header of a
// record, of a message, a version and the random.
const serverHello = recordHeader + 4 + 2 + 32

// helloRetry is the random of a ServerHello that asks for another ClientHello (RFC 8446 section 4.1.3).
var helloRetry = sha256.Sum256([]byte("HelloRetryRequest"))

// answered reads a part of the server's answer to a hello that offers early data. If the server asks for another hello,
// or its answer cannot be read, encrypted records are still skipped.
func (c *connection) answered(seq uint32, b []byte) {
	next := c.ack + uint32(len(c.reply))
	if before(next, seq) || !before(next, seq+uint32(len(b))) {
		return
	}
	b = b[next-seq:]
	c.reply = append(c.reply, b[:min(len(b), serverHello-len(c.reply))]...)
	switch {
	case c.reply[0] != 22: // an alert
		c.stream.early = false
	case len(c.reply) == serverHello && c.reply[recordHeader] == 2 && binary.BigEndian.Uint16(c.reply[3:]) >= serverHello-recordHeader:
		c.stream.early = [32]byte(c.reply[serverHello-32:]) == helloRetry
	}
}

// acknowledged takes in an acknowledgment of the server.
func (f *Filter) acknowledged(c *connection, ack uint32) {
	if before(c.safe, ack) { // held bytes cannot have arrived; ack may include the FIN behind all
		ack = c.safe
	}
	kept := c.sent.kept
	c.sent.forget(ack)
	f.stats.Memory += c.sent.kept - kept
}

// fromClient judges a packet of a client.
func (f *Filter) fromClient(c *connection, p *divert.Packet, tcp packet.TCP) {
	s := segment{seq: tcp.Seq(), data: f.parsed.Payload(p.Data), fin: tcp.Flags()&packet.TCPFin != 0}
	switch {
	case tcp.Flags()&packet.TCPRst != 0:
		f.accept(p)
		if c.state == judging || c.state == passing {
			f.letGo(c, false)
			c.state = finished
		}
	case c.state == passed:
		f.acceptFlow(p)
	case c.state == blocked:
		f.answerAgain(c, p, tcp, &s)
	case len(s.data) == 0 && !s.fin:
		f.accept(p)
	case c.state == finished:
		f.drop(p)
	case !c.begun && !before(c.start, s.dataEnd()): // older than all known bytes
		f.accept(p)
	case c.begun && before(s.seq, c.start):
		if len(s.data) == 1 && s.seq+1 == c.start && !s.fin { // a keep-alive probe (RFC 9293 section 3.8.4)
			f.accept(p)
			return
		}
		f.drop(p)
	case before(s.end(), c.sent.base): // the server has these bytes
		f.accept(p)
	default:
		f.data(c, p, tcp, &s)
	}
}

// data takes bytes that the server may not have yet.
func (f *Filter) data(c *connection, p *divert.Packet, tcp packet.TCP, s *segment) {
	next := c.sent.end()
	switch {
	case !c.agrees(s):
		f.stats.Differing++
		f.drop(p)
	case c.state == passing:
		f.accept(p)
	case tcp.Flags()&packet.TCPUrg != 0: // some servers take the urgent byte out of the stream, others do not
		f.block(c, p, s, reasonAmbiguous, "", "")
	case !before(next, s.dataEnd()): // all of it has been judged
		switch {
		case !before(c.safe, s.dataEnd()):
			f.accept(p)
		case len(s.data) == 0:
			f.hold(c, p, s)
		default:
			f.drop(p) // a copy is held
		}
	case c.sent.kept > maxUnacked || next-c.sent.base > 1<<30:
		f.drop(p) // the client sends it again, when the server has acknowledged more
	case f.stats.Memory+2*len(p.Data) > f.config.MaxMemory: // one copy to keep and one to hold
		f.giveUp(c, p, s, reasonNoMemory)
	case before(next, s.seq):
		f.hold(c, p, s)
	default:
		f.judge(c, p, tcp, s)
	}
}

// dataEnd returns the sequence number behind the data of a segment.
func (s *segment) dataEnd() uint32 { return s.seq + uint32(len(s.data)) }

// agrees reports whether a segment has the same bytes as earlier segments, where they overlap.
func (c *connection) agrees(s *segment) bool {
	if !c.sent.same(s.seq, s.data) {
		return false
	}
	for i := range c.held {
		if h := &c.held[i]; !equalOverlap(h.seq, h.data, s.seq, s.data) {
			return false
		}
	}
	return true
}

// verdict is the action on a connection.
type verdict struct {
	kind                kind
	reason, host, entry string // of a blocked one
}

type kind uint8

const (
	goOn kind = iota
	pass
	block
)

// judge reads the next bytes from a segment and from held ones behind it.
func (f *Filter) judge(c *connection, p *divert.Packet, tcp packet.TCP, s *segment) {
	v := f.read(c, s, tcp.Ack())
	for i := 0; i < len(c.held) && v.kind == goOn; i++ {
		h := &c.held[i]
		if next := c.sent.end(); !before(next, h.seq) && before(next, h.dataEnd()) {
			v = f.read(c, h, tcp.Ack())
		}
	}
	switch v.kind {
	case block:
		f.block(c, p, s, v.reason, v.host, v.entry)
		return
	case pass:
		f.pass(c)
		f.accept(p)
		return
	}
	c.safe = c.sent.end() - uint32(c.stream.pending)
	if len(c.held) == 0 && !before(c.safe, s.dataEnd()) {
		f.accept(p)
		return
	}
	f.hold(c, p, s)
	f.releaseSafe(c)
}

// read reads the next bytes from a segment.
func (f *Filter) read(c *connection, s *segment, ack uint32) verdict {
	kept := c.sent.kept
	defer func() { f.stats.Memory += c.sent.kept - kept }()
	for b := s.data[c.sent.end()-s.seq:]; len(b) > 0; {
		n, opaque, found := c.stream.read(b)
		c.sent.keep(b[:n], opaque)
		b = b[n:]
		if v := f.verdict(c, found, ack); v.kind != goOn {
			return v
		}
	}
	return verdict{}
}

// verdict returns the action for a finding.
func (f *Filter) verdict(c *connection, found finding, ack uint32) verdict {
	refuse := func(on bool, reason string) verdict {
		if on {
			return verdict{kind: block, reason: reason}
		}
		return verdict{kind: pass}
	}
	switch found {
	case named, nameless:
		if c.stream.tls {
			f.stats.TLS++
		} else {
			f.stats.HTTP++
		}
		for _, name := range c.stream.names {
			if entry, ok := f.config.Hosts.Match(name); ok {
				return verdict{block, reasonListed, name, entry}
			}
		}
		if found == nameless && f.config.BlockNameless {
			return verdict{kind: block, reason: reasonNameless}
		}
		c.requests++
		c.ack = ack
	case encrypted:
		return verdict{kind: pass}
	case other:
		if c.stream.tunnel {
			return verdict{kind: pass}
		}
		v := refuse(f.config.BlockNameless || !c.begun && f.config.FailClosed, reasonNameless)
		f.stats.Other += boolCount(v.kind == pass)
		return v
	case ambiguous:
		return verdict{kind: block, reason: reasonAmbiguous}
	case tooLong:
		v := refuse(f.config.FailClosed, reasonTooLong)
		f.stats.FailedOpen += boolCount(v.kind == pass)
		return v
	}
	return verdict{}
}

// maxHeldTCP is the greatest number of bytes that a connection may hold, headers included.
const maxHeldTCP = 256 << 10

// hold keeps a packet until its bytes are judged, or bytes before it have come.
func (f *Filter) hold(c *connection, p *divert.Packet, s *segment) {
	bytes := len(p.Data)
	at := len(c.held)
	for i := len(c.held) - 1; i >= 0; i-- {
		h := &c.held[i]
		if !before(s.seq, h.seq) && !before(h.end(), s.end()) {
			f.drop(p) // a copy is held
			return
		}
		if before(s.seq, h.seq) {
			at = i
		}
		bytes += len(h.packet.Data)
	}
	if bytes > maxHeldTCP || before(c.sent.end()+maxHead, s.seq) {
		f.drop(p)
		return
	}
	h := segment{seq: s.seq, fin: s.fin, packet: f.held(p)}
	h.data = h.packet.Payload()
	if len(c.held) == 0 {
		f.startWaiting(c)
	}
	c.held = slices.Insert(c.held, at, h)
	if len(c.held) > quietHolds {
		f.tellArrived(c, &h)
	}
}

// startWaiting starts the time for which a connection may hold packets.
func (f *Filter) startWaiting(c *connection) {
	c.late++
	turn := c.late
	f.wait(func() {
		if c.late == turn && len(c.held) > 0 {
			last := c.held[len(c.held)-1]
			f.giveUp(c, &last.packet, &last, reasonLate)
		}
	})
}

// giveUp ends the wait of a connection, at a segment of it: the connection passes, or is blocked. If it passes for lack
// of memory, retransmissions are not compared.
func (f *Filter) giveUp(c *connection, p *divert.Packet, s *segment, reason string) {
	if f.config.FailClosed {
		f.block(c, p, s, reason, "", "")
		return
	}
	f.stats.FailedOpen++
	f.pass(c)
	if reason == reasonNoMemory { // then p is not held
		f.stats.Memory -= c.sent.kept
		c.sent = transcript{base: c.sent.end()}
		f.accept(p)
	}
}

// releaseSafe sends on the held packets whose bytes have all been judged.
func (f *Filter) releaseSafe(c *connection) {
	n := 0
	for n < len(c.held) && !before(c.safe, c.held[n].dataEnd()) {
		f.release(&c.held[n].packet, true)
		n++
	}
	if n > 0 {
		c.held = slices.Delete(c.held, 0, n)
		if len(c.held) > 0 {
			f.startWaiting(c)
		}
	}
}

// pass lets a connection go on.
func (f *Filter) pass(c *connection) {
	c.state, c.safe = passing, c.sent.end()
	c.stream = stream{phase: ended, tls: c.stream.tls}
	for i := range c.held {
		f.release(&c.held[i].packet, true)
	}
	c.held = nil
}

// letGo frees the memory of a connection; held packets go on, or are dropped.
func (f *Filter) letGo(c *connection, on bool) {
	for i := range c.held {
		f.release(&c.held[i].packet, on)
	}
	f.stats.Memory -= c.sent.kept
	c.held, c.sent, c.stream = nil, transcript{base: c.sent.end()}, stream{phase: ended, tls: c.stream.tls}
}

// block ends a connection at a segment, whose packet is dropped: it resets the server, and resets the client or sends it
// a page.
func (f *Filter) block(c *connection, p *divert.Packet, s *segment, reason, host, entry string) {
	protocol := "other"
	switch {
	case c.stream.tls:
		protocol = "tls"
	case host != "" || c.stream.request.method != "":
		protocol = "http"
	}
	f.blocked(c.key, protocol, reason, host, entry)
	tcp := p.Data
	var h packet.Parsed
	if !h.Parse(tcp) || h.TCPOff < 0 {
		return // cannot happen: it was TCP on arrival
	}
	head := h.TCP(tcp)
	c.answer = newAnswer(head, s.dataEnd())
	asked := reason == reasonListed || reason == reasonNameless
	if protocol == "http" && asked && (c.requests == 0 || c.ack != head.Ack()) { // else the answer to the previous request is under way
		c.answer.page = f.page(c.stream.request.method, host)
	}
	c.state = blocked
	f.drop(p)
	f.resetServer(c, p, head)
	if c.answer.page != nil {
		f.sendPage(c, p)
	} else {
		f.resetClient(p, &h)
	}
	f.letGo(c, false)
}
