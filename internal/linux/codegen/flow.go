//go:build linux

package codegen

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/flowmap"
)

// FlowUse is a program's treatment of packets of flows with a verdict.
type FlowUse uint8

// The uses.
const (
	NoFlows      FlowUse = iota
	FlowAccepted         // packets that match and whose flow is accepted are counted there and match nothing
	FlowDropped          // only packets that match and whose flow is dropped match, and are counted there
)

// FlowSizes says how superpackets count.
type FlowSizes uint8

// The kinds of counting.
const (
	FlowWhole    FlowSizes = iota // as one
	FlowSegments                  // as those that they will be cut into
	FlowStreams                   // TCP as one, as TakeStreams takes it, and others as those that they will be cut into
)

// Parts of the record in the frame that the code for flows works with, in bytes. They are free before a match is told of.
const (
	flowKeyAt     = frameRecord      // the key
	flowPacketsAt = frameRecord + 40 // how many packets this one counts as
	flowBytesAt   = frameRecord + 48 // and how many bytes they have
	flowRecordAt  = frameRecord + 64 // a new record
)

// Registers of the code for flows, which calls leave alone.
const (
	regRecord = asm.R7 // address of the record
	regNow    = asm.R8 // the time
	regBack   = asm.R9 // 1 if the packet goes from the higher endpoint to the lower, else 0
)

// flowBefore handles flows before the filter has decided. A packet that begins a flow ends the verdict of the
// one before, whether it matches or not. The program that drops goes on only with packets whose flow is dropped: those are
// looked at closer when the filter has matched.
func (g *generator) flowBefore() {
	begins := g.NewLabel()
	switch g.options.Flows {
	case FlowAccepted:
		other := g.NewLabel()
		g.unlessBegins(begins)
		g.Jump(other)
		g.Mark(begins)
		g.flowKey(other)
		g.findRecord(flowmap.Decided, other)
		g.Emit(
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(regRecord, flowmap.Verdict, asm.R1, asm.Byte),
		)
		g.Mark(other)
	case FlowDropped:
		g.unlessBegins(g.malformed) // it comes to the other program
		g.flowKey(g.malformed)
		g.findRecord(flowmap.Decided, g.malformed)
		g.Emit(asm.LoadMem(asm.R1, regRecord, flowmap.Verdict, asm.Byte))
		g.JumpImm32(asm.JNE, asm.R1, uint32(flow.Drop), g.malformed)
		g.Emit( // for flowVerdict
			asm.StoreMem(regFrame, varFlowRecord, regRecord, asm.DWord),
			asm.StoreMem(regFrame, varFlowBack, regBack, asm.Word),
		)
	}
}

// flowVerdict ends the program for packets that match and whose flow has the verdict that the program is for.
func (g *generator) flowVerdict() {
	undecided := g.NewLabel()
	verdict, result, total := flow.Accept, int32(0), int16(0)
	switch g.options.Flows {
	case NoFlows:
		return
	case FlowDropped:
		verdict, result, total = flow.Drop, 1, 16
		undecided = g.malformed
	}
	if g.options.Flows == FlowDropped {
		g.Emit(
			asm.LoadMem(regRecord, regFrame, varFlowRecord, asm.DWord),
			asm.LoadMem(regBack, regFrame, varFlowBack, asm.Word),
		)
	} else {
		g.flowKey(undecided)
		g.findRecord(flowmap.Decided, undecided)
	}
	g.Emit(asm.LoadMem(asm.R1, regRecord, flowmap.Verdict, asm.Byte))
	g.JumpImm32(asm.JNE, asm.R1, uint32(verdict), undecided)
	g.liveRecord(flowmap.DecidedGeneration, undecided)
	g.size()
	g.countInRecord()
	g.onlyValue(flowmap.Totals)
	done := g.NewLabel()
	g.JumpImm64(asm.JEq, asm.R0, 0, done) // cannot be: the key exists
	g.addAtomic(asm.R0, total, flowPacketsAt)
	g.addAtomic(asm.R0, total+8, flowBytesAt)
	g.Mark(done)
	g.Emit(asm.Mov.Imm(asm.R0, result), asm.Return())
	if undecided != g.malformed {
		g.Mark(undecided)
	}
}

// addAtomic adds 64 bits of the frame to those at an address. A packet of this host may be interrupted by one that comes in.
func (g *generator) addAtomic(address asm.Register, offset, from int16) {
	g.Emit(asm.LoadMem(asm.R1, regFrame, from, asm.DWord))
	add := asm.StoreXAdd(address, asm.R1, asm.DWord)
	add.Offset = offset
	g.Emit(add)
}

