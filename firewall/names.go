package firewall

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// Addresses get their names from the resolvers' answers to this host, as they pass. An answer counts if it comes from a
// resolver that the rules or the system name and, over UDP, if its question was seen to go there: packets of others
// decide nothing. A process that may ask a trusted resolver can thus add only true names.

// Limits of memory.
const (
	maxAddresses    = 1 << 16          // with names; beyond, those named longest ago make way
	maxNames        = 16               // of one address
	maxQueries      = 4096             // over UDP without an answer yet
	maxStreams      = 256              // connections of TCP with a resolver
	queryTime       = 30 * time.Second // time limit for an answer
	minNameTime     = time.Hour        // programs keep addresses for longer than their TTL
	maxNameTime     = 24 * time.Hour
	maxChain        = 16      // aliases between a name and its address
	maxDNSOverTCP   = 1 << 16 // bytes of a message, and two for its length
	portOfResolvers = 53
)

// names are the names of addresses. The methods may be called from several goroutines.
type names struct {
	mu        sync.Mutex
	resolvers map[netip.Addr]bool
	addresses aging[netip.Addr, []nameOf]
	queries   aging[queryKey, query]
	streams   aging[streamKey, *stream]
	now       func() time.Time
}

// nameOf is a name of an address. Lists of them are immutable.
type nameOf struct {
	name  string
	until time.Time
}

type queryKey struct {
	client, resolver netip.AddrPort
	id               uint16
}

type query struct {
	name string
	kind dnsmessage.Type
	when time.Time
}

func newNames(now func() time.Time) *names {
	return &names{
		addresses: aging[netip.Addr, []nameOf]{limit: maxAddresses},
		queries:   aging[queryKey, query]{limit: maxQueries},
		streams:   aging[streamKey, *stream]{limit: maxStreams},
		now:       now,
	}
}

// trust sets the resolvers whose answers count.
func (n *names) trust(resolvers []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resolvers = map[netip.Addr]bool{}
	for _, a := range resolvers {
		n.resolvers[a] = true
	}
}

// of returns the names of an address: those of the last answer first, and within an answer the queried name first.
func (n *names) of(a netip.Addr) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	known, _ := n.addresses.get(a)
	var list []string
	now := n.now()
	for _, k := range known {
		if now.Before(k.until) {
			list = append(list, k.name)
		}
	}
	return list
}

// packet takes in a packet to or from a resolver. It keeps no part of it.
func (n *names) packet(p *divert.Packet, parsed *packet.Parsed) {
	if !parsed.Parse(p.Data) || parsed.Fragment {
		return
	}
	src, dst := p.Src(), p.Dst()
	payload := parsed.Payload(p.Data)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case parsed.UDPOff >= 0 && dst.Port() == portOfResolvers && n.resolvers[dst.Addr()]:
		n.question(src, dst, payload)
	case parsed.UDPOff >= 0 && src.Port() == portOfResolvers && n.resolvers[src.Addr()]:
		n.answer(src, dst, payload)
	case parsed.TCPOff >= 0 && src.Port() == portOfResolvers && n.resolvers[src.Addr()]:
		n.segment(streamKey{src, dst}, parsed.TCP(p.Data), payload)
	}
}

// question takes in a question over UDP.
func (n *names) question(client, resolver netip.AddrPort, b []byte) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return
	}
	q, err := p.Question()
	if err != nil {
		return
	}
	n.queries.put(queryKey{client, resolver, h.ID}, query{canonical(q.Name.String()), q.Type, n.now()})
}

// answer takes in an answer over UDP.
func (n *names) answer(resolver, client netip.AddrPort, b []byte) {
	if len(b) < 12 {
		return
	}
	k := queryKey{client, resolver, uint16(b[0])<<8 | uint16(b[1])}
	q, asked := n.queries.get(k)
	if !asked || n.now().Sub(q.when) > queryTime {
		return
	}
	if r, ok := parseAnswer(b); ok && r.name == q.name && r.kind == q.kind {
		n.queries.remove(k)
		n.learn(r)
	}
}

// learn notes the names of addresses in an answer.
func (n *names) learn(r answer) {
	now := n.now()
	until := now.Add(min(max(time.Duration(r.ttl)*time.Second, minNameTime), maxNameTime))
	for _, a := range r.addresses {
		known, _ := n.addresses.get(a)
		list := make([]nameOf, 0, len(known)+len(r.names))
		for _, name := range r.names {
			list = append(list, nameOf{name, until})
		}
		for _, k := range known { // without expired names and those renewed now
			if now.Before(k.until) && !slices.Contains(r.names, k.name) {
				list = append(list, k)
			}
		}
		n.addresses.put(a, list[:min(len(list), maxNames)])
	}
}

