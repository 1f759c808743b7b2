package main

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/packet"
)

// sample is a handmade packet, with the data that a capture file adds to it.
type sample struct {
	name      string
	data      []byte
	length    int // of the packet, if the capture cut it
	device    string
	direction direction
}

var (
	v4a, v4b = netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")
	v6a, v6b = netip.MustParseAddr("fd77::1"), netip.MustParseAddr("fd77::2")
)

// ip4 makes an IPv4 packet; it computes checksums if all the bytes that they cover are present.
func ip4(protocol byte, payload ...byte) []byte {
	b := make([]byte, packet.IPv4HeaderLen, packet.IPv4HeaderLen+len(payload))
	b[0], b[8], b[9] = 0x45, 64, protocol
	h := packet.IPv4(b)
	h.SetID(0x1234)
	h.SetSrc(v4a)
	h.SetDst(v4b)
	h.SetLength(uint16(len(b) + len(payload)))
	b = append(b, payload...)
	packet.CalcChecksums(b, nil, 0)
	return b
}

// fragment4 makes a fragment of an IPv4 packet.
func fragment4(offset uint16, more bool, protocol byte, payload ...byte) []byte {
	b := ip4(protocol, payload...)
	h := packet.IPv4(b)
	h.SetFragOff(offset / 8)
	h.SetMF(more)
	packet.CalcChecksums(b, nil, packet.NoUDPChecksum|packet.NoTCPChecksum)
	return b
}

// ip6 makes an IPv6 packet.
func ip6(next byte, payload ...byte) []byte {
	b := make([]byte, packet.IPv6HeaderLen, packet.IPv6HeaderLen+len(payload))
	b[0], b[6], b[7] = 0x60, next, 64
	h := packet.IPv6(b)
	h.SetTrafficClass(0x10)
	h.SetFlowLabel(0xabcde)
	h.SetSrc(v6a)
	h.SetDst(v6b)
	h.SetLength(uint16(len(payload)))
	b = append(b, payload...)
	packet.CalcChecksums(b, nil, 0)
	return b
}

// tcp makes a TCP segment and pads options to whole words with zeros.
func tcp(flags packet.TCPFlags, options []byte, payload string) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := make([]byte, packet.TCPHeaderLen)
	h := packet.TCP(b)
	h.SetSrcPort(40022)
	h.SetDstPort(80)
	h.SetSeq(1000000)
	h.SetAck(2000000)
	h.SetWindow(64240)
	h.SetHeaderLen(packet.TCPHeaderLen + len(options))
	h.SetFlags(flags)
	return slices.Concat(b, options, []byte(payload))
}

// udp makes a UDP datagram.
func udp(payload string) []byte {
	b := make([]byte, packet.UDPHeaderLen)
	h := packet.UDP(b)
	h.SetSrcPort(5353)
	h.SetDstPort(53)
	h.SetLength(uint16(len(b) + len(payload)))
	return append(b, payload...)
}

// icmp makes a message of ICMP or ICMPv6.
func icmp(kind, code byte, body uint32, payload ...byte) []byte {
	b := make([]byte, packet.ICMPHeaderLen)
	b[0], b[1] = kind, code
	binary.BigEndian.PutUint32(b[4:], body)
	return append(b, payload...)
}

// changed returns a copy of a packet with some of its bytes replaced.
func changed(b []byte, at int, bytes ...byte) []byte {
	b = slices.Clone(b)
	copy(b[at:], bytes)
	return b
}

var synOptions = []byte{2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 7, 1, 3, 3, 7}

