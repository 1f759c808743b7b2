package capfile

import "fmt"

// linkType is the kind of header at the beginning of a capture's frames (tcpdump.org/linktypes.html). The bits above the
// lowest 16 have another meaning: whether frames end with a check sequence, and its length.
type linkType uint32

// LinkTypeRaw is the type of frames that are IP packets.
const LinkTypeRaw linkType = 101

func (l linkType) number() uint16 { return uint16(l) }

// String returns the number, with the name if it is known here.
func (l linkType) String() string {
	if name := linkNames[l.number()]; name != "" {
		return fmt.Sprintf("%d (%s)", l.number(), name)
	}
	return fmt.Sprint(l.number())
}

// linkNames are the names of frequent link types that are not understood.
var linkNames = map[uint16]string{
	3: "AX.25", 6: "Token Ring", 7: "ARCNET", 8: "SLIP", 10: "FDDI", 100: "ATM, RFC 1483", 107: "Frame Relay",
	119: "802.11 with Prism header", 122: "IP over Fibre Channel", 138: "IEEE 1394", 143: "DOCSIS", 144: "IrDA",
	163: "802.11 with AVS header", 165: "BACnet", 187: "Bluetooth HCI", 189: "USB", 192: "PPI", 195: "IEEE 802.15.4",
	201: "Bluetooth HCI", 215: "IEEE 802.15.4", 220: "USB", 227: "CAN", 230: "IEEE 802.15.4", 242: "IP over InfiniBand",
	247: "InfiniBand", 248: "SCTP", 249: "USB of Windows", 251: "Bluetooth LE", 252: "Wireshark's upper PDU", 253: "Netlink",
	254: "Bluetooth monitor", 256: "Bluetooth LE", 258: "packets of macOS's PKTAP", 265: "Ethernet of mPackets", 272: "DisplayPort",
	147: "USER0", 148: "USER1", 149: "USER2", 150: "USER3",
}

// linkLayers remove the header of a link type from a frame. They return the rest if it is an IP packet, or nothing, and
// the direction if the header has it.
var linkLayers = map[uint16]func([]byte) ([]byte, Direction){
	101: bare, 228: bare, 229: bare, // RAW, IPV4, IPV6
	12: bare, 14: bare, // RAW in files with the DLT numbers of BSD and OpenBSD
	0: after(4), 108: after(4), // NULL, LOOP: the address family
	1:   ethernet,
	9:   ppp,
	50:  ppp, // with HDLC framing
	51:  func(b []byte) ([]byte, Direction) { return pppoe(b), Unknown },
	104: func(b []byte) ([]byte, Direction) { return ciscoHDLC(b), Unknown },
	105: func(b []byte) ([]byte, Direction) { return wireless(b), Unknown },
	109: after(12), // ENC of OpenBSD: family, SPI, flags
	113: func(b []byte) ([]byte, Direction) { return cooked(b, 16, 14, 1) },
	117: packetFilterLog,
	127: radiotap,
	239: func(b []byte) ([]byte, Direction) { return netfilterLog(b), Unknown },
	276: func(b []byte) ([]byte, Direction) { return cooked(b, 20, 0, 10) },
}

func bare(b []byte) ([]byte, Direction) { return b, Unknown }

// after removes headers of a fixed length, in bytes.
func after(n int) func([]byte) ([]byte, Direction) {
	return func(b []byte) ([]byte, Direction) { return b[min(n, len(b)):], Unknown }
}

// The EtherTypes (IANA IEEE 802 numbers).
const (
	etherIPv4    = 0x0800
	etherIPv6    = 0x86DD
	etherVLAN    = 0x8100
	etherService = 0x88A8 // outer VLAN tag
	etherOldQinQ = 0x9100 // the same, from before etherService existed
	etherPPPoE   = 0x8864 // of a session
	etherMaxSize = 1500   // up to here the field is a length (IEEE 802.3), and LLC follows
)

// ethernet removes an Ethernet header.
func ethernet(b []byte) ([]byte, Direction) {
	if len(b) < 14 {
		return nil, Unknown
	}
	return byEtherType(b[12:]), Unknown
}

// byEtherType returns the IP packet behind an EtherType, without VLAN tags and the like between them.
func byEtherType(b []byte) []byte {
	for len(b) >= 2 {
		t := be16(b)
		switch b = b[2:]; {
		case t == etherIPv4, t == etherIPv6:
			return b
		case t == etherPPPoE:
			return pppoe(b)
		case t <= etherMaxSize:
			return subnetwork(b)
		case t != etherVLAN && t != etherService && t != etherOldQinQ || len(b) < 2:
			return nil
		}
		b = b[2:] // the tag
	}
	return nil
}

// subnetwork removes headers of LLC and SNAP (IEEE 802.2, RFC 1042): aa aa 03, an organisation, an EtherType.
func subnetwork(b []byte) []byte {
	if len(b) < 8 || b[0] != 0xaa || b[1] != 0xaa || b[2] != 3 {
		return nil
	}
	return byEtherType(b[6:])
}

