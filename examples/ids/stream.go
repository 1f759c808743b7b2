package main

import (
	"bytes"
	"slices"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/clienthello"
	"github.com/opendivert/divert/packet"
)

// half holds the bytes that one side of a connection sends.
type half struct {
	begun bool
	start uint32 // sequence number of the first byte
	next  uint32 // of the next byte to inspect
	acked uint32 // all bytes before it have reached the other side

	data   []byte // the bytes inspected last, up to next
	behind uint64 // number of bytes before data
	state  int32  // of the automaton

	candidates []candidate // rules whose pattern was found, and that later bytes may complete
	done       map[*rule]uint64

	held  []segment // segments after a gap, by sequence number
	http  httpReader
	tls   clienthello.Reader
	named bool // the hello was read, or there is none
}

// candidate is a rule whose pattern was found at a position of the stream.
type candidate struct {
	rule *rule
	at   uint64
}

// segment is a packet that waits for earlier bytes.
type segment struct {
	seq    uint32
	data   []byte
	packet divert.Packet
}

// Limits of the bytes kept of each half.
const (
	window        = 32 << 10 // bytes within which all contents of a rule must lie
	maxAhead      = 1 << 20  // bytes that may wait or be unacknowledged
	maxHeld       = 1024     // packets that may wait
	maxCandidates = 64
)

// empty releases the bytes of a half; waiting packets are dropped.
func (e *engine) empty(h *half) {
	e.memory -= len(h.data)
	for i := range h.held {
		e.memory -= len(h.held[i].data)
	}
	h.data, h.held = nil, nil
}

// before reports whether a sequence number comes before another (RFC 9293 section 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }

// segment inspects a packet of TCP.
func (e *engine) segment(p *divert.Packet) error {
	tcp := e.parsed.TCP(p.Data)
	flags, seq, body := tcp.Flags(), tcp.Seq(), e.parsed.Payload(p.Data)
	src, dst := p.Src(), p.Dst()
	f, fresh := e.flowOf(src, dst, false)
	opens := flags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn
	if opens && !fresh && !(f.client == src && f.halves[0].begun && f.halves[0].start == seq+1) { // another connection
		for i := range f.halves {
			e.empty(&f.halves[i])
		}
		*f = flow{key: f.key, client: src, id: f.id + 1}
	}
	if fresh && flags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn|packet.TCPAck {
		f.client = dst
	}
	s := side(src != f.client)
	if f.dropped {
		return e.end(p)
	}
	h, other := &f.halves[s], &f.halves[1-s]
	if flags&packet.TCPSyn != 0 {
		seq++
	}
	if !h.begun {
		h.begun, h.start, h.next, h.acked = true, seq, seq, seq
	}
	f.seen[s] = true
	if flags&packet.TCPAck != 0 && other.begun {
		if ack := tcp.Ack(); before(other.acked, ack) {
			other.acked = ack
			if before(other.next, ack) { // a FIN's, or that of bytes that took another path
				other.acked = other.next
			}
		}
	}
	f.opened = f.opened || flags&packet.TCPSyn == 0 && (f.seen[0] && f.seen[1] || fresh)
	c := subject{src: src, dst: dst, protocol: "tcp", flow: f, toServer: s == 0, packet: true, size: len(body)}
	c.fields[payload] = body
	e.inspect(e.packets, payload, &c)
	if e.dropIt {
		return e.refuse(p, f)
	}
	if len(body) == 0 || flags&packet.TCPRst != 0 {
		return e.out.Accept(p)
	}
	if flags&packet.TCPUrg != 0 && e.inline { // receivers differ in whether they remove the urgent byte from the stream
		return e.end(p)
	}
	return e.bytes(p, h, &c, seq, body)
}

