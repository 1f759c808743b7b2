//go:build linux

package codegen

import (
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// Outcome is what is known of a specialised filter.
type Outcome uint8

// The outcomes.
const (
	Depends Outcome = iota // on the packet
	Never                  // no packet of the hook matches: install nothing
	Always                 // every well-formed packet of the hook's family matches
)

// Specialise decides what a hook decides, when lists have become sets: tests on constants and on headers that its packets never
// have fall away, tests that cannot be reached are dropped, and jumps go straight to where they end.
// The tests are copies; they are nil unless the outcome is Depends. The targets keep the form of
// filter.Program: they lead forward, and the first test is entered first.
func Specialise(p *filter.Program, h Hook) ([]filter.Test, Outcome) {
	exists := func(t *filter.Test) bool { return exists(t, p.Layer()) }
	return specialise(p.Gathered(), exists, func(t *filter.Test) answer {
		switch holds, known := h.decides(t); {
		case !known:
			return depends
		default:
			return answerOf(holds)
		}
	})
}

// answer is what is known of a test before there is a packet or an event.
type answer uint8

const (
	depends  answer = iota // on the packet or the event
	dontKnow               // depends on what will not be known when the test is made
	fails
	holds
)

func answerOf(b bool) answer {
	if b {
		return holds
	}
	return fails
}

// specialise is Specialise with the knowledge of any hook.
func specialise(tests []filter.Test, exists func(*filter.Test) bool, decides func(*filter.Test) answer) ([]filter.Test, Outcome) {
	if len(tests) == 0 {
		return nil, Never
	}

	// Where evaluation really goes when it enters test i; targets lead forward, so later tests
	// are settled first.
	enter := make([]filter.Target, len(tests))
	settle := func(t filter.Target) filter.Target {
		if t >= 0 {
			return enter[t]
		}
		return t
	}
	out := make([]filter.Test, len(tests))
	for i := len(tests) - 1; i >= 0; i-- {
		t := tests[i]
		t.Succ, t.Fail = settle(t.Succ), settle(t.Fail)
		out[i] = t
		if !exists(&t) {
			enter[i] = filter.Reject // an error of the evaluation, which matches nothing
			continue
		}
		a := depends
		if t.Succ == t.Fail {
			a = holds // or not: it goes the same way
		} else {
			a = decides(&t)
		}
		switch a {
		case holds:
			enter[i] = t.Succ
		case fails:
			enter[i] = t.Fail
		case dontKnow:
			enter[i] = certain(t.Succ, t.Fail)
		default:
			enter[i] = filter.Target(i)
		}
	}
	switch enter[0] {
	case filter.Accept:
		return nil, Always
	case filter.Reject:
		return nil, Never
	}
	return reachable(out, enter[0]), Depends
}

// certain returns where to go on at a test of which nothing is known, so as to match only what
// matches in any case: if one way accepts, the other decides. Otherwise nothing is certain, as far
// as can be told without looking at both.
func certain(succ, fail filter.Target) filter.Target {
	switch {
	case succ == filter.Accept:
		return fail
	case fail == filter.Accept:
		return succ
	}
	return filter.Reject
}

// reachable returns the tests that can be reached from the entry, renumbered.
func reachable(tests []filter.Test, entry filter.Target) []filter.Test {
	live := make([]bool, len(tests))
	live[entry] = true
	number := make([]filter.Target, len(tests))
	count := filter.Target(0)
	for i := range tests {
		if !live[i] {
			continue
		}
		number[i] = count
		count++
		for _, t := range [...]filter.Target{tests[i].Succ, tests[i].Fail} {
			if t >= 0 {
				live[t] = true
			}
		}
	}
	renumber := func(t filter.Target) filter.Target {
		if t >= 0 {
			return number[t]
		}
		return t
	}
	out := make([]filter.Test, 0, count)
	for i, t := range tests {
		if live[i] {
			t.Succ, t.Fail = renumber(t.Succ), renumber(t.Fail)
			out = append(out, t)
		}
	}
	return out
}

// decides reports whether the hook knows the answer to a test, and the answer.
func (h *Hook) decides(t *filter.Test) (holds, known bool) {
	needs := presenceOf(t.Field)
	if h.excludes(needs) {
		return false, true
	}
	c := toCondition(t)
	if v, ok := h.constant(t.Field); ok {
		return c.holds(v), true
	}
	holds, known = c.constant()
	if known && holds && !h.guarantees(needs) {
		return false, false // it holds if the header is there
	}
	return holds, known
}

// excludes reports whether no packet of the hook has the header.
func (h *Hook) excludes(p presence) bool {
	return h.Family == IPv6 && (p == hasIPv4 || p == hasICMP) ||
		h.Family == IPv4 && (p == hasIPv6 || p == hasICMPv6)
}

// guarantees reports whether every packet of the hook has the header.
func (h *Hook) guarantees(p presence) bool {
	return p == hasAlways || p == hasIPv4 && h.Family == IPv4 || p == hasIPv6 && h.Family == IPv6
}

// constant returns the value of a field if it is the same for all packets of the hook.
func (h *Hook) constant(f filter.Field) (v filter.Value, ok bool) {
	flag := func(b bool) filter.Value {
		if b {
			return low(1)
		}
		return zero
	}
	switch f {
	case filter.FieldZero:
		return zero, true
	case filter.FieldInbound:
		return flag(h.Direction == Inbound), h.Direction != AnyDirection
	case filter.FieldOutbound:
		return flag(h.Direction == Outbound), h.Direction != AnyDirection
	case filter.FieldIfIdx:
		return low(uint64(h.IfIdx)), h.Index == IndexConstant
	case filter.FieldSubIfIdx:
		return low(uint64(h.SubIfIdx)), true
	case filter.FieldIP:
		return flag(h.Family == IPv4), h.Family != AnyFamily
	case filter.FieldIPv6:
		return flag(h.Family == IPv6), h.Family != AnyFamily
	case filter.FieldICMP:
		return zero, h.Family == IPv6
	case filter.FieldICMPv6:
		return zero, h.Family == IPv4
	case filter.FieldLoopback:
		return flag(h.Loopback == AlwaysLoopback), h.Loopback != LoopbackByInterface
	case filter.FieldImpostor:
		return flag(h.Impostor), true
	case filter.FieldEvent:
		return low(uint64(h.Event)), true
	case filter.FieldTimestamp:
		return low(uint64(h.Timestamp) ^ signBit), h.Clock == ClockConstant
	}
	return zero, false
}

// notForwarded are the fields of the packet layers that NETWORK_FORWARD does not have.
var notForwarded = map[filter.Field]bool{
	filter.FieldInbound: true, filter.FieldOutbound: true, filter.FieldLoopback: true,
	filter.FieldLocalAddr: true, filter.FieldRemoteAddr: true,
	filter.FieldLocalPort: true, filter.FieldRemotePort: true, filter.FieldProtocol: true,
	filter.FieldProcessID: true,
}

// exists reports whether a test can be executed on a layer. Object strings may hold tests that
// cannot (specification: filter-language.md 6).
func exists(t *filter.Test, layer packet.Layer) bool {
	if t.Op > filter.OpNotIn || onlyEvents[t.Field] {
		return false
	}
	_, ok := locations[t.Field]
	return ok && !(layer == packet.LayerForward && notForwarded[t.Field])
}

// onlyEvents are the fields of the layers with events that have a place in locations, for what values they
// can have.
var onlyEvents = map[filter.Field]bool{
	filter.FieldEndpointID: true, filter.FieldParentEndpointID: true,
	filter.FieldFamilyIP: true, filter.FieldFamilyIPv6: true,
}
