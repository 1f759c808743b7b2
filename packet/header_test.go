package packet

import (
	"bytes"
	"net/netip"
	"testing"
)

// TestHeaderGetters reads the worked examples.
func TestHeaderGetters(t *testing.T) {
	parse := func(t *testing.T, id string) (*Parsed, []byte) {
		t.Helper()
		b := example(t, id)
		p := new(Parsed)
		if !p.Parse(b) {
			t.Fatal("not a packet")
		}
		return p, b
	}
	eq := func(t *testing.T, name string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	t.Run("IPv4", func(t *testing.T) {
		p, b := parse(t, "A")
		ip := p.IPv4(b)
		eq(t, "Version", ip.Version(), uint8(4))
		eq(t, "HeaderLen", ip.HeaderLen(), 20)
		eq(t, "TOS", ip.TOS(), uint8(0))
		eq(t, "Length", ip.Length(), uint16(44))
		eq(t, "ID", ip.ID(), uint16(0x1c46))
		eq(t, "Reserved", ip.Reserved(), false)
		eq(t, "DF", ip.DF(), true)
		eq(t, "MF", ip.MF(), false)
		eq(t, "FragOff", ip.FragOff(), uint16(0))
		eq(t, "TTL", ip.TTL(), uint8(64))
		eq(t, "Protocol", ip.Protocol(), uint8(6))
		eq(t, "Checksum", ip.Checksum(), uint16(0x507b))
		eq(t, "Src", ip.Src(), netip.MustParseAddr("10.1.2.3"))
		eq(t, "Dst", ip.Dst(), netip.MustParseAddr("192.0.2.7"))
		eq(t, "Options", ip.Options() == nil, true)
		eq(t, "IPv6", p.IPv6(b) == nil, true)
	})
	t.Run("IPv4 with options", func(t *testing.T) {
		p, b := parse(t, "K")
		eq(t, "Options", bytes.Equal(p.IPv4(b).Options(), []byte{1, 1, 1, 0}), true)
		eq(t, "of a cut view", IPv4(b[:20]).Options() == nil, true)
	})
	t.Run("IPv4 fragments", func(t *testing.T) {
		p, b := parse(t, "G")
		eq(t, "MF", p.IPv4(b).MF(), true)
		p, b = parse(t, "H")
		eq(t, "FragOff", p.IPv4(b).FragOff(), uint16(3))
	})
	t.Run("IPv6", func(t *testing.T) {
		p, b := parse(t, "D")
		ip := p.IPv6(b)
		eq(t, "Version", ip.Version(), uint8(6))
		eq(t, "TrafficClass", ip.TrafficClass(), uint8(0x12))
		eq(t, "FlowLabel", ip.FlowLabel(), uint32(0x34567))
		eq(t, "Length", ip.Length(), uint16(23))
		eq(t, "NextHeader", ip.NextHeader(), uint8(6))
		eq(t, "HopLimit", ip.HopLimit(), uint8(64))
		eq(t, "Src", ip.Src(), netip.MustParseAddr("2001:db8::1"))
		eq(t, "Dst", ip.Dst(), netip.MustParseAddr("2001:db8::2"))
		eq(t, "IPv4", p.IPv4(b) == nil, true)
	})
	t.Run("TCP", func(t *testing.T) {
		p, b := parse(t, "A")
		tcp := p.TCP(b)
		eq(t, "SrcPort", tcp.SrcPort(), uint16(49152))
		eq(t, "DstPort", tcp.DstPort(), uint16(80))
		eq(t, "Seq", tcp.Seq(), uint32(0x01020304))
		eq(t, "Ack", tcp.Ack(), uint32(0))
		eq(t, "HeaderLen", tcp.HeaderLen(), 24)
		eq(t, "Reserved", tcp.Reserved(), uint8(0))
		eq(t, "Flags", tcp.Flags(), TCPSyn)
		eq(t, "Window", tcp.Window(), uint16(64240))
		eq(t, "Checksum", tcp.Checksum(), uint16(0x0ad4))
		eq(t, "Urgent", tcp.Urgent(), uint16(0))
		eq(t, "Options", bytes.Equal(tcp.Options(), []byte{2, 4, 5, 0xb4}), true)
		eq(t, "UDP", p.UDP(b) == nil, true)
		eq(t, "ICMP", p.ICMP(b) == nil, true)
		eq(t, "ICMPv6", p.ICMPv6(b) == nil, true)
	})
	t.Run("TCP with too large a data offset", func(t *testing.T) {
		p, b := parse(t, "L")
		tcp := p.TCP(b)
		eq(t, "HeaderLen", tcp.HeaderLen(), 60)
		eq(t, "length of the view", len(tcp), 24)
		eq(t, "Options", bytes.Equal(tcp.Options(), []byte{1, 1, 1, 0}), true)
	})
	t.Run("UDP", func(t *testing.T) {
		p, b := parse(t, "B")
		udp := p.UDP(b)
		eq(t, "SrcPort", udp.SrcPort(), uint16(5353))
		eq(t, "DstPort", udp.DstPort(), uint16(53))
		eq(t, "Length", udp.Length(), uint16(13))
		eq(t, "Checksum", udp.Checksum(), uint16(0xd8d8))
		eq(t, "TCP", p.TCP(b) == nil, true)
	})
	t.Run("ICMP", func(t *testing.T) {
		p, b := parse(t, "C")
		icmp := p.ICMP(b)
		eq(t, "Type", icmp.Type(), uint8(8))
		eq(t, "Code", icmp.Code(), uint8(0))
		eq(t, "Checksum", icmp.Checksum(), uint16(0x3336))
		eq(t, "Body", icmp.Body(), uint32(0x10002))
	})
	t.Run("ICMPv6", func(t *testing.T) {
		p, b := parse(t, "F")
		eq(t, "Type", p.ICMPv6(b).Type(), uint8(129))
		eq(t, "ICMP", p.ICMP(b) == nil, true)
	})
	t.Run("the buffer changed since", func(t *testing.T) {
		p, b := parse(t, "A")
		eq(t, "header length 0", p.IPv4(change(b, 0, 0x40)) == nil, true)
		eq(t, "no bytes", p.IPv4(nil) == nil && p.TCP(nil) == nil, true)
	})
}

// TestHeaderSetters sets each field in headers of zeros and of ones: its bits change and no others.
func TestHeaderSetters(t *testing.T) {
	v4, v6 := netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("1:2:3:4:5:6:7:8")
	v6bytes := []byte{0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8}
	tests := []struct {
		name  string
		size  int
		set   func(b []byte)
		at    int
		value []byte // the bytes there, in a header of zeros
		mask  []byte // the bits that belong to the field; nil: all
	}{
		{"IPv4.SetHeaderLen", 20, func(b []byte) { IPv4(b).SetHeaderLen(40) }, 0, []byte{0x0A}, []byte{0x0F}},
		{"IPv4.SetTOS", 20, func(b []byte) { IPv4(b).SetTOS(0x12) }, 1, []byte{0x12}, nil},
		{"IPv4.SetLength", 20, func(b []byte) { IPv4(b).SetLength(0x1234) }, 2, []byte{0x12, 0x34}, nil},
		{"IPv4.SetID", 20, func(b []byte) { IPv4(b).SetID(0x1234) }, 4, []byte{0x12, 0x34}, nil},
		{"IPv4.SetReserved", 20, func(b []byte) { IPv4(b).SetReserved(true) }, 6, []byte{0x80}, []byte{0x80}},
		{"IPv4.SetReserved off", 20, func(b []byte) { IPv4(b).SetReserved(false) }, 6, []byte{0}, []byte{0x80}},
		{"IPv4.SetDF", 20, func(b []byte) { IPv4(b).SetDF(true) }, 6, []byte{0x40}, []byte{0x40}},
		{"IPv4.SetDF off", 20, func(b []byte) { IPv4(b).SetDF(false) }, 6, []byte{0}, []byte{0x40}},
		{"IPv4.SetMF", 20, func(b []byte) { IPv4(b).SetMF(true) }, 6, []byte{0x20}, []byte{0x20}},
		{"IPv4.SetMF off", 20, func(b []byte) { IPv4(b).SetMF(false) }, 6, []byte{0}, []byte{0x20}},
		{"IPv4.SetFragOff", 20, func(b []byte) { IPv4(b).SetFragOff(0xF234) }, 6, []byte{0x12, 0x34}, []byte{0x1F, 0xFF}},
		{"IPv4.SetTTL", 20, func(b []byte) { IPv4(b).SetTTL(0x12) }, 8, []byte{0x12}, nil},
		{"IPv4.SetProtocol", 20, func(b []byte) { IPv4(b).SetProtocol(0x12) }, 9, []byte{0x12}, nil},
		{"IPv4.SetChecksum", 20, func(b []byte) { IPv4(b).SetChecksum(0x1234) }, 10, []byte{0x12, 0x34}, nil},
		{"IPv4.SetSrc", 20, func(b []byte) { IPv4(b).SetSrc(v4) }, 12, []byte{1, 2, 3, 4}, nil},
		{"IPv4.SetSrc mapped", 20, func(b []byte) { IPv4(b).SetSrc(netip.AddrFrom16(v4.As16())) }, 12, []byte{1, 2, 3, 4}, nil},
		{"IPv4.SetDst", 20, func(b []byte) { IPv4(b).SetDst(v4) }, 16, []byte{1, 2, 3, 4}, nil},
		{"IPv6.SetTrafficClass", 40, func(b []byte) { IPv6(b).SetTrafficClass(0x12) }, 0, []byte{0x01, 0x20}, []byte{0x0F, 0xF0}},
		{"IPv6.SetFlowLabel", 40, func(b []byte) { IPv6(b).SetFlowLabel(0xFF12345) }, 1, []byte{0x01, 0x23, 0x45}, []byte{0x0F, 0xFF, 0xFF}},
		{"IPv6.SetLength", 40, func(b []byte) { IPv6(b).SetLength(0x1234) }, 4, []byte{0x12, 0x34}, nil},
		{"IPv6.SetNextHeader", 40, func(b []byte) { IPv6(b).SetNextHeader(0x12) }, 6, []byte{0x12}, nil},
		{"IPv6.SetHopLimit", 40, func(b []byte) { IPv6(b).SetHopLimit(0x12) }, 7, []byte{0x12}, nil},
		{"IPv6.SetSrc", 40, func(b []byte) { IPv6(b).SetSrc(v6) }, 8, v6bytes, nil},
		{"IPv6.SetDst", 40, func(b []byte) { IPv6(b).SetDst(v6) }, 24, v6bytes, nil},
		{"IPv6.SetDst of IPv4", 40, func(b []byte) { IPv6(b).SetDst(v4) }, 24, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 1, 2, 3, 4}, nil},
		{"ICMP.SetType", 8, func(b []byte) { ICMP(b).SetType(0x12) }, 0, []byte{0x12}, nil},
		{"ICMP.SetCode", 8, func(b []byte) { ICMP(b).SetCode(0x12) }, 1, []byte{0x12}, nil},
		{"ICMP.SetChecksum", 8, func(b []byte) { ICMP(b).SetChecksum(0x1234) }, 2, []byte{0x12, 0x34}, nil},
		{"ICMP.SetBody", 8, func(b []byte) { ICMP(b).SetBody(0x12345678) }, 4, []byte{0x12, 0x34, 0x56, 0x78}, nil},
		{"TCP.SetSrcPort", 20, func(b []byte) { TCP(b).SetSrcPort(0x1234) }, 0, []byte{0x12, 0x34}, nil},
		{"TCP.SetDstPort", 20, func(b []byte) { TCP(b).SetDstPort(0x1234) }, 2, []byte{0x12, 0x34}, nil},
		{"TCP.SetSeq", 20, func(b []byte) { TCP(b).SetSeq(0x12345678) }, 4, []byte{0x12, 0x34, 0x56, 0x78}, nil},
		{"TCP.SetAck", 20, func(b []byte) { TCP(b).SetAck(0x12345678) }, 8, []byte{0x12, 0x34, 0x56, 0x78}, nil},
		{"TCP.SetHeaderLen", 20, func(b []byte) { TCP(b).SetHeaderLen(40) }, 12, []byte{0xA0}, []byte{0xF0}},
		{"TCP.SetReserved", 20, func(b []byte) { TCP(b).SetReserved(0xFA) }, 12, []byte{0x0A}, []byte{0x0F}},
		{"TCP.SetFlags", 20, func(b []byte) { TCP(b).SetFlags(TCPSyn | TCPAck) }, 13, []byte{0x12}, nil},
		{"TCP.SetFlags others", 20, func(b []byte) { TCP(b).SetFlags(TCPFin | TCPRst | TCPPsh | TCPUrg | TCPCwr) }, 13, []byte{0xAD}, nil},
		{"TCP.SetWindow", 20, func(b []byte) { TCP(b).SetWindow(0x1234) }, 14, []byte{0x12, 0x34}, nil},
		{"TCP.SetChecksum", 20, func(b []byte) { TCP(b).SetChecksum(0x1234) }, 16, []byte{0x12, 0x34}, nil},
		{"TCP.SetUrgent", 20, func(b []byte) { TCP(b).SetUrgent(0x1234) }, 18, []byte{0x12, 0x34}, nil},
		{"UDP.SetSrcPort", 8, func(b []byte) { UDP(b).SetSrcPort(0x1234) }, 0, []byte{0x12, 0x34}, nil},
		{"UDP.SetDstPort", 8, func(b []byte) { UDP(b).SetDstPort(0x1234) }, 2, []byte{0x12, 0x34}, nil},
		{"UDP.SetLength", 8, func(b []byte) { UDP(b).SetLength(0x1234) }, 4, []byte{0x12, 0x34}, nil},
		{"UDP.SetChecksum", 8, func(b []byte) { UDP(b).SetChecksum(0x1234) }, 6, []byte{0x12, 0x34}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, fill := range []byte{0x00, 0xFF} {
				got := bytes.Repeat([]byte{fill}, tt.size)
				want := bytes.Clone(got)
				for i, v := range tt.value {
					mask := byte(0xFF)
					if tt.mask != nil {
						mask = tt.mask[i]
					}
					want[tt.at+i] = fill&^mask | v
				}
				if tt.set(got); !bytes.Equal(got, want) {
					t.Errorf("%x, want %x", got, want)
				}
			}
		})
	}
}

