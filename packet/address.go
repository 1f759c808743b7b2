package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/opendivert/divert/internal/clock"
)

// Layer is the part of the network stack in which a handle works. Its values are those of WINDIVERT_LAYER (specification:
// api.md 1.1).
type Layer uint8

// The layers.
const (
	LayerNetwork Layer = iota // IP packets to and from this host
	LayerForward              // IP packets routed through this host
	LayerFlow                 // flows established and deleted
	LayerSocket               // bind, connect, listen, accept, close
	LayerReflect              // other handles opened and closed
	NumLayers                 // number of layers
)

var layerNames = [NumLayers]string{"NETWORK", "NETWORK_FORWARD", "FLOW", "SOCKET", "REFLECT"}

// String returns the layer's name in the filter language.
func (l Layer) String() string {
	if l < NumLayers {
		return layerNames[l]
	}
	return fmt.Sprintf("Layer(%d)", uint8(l))
}

// Event is the kind of a packet or event. Its values are those of WINDIVERT_EVENT (specification: api.md 1.1).
type Event uint8

// The events, each with the layer that raises it.
const (
	EventPacket          Event = iota // NETWORK, NETWORK_FORWARD
	EventFlowEstablished              // FLOW
	EventFlowDeleted                  // FLOW
	EventSocketBind                   // SOCKET
	EventSocketConnect                // SOCKET
	EventSocketListen                 // SOCKET
	EventSocketAccept                 // SOCKET
	EventSocketClose                  // SOCKET
	EventReflectOpen                  // REFLECT
	EventReflectClose                 // REFLECT
	NumEvents                         // number of events
)

var eventNames = [NumEvents]string{
	"PACKET", "ESTABLISHED", "DELETED", "BIND", "CONNECT", "LISTEN", "ACCEPT", "CLOSE", "OPEN", "CLOSE",
}

// String returns the event's macro in the filter language.
func (e Event) String() string {
	if e < NumEvents {
		return eventNames[e]
	}
	return fmt.Sprintf("Event(%d)", uint8(e))
}

// AddressSize is the size of an Address in its C layout, in bytes.
const AddressSize = 80

// unionSize is the size of the layer data in the C layout, in bytes.
const unionSize = 64

// Address describes a captured packet or event beyond its bytes, and tells Send how to inject a packet: the WINDIVERT_ADDRESS
// of the specification (api.md 2.1).
//
// It is a plain value: copy it freely. The address of a received packet also identifies that packet in the kernel, in
// bytes of the layer data that the C interface leaves unused; Send with a copy of it lets that very packet go on.
type Address struct {
	Timestamp int64 // time of the capture, in ticks of the monotonic clock (Linux: nanoseconds)
	Layer     Layer
	Event     Event

	Sniffed     bool // a copy: the packet itself went on, or the event was not held up
	Outbound    bool // leaves this host; on Send: inject on the way out
	Loopback    bool // from this host to itself
	Impostor    bool // injected by another program; on Send: its TTL is decremented
	IPv6        bool
	IPChecksum  bool // the IPv4 header checksum in the packet is right; false on Send: recompute it
	TCPChecksum bool // the same for TCP
	UDPChecksum bool // the same for UDP

	reserved1 uint8
	reserved2 uint32
	length    uint32                // see PacketLength
	name      [ProcessNameSize]byte // see ProcessName
	data      [unionSize]byte       // the layer data in its C layout, little-endian
}

// ProcessNameSize is the size of a process's name in bytes, with its terminating zero: TASK_COMM_LEN of Linux.
const ProcessNameSize = 16

// ProcessName returns the name that the process had at the time of the event, "" if it is unknown. It also names
// processes that have ended since. On Linux, events of the layers SOCKET and FLOW have it: the kernel's comm of the
// acting thread, at most 15 bytes, which is the name of its process unless the thread has given itself another. Incoming
// connections, and UDP packets at the layer FLOW, name the process that last created, bound or connected the socket or
// made it listen. Base no decision on the name: every process may choose its own. The C layout has no room for it, so
// MarshalBinary loses it.
func (a *Address) ProcessName() string {
	name, _, _ := bytes.Cut(a.name[:], []byte{0})
	return string(name)
}

// AppendProcessName appends the name that ProcessName returns.
func (a *Address) AppendProcessName(b []byte) []byte {
	name, _, _ := bytes.Cut(a.name[:], []byte{0})
	return append(b, name...)
}

