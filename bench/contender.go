//go:build linux

package main

import (
	"os/exec"
	"slices"
	"time"

	"github.com/opendivert/divert"
)

// traffic is the traffic for a contender: one direction through host A, one protocol.
type traffic struct {
	Inbound  bool
	Protocol string // "udp" or "tcp"
	Flows    int    `json:",omitempty"` // number of flows, each packet of another one than the last; 0: few
}

// way is the direction in the filter language.
func (t traffic) way() string {
	if t.Inbound {
		return "inbound"
	}
	return "outbound"
}

// worker is a contender at work.
type worker interface {
	// counts returns how many packets it has handled, and how many copies it has missed.
	counts() (handled, missed uint64, err error)
	close() error
}

// contender is a subject of the comparison.
type contender struct {
	name   string
	about  string
	loads  []string // the loads of the default selection
	drops  bool     // nothing arrives: the result is how fast packets are sent
	copies bool     // it sees copies, of which it may miss some
	leads  bool     // it redirects connections for aimAddr to realAddr
	turns  int      // number of packets of a flow that must pass until it is done with the flow; 0 is 1
	open   func(traffic) (worker, error)
	start  func(traffic) (*exec.Cmd, error) // instead of open: another program, which reports like a child
	rule   func(traffic) (*ruleset, error)  // leads packets to that program; nil: it does so itself
}

// Selections of loads.
var (
	everywhere = []string{"udp64", "udp64x8", "udp1400", "udp64in", "tcp1", "tcp8", "latency", "connect"}
	nearlyAll  = []string{"udp64", "udp1400", "tcp1", "tcp8"}
	streams    = []string{"udp64", "tcp1"}
	several    = []string{"udp64x8", "tcp8"}
	udpOnly    = []string{"udp64"}
	udpIn      = []string{"udp64in"}
	bulkOnly   = []string{"tcp1", "tcp8"}
)

// and returns a selection of more loads.
func and(selection []string, more ...string) []string { return slices.Concat(selection, more) }

// none is the base of the comparison.
const none = "none"

// busyPoll is the time that docs/performance.md recommends: longer than the other side takes to answer, so that a
// program that answers packet by packet is still awake for the next one.
const busyPoll = 50 * time.Microsecond

