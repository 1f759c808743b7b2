package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/opendivert/divert/packet"
)

var be = binary.BigEndian

// routed6 returns a packet to dst, with correct checksums, and the same packet on its way there through hop, with a
// segment routing header. The transport checksum of both is that of the former.
func routed6(protocol byte, segment []byte) (plain, onWay []byte) {
	dst, hop := netip.MustParseAddr("fd00:2::2"), netip.MustParseAddr("fd00:5::5")
	plain = make([]byte, packet.IPv6HeaderLen)
	plain[0], plain[6], plain[7] = 0x60, protocol, 64
	copy(plain[8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(plain[24:], dst.AsSlice())
	be.PutUint16(plain[4:], uint16(len(segment)))
	plain = append(plain, segment...)
	packet.CalcChecksums(plain, nil, 0)

	srh := append([]byte{protocol, 4, 4, 1, 1, 0, 0, 0}, dst.AsSlice()...) // one segment left of two
	srh = append(srh, hop.AsSlice()...)
	onWay = append(bytes.Clone(plain[:packet.IPv6HeaderLen]), srh...)
	onWay = append(onWay, plain[packet.IPv6HeaderLen:]...)
	onWay[6] = packet.ProtocolRouting
	copy(onWay[24:], hop.AsSlice())
	be.PutUint16(onWay[4:], uint16(len(onWay)-packet.IPv6HeaderLen))
	return plain, onWay
}

// routed4 is routed6 with a loose source route.
func routed4(protocol byte, segment []byte) (plain, onWay []byte) {
	plain = make([]byte, packet.IPv4HeaderLen)
	plain[0], plain[8], plain[9] = 0x45, 64, protocol
	copy(plain[12:], []byte{10, 0, 0, 1, 10, 2, 0, 2})
	be.PutUint16(plain[2:], uint16(packet.IPv4HeaderLen+len(segment)))
	plain = append(plain, segment...)
	packet.CalcChecksums(plain, nil, 0)

	onWay = append(bytes.Clone(plain[:packet.IPv4HeaderLen]), 1, 0x83, 7, 4, 10, 2, 0, 2)
	onWay = append(onWay, plain[packet.IPv4HeaderLen:]...)
	onWay[0] = 0x47
	copy(onWay[16:], []byte{10, 5, 0, 5})
	be.PutUint16(onWay[2:], uint16(len(onWay)))
	packet.CalcChecksums(onWay, nil, packet.NoTCPChecksum|packet.NoUDPChecksum)
	return plain, onWay
}

func udpSegment(data ...byte) []byte {
	b := append([]byte{0x30, 0x39, 0x23, 0x28, 0, 0, 0, 0}, data...)
	be.PutUint16(b[4:], uint16(len(b)))
	return b
}

func tcpSegment(data ...byte) []byte {
	return append([]byte{0x30, 0x39, 0x23, 0x28, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0}, data...)
}

// TestChecksumsOfSourceRoutes: a packet on a source route gets the checksum that is correct at its final destination.
func TestChecksumsOfSourceRoutes(t *testing.T) {
	rows := []struct {
		name     string
		routed   func(byte, []byte) ([]byte, []byte)
		protocol byte
		segment  []byte
		field    int // of the checksum, in the segment
	}{
		{"IPv6, UDP", routed6, packet.ProtocolUDP, udpSegment(1, 2, 3), 6},
		{"IPv6, TCP", routed6, packet.ProtocolTCP, tcpSegment(1, 2, 3), 16},
		{"IPv4, UDP", routed4, packet.ProtocolUDP, udpSegment(1, 2, 3), 6},
		{"IPv4, TCP", routed4, packet.ProtocolTCP, tcpSegment(1, 2, 3), 16},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, want := row.routed(row.protocol, row.segment)
			at := len(want) - len(row.segment) + row.field
			for _, left := range []uint16{0, 0x1234, ^be.Uint16(want[at:])} { // nothing, anything
				b := bytes.Clone(want)
				be.PutUint16(b[at:], left)
				if err := Finish(b, new(packet.Address), true); err != nil || !bytes.Equal(b, want) {
					t.Errorf("%v\n%x, want\n%x", err, b, want)
				}
			}
			b := bytes.Clone(want)
			be.PutUint16(b[at:], 0x1234)
			if err := Finish(b, new(packet.Address), false); err != nil {
				t.Fatal(err)
			}
			anew := bytes.Clone(b)
			if packet.CalcChecksums(anew, nil, 0); !bytes.Equal(b, anew) {
				t.Errorf("a new packet became %x, want %x as CalcChecksums makes it", b, anew)
			}
			be.PutUint16(b[at:], 0x1234)
			a := packet.Address{TCPChecksum: true, UDPChecksum: true}
			if err := Finish(b, &a, true); err != nil || be.Uint16(b[at:]) != 0x1234 {
				t.Errorf("a checksum that the address vouches for became %x", b[at:at+2])
			}
			if Unfinished(want) {
				t.Error("a finished checksum counts as unfinished")
			}
			plain, _ := row.routed(row.protocol, row.segment)
			var p packet.Parsed
			p.Parse(plain)
			be.PutUint16(b[at:], p.PseudoHeaderSum(plain))
			if !Unfinished(b) {
				t.Error("the sum of the pseudo-header with the final destination counts as finished")
			}
		})
	}
}

