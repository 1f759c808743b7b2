// Package table holds the mappings of a NAT: the port of its address that represents an endpoint behind it, the remote
// hosts that may use it, and its lifetime. Mappings and timeouts follow RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP)
// and RFC 7857. It is only a data structure: it sees no packets, and its callers pass the time.
package table

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/opendivert/divert/packet"
)

// The protocols with ports. An ICMP echo uses its identifier as a port.
const (
	ICMP = packet.ProtocolICMP
	TCP  = packet.ProtocolTCP
	UDP  = packet.ProtocolUDP
)

// The default timeouts of a table.
const (
	UDPIdle        = 5 * time.Minute             // recommended by RFC 4787 REQ-5
	TCPEstablished = 2*time.Hour + 4*time.Minute // the least that RFC 5382 REQ-5 allows
	TCPTransitory  = 4 * time.Minute             // the least that RFC 5382 REQ-5 allows; RFC 7857 section 2
	ICMPIdle       = time.Minute                 // the least that RFC 5508 REQ-2 allows
)

// Limits bound a table.
type Limits struct {
	Mappings int // in all
	PerHost  int // for one address behind the NAT, so that none takes them all
	Sessions int // for one mapping
	Timeouts
}

// Timeouts are the lifetimes of sessions without packets that prolong them. A field of 0 means the named constant.
type Timeouts struct {
	UDP         time.Duration // UDPIdle
	Established time.Duration // TCPEstablished
	Transitory  time.Duration // TCPTransitory
	ICMP        time.Duration // ICMPIdle
}

// Ports are the ports of the NAT's own address.
type Ports interface {
	// Hold keeps a port from local sockets until release is called. ok is false if a socket has the port.
	Hold(protocol uint8, port uint16) (release func(), ok bool)
}

// ErrFull reports that there is no room for another mapping or session, in the table or for the host, or that no port
// is free.
var ErrFull = errors.New("no room for another mapping")

// Verdict is the fate of a packet to a port of the NAT.
type Verdict uint8

// The verdicts.
const (
	Unknown  Verdict = iota // no mapping has the port: the packet is for the NAT itself
	Filtered                // a mapping has it, but not for this sender
	Mapped                  // it goes to the endpoint behind the port
)

// mapping is an endpoint behind the NAT and the port that represents it to everybody: mapping is endpoint-independent
// (RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 section 3). Filtering is address-dependent (RFC 4787 REQ-8): packets may
// come from hosts to which the endpoint has sent.
type mapping struct {
	inside   key
	port     uint16
	fixed    bool // a forwarded port: for everybody, permanent, without sessions
	release  func()
	sessions map[netip.AddrPort]*session
	hosts    map[netip.Addr]int // sessions with each
}

// session is a mapping's exchange with one remote endpoint.
type session struct {
	ends    time.Time
	in, out bool // TCP: a segment has passed in that direction
	finIn   bool
	finOut  bool
	reset   bool // the last segment was a reset
}

// key is an endpoint behind the NAT.
type key struct {
	protocol uint8
	at       netip.AddrPort
}

// port is a port of the NAT's address.
type port struct {
	protocol uint8
	number   uint16
}

// Table holds mappings. Only one goroutine at a time may use it.
type Table struct {
	limits Limits
	ports  Ports
	random func(n int) int
	inside map[key]*mapping
	out    map[port]*mapping
	hosts  map[netip.Addr]int // number of mappings of each
}

// New returns an empty table. random returns a number below n; it chooses the ports.
func New(l Limits, p Ports, random func(n int) int) *Table {
	for _, t := range []struct {
		is    *time.Duration
		usual time.Duration
	}{{&l.UDP, UDPIdle}, {&l.Established, TCPEstablished}, {&l.Transitory, TCPTransitory}, {&l.Timeouts.ICMP, ICMPIdle}} {
		if *t.is == 0 {
			*t.is = t.usual
		}
	}
	return &Table{l, p, random, map[key]*mapping{}, map[port]*mapping{}, map[netip.Addr]int{}}
}

