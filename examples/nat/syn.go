package main

import (
	"net/netip"
	"time"
)

// patient is how long nobody answers a SYN that nobody has asked for, at the least (RFC 5382 REQ-4): two hosts that open one
// connection at the same time need it, of which the SYN of one is here before that of the other.
const patient = 6 * time.Second

// mostSYNs is how many SYNs wait for an answer; further ones get none, or this host's own at once.
const mostSYNs = 1024

// ends are the ends of a connection outside: a port of the NAT's, and the remote end.
type pair struct {
	port   uint16
	remote netip.AddrPort
}

// syn is a SYN from outside that nobody has asked for.
type syn struct {
	pair
	due     time.Time
	refused bool   // nobody is there; else a socket of this host may be
	answer  []byte // an ICMP error
}

// syns are the SYNs of the last seconds that nobody has asked for.
type syns struct {
	byPair map[pair]*syn
	queue  []*syn // by time; those that are not in byPair are over
}

// add takes a SYN. refused says that nobody is there, else refuse may. answer makes the ICMP error that answers it in the
// end, nil if nothing may.
func (s *syns) add(c pair, refused bool, now time.Time, answer func() []byte) {
	if old := s.byPair[c]; old != nil { // sent again
		old.refused = old.refused || refused
		return
	}
	if len(s.queue) == mostSYNs {
		return
	}
	b := answer()
	if b == nil {
		return
	}
	if s.byPair == nil {
		s.byPair = make(map[pair]*syn)
	}
	one := &syn{c, now.Add(patient), refused, b}
	s.byPair[c] = one
	s.queue = append(s.queue, one)
}

// refuse says that this host has nobody behind the port. It reports whether the SYN is known: then that is to stay unsaid.
func (s *syns) refuse(c pair) bool {
	one := s.byPair[c]
	if one == nil {
		return false
	}
	one.refused = true
	return true
}

// forget ends a SYN's waiting without an answer: somebody opens the connection.
func (s *syns) forget(c pair) { delete(s.byPair, c) }

// due returns the answers whose time has come.
func (s *syns) due(now time.Time) (answers [][]byte) {
	n := 0
	for ; n < len(s.queue) && !s.queue[n].due.After(now); n++ {
		one := s.queue[n]
		if s.byPair[one.pair] != one {
			continue
		}
		delete(s.byPair, one.pair)
		if one.refused {
			answers = append(answers, one.answer)
		}
	}
	s.queue = append(s.queue[:0], s.queue[n:]...)
	return answers
}