// TestHeaderSettersRefuse checks that a setter refuses a value that does not fit, and changes nothing.
func TestHeaderSettersRefuse(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::1")
	zero := make([]byte, 40)
	b := make([]byte, 40)
	for name, ok := range map[string]bool{
		"an IPv6 source in IPv4":        IPv4(b).SetSrc(v6),
		"an IPv6 destination in IPv4":   IPv4(b).SetDst(v6),
		"no source in IPv4":             IPv4(b).SetSrc(netip.Addr{}),
		"no source in IPv6":             IPv6(b).SetSrc(netip.Addr{}),
		"no destination in IPv6":        IPv6(b).SetDst(netip.Addr{}),
		"an IPv4 header of 16 bytes":    IPv4(b).SetHeaderLen(16),
		"an IPv4 header of 22 bytes":    IPv4(b).SetHeaderLen(22),
		"an IPv4 header of 64 bytes":    IPv4(b).SetHeaderLen(64),
		"a TCP header of 16 bytes":      TCP(b).SetHeaderLen(16),
		"a TCP header of 64 bytes":      TCP(b).SetHeaderLen(64),
		"a TCP header of negative size": TCP(b).SetHeaderLen(-20),
	} {
		if ok {
			t.Errorf("%s was accepted", name)
		}
	}
	if !bytes.Equal(b, zero) {
		t.Errorf("%x", b)
	}
}
