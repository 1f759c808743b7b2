//go:build linux

package codegen

import "github.com/cilium/ebpf/asm"

// Protocol numbers (IANA).
const (
	protoHopByHop    = 0
	protoICMP        = 1
	protoTCP         = 6
	protoUDP         = 17
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoICMPv6      = 58
	protoDestination = 60
	protoMobility    = 135
)

const (
	lenIPv4      = 20
	lenIPv6      = 40
	lenTCP       = 20
	lenUDP       = 8
	lenICMP      = 8
	lenExtension = 8 // the shortest extension header
)

// Registers of the parser.
const (
	regOffset   = asm.R7 // offset in the packet
	regProtocol = asm.R8
	regCount    = asm.R9
)

// parser emits the code that finds the headers of the packet, as far as they are needed
// (specification: packets.md 1.4). Packets that are not well formed go to reject.
type parser struct {
	*assembler
	need    need
	family  Family
	bounded bool // see Options.Bounded
	doubt   bool // see Options.Doubt
	steps   bool // the function of walkStep is called
	reject  label
}

// parse emits the parser.
func (p *parser) parse() {
	v6, join := p.NewLabel(), p.NewLabel()
	first := int32(lenIPv4)
	if p.family == IPv6 && p.need&needIPv6 != 0 {
		first = lenIPv6
	}
	p.Emit(asm.Mov.Imm(asm.R2, 0))
	p.loadBytes(frameIP, first)
	// Not "jump if not zero": the verifier would then know that the value is zero.
	p.JumpImm64(asm.JSLT, asm.R0, 0, p.reject)
	p.Emit(asm.StoreMem(regFrame, varZero, asm.R0, asm.DWord))
	if p.family != IPv4 && first < lenIPv6 && p.need&needIPv6 != 0 {
		p.forget(frameIP+24, 2) // which an IPv4 packet does not have; the first load ends within a slot
		p.forgetHalf(frameIP + 20)
	}
	if p.need&needTransport != 0 {
		p.forget(frameTransport, 3)
	}
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, frameIP, asm.Byte),
		asm.Mov.Reg32(asm.R2, asm.R1),
		asm.RSh.Imm32(asm.R2, 4),
	)
	switch p.family {
	case AnyFamily:
		p.JumpImm32(asm.JEq, asm.R2, 6, v6)
		p.JumpImm32(asm.JNE, asm.R2, 4, p.reject)
		p.ipv4()
		p.Jump(join)
		p.Mark(v6)
		p.ipv6(first)
	case IPv4:
		p.JumpImm32(asm.JNE, asm.R2, 4, p.reject)
		p.ipv4()
	case IPv6:
		p.JumpImm32(asm.JNE, asm.R2, 6, p.reject)
		p.ipv6(first)
	}
	p.Mark(join)
	if p.need&needWalk != 0 {
		p.transport()
	}
}

// loadBytes copies n bytes of the packet, from the offset in R2, to the frame with
// bpf_skb_load_bytes (since Linux 4.5). If the packet ends before, R0 is negative and the memory zero.
func (a *assembler) loadBytes(to int16, n int32) { a.loadBytesInto(regFrame, to, n) }

// loadBytesInto is loadBytes for a frame whose address is in a register.
func (a *assembler) loadBytesInto(frame asm.Register, to int16, n int32) {
	a.Emit(
		asm.Mov.Reg(asm.R1, regContext),
		asm.Mov.Reg(asm.R3, frame),
		asm.Add.Imm(asm.R3, int32(to)),
		asm.Mov.Imm(asm.R4, n),
		asm.FnSkbLoadBytes.Call(),
	)
}

// forget initialises n slots of 8 bytes with zeros of which the verifier knows nothing, so that
// memory which only some packets fill may be read on all ways: R0 holds such a zero. Storing a
// single byte afterwards makes it forget the aligned store too.
func (p *parser) forget(offset int16, n int) {
	for ; n > 0; n-- {
		p.Emit(
			asm.StoreMem(regFrame, offset, asm.R0, asm.DWord),
			asm.StoreMem(regFrame, offset+1, asm.R0, asm.Byte),
		)
		offset += 8
	}
}