// TestUDPChecksumZeroOfSourceRoutes: a sum of 0, which would mean no checksum, is written as 0xFFFF.
func TestUDPChecksumZeroOfSourceRoutes(t *testing.T) {
	for _, routed := range []func(byte, []byte) ([]byte, []byte){routed4, routed6} {
		plain, _ := routed(packet.ProtocolUDP, udpSegment(0, 0))
		sum := be.Uint16(plain[len(plain)-4:]) // the checksum of zeros makes it 0
		_, b := routed(packet.ProtocolUDP, udpSegment(byte(sum>>8), byte(sum)))
		if err := Finish(b, new(packet.Address), true); err != nil || be.Uint16(b[len(b)-4:]) != 0xFFFF {
			t.Errorf("%v, checksum %x", err, b[len(b)-4:len(b)-2])
		}
	}
}

// crc32c is the sum of RFC 9260 appendix A, bit by bit.
func crc32c(b []byte) uint32 {
	crc := ^uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ 0x82F63B78*(crc&1)
		}
	}
	return ^crc
}

func TestSCTPChecksum(t *testing.T) {
	if crc32c([]byte("123456789")) != 0xE3069283 {
		t.Fatal("the test's own sum is wrong")
	}
	segment := []byte{0x30, 0x39, 0x23, 0x28, 0, 0, 0, 7, 0, 0, 0, 0, 0, 3, 0, 17, 1, 2, 3, 4, 5}
	right := binary.LittleEndian.AppendUint32(nil, crc32c(segment))
	for name, routed := range map[string]func(byte, []byte) ([]byte, []byte){"IPv4": routed4, "IPv6": routed6} {
		plain, onWay := routed(protocolSCTP, segment)
		for _, b := range [][]byte{plain, onWay} {
			field := b[len(b)-len(segment)+sctpField:][:4]
			if !Unfinished(b) {
				t.Errorf("%s: no sum counts as finished", name)
			}
			if err := Finish(b, &packet.Address{UDPChecksum: true}, true); err != nil || be.Uint32(field) != 0 {
				t.Errorf("%s: %v, the address vouches for the sum, which became %x", name, err, field)
			}
			copy(field, "abcd") // is overwritten
			if err := Finish(b, new(packet.Address), true); err != nil || !bytes.Equal(field, right) {
				t.Errorf("%s: %v, %x, want %x", name, err, field, right)
			}
			if Unfinished(b) {
				t.Errorf("%s: a sum counts as unfinished", name)
			}
		}
		short, _ := routed(protocolSCTP, segment[:11])
		before := bytes.Clone(short)
		if err := Finish(short, &packet.Address{IPChecksum: true}, true); err != nil || !bytes.Equal(short, before) {
			t.Errorf("%s: %v, a header that is cut became %x", name, err, short)
		}
	}
	part, _ := routed4(protocolSCTP, segment)
	part[6] = 0x20 // more fragments
	if err := Finish(part, new(packet.Address), true); err != nil || be.Uint32(part[len(part)-len(segment)+sctpField:]) != 0 {
		t.Errorf("%v, a fragment became %x", err, part)
	}
}

func FuzzFinish(f *testing.F) {
	_, four := routed4(packet.ProtocolTCP, tcpSegment(1, 2, 3))
	_, six := routed6(packet.ProtocolUDP, udpSegment(1, 2, 3))
	sctp, _ := routed4(protocolSCTP, make([]byte, 20))
	for _, b := range [][]byte{four, six, sctp} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		Unfinished(b)
		whole, err := Whole(b)
		if err != nil {
			return
		}
		if err := Finish(whole, new(packet.Address), true); err != nil {
			t.Fatal(err)
		}
		once := bytes.Clone(whole)
		if err := Finish(whole, new(packet.Address), true); err != nil || !bytes.Equal(whole, once) {
			t.Errorf("%v, the checksums of %x change again", err, once)
		}
	})
}
