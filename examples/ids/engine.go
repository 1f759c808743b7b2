package main

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// carrier sends packets on: a *divert.Handle, or nowhere.
type carrier interface {
	Accept(*divert.Packet) error
	Drop(*divert.Packet) error
	Send(*divert.Packet) error
}

// index finds the rules that a buffer may match.
type index struct {
	patterns automaton
	rules    []*rule // by pattern
	slow     []*rule // without a pattern
}

// newIndex makes the index of the wanted rules. It leaves out those with a pattern for another buffer than b.
func newIndex(rules []*rule, b buffer, wanted func(*rule) bool) *index {
	x := &index{}
	var patterns [][]byte
	for _, r := range rules {
		if !wanted(r) {
			continue
		}
		at, p := r.fastPattern()
		switch {
		case p == nil && slowBuffer(r) == b:
			x.slow = append(x.slow, r)
		case p != nil && at == b:
			patterns = append(patterns, p)
			x.rules = append(x.rules, r)
		}
	}
	x.patterns = *newAutomaton(patterns)
	return x
}

// slowBuffer returns the buffer on which a rule without a pattern is tried.
func slowBuffer(r *rule) buffer {
	for b := range r.tests {
		if len(r.tests[b]) > 0 {
			return buffer(b)
		}
	}
	return payload
}

// engine inspects packets. It belongs to one goroutine.
type engine struct {
	out    carrier
	inline bool
	alert  func(*alert)
	now    time.Time // of the current packet

	stream, packets, datagrams *index
	fields                     [buffers]*index

	flows    map[[2]netip.AddrPort]*list.Element // TCP, by the lower end, the higher end
	others   map[[2]netip.AddrPort]*list.Element // UDP
	order    list.List                           // of *flow, the latest first
	memory   int                                 // bytes of streams
	limits   map[limitKey]*limitState
	seed     maphash.Seed
	counters counters

	parsed packet.Parsed
	dropIt bool // a rule drops the current packet
	reject bool
}

// counters count packets and the actions on them.
type counters struct{ packets, alerts, dropped, differing, uninspected uint64 }

// The limits of an engine.
const (
	maxFlows  = 65536
	maxMemory = 256 << 20
	maxLimits = 65536
)

// newEngine makes an engine for rules.
func newEngine(rules []*rule, out carrier, inline bool, report func(*alert)) *engine {
	e := &engine{
		out: out, inline: inline, alert: report, seed: maphash.MakeSeed(),
		flows: map[[2]netip.AddrPort]*list.Element{}, others: map[[2]netip.AddrPort]*list.Element{}, limits: map[limitKey]*limitState{},
	}
	tcp := func(r *rule) bool { return r.protocol == "tcp" || r.protocol == "ip" }
	packetOnly := func(r *rule) bool {
		return r.onlyPackets || r.size != nil || slowBuffer(r) == payload && len(r.tests[payload]) == 0
	}
	e.stream = newIndex(rules, payload, func(r *rule) bool { return tcp(r) && !packetOnly(r) })
	e.packets = newIndex(rules, payload, func(r *rule) bool { return tcp(r) && !r.onlyStream && (packetOnly(r) || r.absolute()) })
	e.datagrams = newIndex(rules, payload, func(r *rule) bool {
		return (r.protocol == "udp" || r.protocol == "icmp" || r.protocol == "ip") && !r.onlyStream
	})
	for b := payload + 1; b < buffers; b++ {
		e.fields[b] = newIndex(rules, b, func(*rule) bool { return true })
	}
	return e
}

// flow is a TCP connection or a UDP exchange.
type flow struct {
	key     [2]netip.AddrPort
	client  netip.AddrPort
	id      uint64
	udp     bool
	halves  [2]half // the client's, the server's
	bits    map[string]bool
	dropped bool // its packets are dropped
	reject  bool
	seen    [2]bool // packets of each side
	opened  bool    // the handshake is complete
}

