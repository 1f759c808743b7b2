//go:build linux

package codegen

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// The record of an event of the layers FLOW and SOCKET, as programs keep it in their stack frame while
// they decide, and send it to user space: offsets from its start, numbers in host byte order.
const (
	EventTime       int16 = 0  // CLOCK_MONOTONIC in nanoseconds, 8 bytes
	EventEndpoint   int16 = 8  // 8 bytes
	EventParent     int16 = 16 // 8 bytes
	EventLocal      int16 = 24 // address: the upper, then the lower 8 bytes; IPv4 mapped
	EventRemote     int16 = 40 // the same
	EventProcess    int16 = 56 // 4 bytes
	EventLocalPort  int16 = 60 // 2 bytes
	EventRemotePort int16 = 62 // 2 bytes
	EventProtocol   int16 = 64 // 1 byte
	EventIPv6       int16 = 65 // 1 byte: 1 if the event is of IPv6
	EventLoopback   int16 = 66 // 1 byte: 0 or 1
	EventKind       int16 = 67 // 1 byte: the event; decisions do not read it
	EventFlags      int16 = 68 // 4 bytes: the program's own
	EventName       int16 = 72 // NameSize bytes: the name of the process, zeros behind it
	EventSize             = 88

	NameSize = processmap.NameSize

	// EventFrame is where the record starts in the frame: a decision reads it there. Decisions
	// also use the frame from EventScratch to EventScratchEnd, and the registers R0 to R5, R7 and R8.
	EventFrame      int16 = -EventSize
	EventScratch          = frameSearch
	EventScratchEnd       = frameSearch + 16
)

// EventHook describes an event whose record a decision is about.
type EventHook struct {
	Event   packet.Event
	Inbound bool
	// LocalUnknown is for records without the local address and port: the decision matches
	// only events that match whatever the values turn out to be.
	LocalUnknown bool
	// Protocol is the protocol of all records, 0 if they may have any. NoTCP: any but TCP.
	Protocol uint8
	NoTCP    bool
}

// EventDecider generates the decisions of one program, which share a map of sets.
type EventDecider struct {
	sets  setTable
	named namedTable
}

// Decide generates the code that decides whether a filter of the layers FLOW and SOCKET matches the
// record at EventFrame. The code is entered at its start, leaves 1 or 0 in R0 and ends behind its last
// instruction. Unless the outcome is Depends there is none. The error is a *LayerError or a *LimitError.
func (d *EventDecider) Decide(p *prog.Program, h EventHook) (asm.Instructions, Outcome, error) {
	if l := p.Layer(); l != packet.LayerFlow && l != packet.LayerSocket {
		return nil, Never, &LayerError{Layer: l}
	}
	list, outcome := specialise(p.Gathered(), h.exists, h.decides)
	if outcome != Depends {
		return nil, outcome, nil
	}
	decisions := 1
	if p.Layer() == packet.LayerFlow {
		decisions = 2 // which a program asks for one after the other
	}
	if most := MaxTests / decisions; branchesOf(list) > most {
		return nil, outcome, tooManyTests(branchesOf(list), most)
	}
	code, branches := d.emit(list, false)
	if branches > maxWaiting/decisions {
		code, _ = d.emit(list, true)
	}
	out, err := code.link()
	return out, outcome, err
}

func (d *EventDecider) emit(list []prog.Test, long bool) (*assembler, int) {
	a := &assembler{}
	t := tests{
		assembler: a, loader: &eventLoader{}, sets: &d.sets, named: &d.named,
		long: long, accept: a.NewLabel(), reject: a.NewLabel(),
	}
	end := a.NewLabel()
	t.emitAll(list)
	a.Mark(t.reject)
	a.Emit(asm.Mov.Imm(asm.R0, 0))
	a.Jump(end)
	a.Mark(t.accept)
	a.Emit(asm.Mov.Imm(asm.R0, 1))
	a.Mark(end)
	a.Emit(asm.Mov.Imm(asm.R1, 0)) // so that the end has an instruction
	return a, a.Branches()
}

// Maps returns the maps that the decisions refer to by name.
func (d *EventDecider) Maps() []*ebpf.MapSpec {
	if s := d.sets.spec(); s != nil {
		return []*ebpf.MapSpec{s}
	}
	return nil
}

// Functions returns the functions that instructions with decisions call, to stand behind them.
func (d *EventDecider) Functions(calls asm.Instructions) (asm.Instructions, error) {
	return d.named.functions(calls)
}

// OpenSets adds the maps of named sets that the functions refer to by name. They are the caller's to close.
func (d *EventDecider) OpenSets(maps map[string]*ebpf.Map) error { return d.named.open(maps) }

// spec returns the map, nil if there are no large sets.
func (s *setTable) spec() *ebpf.MapSpec {
	if len(s.data) == 0 {
		return nil
	}
	return &ebpf.MapSpec{
		Name: setsMap, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(s.data)), MaxEntries: 1,
		Flags:    flagReadOnlyProgram,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: s.data}},
	}
}