// samples are the packets of the golden files.
var samples = []sample{
	{name: "syn", data: ip4(6, tcp(packet.TCPSyn, synOptions, "")...), device: "eth0", direction: directionOut},
	{name: "syn ack", data: ip6(6, tcp(packet.TCPSyn|packet.TCPAck, []byte{2, 4, 5, 160}, "")...), device: "eth0", direction: directionIn},
	{name: "data", data: ip4(6, tcp(packet.TCPPsh|packet.TCPAck, nil, "GET / HTTP/1.1\r\n\r\n")...), device: "eth0", direction: directionOut},
	{name: "sack", data: ip4(6, tcp(packet.TCPAck, []byte{1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 9}, "")...), device: "eth0", direction: directionIn},
	{name: "options that do not fit", data: ip4(6, tcp(packet.TCPAck, []byte{254, 4, 9, 9, 2, 3, 1, 3, 40, 1, 1, 1}, "")...)},
	{name: "all flags", data: ip4(6, tcp(0xff, nil, "")...)},
	{name: "no flags", data: ip4(6, tcp(0, nil, "")...)},
	{name: "udp", data: ip4(17, udp("hello, world")...), device: "lo", direction: directionLoopback},
	{name: "udp without checksum", data: changed(ip4(17, udp("x")...), 26, 0, 0)},
	{name: "udp, wrong checksum", data: changed(ip6(17, udp("x")...), 46, 1, 2)},
	{name: "echo request", data: ip4(1, icmp(8, 0, 7<<16|1, 1, 2, 3, 4)...)},
	{name: "echo reply 6", data: ip6(58, icmp(129, 0, 7<<16|1)...)},
	{name: "port unreachable", data: ip4(1, icmp(3, 3, 0, ip4(17, udp("")...)...)...)},
	{name: "fragmentation needed", data: ip4(1, icmp(3, 4, 1400, ip4(6, tcp(packet.TCPAck, nil, "")...)[:28]...)...)},
	{name: "redirect", data: ip4(1, icmp(5, 1, 0x0a4d0003, ip4(17, udp("")...)...)...)},
	{name: "unknown icmp", data: ip4(1, icmp(200, 5, 0)...)},
	{name: "too big", data: ip6(58, icmp(2, 0, 1280, ip6(17, udp("")...)...)...)},
	{name: "neighbor solicitation", data: ip6(58, icmp(135, 0, 0, v6b.AsSlice()...)...)},
	{name: "neighbor advertisement, cut", data: ip6(58, icmp(136, 0, 0, 1, 2, 3)...)},
	{name: "first fragment", data: fragment4(0, true, 17, udp("0123456789abcdef")...)},
	{name: "last fragment", data: fragment4(24, false, 17, []byte("the rest")...)},
	{name: "fragment 6", data: ip6(44, append([]byte{17, 0, 0, 25, 0, 0, 0, 42}, "the rest"...)...)},
	{name: "hop by hop, no next header", data: ip6(0, 59, 0, 1, 4, 0, 0, 0, 0)},
	{name: "esp", data: ip4(50, 1, 2, 3, 4)},
	{name: "unnamed protocol", data: ip4(253, 1, 2, 3)},
	{name: "tcp, bad data offset", data: ip4(6, changed(tcp(packet.TCPSyn, nil, ""), 12, 0x10)...)},
	{name: "udp, short", data: ip4(17, 1, 2, 3)},
	{name: "captured in part", data: ip4(6, tcp(packet.TCPAck, nil, "0123456789")...)[:44], length: 50},
	{name: "length beyond the end", data: changed(ip4(17, udp("abc")...), 2, 0x05, 0xdc)},
	{name: "header beyond the end", data: changed(ip4(17, udp("abc")...), 0, 0x4f)},
}

// sampleTime is the capture time of the first sample; the others follow, a millisecond and a bit apart.
var sampleTime = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

// record returns a sample as a record.
func (s *sample) record(i int) *record {
	addr := packet.Address{Outbound: s.direction == directionOut, IPv6: s.data[0]>>4 == 6}
	return &record{
		data: s.data, length: max(s.length, len(s.data)), addr: &addr,
		when: sampleTime.Add(time.Duration(i) * 1001 * time.Microsecond), device: s.device, direction: s.direction,
	}
}

// sampleFile writes the samples to a pcapng file and returns it.
func sampleFile(t testing.TB) []byte {
	t.Helper()
	var b writer
	w, err := newCaptureWriter(&b, "true")
	if err != nil {
		t.Fatal(err)
	}
	for i := range samples {
		if err := w.write(samples[i].record(i)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// writer keeps the bytes written to it.
type writer []byte

func (w *writer) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	return len(b), nil
}