// SetProcessName sets the name, with zeros behind it.
func (a *Address) SetProcessName(name [ProcessNameSize]byte) { a.name = name }

// PacketLength returns the length of a packet in bytes if the handle delivered only its beginning, else 0. It serves
// packets of BIG TCP, whose IP header does not tell their length. Handles of Linux set it. The C layout has no room for
// it.
func (a *Address) PacketLength() int { return int(a.length) }

// SetPacketLength sets the length that PacketLength returns.
func (a *Address) SetPacketLength(n int) { a.length = uint32(n) }

// Time returns the time of the packet or event: the wall clock now, less the age of Timestamp. If the wall clock was set
// since, the new setting counts. The monotonic clock stops while the system sleeps, so the time of a packet from before a
// sleep is late by that sleep. Two calls may differ by some hundred nanoseconds; to measure between packets, subtract
// their Timestamps. An address with the Timestamp 0 has the zero Time. Time allocates nothing; on Linux it makes no
// system call.
func (a *Address) Time() time.Time {
	if a.Timestamp == 0 {
		return time.Time{}
	}
	return clock.At(a.Timestamp)
}

// NetworkData is the layer data of the layers NETWORK and NETWORK_FORWARD.
type NetworkData struct {
	IfIdx    uint32 // interface index
	SubIfIdx uint32 // sub-interface index, 0 on Linux

	// ProcessID is the process that sent the packet or receives it, 0 if unknown or none. Handles of LayerNetwork fill it
	// if their filter tests processId, or on request; Send ignores it. WinDivert has no such member: it lies in bytes 36
	// to 39 of the union, which are unused there.
	ProcessID uint32
}

// networkProcessID is the offset of a packet's process in the layer data.
const networkProcessID = 36

// FlowData is the layer data of the layers FLOW and SOCKET. IPv4 addresses are kept mapped
// (::ffff:a.b.c.d); the accessors give them unmapped. An address of all zeros is "::".
type FlowData struct {
	EndpointID       uint64
	ParentEndpointID uint64
	ProcessID        uint32
	LocalAddr        netip.Addr
	RemoteAddr       netip.Addr
	LocalPort        uint16
	RemotePort       uint16
	Protocol         uint8 // IP protocol number
}

// ReflectData is the layer data of the layer REFLECT: the handle that was opened or closed.
type ReflectData struct {
	Timestamp int64 // time at which that handle was opened
	ProcessID uint32
	Layer     Layer
	Flags     uint64
	Priority  int16
}

// Network returns the layer data of an address of the layers NETWORK and NETWORK_FORWARD.
func (a *Address) Network() NetworkData {
	return NetworkData{
		IfIdx:    binary.LittleEndian.Uint32(a.data[0:]),
		SubIfIdx: binary.LittleEndian.Uint32(a.data[4:]),

		ProcessID: binary.LittleEndian.Uint32(a.data[networkProcessID:]),
	}
}

// SetNetwork sets the layer data of an address of the layers NETWORK and NETWORK_FORWARD.
func (a *Address) SetNetwork(d NetworkData) {
	binary.LittleEndian.PutUint32(a.data[0:], d.IfIdx)
	binary.LittleEndian.PutUint32(a.data[4:], d.SubIfIdx)
	binary.LittleEndian.PutUint32(a.data[networkProcessID:], d.ProcessID)
}

// Flow returns the layer data of an address of the layers FLOW and SOCKET.
func (a *Address) Flow() FlowData {
	le := binary.LittleEndian
	return FlowData{
		EndpointID:       le.Uint64(a.data[0:]),
		ParentEndpointID: le.Uint64(a.data[8:]),
		ProcessID:        le.Uint32(a.data[16:]),
		LocalAddr:        addrFromWords(a.data[20:36]),
		RemoteAddr:       addrFromWords(a.data[36:52]),
		LocalPort:        le.Uint16(a.data[52:]),
		RemotePort:       le.Uint16(a.data[54:]),
		Protocol:         a.data[56],
	}
}

// SetFlow sets the layer data of an address of the layers FLOW and SOCKET. Zones are dropped;
// the zero netip.Addr becomes all zeros.
func (a *Address) SetFlow(d FlowData) {
	le := binary.LittleEndian
	le.PutUint64(a.data[0:], d.EndpointID)
	le.PutUint64(a.data[8:], d.ParentEndpointID)
	le.PutUint32(a.data[16:], d.ProcessID)
	putWords(a.data[20:36], d.LocalAddr)
	putWords(a.data[36:52], d.RemoteAddr)
	le.PutUint16(a.data[52:], d.LocalPort)
	le.PutUint16(a.data[54:], d.RemotePort)
	a.data[56] = d.Protocol
}