// flowKey writes the key of the packet's flow, or goes to none if it has none; see flow.Find, which does the same.
func (g *generator) flowKey(none label) {
	g.ends(none)
	p := &g.parser
	v6, addresses := g.NewLabel(), g.NewLabel()
	g.Emit(
		asm.LoadMem(asm.R8, regFrame, frameIP, asm.Byte),
		asm.RSh.Imm32(asm.R8, 4),
	)
	if p.family == AnyFamily {
		g.JumpImm32(asm.JEq, asm.R8, 6, v6)
	}
	if p.family != IPv6 {
		g.Emit(asm.Mov.Imm(asm.R1, 0), asm.Mov.Imm(asm.R3, 0))
		g.loadBE(asm.R2, frameIP+12, asm.Word)
		g.loadBE(asm.R4, frameIP+16, asm.Word)
	}
	if p.family == AnyFamily {
		g.Jump(addresses)
	}
	g.Mark(v6)
	if p.family != IPv4 {
		for i, r := range [...]asm.Register{asm.R1, asm.R2, asm.R3, asm.R4} {
			g.loadBE(r, frameIP+8+8*int16(i), asm.DWord)
		}
	}
	g.Mark(addresses)
	g.order()
	for i, r := range [...]asm.Register{asm.R1, asm.R2, asm.R3, asm.R4} {
		g.Emit(asm.StoreMem(regFrame, flowKeyAt+8*int16(i), r, asm.DWord))
	}
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varProtocol, asm.Word),
		asm.StoreMem(regFrame, flowKeyAt+32, asm.R5, asm.Half),
		asm.StoreMem(regFrame, flowKeyAt+34, asm.R7, asm.Half),
		asm.StoreMem(regFrame, flowKeyAt+36, asm.R1, asm.Byte),
		asm.StoreMem(regFrame, flowKeyAt+37, asm.R8, asm.Byte),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, flowKeyAt+38, asm.R1, asm.Half),
	)
}

// loadBE loads a number in network byte order from the frame.
func (g *generator) loadBE(r asm.Register, from int16, size asm.Size) {
	g.Emit(asm.LoadMem(r, regFrame, from, size), asm.HostTo(asm.BE, r, size))
}

// ends leaves the ports of source and destination in R5 and R7, or goes to none.
func (g *generator) ends(none label) {
	pair, found := g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word))
	g.JumpImm32(asm.JSet, asm.R1, 1<<flagFragment|1<<flagLater|1<<flagUndecided, none)
	g.JumpImm32(asm.JSet, asm.R1, 1<<flagTCP|1<<flagUDP, pair)
	g.Emit(asm.LoadMem(asm.R2, regFrame, frameTransport, asm.Byte))
	echo, v6 := g.NewLabel(), g.NewLabel()
	g.JumpImm32(asm.JSet, asm.R1, 1<<flagICMPv6, v6)
	g.Emit(asm.And.Imm32(asm.R1, 1<<flagICMP))
	g.JumpImm32(asm.JEq, asm.R1, 0, none)
	g.JumpImm32(asm.JEq, asm.R2, flow.EchoRequest, echo)
	g.JumpImm32(asm.JEq, asm.R2, flow.EchoReply, echo)
	g.Jump(none)
	g.Mark(v6)
	g.JumpImm32(asm.JEq, asm.R2, flow.EchoRequestV6, echo)
	g.JumpImm32(asm.JNE, asm.R2, flow.EchoReplyV6, none)
	g.Mark(echo)
	g.loadBE(asm.R5, frameTransport+4, asm.Half)
	g.Emit(asm.Mov.Reg(asm.R7, asm.R5))
	g.Jump(found)
	g.Mark(pair)
	g.loadBE(asm.R5, frameTransport, asm.Half)
	g.loadBE(asm.R7, frameTransport+2, asm.Half)
	g.Mark(found)
}

// order puts the lower endpoint first: its address in R1 and R2, its port in R5; the other in R3 and R4, and R7.
func (g *generator) order() {
	swap, ordered := g.NewLabel(), g.NewLabel()
	g.Emit(asm.Mov.Imm(regBack, 0))
	g.JumpReg(asm.JGT, asm.R1, asm.R3, swap)
	g.JumpReg(asm.JLT, asm.R1, asm.R3, ordered)
	g.JumpReg(asm.JGT, asm.R2, asm.R4, swap)
	g.JumpReg(asm.JLT, asm.R2, asm.R4, ordered)
	g.JumpReg(asm.JLE, asm.R5, asm.R7, ordered)
	g.Mark(swap)
	g.Emit(asm.Mov.Imm(regBack, 1))
	for _, pair := range [...][2]asm.Register{{asm.R1, asm.R3}, {asm.R2, asm.R4}, {asm.R5, asm.R7}} {
		g.Emit(asm.Mov.Reg(asm.R0, pair[0]), asm.Mov.Reg(pair[0], pair[1]), asm.Mov.Reg(pair[1], asm.R0))
	}
	g.Mark(ordered)
}