// flowOf returns the flow of a packet, and whether it is new.
func (e *engine) flowOf(src, dst netip.AddrPort, udp bool) (f *flow, fresh bool) {
	key := [2]netip.AddrPort{src, dst}
	if dst.Compare(src) < 0 {
		key = [2]netip.AddrPort{dst, src}
	}
	table := e.flows
	if udp {
		table = e.others
	}
	if at, ok := table[key]; ok {
		e.order.MoveToFront(at)
		return at.Value.(*flow), false
	}
	f = &flow{key: key, client: src, udp: udp, id: maphash.Comparable(e.seed, key) >> 1}
	table[key] = e.order.PushFront(f)
	for e.order.Len() > maxFlows || e.memory > maxMemory && e.order.Len() > 1 {
		old := e.order.Remove(e.order.Back()).(*flow)
		e.forget(old)
	}
	return f, true
}

// forget releases a flow that is already removed from e.order.
func (e *engine) forget(f *flow) {
	for i := range f.halves {
		e.empty(&f.halves[i])
	}
	if f.udp {
		delete(e.others, f.key)
	} else {
		delete(e.flows, f.key)
	}
}

// packet inspects a packet with its arrival time, and passes it on or drops it.
func (e *engine) packet(p *divert.Packet, at time.Time) error {
	e.now, e.dropIt, e.reject = at, false, false
	e.counters.packets++
	h := &e.parsed
	switch {
	case !h.Parse(p.Data):
		return e.out.Accept(p)
	case h.Fragment || h.Truncated: // its bytes could be read differently from their reassembly
		e.counters.uninspected++
		if e.inline {
			return e.end(p)
		}
		return nil
	case h.TCPOff >= 0:
		return e.segment(p)
	}
	src, dst := p.Src(), p.Dst()
	body := h.Payload(p.Data)
	c := subject{src: src, dst: dst, protocol: "icmp", datagram: true, size: len(body)}
	switch {
	case h.UDPOff >= 0:
		c.protocol = "udp"
		f, _ := e.flowOf(src, dst, true)
		c.flow, c.toServer = f, src == f.client
		if f.dropped {
			return e.end(p)
		}
		f.seen[side(!c.toServer)] = true
		f.opened = f.seen[0] && f.seen[1]
	case h.ICMPOff < 0 && h.ICMPv6Off < 0:
		c.protocol = "ip"
	}
	c.fields[payload] = body
	e.inspect(e.datagrams, payload, &c)
	if c.protocol == "udp" {
		e.query(&c, body)
	}
	if e.dropIt {
		if e.reject {
			e.unreachable(p)
		}
		return e.end(p)
	}
	return e.out.Accept(p)
}

// query inspects the names of a DNS query.
func (e *engine) query(c *subject, body []byte) {
	if c.dst.Port() != 53 {
		return
	}
	for _, name := range dnsNames(body) {
		c := subject{src: c.src, dst: c.dst, protocol: "dns", flow: c.flow, toServer: c.toServer, app: "dns"}
		c.fields[dnsQuery] = []byte(name)
		e.inspect(e.fields[dnsQuery], dnsQuery, &c)
	}
}

// end drops a packet, if packets can be dropped.
func (e *engine) end(p *divert.Packet) error {
	if !e.inline {
		return nil
	}
	e.counters.dropped++
	return e.out.Drop(p)
}

func side(server bool) int {
	if server {
		return 1
	}
	return 0
}

// subject is the data under inspection, with its flow.
type subject struct {
	src, dst netip.AddrPort
	protocol string
	app      string // http, tls, dns
	flow     *flow  // nil if there is none
	toServer bool
	datagram bool
	packet   bool // the payload of a TCP packet
	size     int
	fields   fields
}

// inspect tries the rules of an index on a buffer.
func (e *engine) inspect(x *index, b buffer, c *subject) {
	var tried []*rule
	try := func(r *rule) {
		if !slices.Contains(tried, r) {
			tried = append(tried, r)
			e.try(r, c)
		}
	}
	if len(x.rules) > 0 {
		x.patterns.scan(0, c.fields[b], func(pattern, _ int) { try(x.rules[pattern]) })
	}
	for _, r := range x.slow {
		try(r)
	}
}