// Len returns the number of mappings.
func (t *Table) Len() int { return len(t.out) }

// Forward assigns a port to an endpoint behind the NAT permanently: everybody may send to it.
func (t *Table) Forward(protocol uint8, number uint16, to netip.AddrPort) error {
	k := key{protocol, to}
	if t.inside[k] != nil || t.out[port{protocol, number}] != nil {
		return fmt.Errorf("port %d to %v: one of them is forwarded already", number, to)
	}
	release, ok := t.ports.Hold(protocol, number)
	if !ok {
		return fmt.Errorf("port %d to %v: a socket of this host has the port", number, to)
	}
	m := t.add(k, number, release)
	m.fixed = true
	return nil
}

func (t *Table) add(k key, number uint16, release func()) *mapping {
	m := &mapping{inside: k, port: number, release: release, sessions: map[netip.AddrPort]*session{}, hosts: map[netip.Addr]int{}}
	t.inside[k], t.out[port{k.protocol, number}] = m, m
	t.hosts[k.at.Addr()]++
	return m
}

// Out handles a packet from an endpoint behind the NAT to a remote one; flags are those of TCP. It returns the port
// that represents the endpoint, and whether the session is new. It makes a mapping if there is none, or returns
// ErrFull.
func (t *Table) Out(protocol uint8, inside, remote netip.AddrPort, flags packet.TCPFlags, now time.Time) (number uint16, fresh bool, err error) {
	k := key{protocol, inside}
	m := t.inside[k]
	if m == nil {
		if m, err = t.make(k); err != nil {
			return 0, false, err
		}
	}
	if m.fixed {
		return m.port, false, nil
	}
	s := m.sessions[remote]
	if fresh = s == nil; fresh {
		if s = t.begin(m, remote); s == nil {
			return 0, false, ErrFull
		}
	}
	s.out = true
	s.finOut = s.finOut || flags&packet.TCPFin != 0
	s.touch(protocol, flags, now, &t.limits.Timeouts)
	return m.port, fresh, nil
}

// In handles a packet from a remote endpoint to a port of the NAT's address. It returns the endpoint behind the port.
// Inbound packets do not prolong mappings of UDP and ICMP (RFC 4787 REQ-6: so strangers cannot keep mappings alive).
func (t *Table) In(protocol uint8, number uint16, remote netip.AddrPort, flags packet.TCPFlags, now time.Time) (netip.AddrPort, Verdict) {
	m := t.out[port{protocol, number}]
	if m == nil {
		return netip.AddrPort{}, Unknown
	}
	if !m.fixed && m.hosts[remote.Addr()] == 0 {
		return netip.AddrPort{}, Filtered
	}
	if s := m.sessions[remote]; s != nil { // strangers make no sessions
		s.in = true
		s.finIn = s.finIn || flags&packet.TCPFin != 0
		if protocol == TCP {
			s.touch(protocol, flags, now, &t.limits.Timeouts)
		}
	}
	return m.inside.at, Mapped
}

// Behind returns the endpoint behind a port, for the packets that ICMP errors quote. It prolongs nothing (RFC 5508
// section 4).
func (t *Table) Behind(protocol uint8, number uint16) (netip.AddrPort, bool) {
	if m := t.out[port{protocol, number}]; m != nil {
		return m.inside.at, true
	}
	return netip.AddrPort{}, false
}

// PortOf returns the port that represents an endpoint, without prolonging anything.
func (t *Table) PortOf(protocol uint8, inside netip.AddrPort) (uint16, bool) {
	if m := t.inside[key{protocol, inside}]; m != nil {
		return m.port, true
	}
	return 0, false
}