// answer is the part of an answer about addresses.
type answer struct {
	name      string // the queried name
	kind      dnsmessage.Type
	names     []string // name, and the names that it is an alias of
	addresses []netip.Addr
	ttl       uint32 // the least, in seconds
}

// parseAnswer reads an answer (RFC 1035, section 4; RFC 8499 for words). Records count if they belong to the queried
// name, or to one that it is an alias of.
func parseAnswer(b []byte) (r answer, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.RCode != dnsmessage.RCodeSuccess {
		return r, false
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET {
		return r, false
	}
	r.name, r.kind = canonical(q.Name.String()), q.Type
	if _, err := parsePattern(r.name); err != nil || strings.HasPrefix(r.name, ".") {
		return r, false
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return r, false
	}
	aliases := map[string]string{}
	addresses := map[string][]netip.Addr{}
	r.ttl = ^uint32(0)
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return r, false
		}
		owner := canonical(h.Name.String())
		switch {
		case h.Class == dnsmessage.ClassINET && h.Type == dnsmessage.TypeCNAME:
			c, err := p.CNAMEResource()
			if err != nil {
				return r, false
			}
			aliases[owner] = canonical(c.CNAME.String())
			r.ttl = min(r.ttl, h.TTL)
		case h.Class == dnsmessage.ClassINET && h.Type == dnsmessage.TypeA:
			a, err := p.AResource()
			if err != nil {
				return r, false
			}
			addresses[owner] = append(addresses[owner], netip.AddrFrom4(a.A))
			r.ttl = min(r.ttl, h.TTL)
		case h.Class == dnsmessage.ClassINET && h.Type == dnsmessage.TypeAAAA:
			a, err := p.AAAAResource()
			if err != nil {
				return r, false
			}
			addresses[owner] = append(addresses[owner], netip.AddrFrom16(a.AAAA).Unmap())
			r.ttl = min(r.ttl, h.TTL)
		default:
			if err := p.SkipAnswer(); err != nil {
				return r, false
			}
		}
	}
	for name := r.name; len(r.names) < maxChain; name = aliases[name] {
		if name == "" || slices.Contains(r.names, name) {
			break
		}
		r.names = append(r.names, name)
		r.addresses = append(r.addresses, addresses[name]...)
	}
	return r, true
}

// canonical returns a name in lower case and without its final dot.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// streamKey is a connection of TCP with a resolver, from there.
type streamKey struct{ resolver, client netip.AddrPort }

// stream is the received part of an incomplete message on such a connection.
type stream struct {
	next uint32 // sequence number
	data []byte
}

// segment takes in a segment of TCP from a resolver. A segment out of order ends the reading of its connection.
func (n *names) segment(k streamKey, h packet.TCP, payload []byte) {
	if h == nil {
		return
	}
	if h.Flags()&packet.TCPSyn != 0 {
		n.streams.put(k, &stream{next: h.Seq() + 1})
		return
	}
	s, ok := n.streams.get(k)
	if !ok || len(payload) == 0 {
		return
	}
	if late := s.next - h.Seq(); late != 0 && late < 1<<31 { // a repetition, at least in part
		if int(late) >= len(payload) {
			return
		}
		payload = payload[late:]
	} else if late != 0 {
		n.streams.remove(k)
		return
	}
	s.next += uint32(len(payload))
	s.data = append(s.data, payload...)
	for len(s.data) >= 2 {
		size := int(s.data[0])<<8 | int(s.data[1])
		if len(s.data) < 2+size {
			break
		}
		if r, ok := parseAnswer(s.data[2 : 2+size]); ok {
			n.learn(r)
		}
		s.data = s.data[2+size:]
	}
	if len(s.data) > maxDNSOverTCP+2 {
		n.streams.remove(k)
	}
	if h.Flags()&(packet.TCPFin|packet.TCPRst) != 0 {
		n.streams.remove(k)
	}
}

// aging is a map of the entries most recently put or got: at least limit, and at most twice as many. It forgets older
// ones.
type aging[K comparable, V any] struct {
	limit       int
	young, aged map[K]V
}

func (a *aging[K, V]) get(k K) (V, bool) {
	v, ok := a.young[k]
	if !ok {
		if v, ok = a.aged[k]; ok {
			a.put(k, v)
		}
	}
	return v, ok
}

func (a *aging[K, V]) put(k K, v V) {
	if len(a.young) >= a.limit {
		if _, there := a.young[k]; !there {
			a.young, a.aged = nil, a.young
		}
	}
	if a.young == nil {
		a.young = map[K]V{}
	}
	a.young[k] = v
	delete(a.aged, k)
}

func (a *aging[K, V]) remove(k K) {
	delete(a.young, k)
	delete(a.aged, k)
}

// each calls f for all entries.
func (a *aging[K, V]) each(f func(K, V)) {
	for k, v := range a.young {
		f(k, v)
	}
	for k, v := range a.aged {
		f(k, v)
	}
}
