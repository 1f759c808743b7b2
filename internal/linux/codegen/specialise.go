//go:build linux

package codegen

import (
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Outcome is the known result of a specialised filter.
type Outcome uint8

// The outcomes.
const (
	Depends Outcome = iota // on the packet
	Never                  // no packet of the hook matches: install nothing
	Always                 // every well-formed packet of the hook's family matches
)

// Specialise settles the tests that a hook decides, after lists have become sets: tests on constants and on headers that its
// packets never have fall away, tests that cannot be reached are dropped, and jumps go straight to where they end. The tests are
// copies; they are nil unless the outcome is Depends. The targets keep the form of prog.Program: they lead forward, and the
// first test is entered first.
func Specialise(p *prog.Program, h Hook) ([]prog.Test, Outcome) {
	exists := func(t *prog.Test) bool { return exists(t, p.Layer()) }
	return specialise(p.Gathered(), exists, func(t *prog.Test) answer {
		switch holds, known := h.decides(t); {
		case !known:
			return depends
		default:
			return answerOf(holds)
		}
	})
}

// answer is the result of a test as far as it is known without a packet or an event.
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
func specialise(tests []prog.Test, exists func(*prog.Test) bool, decides func(*prog.Test) answer) ([]prog.Test, Outcome) {
	if len(tests) == 0 {
		return nil, Never
	}

	// Where evaluation really goes when it enters test i; targets lead forward, so later tests
	// are settled first.
	enter := make([]prog.Target, len(tests))
	settle := func(t prog.Target) prog.Target {
		if t >= 0 {
			return enter[t]
		}
		return t
	}
	out := make([]prog.Test, len(tests))
	for i := len(tests) - 1; i >= 0; i-- {
		t := tests[i]
		t.Succ, t.Fail = settle(t.Succ), settle(t.Fail)
		out[i] = t
		if !exists(&t) {
			enter[i] = prog.Reject // an error of the evaluation, which matches nothing
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
			enter[i] = prog.Target(i)
		}
	}
	switch enter[0] {
	case prog.Accept:
		return nil, Always
	case prog.Reject:
		return nil, Never
	}
	return reachable(out, enter[0]), Depends
}

// certain returns where to go on at a test with an unknown answer, so as to match only packets that match in any case: if one
// way accepts, the other decides. Otherwise nothing is certain, as far as can be told without looking at both.
func certain(succ, fail prog.Target) prog.Target {
	switch {
	case succ == prog.Accept:
		return fail
	case fail == prog.Accept:
		return succ
	}
	return prog.Reject
}

// reachable returns the tests that can be reached from the entry, renumbered.
func reachable(tests []prog.Test, entry prog.Target) []prog.Test {
	live := make([]bool, len(tests))
	live[entry] = true
	number := make([]prog.Target, len(tests))
	count := prog.Target(0)
	for i := range tests {
		if !live[i] {
			continue
		}
		number[i] = count
		count++
		for _, t := range [...]prog.Target{tests[i].Succ, tests[i].Fail} {
			if t >= 0 {
				live[t] = true
			}
		}
	}
	renumber := func(t prog.Target) prog.Target {
		if t >= 0 {
			return number[t]
		}
		return t
	}
	out := make([]prog.Test, 0, count)
	for i, t := range tests {
		if live[i] {
			t.Succ, t.Fail = renumber(t.Succ), renumber(t.Fail)
			out = append(out, t)
		}
	}
	return out
}

// decides reports whether the hook knows the answer to a test, and the answer.
func (h *Hook) decides(t *prog.Test) (holds, known bool) {
	needs := presenceOf(t.Field)
	if h.excludes(needs) {
		return false, true
	}
	c := toCondition(t)
	if c.named != nil {
		return false, false
	}
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
func (h *Hook) constant(f prog.Field) (v prog.Value, ok bool) {
	flag := func(b bool) prog.Value {
		if b {
			return low(1)
		}
		return zero
	}
	switch f {
	case prog.FieldZero:
		return zero, true
	case prog.FieldInbound:
		return flag(h.Direction == Inbound), h.Direction != AnyDirection
	case prog.FieldOutbound:
		return flag(h.Direction == Outbound), h.Direction != AnyDirection
	case prog.FieldIfIdx, prog.FieldInterface:
		return low(uint64(h.IfIdx)), h.Index == IndexConstant
	case prog.FieldSubIfIdx:
		return low(uint64(h.SubIfIdx)), true
	case prog.FieldIP:
		return flag(h.Family == IPv4), h.Family != AnyFamily
	case prog.FieldIPv6:
		return flag(h.Family == IPv6), h.Family != AnyFamily
	case prog.FieldICMP:
		return zero, h.Family == IPv6
	case prog.FieldICMPv6:
		return zero, h.Family == IPv4
	case prog.FieldLoopback:
		return flag(h.Loopback == AlwaysLoopback), h.Loopback != LoopbackByInterface
	case prog.FieldImpostor:
		return flag(h.Impostor), true
	case prog.FieldEvent:
		return low(uint64(h.Event)), true
	case prog.FieldTimestamp:
		return low(uint64(h.Timestamp) ^ signBit), h.Clock == ClockConstant
	}
	return zero, false
}

// notForwarded are the fields of the packet layers that NETWORK_FORWARD does not have.
var notForwarded = map[prog.Field]bool{
	prog.FieldInbound: true, prog.FieldOutbound: true, prog.FieldLoopback: true,
	prog.FieldLocalAddr: true, prog.FieldRemoteAddr: true,
	prog.FieldLocalPort: true, prog.FieldRemotePort: true, prog.FieldProtocol: true,
	prog.FieldProcessID: true, prog.FieldProcess: true,
}

// exists reports whether a test can be executed on a layer. Object strings may hold tests that
// cannot (specification: filter-language.md 6).
func exists(t *prog.Test, layer packet.Layer) bool {
	if t.Op > prog.OpNotIn || onlyEvents[t.Field] {
		return false
	}
	_, ok := locations[t.Field]
	return ok && !(layer == packet.LayerForward && notForwarded[t.Field])
}

// onlyEvents are the fields of the layers with events that have a place in locations, which tells the values that they can have.
var onlyEvents = map[prog.Field]bool{
	prog.FieldEndpointID: true, prog.FieldParentEndpointID: true,
	prog.FieldFamilyIP: true, prog.FieldFamilyIPv6: true,
}