// Reflect returns the layer data of an address of the layer REFLECT.
func (a *Address) Reflect() ReflectData {
	le := binary.LittleEndian
	return ReflectData{
		Timestamp: int64(le.Uint64(a.data[0:])),
		ProcessID: le.Uint32(a.data[8:]),
		Layer:     Layer(le.Uint32(a.data[12:])),
		Flags:     le.Uint64(a.data[16:]),
		Priority:  int16(le.Uint16(a.data[24:])),
	}
}

// SetReflect sets the layer data of an address of the layer REFLECT.
func (a *Address) SetReflect(d ReflectData) {
	le := binary.LittleEndian
	le.PutUint64(a.data[0:], uint64(d.Timestamp))
	le.PutUint32(a.data[8:], d.ProcessID)
	le.PutUint32(a.data[12:], uint32(d.Layer))
	le.PutUint64(a.data[16:], d.Flags)
	le.PutUint16(a.data[24:], uint16(d.Priority))
}

// Union returns the layer data in its C layout: 64 bytes, little-endian, the union of
// WINDIVERT_ADDRESS. It is the address's own memory, for the engines and the C interface.
func (a *Address) Union() *[unionSize]byte { return &a.data }

// The bits of the flag word that follow layer and event (api.md 2.1).
const (
	bitSniffed = 1 << (16 + iota)
	bitOutbound
	bitLoopback
	bitImpostor
	bitIPv6
	bitIPChecksum
	bitTCPChecksum
	bitUDPChecksum
)

// AppendBinary appends the 80 bytes of the C layout to b.
func (a *Address) AppendBinary(b []byte) ([]byte, error) {
	word := uint32(a.Layer) | uint32(a.Event)<<8 | uint32(a.reserved1)<<24
	for _, f := range [...]struct {
		set bool
		bit uint32
	}{
		{a.Sniffed, bitSniffed}, {a.Outbound, bitOutbound}, {a.Loopback, bitLoopback},
		{a.Impostor, bitImpostor}, {a.IPv6, bitIPv6}, {a.IPChecksum, bitIPChecksum},
		{a.TCPChecksum, bitTCPChecksum}, {a.UDPChecksum, bitUDPChecksum},
	} {
		if f.set {
			word |= f.bit
		}
	}
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(a.Timestamp))
	b = le.AppendUint32(b, word)
	b = le.AppendUint32(b, a.reserved2)
	return append(b, a.data[:]...), nil
}

// MarshalBinary returns the 80 bytes of the C layout.
func (a *Address) MarshalBinary() ([]byte, error) {
	return a.AppendBinary(make([]byte, 0, AddressSize))
}

// UnmarshalBinary sets a from the 80 bytes of the C layout. Every pattern of 80 bytes is an address.
func (a *Address) UnmarshalBinary(b []byte) error {
	if len(b) != AddressSize {
		return fmt.Errorf("packet: an address has %d bytes, got %d", AddressSize, len(b))
	}
	le := binary.LittleEndian
	word := le.Uint32(b[8:])
	*a = Address{
		Timestamp:   int64(le.Uint64(b)),
		Layer:       Layer(word),
		Event:       Event(word >> 8),
		Sniffed:     word&bitSniffed != 0,
		Outbound:    word&bitOutbound != 0,
		Loopback:    word&bitLoopback != 0,
		Impostor:    word&bitImpostor != 0,
		IPv6:        word&bitIPv6 != 0,
		IPChecksum:  word&bitIPChecksum != 0,
		TCPChecksum: word&bitTCPChecksum != 0,
		UDPChecksum: word&bitUDPChecksum != 0,
		reserved1:   uint8(word >> 24),
		reserved2:   le.Uint32(b[12:]),
	}
	copy(a.data[:], b[16:])
	return nil
}

// addrFromWords reads four 32-bit words, the least significant first, as an address.
func addrFromWords(b []byte) netip.Addr {
	var ip [16]byte
	for i := range ip {
		ip[i] = b[15-i]
	}
	return netip.AddrFrom16(ip).Unmap()
}

// putWords writes an address as four 32-bit words, the least significant first.
func putWords(b []byte, addr netip.Addr) {
	var ip [16]byte
	if addr.IsValid() {
		ip = addr.As16()
	}
	for i := range ip {
		b[15-i] = ip[i]
	}
}
