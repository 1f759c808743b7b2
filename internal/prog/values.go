package prog

import (
	"encoding/binary"

	"github.com/opendivert/divert/packet"
)

// Places in the layer data of an address, in bytes (specification: api.md 2.1).
const (
	netIfIdx    = 0
	netSubIfIdx = 4

	flowEndpointID       = 0
	flowParentEndpointID = 8
	flowProcessID        = 16
	flowLocalAddr        = 20
	flowRemoteAddr       = 36
	flowLocalPort        = 52
	flowRemotePort       = 54
	flowProtocol         = 56

	reflectProcessID = 8
	reflectLayer     = 12
	reflectPriority  = 24
)

// value returns the value of a field that has at most 32 bits, is not signed, and is not read directly from a header; ok
// is false if the value is not available. (Specification: filter-language.md 6.)
func (s *state) value(f Field) (v uint32, ok bool) {
	switch f {
	case FieldInbound:
		return bit(!s.addr.Outbound), true
	case FieldOutbound:
		return bit(s.addr.Outbound), true
	case FieldLoopback:
		return bit(s.addr.Loopback), true
	case FieldImpostor:
		return bit(s.addr.Impostor), true
	case FieldEvent:
		return uint32(s.addr.Event), true
	case FieldZero:
		return 0, true
	}
	switch {
	case s.parsed.Family != 0:
		return s.packetValue(f)
	case s.addr.Layer == packet.LayerReflect:
		return s.handleValue(f)
	}
	return s.flowValue(f)
}

// packetValue is value for the fields of the layers with packets only.
func (s *state) packetValue(f Field) (v uint32, ok bool) {
	p, data := s.parsed, s.addr.Union()
	switch f {
	case FieldIfIdx, FieldInterface:
		return binary.LittleEndian.Uint32(data[netIfIdx:]), true
	case FieldSubIfIdx:
		return binary.LittleEndian.Uint32(data[netSubIfIdx:]), true
	case FieldProtocol:
		return uint32(p.Protocol), true
	case FieldFragment:
		return bit(p.Fragment), true
	case FieldLength:
		return uint32(len(s.packet)), true
	case FieldLocalPort:
		return s.port(s.addr.Outbound), true
	case FieldRemotePort:
		return s.port(!s.addr.Outbound), true
	case FieldTCPPayloadLength:
		return uint32(p.PayloadLen), p.TCPOff >= 0
	case FieldUDPPayloadLength:
		return uint32(p.PayloadLen), p.UDPOff >= 0
	case FieldIPv6FlowLabel:
		return s.scrambledFlowLabel()
	case FieldRandom8:
		return uint32(s.random() >> 48 & 0xFF), true
	case FieldRandom16:
		return uint32(s.random() >> 32 & 0xFFFF), true
	case FieldRandom32:
		return uint32(s.random()), true
	}
	return 0, false
}

// flowValue is value for the fields of the layers FLOW and SOCKET only. Their packets have no
// headers: ip and ipv6 are never true (specification: filter-language.md 6, quirk).
func (s *state) flowValue(f Field) (v uint32, ok bool) {
	data := s.addr.Union()
	protocol := data[flowProtocol]
	switch f {
	case FieldIP, FieldIPv6:
		return 0, true
	case FieldFamilyIP:
		return bit(!s.addr.IPv6), true
	case FieldFamilyIPv6:
		return bit(s.addr.IPv6), true
	case FieldICMP:
		return bit(protocol == packet.ProtocolICMP && !s.addr.IPv6), true
	case FieldICMPv6:
		return bit(protocol == packet.ProtocolICMPv6 && s.addr.IPv6), true
	case FieldTCP:
		return bit(protocol == packet.ProtocolTCP), true
	case FieldUDP:
		return bit(protocol == packet.ProtocolUDP), true
	case FieldProtocol:
		return uint32(protocol), true
	case FieldProcessID:
		return binary.LittleEndian.Uint32(data[flowProcessID:]), true
	case FieldLocalPort:
		return uint32(binary.LittleEndian.Uint16(data[flowLocalPort:])), true
	case FieldRemotePort:
		return uint32(binary.LittleEndian.Uint16(data[flowRemotePort:])), true
	}
	return 0, false
}

// handleValue is value for the fields of the layer REFLECT only.
func (s *state) handleValue(f Field) (v uint32, ok bool) {
	data := s.addr.Union()
	switch f {
	case FieldProcessID:
		return binary.LittleEndian.Uint32(data[reflectProcessID:]), true
	case FieldLayer:
		return binary.LittleEndian.Uint32(data[reflectLayer:]), true
	}
	return 0, false
}