// eventFields says where the fields of the layers FLOW and SOCKET are found. Fields that are not in it
// do not exist there.
var eventFields = map[prog.Field]eventField{
	prog.FieldZero:     {fixed: true},
	prog.FieldInbound:  {fixed: true},
	prog.FieldOutbound: {fixed: true},
	prog.FieldEvent:    {fixed: true},
	prog.FieldIP:       {fixed: true}, // there is no header
	prog.FieldIPv6:     {fixed: true},

	prog.FieldFamilyIP:   {offset: EventIPv6, size: asm.Byte, means: one(0)},
	prog.FieldFamilyIPv6: {offset: EventIPv6, size: asm.Byte, means: one(1)},
	prog.FieldTCP:        {offset: EventProtocol, size: asm.Byte, means: one(protoTCP)},
	prog.FieldUDP:        {offset: EventProtocol, size: asm.Byte, means: one(protoUDP)},
	prog.FieldICMP:       {offset: EventProtocol, size: asm.Half, means: pair(protoICMP, 0)},
	prog.FieldICMPv6:     {offset: EventProtocol, size: asm.Half, means: pair(protoICMPv6, 1)},

	prog.FieldLoopback:         {offset: EventLoopback, size: asm.Byte},
	prog.FieldProcessID:        {offset: EventProcess, size: asm.Word},
	prog.FieldProcess:          {offset: EventName, kind: value128, bytes: true},
	prog.FieldLocalAddr:        {offset: EventLocal, kind: value128, local: true},
	prog.FieldRemoteAddr:       {offset: EventRemote, kind: value128},
	prog.FieldLocalPort:        {offset: EventLocalPort, size: asm.Half, local: true},
	prog.FieldRemotePort:       {offset: EventRemotePort, size: asm.Half},
	prog.FieldProtocol:         {offset: EventProtocol, size: asm.Byte},
	prog.FieldEndpointID:       {offset: EventEndpoint, kind: value128, half: true},
	prog.FieldParentEndpointID: {offset: EventParent, kind: value128, half: true},
	prog.FieldTimestamp:        {offset: EventTime, kind: value64},
}

// eventField says how the value of a field is found in the record.
type eventField struct {
	fixed  bool // the same in all records of a hook
	offset int16
	size   asm.Size
	kind   valueKind
	bytes  bool    // value128 in network byte order
	half   bool    // value128 of which only the lower 8 bytes are there
	local  bool    // of the local side
	means  *uint64 // a flag that is 1 exactly if the value in the record is this
}

func one(v uint64) *uint64 { return &v }

// pair is the value of two bytes, one after the other.
func pair(first, second byte) *uint64 {
	return one(uint64(binary.NativeEndian.Uint16([]byte{first, second})))
}

// exists reports whether a test can be executed.
func (h *EventHook) exists(t *prog.Test) bool {
	_, ok := eventFields[t.Field]
	return ok && t.Op <= prog.OpNotIn
}

// decides returns the known facts of a test.
func (h *EventHook) decides(t *prog.Test) answer {
	f := eventFields[t.Field]
	if f.local && h.LocalUnknown {
		return dontKnow
	}
	c := toCondition(t)
	if f.fixed {
		return answerOf(c.holds(h.constant(t.Field)))
	}
	if holds, ok := c.constant(); ok {
		return answerOf(holds)
	}
	if h.NoTCP && t.Field == prog.FieldTCP {
		return answerOf(c.holds(zero))
	}
	if h.Protocol != 0 && c.named == nil {
		return h.byProtocol(t.Field, &c)
	}
	return depends
}

// byProtocol returns the known facts of a condition in records of one protocol.
func (h *EventHook) byProtocol(f prog.Field, c *condition) answer {
	switch is, ok := protocolFields[f]; {
	case f == prog.FieldProtocol:
		return answerOf(c.holds(low(uint64(h.Protocol))))
	case !ok:
		return depends
	case is != h.Protocol:
		return answerOf(c.holds(zero))
	case is == protoTCP || is == protoUDP:
		return answerOf(c.holds(low(1)))
	}
	return depends // on the family too
}

// protocolFields are the fields that tell a protocol.
var protocolFields = map[prog.Field]uint8{
	prog.FieldTCP: protoTCP, prog.FieldUDP: protoUDP, prog.FieldICMP: protoICMP, prog.FieldICMPv6: protoICMPv6,
}

// constant returns the value of a field that is the same in all records.
func (h *EventHook) constant(f prog.Field) prog.Value {
	switch {
	case f == prog.FieldEvent:
		return low(uint64(h.Event))
	case f == prog.FieldInbound && h.Inbound, f == prog.FieldOutbound && !h.Inbound:
		return low(1)
	}
	return zero
}

// eventLoader loads the fields of events.
type eventLoader struct{}

func (eventLoader) locate(c *condition) valueKind {
	f := eventFields[c.field]
	if f.means != nil {
		c.restate(*f.means, low(1<<(8*f.size.Sizeof())-1))
	}
	return f.kind
}

func (eventLoader) load(t *tests, c *condition, _ label) {
	f := eventFields[c.field]
	at := EventFrame + f.offset
	switch {
	case f.kind == value64:
		t.Emit(
			asm.LoadMem(asm.R1, regFrame, at, asm.DWord),
			asm.LoadImm(asm.R2, -1<<63, asm.DWord),
			asm.Xor.Reg(asm.R1, asm.R2),
		)
	case f.half:
		t.Emit(asm.Mov.Imm(asm.R1, 0), asm.LoadMem(asm.R2, regFrame, at, asm.DWord))
	case f.bytes:
		t.Emit(
			asm.LoadMem(asm.R1, regFrame, at, asm.DWord), asm.HostTo(asm.BE, asm.R1, asm.DWord),
			asm.LoadMem(asm.R2, regFrame, at+8, asm.DWord), asm.HostTo(asm.BE, asm.R2, asm.DWord),
		)
	case f.kind == value128:
		t.Emit(asm.LoadMem(asm.R1, regFrame, at, asm.DWord), asm.LoadMem(asm.R2, regFrame, at+8, asm.DWord))
	default:
		t.Emit(asm.LoadMem(asm.R1, regFrame, at, f.size))
	}
}