// The protocols of PPP (RFC 1332, RFC 5072).
const (
	pppIPv4 = 0x0021
	pppIPv6 = 0x0057
)

// ppp removes a PPP header, with or without the address and control bytes ff 03 in front (RFC 1661, RFC 1662).
func ppp(b []byte) ([]byte, Direction) {
	if len(b) >= 2 && b[0] == 0xff && b[1] == 3 {
		b = b[2:]
	}
	return pppProtocol(b), Unknown
}

// pppProtocol removes the protocol, which has one byte if that is odd.
func pppProtocol(b []byte) []byte {
	if len(b) < 2 {
		return nil
	}
	protocol, size := be16(b), 2
	if b[0]&1 != 0 {
		protocol, size = uint16(b[0]), 1
	}
	if protocol != pppIPv4 && protocol != pppIPv6 {
		return nil
	}
	return b[size:]
}

// pppoe removes a PPPoE header of a session, whose code is 0 (RFC 2516).
func pppoe(b []byte) []byte {
	if len(b) < 6 || b[0] != 0x11 || b[1] != 0 {
		return nil
	}
	return pppProtocol(b[6:])
}

// ciscoHDLC removes an address and a control byte, and an EtherType; or a PPP header, which such lines carry too.
func ciscoHDLC(b []byte) []byte {
	if len(b) < 4 {
		return nil
	}
	if b[0] == 0xff && b[1] == 3 {
		return pppProtocol(b[2:])
	}
	return byEtherType(b[2:])
}

// wireless removes the header of a data frame (IEEE 802.11 9.2.3), unless the frame is encrypted.
func wireless(b []byte) []byte {
	const (
		typeData                    = 2
		noData, qos                 = 4, 8 // bits of the subtype
		toSystem, fromSystem        = 1, 2 // flags
		protected, order            = 0x40, 0x80
		headerLen, address4, qosLen = 24, 6, 2
	)
	if len(b) < headerLen || b[0]&3 != 0 || b[0]>>2&3 != typeData {
		return nil
	}
	subtype, flags, at := b[0]>>4, b[1], headerLen
	if subtype&noData != 0 || flags&protected != 0 {
		return nil
	}
	if flags&(toSystem|fromSystem) == toSystem|fromSystem {
		at += address4
	}
	if subtype&qos != 0 {
		at += qosLen
		if flags&order != 0 {
			at += 4 // HT control
		}
	}
	return subnetwork(b[min(at, len(b)):])
}

// radiotap removes a radiotap header (radiotap.org), which has its length in it, and the frame's header.
func radiotap(b []byte) ([]byte, Direction) {
	if len(b) < 8 || b[0] != 0 {
		return nil, Unknown
	}
	return wireless(b[min(int(b[2])|int(b[3])<<8, len(b)):]), Unknown
}

// packetFilterLog removes a header of OpenBSD's pflog. It begins with its length without padding; its direction is 1 for
// in and 2 for out.
func packetFilterLog(b []byte) ([]byte, Direction) {
	const way = 60
	if len(b) <= way {
		return nil, Unknown
	}
	packet := b[min((int(b[0])+3)&^3, len(b)):]
	switch b[way] {
	case 1:
		return packet, In
	case 2:
		return packet, Out
	}
	return packet, Unknown
}

// netfilterLog returns the packet in a message of Linux's nflog: version and family, a group, and attributes, each with a
// length and a type in the writer's byte order; type 9 is the packet (linux/netfilter/nfnetlink_log.h).
func netfilterLog(b []byte) []byte {
	const payload = 9
	for b = b[min(4, len(b)):]; len(b) >= 4; {
		// Lengths are below 2¹⁶ and mostly below 256, which shows the byte order if the type is the payload's.
		length, kind := int(b[0])|int(b[1])<<8, int(b[2])|int(b[3])<<8
		if kind > 255 {
			length, kind = int(be16(b)), int(be16(b[2:]))
		}
		if length < 4 || length > len(b) {
			return nil
		}
		if kind == payload {
			return b[4:length]
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}

// OutgoingPacket is the packet type of sent packets, in the headers of LINUX_SLL and LINUX_SLL2.
const OutgoingPacket = 4

// cookedDirection returns the direction of a packet type of Linux.
func cookedDirection(packetType byte) Direction {
	if packetType == OutgoingPacket {
		return Out
	}
	return In
}

// cooked removes a header of Linux's cooked captures: its size, and the offsets of the EtherType and of the low byte of
// the packet type.
func cooked(b []byte, size, etherType, packetType int) ([]byte, Direction) {
	if len(b) < size {
		return nil, Unknown
	}
	way := cookedDirection(b[packetType])
	switch be16(b[etherType:]) {
	case etherIPv4, etherIPv6:
		return b[size:], way
	case etherVLAN, etherService:
		return byVLAN(b[size:]), way
	}
	return nil, way
}

// byVLAN returns the IP packet behind a VLAN tag, whose EtherType has been read.
func byVLAN(b []byte) []byte {
	if len(b) < 4 {
		return nil
	}
	return byEtherType(b[2:])
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