// try tries a rule, and executes it if it holds.
func (e *engine) try(r *rule, c *subject) bool {
	if !r.applies(c) || !r.holds(c) {
		return false
	}
	e.matched(r, c)
	return true
}

// applies reports whether a rule covers the flow of a subject.
func (r *rule) applies(c *subject) bool {
	switch r.protocol {
	case "ip":
	case "http", "tls":
		if c.app != r.protocol {
			return false
		}
	case "tcp", "udp", "icmp":
		if c.protocol != r.protocol && !(c.app != "" && r.protocol == appTransport[c.app]) {
			return false
		}
	case "dns":
		if c.app != "dns" {
			return false
		}
	}
	if !r.heads(c.src, c.dst) || r.size != nil && !r.size.has(c.size) {
		return false
	}
	f := c.flow
	if r.toServer || r.toClient || r.established || r.unestablished || len(r.bits) > 0 {
		if f == nil || r.toServer && !c.toServer || r.toClient && c.toServer || r.established && !f.opened || r.unestablished && f.opened {
			return false
		}
	}
	for _, b := range r.bits {
		if b.do == "isset" && !f.bits[b.name] || b.do == "isnotset" && f.bits[b.name] {
			return false
		}
	}
	return true
}

var appTransport = map[string]string{"http": "tcp", "tls": "tcp", "dns": "udp"}

// holds reports whether all tests of a rule hold.
func (r *rule) holds(c *subject) bool {
	for b := range r.tests {
		if len(r.tests[b]) == 0 {
			continue
		}
		if buffer(b) != payload && c.fields[b] == nil {
			return false
		}
		m := matcher{buffer: c.fields[b]}
		if !m.match(r.tests[b], 0) {
			return false
		}
	}
	return true
}

// matched executes a rule that holds.
func (e *engine) matched(r *rule, c *subject) {
	for _, b := range r.bits {
		f := c.flow
		if f.bits == nil {
			f.bits = map[string]bool{}
		}
		switch b.do {
		case "set":
			f.bits[b.name] = true
		case "unset":
			delete(f.bits, b.name)
		case "toggle":
			f.bits[b.name] = !f.bits[b.name]
		}
	}
	if r.action != "alert" {
		e.dropIt, e.reject = true, e.reject || r.action == "reject"
		if c.flow != nil {
			c.flow.dropped, c.flow.reject = true, c.flow.reject || r.action == "reject"
		}
	}
	if r.noAlert || !e.within(r, c) {
		return
	}
	e.counters.alerts++
	a := &alert{rule: r, at: e.now, src: c.src, dst: c.dst, protocol: c.protocol, app: c.app, dropped: r.action != "alert" && e.inline}
	if c.app != "" {
		a.protocol = appTransport[c.app]
	}
	if c.flow != nil {
		a.flow = c.flow.id
	}
	e.alert(a)
}

// limitKey identifies a counter of thresholds.
type limitKey struct {
	rule *rule
	addr netip.Addr
}

type limitState struct {
	since time.Time
	count int
}

// within counts a match, and reports whether the rule's threshold allows an alert.
func (e *engine) within(r *rule, c *subject) bool {
	t := r.limit
	if t == nil {
		return true
	}
	k := limitKey{rule: r}
	switch t.track {
	case "by_src":
		k.addr = c.src.Addr()
	case "by_dst":
		k.addr = c.dst.Addr()
	}
	s := e.limits[k]
	if s == nil || e.now.Sub(s.since) > t.seconds {
		if s == nil && len(e.limits) >= maxLimits {
			clear(e.limits) // counting starts again: that gives more alerts, not fewer
		}
		s = &limitState{since: e.now}
		e.limits[k] = s
	}
	s.count++
	switch t.kind {
	case "limit":
		return s.count <= t.count
	case "both":
		return s.count == t.count
	}
	if s.count < t.count {
		return false
	}
	s.count = 0
	return true
}