// forgetHalf does the same for the upper half of a slot.
func (p *parser) forgetHalf(offset int16) {
	p.Emit(asm.StoreMem(regFrame, offset, asm.R0, asm.Word))
}

// checkLength rejects the packet unless its total length, in R2, is the length of the buffer. R2 is none if the header tells no
// length, as in TCP that is still to be cut and too long for the length field (BIG TCP, since Linux 5.19; include/linux/ip.h,
// iph_totlen).
func (p *parser) checkLength(none uint32) {
	fine := p.NewLabel()
	p.Emit(asm.LoadMem(asm.R3, regContext, skbLen, asm.Word))
	p.JumpReg(asm.JEq, asm.R2, asm.R3, fine)
	p.JumpImm32(asm.JNE, asm.R2, none, p.reject)
	p.Emit(asm.LoadMem(asm.R3, regContext, skbGSOSize, asm.Word))
	p.JumpImm32(asm.JEq, asm.R3, 0, p.reject)
	p.Mark(fine)
}

// ipv4 expects the first byte of the header in R1.
func (p *parser) ipv4() {
	p.Emit(asm.And.Imm32(asm.R1, 15))
	p.JumpImm32(asm.JLT, asm.R1, lenIPv4/4, p.reject)
	p.Emit(
		asm.LSh.Imm32(asm.R1, 2),
		asm.LoadMem(asm.R2, regFrame, frameIP+2, asm.Half),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
	)
	p.checkLength(0)
	p.Emit(asm.LoadMem(asm.R2, regContext, skbLen, asm.Word))
	p.JumpReg(asm.JLT, asm.R2, asm.R1, p.reject)
	if p.need&needWalk == 0 {
		return
	}
	whole := p.NewLabel()
	p.Emit(
		asm.Mov.Reg32(regOffset, asm.R1),
		asm.LoadMem(regProtocol, regFrame, frameIP+9, asm.Byte),
		asm.Mov.Imm(regCount, 1<<flagSet),
		asm.LoadMem(asm.R1, regFrame, frameIP+6, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm32(asm.R1, 0x3FFF), // MF and the fragment offset
	)
	p.JumpImm32(asm.JEq, asm.R1, 0, whole)
	p.Emit(
		asm.Or.Imm32(regCount, 1<<flagFragment|1<<flagMore), // of the first: the others have flagLater
		asm.And.Imm32(asm.R1, 0x1FFF),
	)
	p.JumpImm32(asm.JEq, asm.R1, 0, whole)
	p.Emit(asm.Or.Imm32(regCount, 1<<flagLater))
	p.Mark(whole)
	p.Emit(asm.StoreMem(regFrame, varFlags, regCount, asm.Word))
}

// ipv6 expects that many bytes of the header in the frame.
func (p *parser) ipv6(loaded int32) {
	p.Emit(
		asm.LoadMem(asm.R2, regFrame, frameIP+4, asm.Half),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.Add.Imm32(asm.R2, lenIPv6),
	)
	p.checkLength(lenIPv6)
	if p.need&needIPv6 != 0 && loaded < lenIPv6 {
		p.Emit(asm.Mov.Imm(asm.R2, lenIPv4))
		p.loadBytes(frameIP+lenIPv4, lenIPv6-lenIPv4)
	}
	if p.need&needWalk != 0 {
		p.walk()
	}
}

// transportHeader is one row of the table of transport headers.
type transportHeader struct {
	protocol uint32
	need     need
	flag     int
	length   int32
	version  uint32 // of IP, 0: both
}

var transportHeaders = []transportHeader{
	{protoTCP, needTCP, flagTCP, lenTCP, 0},
	{protoUDP, needUDP, flagUDP, lenUDP, 0},
	{protoICMP, needICMP, flagICMP, lenICMP, 4},
	{protoICMPv6, needICMPv6, flagICMPv6, lenICMP, 6},
}

// excluded reports whether packets of a family cannot have the header.
func (t *transportHeader) excluded(f Family) bool {
	return t.version == 4 && f == IPv6 || t.version == 6 && f == IPv4
}

// transport finds the transport header at regOffset and stores the variables.
func (p *parser) transport() {
	end := p.NewLabel()
	if p.need&needTransport != 0 || p.doubts() {
		p.Emit(asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word))
		p.JumpImm32(asm.JSet, asm.R1, 1<<flagLater, end)
		short := p.NewLabel() // the header is not all there
		for i := range transportHeaders {
			if t := &transportHeaders[i]; p.need&t.need != 0 && !t.excluded(p.family) {
				p.header(t, end, short)
			}
		}
		if p.doubts() && p.family != IPv4 {
			p.isExtension()
			p.JumpImm32(asm.JEq, asm.R1, 0, end)
		} else {
			p.Jump(end)
		}
		p.Mark(short)
		if p.doubts() {
			p.Emit(asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word))
			more := p.NewLabel()
			p.JumpImm32(asm.JSet, asm.R1, 1<<flagMore, more)
			p.Jump(end)
			p.Mark(more)
			p.Emit(
				asm.Or.Imm32(asm.R1, 1<<flagUndecided),
				asm.StoreMem(regFrame, varFlags, asm.R1, asm.Word),
			)
		}
	}
	p.Mark(end)
	if p.need&needProtocol != 0 {
		// Protocol 0 would be a zero that the verifier remembers.
		p.Emit(asm.StoreMem(regFrame, varProtocol, regProtocol, asm.Word))
	}
	if p.need&needPayload != 0 {
		p.Emit(asm.StoreMem(regFrame, varPayload, regOffset, asm.Word))
	}
}