// bytes processes a segment of a half: the next bytes are inspected, later ones wait.
func (e *engine) bytes(p *divert.Packet, h *half, c *subject, seq uint32, body []byte) error {
	end := seq + uint32(len(body))
	switch {
	case !h.agrees(seq, body):
		e.counters.differing++
		return e.end(p)
	case !before(h.next, end): // a retransmission
		if e.inline && before(seq, h.next-uint32(len(h.data))) && before(h.acked, end) {
			return e.end(p) // its first copy is no longer known, and the other side may not have it
		}
		return e.out.Accept(p)
	case before(h.next, seq) || e.inline && h.next-h.acked > maxAhead:
		return e.hold(p, h, seq, body)
	}
	e.read(h, c, body[h.next-seq:])
	for len(h.held) > 0 && !before(h.next, h.held[0].seq) && !e.dropIt {
		s := h.held[0]
		h.held = slices.Delete(h.held, 0, 1)
		e.memory -= len(s.data)
		if from := int(h.next - s.seq); from < len(s.data) {
			e.read(h, c, s.data[from:])
		}
		if !e.inline {
			continue
		}
		if p != nil { // it goes before the packets that waited for it
			if err := e.out.Accept(p); err != nil {
				return err
			}
			p = nil
		}
		if e.dropIt {
			e.parsed.Parse(s.packet.Data) // it parsed before
			return e.refuse(&s.packet, c.flow)
		}
		if err := e.out.Send(&s.packet); err != nil {
			return err
		}
	}
	switch {
	case p == nil:
		return nil
	case e.dropIt:
		return e.refuse(p, c.flow)
	}
	return e.out.Accept(p)
}

// agrees reports whether bytes equal those received earlier, as far as these are known.
func (h *half) agrees(seq uint32, b []byte) bool {
	if !equalOverlap(h.next-uint32(len(h.data)), h.data, seq, b) {
		return false
	}
	for i := range h.held {
		if !equalOverlap(h.held[i].seq, h.held[i].data, seq, b) {
			return false
		}
	}
	return true
}

// equalOverlap reports whether two pieces of a stream agree where they overlap.
func equalOverlap(seqA uint32, a []byte, seqB uint32, b []byte) bool {
	if before(seqB, seqA) {
		seqA, a, seqB, b = seqB, b, seqA, a
	}
	skip := int(seqB - seqA)
	if skip >= len(a) {
		return true
	}
	a = a[skip:]
	n := min(len(a), len(b))
	return bytes.Equal(a[:n], b[:n])
}

// hold keeps a packet until the bytes before it have arrived. Without room for it the packet is dropped; its sender
// retransmits it.
func (e *engine) hold(p *divert.Packet, h *half, seq uint32, body []byte) error {
	if len(h.held) >= maxHeld || seq-h.next > maxAhead || !before(h.next, seq) {
		return e.end(p)
	}
	at, known := slices.BinarySearchFunc(h.held, seq, func(s segment, seq uint32) int { return int(int32(s.seq - seq)) })
	if known && len(h.held[at].data) >= len(body) {
		return e.end(p) // it already waits
	}
	s := segment{seq: seq, packet: p.Clone()}
	s.data = s.packet.Payload()
	h.held = slices.Insert(h.held, at, s)
	e.memory += len(body)
	return e.out.Drop(p) // it must not fill the queue or its sender's buffer; its copy is sent later
}

// read inspects the next bytes of a half.
func (e *engine) read(h *half, c *subject, b []byte) {
	h.trim(e)
	begin := h.behind + uint64(len(h.data))
	h.data = append(h.data, b...)
	h.next += uint32(len(b))
	e.memory += len(b)
	if len(e.stream.rules) > 0 {
		h.state = e.stream.patterns.scan(h.state, b, func(pattern, end int) { h.nominate(e.stream.rules[pattern], begin+uint64(end)) })
	}
	sc := *c
	sc.packet = false
	kept := h.candidates[:0]
	for _, k := range h.candidates {
		if !e.tryStream(k.rule, h, &sc) && len(k.rule.tests[payload]) > 1 && begin-min(begin, k.at) < window {
			kept = append(kept, k) // later bytes may complete it
		}
	}
	h.candidates = kept
	for _, r := range e.stream.slow {
		e.tryStream(r, h, &sc)
	}
	e.application(h, c, b)
}

