//go:build linux

package e2e_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/opendivert/divert/packet"
)

// Ports of crafted datagrams.
const (
	craftSrc = 4000
	craftDst = 9
)

// datagram makes a UDP datagram with right checksums, to the discard port.
func datagram(t testing.TB, src, dst, payload string) []byte {
	t.Helper()
	return craft(t, src, dst, craftDst, []byte(payload))
}

// craft makes a UDP datagram with right checksums.
func craft(t testing.TB, src, dst string, port uint16, payload []byte) []byte {
	t.Helper()
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	be := binary.BigEndian
	length := packet.UDPHeaderLen + len(payload)
	var b []byte
	if s.Is4() {
		b = make([]byte, packet.IPv4HeaderLen)
		b[0], b[8], b[9] = 0x45, 64, packet.ProtocolUDP
		be.PutUint16(b[2:], uint16(packet.IPv4HeaderLen+length))
		copy(b[12:], s.AsSlice())
		copy(b[16:], d.AsSlice())
	} else {
		b = make([]byte, packet.IPv6HeaderLen)
		b[0], b[6], b[7] = 0x60, packet.ProtocolUDP, 64
		be.PutUint16(b[4:], uint16(length))
		copy(b[8:], s.AsSlice())
		copy(b[24:], d.AsSlice())
	}
	b = be.AppendUint16(b, craftSrc)
	b = be.AppendUint16(b, port)
	b = be.AppendUint16(b, uint16(length))
	b = append(be.AppendUint16(b, 0), payload...)
	if !packet.CalcChecksums(b, nil, 0) {
		t.Fatalf("a crafted datagram does not parse: %.100x", b)
	}
	return b
}

// addrPort is the address of a socket.
func addrPort(c net.PacketConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
