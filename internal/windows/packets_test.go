package windows

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/opendivert/divert/packet"
)

// udp4 returns a UDP packet over IPv4 with a payload.
func udp4(payload []byte) []byte {
	size := 28 + len(payload)
	b := []byte{0x45, 0, byte(size >> 8), byte(size), 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	b = append(b, 0x30, 0x39, 0, 53, byte((size-20)>>8), byte(size-20), 0, 0)
	return append(b, payload...)
}

// udp6 returns a UDP packet over IPv6 with a payload.
func udp6(payload []byte) []byte {
	size := 8 + len(payload)
	b := make([]byte, 40, 48+len(payload))
	b[0], b[4], b[5], b[6], b[7], b[23], b[39] = 0x60, byte(size>>8), byte(size), 17, 64, 1, 2
	b = append(b, 0x30, 0x39, 0, 53, byte(size>>8), byte(size), 0, 0)
	return append(b, payload...)
}

// outboundAddress is the address of an outbound packet on an interface.
func outboundAddress(ifIdx uint32) packet.Address {
	a := packet.Address{Timestamp: 12345, Outbound: true, IPChecksum: true, TCPChecksum: true, UDPChecksum: true}
	a.SetNetwork(packet.NetworkData{IfIdx: ifIdx, SubIfIdx: 3})
	return a
}

// numbered returns a packet with a number in it.
func numbered(n int, long int) packet.Packet {
	payload := make([]byte, 4+long)
	binary.BigEndian.PutUint32(payload, uint32(n))
	for i := range payload[4:] {
		payload[4+i] = byte(n + i)
	}
	if n%2 == 0 {
		return packet.Packet{Data: udp4(payload), Addr: outboundAddress(uint32(n))}
	}
	a := outboundAddress(uint32(n))
	a.IPv6 = true
	return packet.Packet{Data: udp6(payload), Addr: a}
}

// numberIn returns the number of a numbered packet, and whether the packet is intact.
func numberIn(p *packet.Packet) (int, error) {
	header := 28
	if len(p.Data) > 0 && p.Data[0]>>4 == 6 {
		header = 48
	}
	if len(p.Data) < header+4 {
		return 0, fmt.Errorf("%d bytes", len(p.Data))
	}
	n := int(binary.BigEndian.Uint32(p.Data[header:]))
	want := numbered(n, len(p.Data)-header-4)
	if !bytes.Equal(p.Data, want.Data) {
		return n, fmt.Errorf("packet %d is damaged", n)
	}
	if p.Addr.Network() != want.Addr.Network() || p.Addr.IPv6 != want.Addr.IPv6 || !p.Addr.Outbound {
		return n, fmt.Errorf("packet %d has the address %+v", n, p.Addr)
	}
	return n, nil
}