// findRecord leaves the address of the flow's record in regRecord, or goes to none.
func (g *generator) findRecord(table string, none label) {
	g.LookUp(table, flowKeyAt)
	g.JumpImm64(asm.JEq, asm.R0, 0, none)
	g.Emit(asm.Mov.Reg(regRecord, asm.R0))
}

// stateAddress leaves the address of the state in a register.
func (g *generator) stateAddress(r asm.Register) {
	g.Emit(asm.LoadMapValue(r, 0, 0).WithReference(flowmap.State))
}

// liveRecord leaves the time in regNow, and goes to ended if the record does not hold any more; see flow.Record.Live.
func (g *generator) liveRecord(generation int16, ended label) {
	g.stateAddress(asm.R1)
	g.Emit(
		asm.LoadMem(asm.R1, asm.R1, generation, asm.Word),
		asm.LoadMem(asm.R2, regRecord, flowmap.Generation, asm.Word),
	)
	g.JumpReg(asm.JNE, asm.R1, asm.R2, ended)
	g.now()
	g.Emit(asm.LoadMem(asm.R1, regRecord, flowmap.Deadline, asm.DWord))
	lasting := g.NewLabel()
	g.JumpImm64(asm.JEq, asm.R1, 0, lasting)
	g.JumpReg(asm.JGT, regNow, asm.R1, ended)
	g.Mark(lasting)
	g.Emit(
		asm.LoadMem(asm.R1, regRecord, flowmap.LastSeen, asm.DWord),
		asm.Mov.Reg(asm.R2, regNow),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.LoadMem(asm.R1, regRecord, flowmap.IdleTime, asm.DWord),
	)
	g.JumpReg(asm.JSGT, asm.R2, asm.R1, ended) // another processor may have seen a later packet
}

// now leaves the time in regNow.
func (g *generator) now() {
	clock := asm.FnKtimeGetNs
	if g.options.CoarseClock {
		clock = asm.FnKtimeGetCoarseNs
	}
	g.Emit(clock.Call(), asm.Mov.Reg(regNow, asm.R0))
}

// unlessBegins goes to begins if the packet begins a flow: a SYN without ACK.
func (g *generator) unlessBegins(begins label) {
	other := g.NewLabel()
	g.tcpFlags(other)
	g.Emit(asm.And.Imm32(asm.R1, flow.FlagSYN|flow.FlagACK))
	g.JumpImm32(asm.JEq, asm.R1, flow.FlagSYN, begins)
	g.Mark(other)
}

// tcpFlags leaves the flags of TCP in R1, or goes to none.
func (g *generator) tcpFlags(none label) {
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
		asm.And.Imm32(asm.R1, 1<<flagTCP),
	)
	g.JumpImm32(asm.JEq, asm.R1, 0, none)
	g.Emit(asm.LoadMem(asm.R1, regFrame, frameTransport+13, asm.Byte))
}

// size writes how many packets this one counts as, and their bytes: a superpacket whose segments are packets of their own
// is as many as it will be cut into, each with its headers; see FlowSizes.
func (g *generator) size() {
	g.Emit(
		asm.Mov.Imm(asm.R2, 1),
		asm.LoadMem(asm.R3, regContext, skbLen, asm.Word),
	)
	if g.options.FlowSizes != FlowWhole {
		single := g.NewLabel()
		g.Emit(asm.LoadMem(asm.R4, regContext, skbGSOSize, asm.Word))
		g.JumpImm32(asm.JEq, asm.R4, 0, single)
		if g.options.FlowSizes == FlowStreams {
			g.unlessStream(single)
		}
		g.Emit(
			asm.LoadMem(asm.R5, regFrame, varPayload, asm.Word), // the headers' length
			asm.Mov.Reg(asm.R2, asm.R3),
			asm.Sub.Reg(asm.R2, asm.R5),
			asm.Add.Reg(asm.R2, asm.R4),
			asm.Sub.Imm(asm.R2, 1),
			asm.Div.Reg(asm.R2, asm.R4),
			asm.Mov.Reg(asm.R1, asm.R2),
			asm.Sub.Imm(asm.R1, 1),
			asm.Mul.Reg(asm.R1, asm.R5),
			asm.Add.Reg(asm.R3, asm.R1),
		)
		g.Mark(single)
	}
	g.Emit(
		asm.StoreMem(regFrame, flowPacketsAt, asm.R2, asm.DWord),
		asm.StoreMem(regFrame, flowBytesAt, asm.R3, asm.DWord),
	)
}