// Expire ends the sessions and mappings that are due.
func (t *Table) Expire(now time.Time) {
	for _, m := range t.out {
		for remote, s := range m.sessions {
			if !s.ends.After(now) {
				t.end(m, remote)
			}
		}
		if len(m.sessions) == 0 && !m.fixed {
			t.remove(m)
		}
	}
}

// Close ends all mappings.
func (t *Table) Close() {
	for _, m := range t.out {
		t.remove(m)
	}
}

func (t *Table) remove(m *mapping) {
	delete(t.inside, m.inside)
	delete(t.out, port{m.inside.protocol, m.port})
	a := m.inside.at.Addr()
	if t.hosts[a]--; t.hosts[a] == 0 {
		delete(t.hosts, a)
	}
	m.release()
}

func (t *Table) begin(m *mapping, remote netip.AddrPort) *session {
	if len(m.sessions) >= t.limits.Sessions {
		return nil
	}
	s := &session{}
	m.sessions[remote] = s
	m.hosts[remote.Addr()]++
	return s
}

func (t *Table) end(m *mapping, remote netip.AddrPort) {
	delete(m.sessions, remote)
	if m.hosts[remote.Addr()]--; m.hosts[remote.Addr()] == 0 {
		delete(m.hosts, remote.Addr())
	}
}

// touch sets when the session ends if no more packets come. A reset is not trusted: a connection that continues after
// one is established again. But resets prolong nothing (RFC 7857 sections 2.1, 2.3 and 7).
func (s *session) touch(protocol uint8, flags packet.TCPFlags, now time.Time, t *Timeouts) {
	idle := t.UDP
	switch protocol {
	case ICMP:
		idle = t.ICMP
	case TCP:
		if flags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn { // another connection between the same ends
			s.finIn, s.finOut = false, false
		}
		if s.reset = flags&packet.TCPRst != 0; s.reset && !s.ends.IsZero() {
			if ends := now.Add(t.Transitory); ends.Before(s.ends) {
				s.ends = ends
			}
			return
		}
		if idle = t.Transitory; s.in && s.out && !s.reset && !(s.finIn && s.finOut) {
			idle = t.Established
		}
	}
	s.ends = now.Add(idle)
}

// tries is how many random ports are tried before all are tried in order. At most mostHeld of those without a mapping
// are tried, since each costs a system call.
const (
	tries    = 32
	mostHeld = 256
)

// make makes the mapping of an endpoint. Its port is the endpoint's own if that is free (RFC 4787 section 4.2.1),
// otherwise one of the same parity (REQ-4) and the same range, below 1024 or not (REQ-3).
func (t *Table) make(k key) (*mapping, error) {
	if len(t.out) >= t.limits.Mappings || t.hosts[k.at.Addr()] >= t.limits.PerHost {
		return nil, ErrFull
	}
	own := k.at.Port()
	if m := t.try(k, own); m != nil {
		return m, nil
	}
	base, n := 1024+int(own&1), (1<<16-1024)/2
	if own < 1024 {
		base, n = int(own&1), 512
	}
	if k.protocol == ICMP { // identifiers have neither
		base, n = 0, 1<<16
	}
	step := 2
	if k.protocol == ICMP {
		step = 1
	}
	for range tries {
		if m := t.try(k, uint16(base+step*t.random(n))); m != nil {
			return m, nil
		}
	}
	first, held := t.random(n), 0
	for i := 0; i < n && held < mostHeld; i++ {
		number := uint16(base + step*((first+i)%n))
		if t.out[port{k.protocol, number}] != nil {
			continue
		}
		if m := t.try(k, number); m != nil {
			return m, nil
		}
		held++
	}
	return nil, ErrFull
}

// try makes a mapping with a port if it is free.
func (t *Table) try(k key, number uint16) *mapping {
	if number == 0 && k.protocol != ICMP || t.out[port{k.protocol, number}] != nil {
		return nil
	}
	release, ok := t.ports.Hold(k.protocol, number)
	if !ok {
		return nil
	}
	return t.add(k, number, release)
}
