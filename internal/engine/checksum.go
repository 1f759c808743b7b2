package engine

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"github.com/opendivert/divert/packet"
)

// complete computes the checksums that the address marks as missing. For a new packet they are those of
// packet.CalcChecksums, as in the original. For a captured one, whose sum a kernel may have left unfinished, it does more
// in two cases: on a source route the checksum covers the final destination, where it will be verified, like the
// kernel's; and it computes the CRC32c of SCTP if TCPChecksum and UDPChecksum are both false.
func complete(b []byte, a *packet.Address, captured bool) {
	skip := packet.NoICMPChecksum | packet.NoICMPv6Checksum
	if a.IPChecksum {
		skip |= packet.NoIPChecksum
	}
	if a.TCPChecksum {
		skip |= packet.NoTCPChecksum
	}
	if a.UDPChecksum {
		skip |= packet.NoUDPChecksum
	}
	// CalcChecksums records its checksums in an address. It skips the transport checksum of a fragment, which is no
	// failure of Send.
	var written packet.Address
	packet.CalcChecksums(b, &written, skip)
	if !captured || !special(b) {
		return
	}
	var p packet.Parsed
	if !p.ParseExact(b) {
		return
	}
	switch {
	case written.TCPChecksum:
		coverEnds(&p, b, b[p.TCPOff+16:])
	case written.UDPChecksum:
		if field := b[p.UDPOff+6:]; coverEnds(&p, b, field) && field[0]|field[1] == 0 {
			binary.BigEndian.PutUint16(field, 0xFFFF) // 0 means no checksum (RFC 768)
		}
	case p.Protocol == protocolSCTP && !a.TCPChecksum && !a.UDPChecksum:
		writeSCTP(&p, b)
	}
}

// protocolSCTP is SCTP's protocol number.
const protocolSCTP = 132

// special reports whether a whole packet may have a checksum that packet.CalcChecksums does not know. For nearly all
// packets two bytes decide.
func special(b []byte) bool {
	if b[0]>>4 == 4 {
		return b[0]&0x0F > packet.IPv4HeaderLen/4 || b[9] == protocolSCTP
	}
	return b[6] != packet.ProtocolTCP && b[6] != packet.ProtocolUDP
}

// coverEnds makes the checksum in field cover the packet's ends instead of the addresses in its IP header, and reports
// whether these differ.
func coverEnds(p *packet.Parsed, b, field []byte) bool {
	src, dst, differ := p.Ends(b)
	if !differ {
		return false
	}
	sum := binary.BigEndian.Uint16(field)
	if p.Family == 4 {
		sum = packet.UpdateChecksum32(sum, binary.BigEndian.Uint32(b[16:]), word(dst))
	} else {
		sum = packet.UpdateChecksum128(sum, [16]byte(b[8:24]), src.As16())
		sum = packet.UpdateChecksum128(sum, [16]byte(b[24:40]), dst.As16())
	}
	binary.BigEndian.PutUint16(field, sum)
	return true
}

// word returns an IPv4 address as a number.
func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// sctpHeaderLen is the length of SCTP's common header, in bytes, and sctpField the offset of its checksum (RFC 9260
// section 3.1).
const (
	sctpHeaderLen = 12
	sctpField     = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeSCTP writes the CRC32c of an SCTP packet, unless it is a fragment or ends within its header. The least significant
// byte of the sum comes first (RFC 9260 appendix A).
func writeSCTP(p *packet.Parsed, b []byte) {
	segment := b[p.HeaderLen:]
	if p.MF || p.FragOff != 0 || len(segment) < sctpHeaderLen {
		return
	}
	field := segment[sctpField:]
	binary.LittleEndian.PutUint32(field, 0)
	binary.LittleEndian.PutUint32(field, crc32.Checksum(segment, castagnoli))
}

// Unfinish writes the sum of the pseudo-header into the checksum field of a whole TCP packet without extension headers or
// fragments, as the kernel leaves it to hardware. It leaves other packets alone.
func Unfinish(b []byte) {
	var p packet.Parsed
	if p.ParseExact(b) && p.TCPOff >= 0 && !p.Extended && !p.Fragment {
		binary.BigEndian.PutUint16(b[p.TCPOff+16:], p.PseudoHeaderSum(b))
	}
}

// Unfinished reports whether the kernel has left a copy's transport checksum to the network card: the field holds only
// the sum of the pseudo-header, in SCTP 0. It needs only the headers of the packet.
func Unfinished(b []byte) bool {
	var p packet.Parsed
	if !p.Parse(b) || p.Extended || p.Fragment {
		return false
	}
	sum, field := p.PseudoHeaderSum(b), 0
	switch {
	case p.TCPOff >= 0:
		field = int(p.TCPOff) + 16
	case p.UDPOff >= 0:
		field = int(p.UDPOff) + 6
	case p.Protocol == protocolSCTP && len(b) >= int(p.HeaderLen)+sctpHeaderLen:
		return binary.LittleEndian.Uint32(b[p.HeaderLen+sctpField:]) == 0
	default:
		return false
	}
	there := binary.BigEndian.Uint16(b[field:])
	if there == sum {
		return true
	}
	sum = ^sum
	var pseudo [2]byte
	binary.BigEndian.PutUint16(pseudo[:], sum)
	return coverEnds(&p, b, pseudo[:]) && there == ^binary.BigEndian.Uint16(pseudo[:])
}