// unlessStream goes to stream if the packet, a superpacket, is TCP as TakeStreams takes it: see ifStream. Behind extension headers
// it takes those on the way in for such, and those on the way out whose headers have the length of the one of BIG TCP. It
// leaves R2 to R4 alone.
func (g *generator) unlessStream(stream label) {
	v6, other := g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word))
	g.Emit(asm.And.Imm32(asm.R1, 1<<flagTCP))
	g.JumpImm32(asm.JEq, asm.R1, 0, other)
	g.Emit(asm.LoadMem(asm.R1, regFrame, frameIP, asm.Byte))
	g.JumpImm32(asm.JEq, asm.R1, 0x45, stream)
	g.Emit(asm.RSh.Imm32(asm.R1, 4))
	g.JumpImm32(asm.JEq, asm.R1, 6, v6)
	g.Jump(other)
	g.Mark(v6)
	if g.hook.Direction == Inbound {
		g.Jump(stream)
	} else {
		g.Emit(asm.LoadMem(asm.R1, regFrame, frameIP+6, asm.Byte))
		g.JumpImm32(asm.JEq, asm.R1, protoTCP, stream)
		g.JumpImm32(asm.JNE, asm.R1, protoHopByHop, other)
		g.Emit( // the length of the headers, without that of TCP
			asm.LoadMem(asm.R5, regFrame, frameTransport+12, asm.Byte),
			asm.RSh.Imm32(asm.R5, 4),
			asm.LSh.Imm32(asm.R5, 2),
			asm.LoadMem(asm.R1, regFrame, varPayload, asm.Word),
			asm.Sub.Reg32(asm.R1, asm.R5),
		)
		g.JumpImm32(asm.JEq, asm.R1, lenIPv6+lenExtension, stream)
	}
	g.Mark(other)
}

// countInRecord counts the packet in its flow's record, and notes the end of TCP; see flow.Record.Count.
func (g *generator) countInRecord() {
	g.Emit(asm.StoreMem(regRecord, flowmap.LastSeen, regNow, asm.DWord))
	g.byWay(func(way int16) {
		g.addAtomic(regRecord, flowmap.Packets+8*way, flowPacketsAt)
		g.addAtomic(regRecord, flowmap.Bytes+8*way, flowBytesAt)
	})
	open, ends := g.NewLabel(), g.NewLabel()
	g.tcpFlags(open)
	g.JumpImm32(asm.JSet, asm.R1, flow.FlagRST, ends)
	g.JumpImm32(asm.JSet, asm.R1, flow.FlagFIN, ends)
	g.Jump(open)
	g.Mark(ends)
	lasting := g.NewLabel()
	g.Emit(asm.Mov.Reg(asm.R5, asm.R1), asm.And.Imm32(asm.R5, flow.FlagRST)) // not 0: the flow has ended
	g.Emit(asm.And.Imm32(asm.R1, flow.FlagFIN))
	g.JumpImm32(asm.JEq, asm.R1, 0, lasting)
	g.byWay(func(way int16) {
		g.Emit(
			asm.StoreMem(regRecord, flowmap.Finished+way, asm.R1, asm.Byte), // 1
			asm.LoadMem(asm.R2, regRecord, flowmap.Finished+1-way, asm.Byte),
			asm.Or.Reg32(asm.R5, asm.R2),
		)
	})
	g.Mark(lasting)
	g.JumpImm32(asm.JEq, asm.R5, 0, open)
	g.Emit(asm.LoadMem(asm.R1, regRecord, flowmap.Deadline, asm.DWord))
	g.JumpImm64(asm.JNE, asm.R1, 0, open)
	g.Emit(
		asm.LoadImm(asm.R1, int64(flow.Linger), asm.DWord),
		asm.Add.Reg(asm.R1, regNow),
		asm.StoreMem(regRecord, flowmap.Deadline, asm.R1, asm.DWord),
	)
	g.Mark(open)
}

// byWay emits code twice, for packets there (0) and back (1).
func (g *generator) byWay(code func(way int16)) {
	back, end := g.NewLabel(), g.NewLabel()
	g.JumpImm32(asm.JNE, regBack, 0, back)
	code(0)
	g.Jump(end)
	g.Mark(back)
	code(1)
	g.Mark(end)
}

