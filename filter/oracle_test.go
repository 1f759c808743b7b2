package filter

import (
	"math/big"
	"net/netip"

	"github.com/opendivert/divert/packet"
)

// item is a packet or event with all that tests can ask for.
type item struct {
	b []byte
	p *packet.Parsed // nil for events
	a *packet.Address
}

// number is a value of any size and sign; nil is an absent one.
func number64(v uint64) *big.Int { return new(big.Int).SetUint64(v) }

func flagValue(v bool) *big.Int {
	if v {
		return big.NewInt(1)
	}
	return big.NewInt(0)
}

func addrNumber(a netip.Addr) *big.Int {
	ip := a.As16()
	return new(big.Int).SetBytes(ip[:])
}

// reference evaluates a program slowly and in another way than the interpreter: with the header views of
// package packet, the accessors of addresses and numbers of any size. It is not ok if a test is
// executed whose field the layer does not have.
func reference(p *Program, b []byte, a *packet.Address) (match, ok bool) {
	it := item{a: a}
	if p.layer <= packet.LayerForward {
		parsed := new(packet.Parsed)
		if !parsed.Parse(b) {
			return false, true
		}
		it.b, it.p = b, parsed
	}
	at := Target(0)
	for at >= 0 {
		t := &p.tests[at]
		if !t.Field.info().layers.has(p.layer) {
			return false, false
		}
		at = t.Fail
		if v := it.value(t); v != nil && holds(t, v) {
			at = t.Succ
		}
		if at >= 0 && t == &p.tests[at] {
			panic("a jump that does not go forward")
		}
	}
	return at == Accept, true
}

// holds compares as filter-language.md 6 tells.
func holds(t *Test, v *big.Int) bool {
	mag := new(big.Int).Abs(v)
	lit := new(big.Int).Or(new(big.Int).Lsh(number64(t.Value.Hi), 64), number64(t.Value.Lo))
	if t.Op == OpIn || t.Op == OpNotIn {
		inside := false
		for _, r := range t.Set.Ranges {
			first := new(big.Int).Or(new(big.Int).Lsh(number64(r.First.Hi), 64), number64(r.First.Lo))
			last := new(big.Int).Or(new(big.Int).Lsh(number64(r.Last.Hi), 64), number64(r.Last.Lo))
			inside = inside || v.Cmp(first) >= 0 && v.Cmp(last) <= 0
		}
		return inside == (t.Op == OpIn)
	}
	if !t.Field.info().wide {
		lit.And(lit, number64(0xFFFFFFFF))
	}
	cmp := mag.Cmp(lit)
	switch neg := v.Sign() < 0; {
	case neg && !t.Neg:
		cmp = -1
	case !neg && t.Neg:
		cmp = 1
	case neg:
		cmp = -cmp
	}
	return [...]bool{cmp == 0, cmp != 0, cmp < 0, cmp <= 0, cmp > 0, cmp >= 0}[t.Op]
}

func (it item) value(t *Test) *big.Int {
	switch t.Field {
	case FieldZero:
		return number64(0)
	case FieldInbound:
		return flagValue(!it.a.Outbound)
	case FieldOutbound:
		return flagValue(it.a.Outbound)
	case FieldLoopback:
		return flagValue(it.a.Loopback)
	case FieldImpostor:
		return flagValue(it.a.Impostor)
	case FieldEvent:
		return number64(uint64(it.a.Event))
	case FieldTimestamp:
		return big.NewInt(it.a.Timestamp)
	}
	switch {
	case it.p != nil:
		return it.packetValue(t)
	case it.a.Layer == packet.LayerReflect:
		return it.handleValue(t.Field)
	}
	return it.flowValue(t.Field)
}

func (it item) handleValue(f Field) *big.Int {
	d := it.a.Reflect()
	switch f {
	case FieldProcessID:
		return number64(uint64(d.ProcessID))
	case FieldPriority:
		return big.NewInt(int64(d.Priority))
	case FieldLayer:
		u := it.a.Union() // the accessor has 8 bits of the 32
		return number64(uint64(u[12]) | uint64(u[13])<<8 | uint64(u[14])<<16 | uint64(u[15])<<24)
	}
	return nil
}