// doubts reports whether the program has to recognise first fragments without all of their transport header.
func (p *parser) doubts() bool { return p.doubt && p.need&(needTransport|needProtocol) != 0 }

// header emits the part for one protocol (specification: packets.md 1.2). It goes to short if the packet ends within it.
func (p *parser) header(t *transportHeader, end, short label) {
	other := p.NewLabel()
	p.JumpImm32(asm.JNE, regProtocol, t.protocol, other)
	if t.version != 0 && p.family == AnyFamily {
		p.Emit(
			asm.LoadMem(asm.R1, regFrame, frameIP, asm.Byte),
			asm.RSh.Imm32(asm.R1, 4),
		)
		p.JumpImm32(asm.JNE, asm.R1, t.version, end)
	}
	p.Emit(asm.Mov.Reg(asm.R2, regOffset))
	p.loadBytes(frameTransport, t.length)
	p.JumpImm64(asm.JSLT, asm.R0, 0, short)
	if t.protocol == protoTCP {
		p.tcpLength(end)
	} else if p.need&needPayload != 0 {
		p.Emit(asm.Add.Imm32(regOffset, t.length))
	}
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
		asm.Or.Imm32(asm.R1, 1<<t.flag),
		asm.StoreMem(regFrame, varFlags, asm.R1, asm.Word),
	)
	p.Jump(end)
	p.Mark(other)
}

// tcpLength adds the length of the TCP header to regOffset, but does not go beyond the packet. A data offset
// below 5 means that there is no TCP header.
func (p *parser) tcpLength(end label) {
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, frameTransport+12, asm.Byte),
		asm.RSh.Imm32(asm.R1, 4),
	)
	p.JumpImm32(asm.JLT, asm.R1, lenTCP/4, end)
	if p.need&needPayload == 0 {
		return
	}
	within := p.NewLabel()
	p.Emit(
		asm.LSh.Imm32(asm.R1, 2),
		asm.Add.Reg32(regOffset, asm.R1),
		asm.LoadMem(asm.R1, regContext, skbLen, asm.Word),
	)
	p.JumpReg(asm.JLE, regOffset, asm.R1, within)
	p.Emit(asm.Mov.Reg32(regOffset, asm.R1))
	p.Mark(within)
}