// flowCounts counts the packet, if the tests ask for that, and writes the counts of its flow.
func (g *generator) flowCounts() {
	if g.parser.need&needCounts == 0 {
		return
	}
	none, fresh, found, end := g.NewLabel(), g.NewLabel(), g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R0, regFrame, varZero, asm.DWord))
	g.parser.forget(varCounts, 2)
	g.flowKey(end)
	g.size()
	g.findRecord(flowmap.Counted, fresh)
	g.liveRecord(flowmap.CountedGeneration, fresh)
	g.unlessBegins(fresh)
	g.Jump(found)
	g.Mark(fresh)
	g.newRecord()
	g.findRecord(flowmap.Counted, none) // another processor may have pushed it out
	g.Mark(found)
	g.countInRecord()
	g.tellCounts()
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
		asm.Or.Imm32(asm.R1, 1<<flagCounted),
		asm.StoreMem(regFrame, varFlags, asm.R1, asm.Word),
	)
	g.Mark(none, end)
}

// newRecord puts a record of nothing yet into the table of counts. It leaves the time in regNow.
func (g *generator) newRecord() {
	idle := g.NewLabel()
	g.now()
	g.Emit(asm.Mov.Imm(asm.R1, 0))
	for at := int16(0); at < int16(flowmap.RecordSize); at += 8 {
		g.Emit(asm.StoreMem(regFrame, flowRecordAt+at, asm.R1, asm.DWord))
	}
	g.Emit(asm.StoreMem(regFrame, flowRecordAt+flowmap.LastSeen, regNow, asm.DWord))
	g.stateAddress(asm.R3)
	g.Emit(
		asm.LoadMem(asm.R1, asm.R3, flowmap.CountedGeneration, asm.Word),
		asm.StoreMem(regFrame, flowRecordAt+flowmap.Generation, asm.R1, asm.Word),
		asm.LoadMem(asm.R2, regFrame, varFlags, asm.Word),
		asm.LoadMem(asm.R1, asm.R3, flowmap.IdleTCP, asm.DWord),
	)
	g.JumpImm32(asm.JSet, asm.R2, 1<<flagTCP, idle)
	g.Emit(asm.LoadMem(asm.R1, asm.R3, flowmap.IdleUDP, asm.DWord))
	g.JumpImm32(asm.JSet, asm.R2, 1<<flagUDP, idle)
	g.Emit(asm.LoadMem(asm.R1, asm.R3, flowmap.IdleICMP, asm.DWord))
	g.Mark(idle)
	g.Emit(
		asm.StoreMem(regFrame, flowRecordAt+flowmap.IdleTime, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, 0).WithReference(flowmap.Counted),
		asm.Mov.Reg(asm.R2, regFrame),
		asm.Add.Imm(asm.R2, int32(flowKeyAt)),
		asm.Mov.Reg(asm.R3, regFrame),
		asm.Add.Imm(asm.R3, int32(flowRecordAt)),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
	)
}

// tellCounts writes the counts as filters see them. A superpacket has the packet count of its first segment, and the bytes of all.
func (g *generator) tellCounts() {
	g.byWay(func(way int16) {
		for i, member := range [...]int16{flowmap.Packets, flowmap.Bytes} {
			g.Emit(
				asm.LoadMem(asm.R1, regRecord, member+8*way, asm.DWord),
				asm.LoadMem(asm.R2, regRecord, member+8*(1-way), asm.DWord),
			)
			if member == flowmap.Packets {
				g.Emit(
					asm.LoadMem(asm.R3, regFrame, flowPacketsAt, asm.DWord),
					asm.Sub.Imm(asm.R3, 1),
					asm.Sub.Reg(asm.R1, asm.R3),
				)
			}
			g.Emit(asm.Add.Reg(asm.R2, asm.R1))
			g.tellCount(asm.R2, varCounts+4*int16(i))
			g.tellCount(asm.R1, varCounts+8+4*int16(i))
		}
	})
}

// tellCount writes a count, the greatest number of 32 bits if it is more.
func (g *generator) tellCount(r asm.Register, at int16) {
	fits := g.NewLabel()
	g.Emit(asm.LoadImm(asm.R3, 1<<32-1, asm.DWord))
	g.JumpReg(asm.JLE, r, asm.R3, fits)
	g.Emit(asm.Mov.Reg(r, asm.R3))
	g.Mark(fits)
	g.Emit(asm.StoreMem(regFrame, at, r, asm.Word))
}
