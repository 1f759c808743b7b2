//go:build linux

package nfnl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sizes of the fixed parts, in bytes (linux/netlink.h, linux/netfilter/nfnetlink.h).
const (
	HeaderLen = unix.SizeofNlMsghdr + 4 // netlink header and nfgenmsg
	AttrLen   = 4                       // attribute header
)

// Align rounds a length up to the alignment of netlink messages and attributes.
func Align(n int) int { return (n + 3) &^ 3 }

// Type returns the type field of a message of an nfnetlink subsystem.
func Type(subsystem, msg uint16) uint16 { return subsystem<<8 | msg }

// AppendHeader appends the headers of an nfnetlink message: length (host order), type, flags, and the
// resource id (a queue or group number). The length counts the headers.
func AppendHeader(b []byte, length int, typ, flags, resource uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(length))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence, port: nobody reads them
	b = append(b, unix.AF_UNSPEC, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, resource)
}

// AppendAttr appends the header of an attribute whose payload has n bytes.
func AppendAttr(b []byte, typ uint16, n int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(AttrLen+n))
	return binary.NativeEndian.AppendUint16(b, typ)
}

// AppendAttr32 appends an attribute that holds a 32-bit number in network order.
func AppendAttr32(b []byte, typ uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(AppendAttr(b, typ, 4), v)
}

// Message is a configuration message under construction.
type Message struct{ b []byte }

// NewMessage begins a message of the given type for a resource.
func NewMessage(typ, resource uint16) *Message {
	return &Message{b: AppendHeader(nil, 0, typ, 0, resource)}
}

// Family sets the protocol family that the message is about; without it that is AF_UNSPEC.
func (m *Message) Family(family uint8) *Message {
	m.b[unix.NLMSG_HDRLEN] = family
	return m
}

// Attr adds an attribute; the payload's numbers are in network order.
func (m *Message) Attr(typ uint16, payload ...byte) *Message {
	m.b = append(AppendAttr(m.b, typ, len(payload)), payload...)
	for len(m.b) != Align(len(m.b)) {
		m.b = append(m.b, 0)
	}
	return m
}

// Attr32 adds a 32-bit attribute.
func (m *Message) Attr32(typ uint16, v uint32) *Message {
	m.b = AppendAttr32(m.b, typ, v)
	return m
}

// finish sets length and flags and returns the bytes of the message.
func (m *Message) finish(flags uint16) []byte {
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	binary.NativeEndian.PutUint16(m.b[6:], flags)
	return m.b
}

// MessageIter walks the messages of a datagram.
type MessageIter struct {
	Type     uint16 // of the current message
	Resource uint16 // its resource id
	Body     []byte // its attributes, or all after the netlink header if it is no nfnetlink message

	rest []byte
}

// Messages returns an iterator over the messages of a datagram from the kernel. A damaged tail ends it.
func Messages(b []byte) MessageIter { return MessageIter{rest: b} }

// Next goes to the next message and reports whether there is one.
func (it *MessageIter) Next() bool {
	if len(it.rest) < unix.SizeofNlMsghdr {
		return false
	}
	n := int(binary.NativeEndian.Uint32(it.rest))
	if n < unix.SizeofNlMsghdr || n > len(it.rest) {
		return false
	}
	it.Type = binary.NativeEndian.Uint16(it.rest[4:])
	it.Resource = 0
	it.Body = it.rest[unix.SizeofNlMsghdr:n]
	if it.Type >= unix.NLMSG_MIN_TYPE && n >= HeaderLen {
		it.Resource = binary.BigEndian.Uint16(it.rest[HeaderLen-2:])
		it.Body = it.rest[HeaderLen:n]
	}
	it.rest = it.rest[min(Align(n), len(it.rest)):]
	return true
}

// Errno returns the error of an NLMSG_ERROR message: nil for an acknowledgement.
func (it *MessageIter) Errno() error {
	if len(it.Body) < 4 {
		return unix.EBADMSG
	}
	if code := int32(binary.NativeEndian.Uint32(it.Body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// AttrIter walks the attributes of a message.
type AttrIter struct {
	Type uint16 // of the current attribute, without its flag bits
	Data []byte // its payload

	rest []byte
}

// Attrs returns an iterator over attributes. A damaged tail ends it.
func Attrs(b []byte) AttrIter { return AttrIter{rest: b} }

// Next goes to the next attribute and reports whether there is one.
func (it *AttrIter) Next() bool {
	if len(it.rest) < AttrLen {
		return false
	}
	n := int(binary.NativeEndian.Uint16(it.rest))
	if n < AttrLen || n > len(it.rest) {
		return false
	}
	it.Type = binary.NativeEndian.Uint16(it.rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	it.Data = it.rest[AttrLen:n]
	it.rest = it.rest[min(Align(n), len(it.rest)):]
	return true
}

// Uint32 returns a 32-bit attribute in host order, 0 if it is shorter.
func (it *AttrIter) Uint32() uint32 {
	if len(it.Data) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(it.Data)
}

// Time returns an attribute with a time of the wall clock, in ns since 1970, 0 if it is shorter. The kernel writes seconds and
// microseconds (struct nfqnl_msg_packet_timestamp, struct nfulnl_msg_packet_timestamp).
func (it *AttrIter) Time() int64 {
	if len(it.Data) < 16 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(it.Data)*1e9 + binary.BigEndian.Uint64(it.Data[8:])*1e3)
}