// port returns the source or the destination port. The type of an ICMP message stands in for
// its source port.
func (s *state) port(source bool) uint32 {
	p, b := s.parsed, s.packet
	if off := max(p.TCPOff, p.UDPOff); off >= 0 && len(b) >= int(off)+4 {
		if source {
			return uint32(binary.BigEndian.Uint16(b[off:]))
		}
		return uint32(binary.BigEndian.Uint16(b[off+2:]))
	}
	if off := max(p.ICMPOff, p.ICMPv6Off); source && off >= 0 && len(b) > int(off) {
		return uint32(b[off])
	}
	return 0
}

// scrambledFlowLabel is the original's value of the flow label: a slip in its byte order misplaces three bytes of the
// first word (specification: filter-language.md 6, quirk).
func (s *state) scrambledFlowLabel() (v uint32, ok bool) {
	if s.parsed.IPv6Off < 0 || len(s.packet) < 4 {
		return 0, false
	}
	b := s.packet
	return uint32(b[2])<<24 | uint32(b[3])<<16 | uint32(b[1]&0x0F)<<8, true
}

// random returns the hash that supplies the random fields. The bits 56 to 63, which no field shows, are set, so it is
// never 0.
func (s *state) random() uint64 {
	if s.hash == 0 {
		s.hash = s.parsed.Hash(s.packet, uint64(s.addr.Timestamp)) | 0xFF<<56
	}
	return s.hash
}

// wideValue returns the value of a field of more than 32 bits or with a sign, in the order of orderKey. Such fields are
// always available, except for the addresses of an IPv6 header.
func (s *state) wideValue(f Field) (v Value, ok bool) {
	switch f {
	case FieldTimestamp:
		return signedKey(s.addr.Timestamp), true
	case FieldProcess:
		return s.processName(), true
	case FieldIPv6SrcAddr:
		return s.headerAddr(s.parsed.IPv6Off >= 0, true)
	case FieldIPv6DstAddr:
		return s.headerAddr(s.parsed.IPv6Off >= 0, false)
	}
	if s.parsed.Family != 0 {
		switch f {
		case FieldLocalAddr:
			return s.headerAddr(true, s.addr.Outbound)
		case FieldRemoteAddr:
			return s.headerAddr(true, !s.addr.Outbound)
		}
		return Value{}, false
	}
	data := s.addr.Union()
	switch f {
	case FieldLocalAddr:
		return addrValue(data[flowLocalAddr:]), true
	case FieldRemoteAddr:
		return addrValue(data[flowRemoteAddr:]), true
	case FieldEndpointID:
		return Value{Lo: binary.LittleEndian.Uint64(data[flowEndpointID:])}, true
	case FieldParentEndpointID:
		return Value{Lo: binary.LittleEndian.Uint64(data[flowParentEndpointID:])}, true
	case FieldPriority:
		return signedKey(int64(int16(binary.LittleEndian.Uint16(data[reflectPriority:])))), true
	}
	return Value{}, false
}

// processName returns the value of the name in the address.
func (s *state) processName() Value {
	var name [MaxProcessName + 1]byte
	s.addr.AppendProcessName(name[:0])
	return nameValue(name)
}

// signedKey is orderKey for values of the signed fields.
func signedKey(v int64) Value {
	sign := uint64(v >> 63)                              // 0 or -1
	return Value{Hi: 1<<63 + sign, Lo: uint64(v) + sign} // negative zero takes the place of -1
}

// headerAddr returns the source or destination address of the IP header, mapped if it is of IPv4.
func (s *state) headerAddr(available, source bool) (v Value, ok bool) {
	b, be := s.packet, binary.BigEndian
	if s.parsed.Family == 4 {
		if !available || len(b) < packet.IPv4HeaderLen {
			return Value{}, false
		}
		if source {
			return Value{Lo: ipv4Prefix | uint64(be.Uint32(b[12:]))}, true
		}
		return Value{Lo: ipv4Prefix | uint64(be.Uint32(b[16:]))}, true
	}
	if !available || len(b) < packet.IPv6HeaderLen {
		return Value{}, false
	}
	if source {
		b = b[8:]
	} else {
		b = b[24:]
	}
	return Value{Hi: be.Uint64(b), Lo: be.Uint64(b[8:])}, true
}

// addrValue reads an address of the layer data: four 32-bit words, the least significant first.
func addrValue(b []byte) Value {
	return Value{Hi: binary.LittleEndian.Uint64(b[8:]), Lo: binary.LittleEndian.Uint64(b)}
}

func bit(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
