package main

import (
	"net/netip"
	"time"
)

// patient is the least time without an answer to an unsolicited SYN (RFC 5382 REQ-4). Two hosts that open one
// connection simultaneously need it: the SYN of one arrives before that of the other.
const patient = 6 * time.Second

// mostSYNs is how many SYNs may wait for an answer; further ones get none, or this host's own at once.
const mostSYNs = 1024

// pair identifies a connection outside: a port of the NAT, and the remote end.
type pair struct {
	port   uint16
	remote netip.AddrPort
}

// syn is an unsolicited SYN from outside.
type syn struct {
	pair
	due     time.Time
	refused bool   // nobody is there; otherwise a socket of this host may be
	answer  []byte // an ICMP error
}

// syns are the unsolicited SYNs of the last seconds.
type syns struct {
	byPair map[pair]*syn
	queue  []*syn // by time; those absent from byPair are over
}

// add records a SYN. refused means that nobody is there; otherwise refuse may report that later. answer makes the ICMP
// error that finally answers the SYN, nil if none may be sent.
func (s *syns) add(c pair, refused bool, now time.Time, answer func() []byte) {
	if old := s.byPair[c]; old != nil { // a retransmission
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

// refuse records that this host has no socket for the port. It reports whether the SYN is known: the caller must then
// suppress the host's reset.
func (s *syns) refuse(c pair) bool {
	one := s.byPair[c]
	if one == nil {
		return false
	}
	one.refused = true
	return true
}

// forget ends the wait of a SYN without an answer: the connection is opened.
func (s *syns) forget(c pair) { delete(s.byPair, c) }

// due returns the answers that are due.
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