func (it item) flowValue(f Field) *big.Int {
	d := it.a.Flow()
	switch f {
	case FieldIP, FieldIPv6:
		return number64(0)
	case FieldFamilyIP:
		return flagValue(!it.a.IPv6)
	case FieldFamilyIPv6:
		return flagValue(it.a.IPv6)
	case FieldICMP:
		return flagValue(d.Protocol == 1 && !it.a.IPv6)
	case FieldICMPv6:
		return flagValue(d.Protocol == 58 && it.a.IPv6)
	case FieldTCP:
		return flagValue(d.Protocol == 6)
	case FieldUDP:
		return flagValue(d.Protocol == 17)
	case FieldProcessID:
		return number64(uint64(d.ProcessID))
	case FieldLocalAddr:
		return addrNumber(d.LocalAddr)
	case FieldRemoteAddr:
		return addrNumber(d.RemoteAddr)
	case FieldLocalPort:
		return number64(uint64(d.LocalPort))
	case FieldRemotePort:
		return number64(uint64(d.RemotePort))
	case FieldProtocol:
		return number64(uint64(d.Protocol))
	case FieldEndpointID:
		return number64(d.EndpointID)
	case FieldParentEndpointID:
		return number64(d.ParentEndpointID)
	}
	return nil
}

func (it item) packetValue(t *Test) *big.Int {
	p, b := it.p, it.b
	payload := p.Payload(b)
	switch f := t.Field; {
	case f == FieldIfIdx:
		return number64(uint64(it.a.Network().IfIdx))
	case f == FieldSubIfIdx:
		return number64(uint64(it.a.Network().SubIfIdx))
	case f == FieldProtocol:
		return number64(uint64(p.Protocol))
	case f == FieldFragment:
		return flagValue(p.Fragment)
	case f == FieldLength:
		return number64(uint64(len(b)))
	case f == FieldLocalAddr || f == FieldRemoteAddr:
		return it.endAddr((f == FieldLocalAddr) == it.a.Outbound)
	case f == FieldLocalPort || f == FieldRemotePort:
		return it.endPort((f == FieldLocalPort) == it.a.Outbound)
	case f == FieldRandom8:
		return number64(p.Hash(b, uint64(it.a.Timestamp)) << 8 >> 56)
	case f == FieldRandom16:
		return number64(p.Hash(b, uint64(it.a.Timestamp)) << 16 >> 48)
	case f == FieldRandom32:
		return number64(p.Hash(b, uint64(it.a.Timestamp)) & 0xFFFFFFFF)
	case f == FieldIP:
		return flagValue(p.Family == 4)
	case f == FieldIPv6:
		return flagValue(p.Family == 6)
	case f == FieldICMP:
		return flagValue(p.ICMP(b) != nil)
	case f == FieldICMPv6:
		return flagValue(p.ICMPv6(b) != nil)
	case f == FieldTCP:
		return flagValue(p.TCP(b) != nil)
	case f == FieldUDP:
		return flagValue(p.UDP(b) != nil)
	case f >= FieldPacket && f <= FieldPacket32:
		return bytesAt(b, int(t.Index), f.info().elem)
	case f >= FieldTCPPayload && f <= FieldTCPPayload32 && p.TCP(b) != nil,
		f >= FieldUDPPayload && f <= FieldUDPPayload32 && p.UDP(b) != nil:
		return bytesAt(payload, int(t.Index), f.info().elem)
	case f >= FieldIPHdrLength && f <= FieldIPDstAddr && p.Family == 4:
		return ipv4Value(f, p.IPv4(b))
	case (f >= FieldIPv6TrafficClass && f <= FieldIPv6DstAddr || f == FieldFlowLabel) && p.Family == 6:
		return ipv6Value(f, p.IPv6(b))
	case f >= FieldICMPType && f <= FieldICMPBody && p.ICMP(b) != nil:
		return icmpValue(f-FieldICMPType, p.ICMP(b))
	case f >= FieldICMPv6Type && f <= FieldICMPv6Body && p.ICMPv6(b) != nil:
		return icmpValue(f-FieldICMPv6Type, p.ICMPv6(b))
	case f >= FieldTCPSrcPort && f <= FieldTCPPayloadLength && p.TCP(b) != nil:
		return tcpValue(f, p.TCP(b), len(payload))
	case f >= FieldUDPSrcPort && f <= FieldUDPPayloadLength && p.UDP(b) != nil:
		return udpValue(f, p.UDP(b), len(payload))
	}
	return nil
}

func (it item) endAddr(source bool) *big.Int {
	if h := it.p.IPv4(it.b); h != nil {
		if source {
			return addrNumber(h.Src())
		}
		return addrNumber(h.Dst())
	}
	h := it.p.IPv6(it.b)
	if source {
		return addrNumber(h.Src())
	}
	return addrNumber(h.Dst())
}

