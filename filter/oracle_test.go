package filter

import (
	"math/big"
	"net/netip"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// item is a packet or event with everything that tests can read.
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

// reference evaluates a program slowly and independently of the interpreter: with the header views of package packet, the
// accessors of addresses and numbers of any size. ok is false if an executed test has a field that the layer lacks.
func reference(p *prog.Program, b []byte, a *packet.Address) (match, ok bool) {
	it := item{a: a}
	if p.Layer() <= packet.LayerForward {
		parsed := new(packet.Parsed)
		if !parsed.Parse(b) {
			return false, true
		}
		it.b, it.p = b, parsed
	}
	at := prog.Target(0)
	for at >= 0 {
		t := &p.Tests()[at]
		if !t.Field.Info().Layers.Has(p.Layer()) {
			return false, false
		}
		at = t.Fail
		if v := it.value(t); v != nil && holds(t, v) {
			at = t.Succ
		}
		if at >= 0 && t == &p.Tests()[at] {
			panic("a jump that does not go forward")
		}
	}
	return at == prog.Accept, true
}

// holds compares by the rules of filter-language.md 6.
func holds(t *prog.Test, v *big.Int) bool {
	mag := new(big.Int).Abs(v)
	lit := new(big.Int).Or(new(big.Int).Lsh(number64(t.Value.Hi), 64), number64(t.Value.Lo))
	if t.Op == prog.OpIn || t.Op == prog.OpNotIn {
		inside := false
		for _, r := range t.Set.Ranges {
			first := new(big.Int).Or(new(big.Int).Lsh(number64(r.First.Hi), 64), number64(r.First.Lo))
			last := new(big.Int).Or(new(big.Int).Lsh(number64(r.Last.Hi), 64), number64(r.Last.Lo))
			inside = inside || v.Cmp(first) >= 0 && v.Cmp(last) <= 0
		}
		return inside == (t.Op == prog.OpIn)
	}
	if !t.Field.Info().Wide {
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

func (it item) value(t *prog.Test) *big.Int {
	switch t.Field {
	case prog.FieldZero:
		return number64(0)
	case prog.FieldInbound:
		return flagValue(!it.a.Outbound)
	case prog.FieldOutbound:
		return flagValue(it.a.Outbound)
	case prog.FieldLoopback:
		return flagValue(it.a.Loopback)
	case prog.FieldImpostor:
		return flagValue(it.a.Impostor)
	case prog.FieldEvent:
		return number64(uint64(it.a.Event))
	case prog.FieldTimestamp:
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

func (it item) handleValue(f prog.Field) *big.Int {
	d := it.a.Reflect()
	switch f {
	case prog.FieldProcessID:
		return number64(uint64(d.ProcessID))
	case prog.FieldPriority:
		return big.NewInt(int64(d.Priority))
	case prog.FieldLayer:
		u := it.a.Union() // the accessor has 8 bits of the 32
		return number64(uint64(u[12]) | uint64(u[13])<<8 | uint64(u[14])<<16 | uint64(u[15])<<24)
	}
	return nil
}

func (it item) flowValue(f prog.Field) *big.Int {
	d := it.a.Flow()
	switch f {
	case prog.FieldIP, prog.FieldIPv6:
		return number64(0)
	case prog.FieldFamilyIP:
		return flagValue(!it.a.IPv6)
	case prog.FieldFamilyIPv6:
		return flagValue(it.a.IPv6)
	case prog.FieldICMP:
		return flagValue(d.Protocol == 1 && !it.a.IPv6)
	case prog.FieldICMPv6:
		return flagValue(d.Protocol == 58 && it.a.IPv6)
	case prog.FieldTCP:
		return flagValue(d.Protocol == 6)
	case prog.FieldUDP:
		return flagValue(d.Protocol == 17)
	case prog.FieldProcessID:
		return number64(uint64(d.ProcessID))
	case prog.FieldLocalAddr:
		return addrNumber(d.LocalAddr)
	case prog.FieldRemoteAddr:
		return addrNumber(d.RemoteAddr)
	case prog.FieldLocalPort:
		return number64(uint64(d.LocalPort))
	case prog.FieldRemotePort:
		return number64(uint64(d.RemotePort))
	case prog.FieldProtocol:
		return number64(uint64(d.Protocol))
	case prog.FieldEndpointID:
		return number64(d.EndpointID)
	case prog.FieldParentEndpointID:
		return number64(d.ParentEndpointID)
	}
	return nil
}

func (it item) packetValue(t *prog.Test) *big.Int {
	p, b := it.p, it.b
	payload := p.Payload(b)
	switch f := t.Field; {
	case f == prog.FieldIfIdx:
		return number64(uint64(it.a.Network().IfIdx))
	case f == prog.FieldSubIfIdx:
		return number64(uint64(it.a.Network().SubIfIdx))
	case f == prog.FieldProtocol:
		return number64(uint64(p.Protocol))
	case f == prog.FieldFragment:
		return flagValue(p.Fragment)
	case f == prog.FieldLength:
		return number64(uint64(len(b)))
	case f == prog.FieldLocalAddr || f == prog.FieldRemoteAddr:
		return it.endAddr((f == prog.FieldLocalAddr) == it.a.Outbound)
	case f == prog.FieldLocalPort || f == prog.FieldRemotePort:
		return it.endPort((f == prog.FieldLocalPort) == it.a.Outbound)
	case f == prog.FieldRandom8:
		return number64(p.Hash(b, uint64(it.a.Timestamp)) << 8 >> 56)
	case f == prog.FieldRandom16:
		return number64(p.Hash(b, uint64(it.a.Timestamp)) << 16 >> 48)
	case f == prog.FieldRandom32:
		return number64(p.Hash(b, uint64(it.a.Timestamp)) & 0xFFFFFFFF)
	case f == prog.FieldIP:
		return flagValue(p.Family == 4)
	case f == prog.FieldIPv6:
		return flagValue(p.Family == 6)
	case f == prog.FieldICMP:
		return flagValue(p.ICMP(b) != nil)
	case f == prog.FieldICMPv6:
		return flagValue(p.ICMPv6(b) != nil)
	case f == prog.FieldTCP:
		return flagValue(p.TCP(b) != nil)
	case f == prog.FieldUDP:
		return flagValue(p.UDP(b) != nil)
	case f >= prog.FieldPacket && f <= prog.FieldPacket32:
		return bytesAt(b, int(t.Index), f.Info().Elem)
	case f >= prog.FieldTCPPayload && f <= prog.FieldTCPPayload32 && p.TCP(b) != nil,
		f >= prog.FieldUDPPayload && f <= prog.FieldUDPPayload32 && p.UDP(b) != nil:
		return bytesAt(payload, int(t.Index), f.Info().Elem)
	case f >= prog.FieldIPHdrLength && f <= prog.FieldIPDstAddr && p.Family == 4:
		return ipv4Value(f, p.IPv4(b))
	case (f >= prog.FieldIPv6TrafficClass && f <= prog.FieldIPv6DstAddr || f == prog.FieldFlowLabel) && p.Family == 6:
		return ipv6Value(f, p.IPv6(b))
	case f >= prog.FieldICMPType && f <= prog.FieldICMPBody && p.ICMP(b) != nil:
		return icmpValue(f-prog.FieldICMPType, p.ICMP(b))
	case f >= prog.FieldICMPv6Type && f <= prog.FieldICMPv6Body && p.ICMPv6(b) != nil:
		return icmpValue(f-prog.FieldICMPv6Type, p.ICMPv6(b))
	case f >= prog.FieldTCPSrcPort && f <= prog.FieldTCPPayloadLength && p.TCP(b) != nil:
		return tcpValue(f, p.TCP(b), len(payload))
	case f >= prog.FieldUDPSrcPort && f <= prog.FieldUDPPayloadLength && p.UDP(b) != nil:
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

func ipv4Value(f prog.Field, h packet.IPv4) *big.Int {
	return map[prog.Field]*big.Int{
		prog.FieldIPHdrLength: number64(uint64(h.HeaderLen() / 4)),
		prog.FieldIPTOS:       number64(uint64(h.TOS())),
		prog.FieldIPLength:    number64(uint64(h.Length())),
		prog.FieldIPID:        number64(uint64(h.ID())),
		prog.FieldIPDF:        flagValue(h.DF()),
		prog.FieldIPMF:        flagValue(h.MF()),
		prog.FieldIPFragOff:   number64(uint64(h.FragOff())),
		prog.FieldIPTTL:       number64(uint64(h.TTL())),
		prog.FieldIPProtocol:  number64(uint64(h.Protocol())),
		prog.FieldIPChecksum:  number64(uint64(h.Checksum())),
		prog.FieldIPSrcAddr:   addrNumber(h.Src()),
		prog.FieldIPDstAddr:   addrNumber(h.Dst()),
	}[f]
}

func ipv6Value(f prog.Field, h packet.IPv6) *big.Int {
	label := uint64(h.FlowLabel())
	return map[prog.Field]*big.Int{
		prog.FieldIPv6TrafficClass: number64(uint64(h.TrafficClass())),
		prog.FieldIPv6FlowLabel:    number64(label&0xFF00<<16 | label&0xFF<<16 | label>>16<<8),
		prog.FieldFlowLabel:        number64(label),
		prog.FieldIPv6Length:       number64(uint64(h.Length())),
		prog.FieldIPv6NextHdr:      number64(uint64(h.NextHeader())),
		prog.FieldIPv6HopLimit:     number64(uint64(h.HopLimit())),
		prog.FieldIPv6SrcAddr:      addrNumber(h.Src()),
		prog.FieldIPv6DstAddr:      addrNumber(h.Dst()),
	}[f]
}

func icmpValue(part prog.Field, h packet.ICMP) *big.Int {
	return []*big.Int{
		number64(uint64(h.Type())), number64(uint64(h.Code())),
		number64(uint64(h.Checksum())), number64(uint64(h.Body())),
	}[part]
}

func tcpValue(f prog.Field, h packet.TCP, payload int) *big.Int {
	flags := h.Flags()
	return map[prog.Field]*big.Int{
		prog.FieldTCPSrcPort:       number64(uint64(h.SrcPort())),
		prog.FieldTCPDstPort:       number64(uint64(h.DstPort())),
		prog.FieldTCPSeqNum:        number64(uint64(h.Seq())),
		prog.FieldTCPAckNum:        number64(uint64(h.Ack())),
		prog.FieldTCPHdrLength:     number64(uint64(h.HeaderLen() / 4)),
		prog.FieldTCPUrg:           flagValue(flags&0x20 != 0),
		prog.FieldTCPAck:           flagValue(flags&0x10 != 0),
		prog.FieldTCPPsh:           flagValue(flags&0x08 != 0),
		prog.FieldTCPRst:           flagValue(flags&0x04 != 0),
		prog.FieldTCPSyn:           flagValue(flags&0x02 != 0),
		prog.FieldTCPFin:           flagValue(flags&0x01 != 0),
		prog.FieldTCPWindow:        number64(uint64(h.Window())),
		prog.FieldTCPChecksum:      number64(uint64(h.Checksum())),
		prog.FieldTCPUrgPtr:        number64(uint64(h.Urgent())),
		prog.FieldTCPPayloadLength: number64(uint64(payload)),
	}[f]
}

func udpValue(f prog.Field, h packet.UDP, payload int) *big.Int {
	return map[prog.Field]*big.Int{
		prog.FieldUDPSrcPort:       number64(uint64(h.SrcPort())),
		prog.FieldUDPDstPort:       number64(uint64(h.DstPort())),
		prog.FieldUDPLength:        number64(uint64(h.Length())),
		prog.FieldUDPChecksum:      number64(uint64(h.Checksum())),
		prog.FieldUDPPayloadLength: number64(uint64(payload)),
	}[f]
}