// sides stores localAddr, remoteAddr, localPort and remotePort, as far as they are needed
// (specification: filter-language.md 6).
func (p *parser) sides(outbound bool) {
	local, remote := sides{varLocalAddr, varLocalPort}, sides{varRemoteAddr, varRemotePort}
	source, destination := local, remote
	if !outbound {
		source, destination = remote, local
	}
	if p.need&needAddresses != 0 {
		p.addresses(source.address, destination.address)
	}
	if p.need&needPorts != 0 {
		p.ports(source.port, destination.port)
	}
}

// sides are the variables of one end of a packet.
type sides struct{ address, port int16 }

// ifIPv6 goes to a label with packets of IPv6, if there may be packets of both families. It uses R1.
func (p *parser) ifIPv6(v6 label) {
	if p.family != AnyFamily {
		return
	}
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, frameIP, asm.Byte),
		asm.RSh.Imm32(asm.R1, 4),
	)
	p.JumpImm32(asm.JEq, asm.R1, 6, v6)
}

func (p *parser) addresses(source, destination int16) {
	v6, end := p.NewLabel(), p.NewLabel()
	p.ifIPv6(v6)
	if p.family != IPv6 {
		p.Emit(
			asm.LoadMem(asm.R2, regFrame, varZero, asm.DWord),
			asm.LoadImm(asm.R3, mappedPrefix, asm.DWord),
		)
		p.address4(frameIP+12, source)
		p.address4(frameIP+16, destination)
	}
	if p.family == AnyFamily {
		p.Jump(end)
	}
	p.Mark(v6)
	if p.family != IPv4 {
		p.address6(frameIP+8, source)
		p.address6(frameIP+24, destination)
	}
	p.Mark(end)
}

// address4 stores a mapped address; R2 is zero, R3 the prefix.
func (p *parser) address4(from, to int16) {
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, from, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.Or.Reg(asm.R1, asm.R3),
		asm.StoreMem(regFrame, to, asm.R2, asm.DWord),
		asm.StoreMem(regFrame, to+8, asm.R1, asm.DWord),
	)
}

func (p *parser) address6(from, to int16) {
	for half := int16(0); half < 16; half += 8 {
		p.Emit(
			asm.LoadMem(asm.R1, regFrame, from+half, asm.DWord),
			asm.HostTo(asm.BE, asm.R1, asm.DWord),
			asm.StoreMem(regFrame, to+half, asm.R1, asm.DWord),
		)
	}
}

// ports stores the ports of TCP and UDP; an ICMP type counts as the source port. Otherwise, and
// where there is no transport header, the ports are zero.
func (p *parser) ports(source, destination int16) {
	none, pair, end := p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.Emit(
		asm.LoadMem(asm.R3, regFrame, varFlags, asm.Word),
		asm.LoadMem(asm.R1, regFrame, varZero, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R1),
	)
	p.JumpImm32(asm.JSet, asm.R3, 1<<flagTCP|1<<flagUDP, pair)
	p.Emit(asm.And.Imm32(asm.R3, 1<<flagICMP|1<<flagICMPv6))
	p.JumpImm32(asm.JEq, asm.R3, 0, none)
	p.Emit(asm.LoadMem(asm.R1, regFrame, frameTransport, asm.Byte))
	p.Mark(none)
	p.Jump(end)
	p.Mark(pair)
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, frameTransport, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.LoadMem(asm.R2, regFrame, frameTransport+2, asm.Half),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
	)
	p.Mark(end)
	p.Emit(
		asm.StoreMem(regFrame, source, asm.R1, asm.Word),
		asm.StoreMem(regFrame, destination, asm.R2, asm.Word),
	)
}