func (it item) endPort(source bool) *big.Int {
	p, b := it.p, it.b
	port := func(src, dst uint16) *big.Int {
		if source {
			return number64(uint64(src))
		}
		return number64(uint64(dst))
	}
	switch {
	case p.TCP(b) != nil:
		return port(p.TCP(b).SrcPort(), p.TCP(b).DstPort())
	case p.UDP(b) != nil:
		return port(p.UDP(b).SrcPort(), p.UDP(b).DstPort())
	case p.ICMP(b) != nil:
		return port(uint16(p.ICMP(b).Type()), 0)
	case p.ICMPv6(b) != nil:
		return port(uint16(p.ICMPv6(b).Type()), 0)
	}
	return number64(0)
}

// bytesAt reads size bytes at an index from the start or the end of region.
func bytesAt(region []byte, index, size int) *big.Int {
	if index < 0 {
		index += len(region)
	}
	if index < 0 || index+size > len(region) {
		return nil
	}
	return new(big.Int).SetBytes(region[index : index+size])
}

func ipv4Value(f Field, h packet.IPv4) *big.Int {
	return map[Field]*big.Int{
		FieldIPHdrLength: number64(uint64(h.HeaderLen() / 4)),
		FieldIPTOS:       number64(uint64(h.TOS())),
		FieldIPLength:    number64(uint64(h.Length())),
		FieldIPID:        number64(uint64(h.ID())),
		FieldIPDF:        flagValue(h.DF()),
		FieldIPMF:        flagValue(h.MF()),
		FieldIPFragOff:   number64(uint64(h.FragOff())),
		FieldIPTTL:       number64(uint64(h.TTL())),
		FieldIPProtocol:  number64(uint64(h.Protocol())),
		FieldIPChecksum:  number64(uint64(h.Checksum())),
		FieldIPSrcAddr:   addrNumber(h.Src()),
		FieldIPDstAddr:   addrNumber(h.Dst()),
	}[f]
}

func ipv6Value(f Field, h packet.IPv6) *big.Int {
	label := uint64(h.FlowLabel())
	return map[Field]*big.Int{
		FieldIPv6TrafficClass: number64(uint64(h.TrafficClass())),
		FieldIPv6FlowLabel:    number64(label&0xFF00<<16 | label&0xFF<<16 | label>>16<<8),
		FieldFlowLabel:        number64(label),
		FieldIPv6Length:       number64(uint64(h.Length())),
		FieldIPv6NextHdr:      number64(uint64(h.NextHeader())),
		FieldIPv6HopLimit:     number64(uint64(h.HopLimit())),
		FieldIPv6SrcAddr:      addrNumber(h.Src()),
		FieldIPv6DstAddr:      addrNumber(h.Dst()),
	}[f]
}

func icmpValue(part Field, h packet.ICMP) *big.Int {
	return []*big.Int{
		number64(uint64(h.Type())), number64(uint64(h.Code())),
		number64(uint64(h.Checksum())), number64(uint64(h.Body())),
	}[part]
}

func tcpValue(f Field, h packet.TCP, payload int) *big.Int {
	flags := h.Flags()
	return map[Field]*big.Int{
		FieldTCPSrcPort:       number64(uint64(h.SrcPort())),
		FieldTCPDstPort:       number64(uint64(h.DstPort())),
		FieldTCPSeqNum:        number64(uint64(h.Seq())),
		FieldTCPAckNum:        number64(uint64(h.Ack())),
		FieldTCPHdrLength:     number64(uint64(h.HeaderLen() / 4)),
		FieldTCPUrg:           flagValue(flags&0x20 != 0),
		FieldTCPAck:           flagValue(flags&0x10 != 0),
		FieldTCPPsh:           flagValue(flags&0x08 != 0),
		FieldTCPRst:           flagValue(flags&0x04 != 0),
		FieldTCPSyn:           flagValue(flags&0x02 != 0),
		FieldTCPFin:           flagValue(flags&0x01 != 0),
		FieldTCPWindow:        number64(uint64(h.Window())),
		FieldTCPChecksum:      number64(uint64(h.Checksum())),
		FieldTCPUrgPtr:        number64(uint64(h.Urgent())),
		FieldTCPPayloadLength: number64(uint64(payload)),
	}[f]
}

func udpValue(f Field, h packet.UDP, payload int) *big.Int {
	return map[Field]*big.Int{
		FieldUDPSrcPort:       number64(uint64(h.SrcPort())),
		FieldUDPDstPort:       number64(uint64(h.DstPort())),
		FieldUDPLength:        number64(uint64(h.Length())),
		FieldUDPChecksum:      number64(uint64(h.Checksum())),
		FieldUDPPayloadLength: number64(uint64(payload)),
	}[f]
}