// contenders are all contenders, in the order of the tables.
var contenders = []contender{
	{name: none, about: "nothing is loaded", loads: everywhere,
		open: func(traffic) (worker, error) { return idle{}, nil }},
	{name: "one-by-one", about: "a queue loop with one message per system call, packets cut to segments", loads: and(everywhere, "quic"),
		open: openPlain},
	{name: "c-queue", about: "a queue loop in C: 64 messages per system call, a verdict for all, packets as the stack has them", loads: and(everywhere, "quic", "quic-single"),
		start: throughQueue, rule: leadToQueue},

	{name: "accept-1", about: "divert, accept, one packet per call", loads: []string{"udp64", "tcp1", "latency"},
		open: ours(program{batch: 1, deal: accept})},
	{name: "accept-64", about: "divert, accept, batches of 64", loads: and(everywhere, "quic", "quic-single", "flows100k"),
		open: ours(program{batch: 64, deal: accept})},
	{name: "spin", about: "accept-64 that looks again for 50 µs before it sleeps", loads: and(streams, "latency"),
		open: ours(program{batch: 64, deal: accept}, divert.WithBusyPoll(busyPoll))},
	{name: "segments", about: "accept-64 that gets each segment of TCP by itself", loads: []string{"tcp1", "tcp8", "quic"},
		open: ours(program{batch: 64, deal: accept}, divert.WithSegments())},
	{name: "accept-255", about: "divert, accept, batches of 255", loads: streams,
		open: ours(program{batch: 255, deal: accept})},
	{name: "send-1", about: "divert, send unchanged, one packet per call",
		open: ours(program{batch: 1, deal: send})},
	{name: "send-64", about: "divert, send unchanged, batches of 64", loads: and(nearlyAll, "latency", "quic"),
		open: ours(program{batch: 64, deal: send})},
	{name: "send-255", about: "divert, send unchanged, batches of 255",
		open: ours(program{batch: 255, deal: send})},
	{name: "rewrite-1", about: "divert, send with a changed byte, one packet per call",
		open: ours(program{batch: 1, deal: rewrite})},
	{name: "rewrite-64", about: "divert, send with a changed byte, batches of 64", loads: and(nearlyAll, "connect"),
		open: ours(program{batch: 64, deal: rewrite})},
	{name: "rewrite-255", about: "divert, send with a changed byte, batches of 255",
		open: ours(program{batch: 255, deal: rewrite})},
	{name: "accept-64-q2", about: "accept-64 with 2 queues, each with a reader", loads: several,
		open: oursFor(wayOnly, program{batch: 64, deal: accept, readers: 2}, divert.WithQueues(2))},
	{name: "rewrite-64-q2", about: "rewrite-64 with 2 queues, each with a reader", loads: several,
		open: oursFor(wayOnly, program{batch: 64, deal: rewrite, readers: 2}, divert.WithQueues(2))},
	{name: "c-send-64", about: "send-64 by a C program, with WinDivertRecvEx and WinDivertSendEx", loads: streams,
		start: throughC(64, 1)},
	{name: "c-send-64-t4", about: "c-send-64 with 4 threads on its handle", loads: streams,
		start: throughC(64, 4)},
	{name: "accept-64-snap", about: "accept-64, of each packet only the first 96 bytes are received", loads: nearlyAll,
		open: ours(program{batch: 64, deal: accept}, divert.WithSnapLength(96))},
	{name: "interpreter-64", about: "accept-64 where the interpreter decides", loads: and(streams, "latency"),
		open: ours(program{batch: 64, deal: accept}, divert.WithEngine(divert.EngineInterpreter))},

	{name: "redirect-64", about: "divert, the destination replaced, and that of answers' source back, batches of 64", loads: bulkOnly, leads: true,
		open: oursFor(bothWays, program{batch: 64, deal: redirect})},
	{name: "redirect-anew-64", about: "redirect-64 where what goes out is dropped and injected as a new packet", loads: bulkOnly, leads: true,
		open: oursFor(bothWays, program{batch: 64, deal: redirectAnew})},
	{name: "c-redirect", about: "c-queue that drops, and sends to the other address by a packet socket with PACKET_VNET_HDR", loads: bulkOnly, leads: true,
		start: pastTheStack, rule: leadBothWays},

	{name: "accept-flow", about: "divert, each flow accepted as a whole with its first packet", loads: and(everywhere, "quic", "quic-single", "flows100k"),
		open: ours(program{batch: 64, deal: acceptFlow, decides: true})},
	{name: "first-6", about: "divert, accept-64 of the first 6 packets of each flow", loads: and(everywhere, "flows100k"), turns: 6,
		open: oursFor(first(6), program{batch: 64, deal: accept})},
	{name: "interpreter-flow", about: "accept-flow where the interpreter decides", loads: streams,
		open: ours(program{batch: 64, deal: acceptFlow, decides: true}, divert.WithEngine(divert.EngineInterpreter))},

	{name: "sniff", about: "copies by divert", loads: and(streams, "quic"), copies: true,
		open: oursFor(wayOnly, program{batch: 64, deal: count}, divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithQueueSize(sniffMemory))},
	{name: "sniff-loop", about: "sniff by a loop over Packets that looks at one byte of each where the kernel wrote it", loads: streams, copies: true,
		open: oursFor(wayOnly, program{loop: true}, divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithQueueSize(sniffMemory), divert.WithCopiesInPlace())},
	{name: "sniff-snap", about: "sniff, 96 bytes of each packet", loads: streams, copies: true,
		open: oursFor(wayOnly, program{batch: 64, deal: count}, divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithSnapLength(96))},
	{name: "ring", about: "copies by an AF_PACKET TPACKET_V3 ring", loads: streams, copies: true,
		open: openRing},

	{name: "drop", about: "dropped by divert", loads: udpIn, drops: true,
		open: oursFor(wayOnly, program{batch: 1, deal: count}, divert.WithFlags(divert.Drop|divert.RecvOnly))},
	{name: "drop-flow", about: "dropped by divert, each flow as a whole with its first packet", loads: udpIn, drops: true,
		open: ours(program{batch: 64, deal: dropFlow, decides: true, drops: true})},
	{name: "nft-drop", about: "dropped by a rule of nftables", loads: udpIn, drops: true,
		open: openNFTDrop},

	{name: "idle-1", about: "divert, a filter of 1 port that matches nothing", loads: and(streams, "connect", "quic", "flows100k"),
		open: oursFor(ports(1), program{batch: 64, deal: accept})},
	{name: "idle-10", about: "divert, 10 ports or-ed, no match", loads: streams,
		open: oursFor(ports(10), program{batch: 64, deal: accept})},
	{name: "idle-100", about: "divert, 100 ports or-ed, no match", loads: streams,
		open: oursFor(ports(100), program{batch: 64, deal: accept})},
	{name: "nft-1", about: "a rule of nftables for 1 port that matches nothing", loads: streams,
		open: openNFTIdle},
	{name: "empty-chain", about: "a chain of nftables without rules", loads: streams,
		open: openNFTEmpty},
	{name: "idle-8-handles", about: "divert, 8 handles like idle-1, each with a port of its own", loads: udpOnly,
		open: manyOf(8)},
	{name: "idle-64-handles", about: "divert, 64 handles like idle-1, each with a port of its own", loads: udpOnly,
		open: manyOf(64)},
	{name: "set-10", about: "divert, a set of 10 ports, no match", loads: udpOnly,
		open: oursFor(portSet(10), program{batch: 64, deal: accept})},
	{name: "set-10000", about: "divert, a set of 10,000 ports, no match", loads: udpOnly,
		open: oursFor(portSet(10000), program{batch: 64, deal: accept})},
	{name: "prefixes-10", about: "divert, a named set of 10 prefixes, no match", loads: udpOnly,
		open: opensWithPrefixes(10)},
	{name: "prefixes-1m", about: "divert, a named set of 1,000,000 prefixes, no match", loads: udpOnly,
		open: opensWithPrefixes(1_000_000)},
}

// contenderNamed returns a contender, or nil.
func contenderNamed(name string) *contender {
	for i := range contenders {
		if contenders[i].name == name {
			return &contenders[i]
		}
	}
	return nil
}

// can reports whether the contender makes sense with a load: if a rule drops outbound packets the sender gets an error
// for each, and a load that needs an answer waits for ever. Only bulk TCP uses the address that is replaced.
func (c *contender) can(l *load) bool { return (!c.drops || l.inbound) && (!c.leads || l.bulk()) }

// idle is the worker that does nothing.
type idle struct{}

func (idle) counts() (handled, missed uint64, err error) { return 0, 0, nil }
func (idle) close() error                                { return nil }