// nominate makes a rule a candidate. If there are too many, the first is removed.
func (h *half) nominate(r *rule, at uint64) {
	for i := range h.candidates {
		if h.candidates[i].rule == r {
			h.candidates[i].at = at
			return
		}
	}
	if len(h.candidates) == maxCandidates {
		h.candidates = slices.Delete(h.candidates, 0, 1)
	}
	h.candidates = append(h.candidates, candidate{r, at})
}

// tryStream tries a rule on the window of a half, after the position of its last match.
func (e *engine) tryStream(r *rule, h *half, c *subject) bool {
	from := max(h.done[r], h.behind)
	if r.absolute() && from > 0 { // it applies only to the beginning
		return false
	}
	c.fields[payload] = h.data[from-h.behind:]
	if !e.try(r, c) {
		return false
	}
	if h.done == nil {
		h.done = map[*rule]uint64{}
	}
	h.done[r] = h.behind + uint64(len(h.data))
	return true
}

// trim forgets bytes before the window that the other side has received.
func (h *half) trim(e *engine) {
	keep := max(window, int(h.next-h.acked))
	if !e.inline {
		keep = window
	}
	if len(h.data) < 2*keep {
		return
	}
	gone := len(h.data) - keep
	h.behind += uint64(gone)
	h.data = append(h.data[:0], h.data[gone:]...)
	e.memory -= gone
}

// application parses bytes in the protocols that rules inspect.
func (e *engine) application(h *half, c *subject, b []byte) {
	use := func(app string, f *fields) {
		ac := subject{src: c.src, dst: c.dst, protocol: "tcp", app: app, flow: c.flow, toServer: c.toServer, fields: *f}
		for at := payload + 1; at < buffers; at++ {
			if f[at] != nil {
				e.inspect(e.fields[at], at, &ac)
			}
		}
	}
	h.http.read(b, !c.toServer, func(f *fields) { use("http", f) })
	if !h.named && c.toServer {
		hello := h.tls.Read(b)
		if h.named = hello.State != clienthello.NeedMore; h.named {
			h.tls = clienthello.Reader{}
		}
		if hello.State == clienthello.Named {
			use("tls", &fields{tlsSNI: []byte(hello.Name)})
		}
	}
}

// refuse drops a packet that a rule drops, and its whole flow.
func (e *engine) refuse(p *divert.Packet, f *flow) error {
	if e.inline && f.reject {
		e.reset(p)
	}
	e.letGo(f)
	return e.end(p)
}

// letGo frees the memory of a flow that carries no more packets.
func (e *engine) letGo(f *flow) {
	if e.inline {
		for i := range f.halves {
			e.empty(&f.halves[i])
		}
	}
}

// reset resets both ends of a connection, on the basis of a dropped packet.
func (e *engine) reset(p *divert.Packet) {
	tcp := e.parsed.TCP(p.Data)
	back, ok := packet.AppendReset(nil, p.Data, &e.parsed)
	if !ok || tcp.Flags()&packet.TCPAck == 0 {
		return
	}
	a := p.Addr
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true // they are already computed
	h := packet.Header{Src: p.Src(), Dst: p.Dst()}
	if on, err := h.AppendTCP(nil, packet.Segment{Seq: tcp.Seq(), Ack: tcp.Ack(), Flags: packet.TCPRst | packet.TCPAck}, nil); err == nil {
		_ = e.out.Send(&divert.Packet{Data: on, Addr: a}) // errors are ignored: dropping the packet matters more
	}
	a.Outbound = !a.Outbound
	_ = e.out.Send(&divert.Packet{Data: back, Addr: a})
}

// unreachable sends the sender of a datagram an ICMP error.
func (e *engine) unreachable(p *divert.Packet) {
	if !e.inline {
		return
	}
	code := uint8(packet.ICMPPortUnreachable)
	if e.parsed.Family == 6 {
		code = packet.ICMPv6PortUnreachable
	}
	if b, ok := packet.AppendUnreachable(nil, p.Data, &e.parsed, code); ok {
		a := p.Addr
		a.Outbound = !a.Outbound
		a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true
		_ = e.out.Send(&divert.Packet{Data: b, Addr: a})
	}
}
