package packet

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
)

// answers holds the functions for both kinds of answer, with the codes of a closed port.
var answers = map[string]func(dst, b []byte, p *Parsed) ([]byte, bool){
	"reset": AppendReset,
	"unreachable": func(dst, b []byte, p *Parsed) ([]byte, bool) {
		code := uint8(ICMPPortUnreachable)
		if p.Family == 6 {
			code = ICMPv6PortUnreachable
		}
		return AppendUnreachable(dst, b, p, code)
	},
}

// The headers of answers to the worked examples: from 192.0.2.7 to 10.1.2.3, and the same for IPv6.
const (
	answerTCP4 = "45000028dead000040060000" + "c00002070a010203"
	answerTCP6 = "6000000000140640" + "20010db8000000000000000000000002" + "20010db8000000000000000000000001"
)

func TestAppendReset(t *testing.T) {
	ack := change(example(t, "A"), 33, byte(TCPAck))
	for _, test := range []struct {
		name   string
		packet []byte
		want   string // without the TCP checksum; "": no answer
	}{
		{"SYN", example(t, "A"), answerTCP4 + "0050c000" + "00000000" + "01020305" + "50140000" + "0000" + "0000"},
		{"SYN with data", change(grow(t, example(t, "A"), 5), 33, byte(TCPSyn)), answerTCP4 + "0050c000" + "00000000" + "01020305" + "50140000" + "0000" + "0000"},
		{"SYN and ACK", change(example(t, "A"), 28, 0, 0, 1, 0, 0x60, byte(TCPSyn|TCPAck)),
			answerTCP4 + "0050c000" + "00000100" + "01020305" + "50140000" + "0000" + "0000"},
		{"no flags, 5 bytes", change(grow(t, example(t, "A"), 5), 33, 0), answerTCP4 + "0050c000" + "00000000" + "01020309" + "50140000" + "0000" + "0000"},
		{"payload, ACK, IPv6", example(t, "D"), answerTCP6 + "c35001bb" + "11223344" + "deadbef2" + "50140000" + "0000" + "0000"},
		{"first of several fragments", change(ack, 6, 0x20), answerTCP4 + "0050c000" + "00000000" + "01020304" + "50140000" + "0000" + "0000"},
		{"cut in the payload: the length is the packet's", grow(t, ack, 5)[:46], answerTCP4 + "0050c000" + "00000000" + "01020309" + "50140000" + "0000" + "0000"},
		{"the sequence wraps", change(grow(t, ack, 5), 24, 0xFF, 0xFF, 0xFF, 0xFE), answerTCP4 + "0050c000" + "00000000" + "00000003" + "50140000" + "0000" + "0000"},
		{"RST", change(example(t, "A"), 33, byte(TCPRst)), ""},
		{"RST and ACK", change(example(t, "A"), 33, byte(TCPRst|TCPAck)), ""},
		{"FIN", change(example(t, "A"), 33, byte(TCPFin|TCPAck)), ""},
		{"UDP", example(t, "B"), ""},
		{"ICMP", example(t, "C"), ""},
		{"later fragment", change(example(t, "A"), 7, 1), ""},
		{"header reaches beyond the packet", example(t, "L"), ""},
		{"header not complete", example(t, "M"), ""},
		{"header cut", example(t, "A")[:42], ""},
		{"to a multicast group", change(example(t, "A"), 16, 224, 0, 0, 251), ""},
		{"broadcast", change(example(t, "A"), 16, 255, 255, 255, 255), ""},
		{"from nowhere", change(example(t, "A"), 12, 0, 0, 0, 0), ""},
		{"from a multicast group", change(example(t, "A"), 12, 239, 1, 1, 1), ""},
		{"to a multicast group, IPv6", change(example(t, "D"), 24, 0xFF, 0x02), ""},
		{"from nowhere, IPv6", change(example(t, "D"), 8, make([]byte, 16)...), ""},
		{"from a multicast group, IPv6", change(example(t, "D"), 8, 0xFF), ""},
		{"no packet", []byte("nothing that has an IP header"), ""},
	} {
		t.Run(test.name, func(t *testing.T) { checkAnswer(t, "reset", test.packet, test.want) })
	}
}

func TestAppendUnreachable(t *testing.T) {
	long6 := grow(t, example(t, "E"), 100)
	for _, test := range []struct {
		name   string
		packet []byte
		want   string // without checksums, except in the quotation; "": no answer
	}{
		{"UDP", example(t, "B"), icmp4(t, example(t, "B")[:28])},
		{"UDP without payload, options", example(t, "K"), icmp4(t, example(t, "K"))},
		{"cut in the UDP header", example(t, "B")[:24], icmp4(t, example(t, "B")[:24])},
		{"two packets in the buffer", example(t, "N"), icmp4(t, example(t, "B")[:28])},
		{"first of several fragments", example(t, "G"), icmp4(t, example(t, "G")[:28])},
		{"another protocol", change(example(t, "B"), 9, 132), icmp4(t, change(example(t, "B"), 9, 132)[:28])},
		{"TCP", example(t, "A"), icmp4(t, example(t, "A")[:28])},
		{"echo request", example(t, "C"), icmp4(t, example(t, "C")[:28])},
		{"UDP, IPv6: all of a short packet", example(t, "E"), icmp6(t, example(t, "E"))},
		{"UDP, IPv6: 60 bytes of a long one", long6, icmp6(t, long6[:60])},
		{"UDP, IPv6: up to the ports behind long headers", behind(t, 48), icmp6(t, behind(t, 48)[:96])},
		{"UDP, IPv6: the least MTU", behind(t, 2048), icmp6(t, behind(t, 2048)[:1232])},
		{"echo reply, IPv6", example(t, "F"), icmp6(t, example(t, "F"))},
		{"first of several fragments, IPv6", example(t, "I"), icmp6(t, example(t, "I")[:60])},
		{"later fragment", example(t, "H"), ""},
		{"later fragment, IPv6", example(t, "J"), ""},
		{"unreachable", change(example(t, "C"), 20, 3), ""},
		{"source quench", change(example(t, "C"), 20, 4), ""},
		{"redirect", change(example(t, "C"), 20, 5), ""},
		{"time exceeded", change(example(t, "C"), 20, 11), ""},
		{"parameter problem", change(example(t, "C"), 20, 12), ""},
		{"ICMP without its type", change(example(t, "C"), 2, 0, 20), ""},
		{"unreachable, IPv6", change(example(t, "F"), 40, 1), ""},
		{"an error yet unknown, IPv6", change(example(t, "F"), 40, 127), ""},
		{"redirect, IPv6", change(example(t, "F"), 40, 137), ""},
		{"ICMPv6 without its type", change(example(t, "F"), 4, 0, 0), ""},
		{"extension headers cut off", example(t, "E")[:44], ""},
		{"to a multicast group", change(example(t, "B"), 16, 224, 0, 0, 251), ""},
		{"broadcast", change(example(t, "B"), 16, 255, 255, 255, 255), ""},
		{"from nowhere", change(example(t, "B"), 12, 0, 0, 0, 0), ""},
		{"to a multicast group, IPv6", change(example(t, "E"), 24, 0xFF, 0x02), ""},
		{"from nowhere, IPv6", change(example(t, "E"), 8, make([]byte, 16)...), ""},
		{"no packet", []byte("nothing that has an IP header"), ""},
	} {
		t.Run(test.name, func(t *testing.T) { checkAnswer(t, "unreachable", test.packet, test.want) })
	}
}

// grow returns a copy of a packet with more bytes of payload.
func grow(t testing.TB, b []byte, more int) []byte {
	t.Helper()
	b = append(slices.Clone(b), make([]byte, more)...)
	if b[0]>>4 == 4 {
		IPv4(b).SetLength(uint16(len(b)))
	} else {
		IPv6(b).SetLength(uint16(len(b) - IPv6HeaderLen))
	}
	return b
}

// behind returns a UDP packet with a hop-by-hop header of size bytes.
func behind(t testing.TB, size int) []byte {
	t.Helper()
	e := example(t, "E")
	b := append(slices.Clone(e[:40]), ProtocolUDP, byte(size/8-1))
	b = append(b, make([]byte, size-2)...)
	b = append(b, e[48:]...)
	return grow(t, b, 0)
}

// icmp4 and icmp6 return the message that quotes the bytes, without checksums.
func icmp4(t testing.TB, quoted []byte) string {
	head := unhex(t, "45000000dead000040010000c00002070a010203"+"0303000000000000")
	IPv4(head).SetLength(uint16(len(head) + len(quoted)))
	return hex.EncodeToString(append(head, quoted...))
}

func icmp6(t testing.TB, quoted []byte) string {
	head := unhex(t, "6000000000003a40"+"20010db8000000000000000000000002"+"20010db8000000000000000000000001"+"0104000000000000")
	IPv6(head).SetLength(uint16(len(head) - IPv6HeaderLen + len(quoted)))
	return hex.EncodeToString(append(head, quoted...))
}

// checkAnswer compares the answer to a packet, behind other bytes of the same slice.
func checkAnswer(t *testing.T, kind string, b []byte, want string) {
	t.Helper()
	var p Parsed
	p.Parse(b)
	before := slices.Clone(b)
	dst := append([]byte("before"), bytes.Repeat([]byte{0xEE}, 2000)...)[:len("before")] // no EE may show through
	all, ok := answers[kind](dst, b, &p)
	if !bytes.Equal(b, before) || !bytes.HasPrefix(all, []byte("before")) {
		t.Errorf("the arguments were changed: %x, %x", b, all)
	}
	got := all[len("before"):]
	if ok != (want != "") || ok != (len(got) > 0) {
		t.Fatalf("answered: %t with %x", ok, got)
	}
	if !ok {
		return
	}
	checkChecksums(t, got)
	if got := hex.EncodeToString(clearChecksums(t, got)); got != hex.EncodeToString(clearChecksums(t, unhex(t, want))) {
		t.Errorf("answer %s\nwant   %s", got, want)
	}
}

// checkChecksums checks that an answer is a packet with the right checksums.
func checkChecksums(t testing.TB, b []byte) {
	t.Helper()
	var p Parsed
	if !p.ParseExact(b) {
		t.Fatalf("the answer is no packet: %x", b)
	}
	if p.Family == 4 && !p.VerifyIPChecksum(b) || !p.VerifyTransportChecksum(b) {
		t.Errorf("a checksum is wrong in %x", b)
	}
}

// clearChecksums returns a copy of an answer without checksums.
func clearChecksums(t testing.TB, b []byte) []byte {
	t.Helper()
	var p Parsed
	if !p.ParseExact(b) {
		t.Fatalf("no packet: %x", b)
	}
	b = slices.Clone(b)
	if ip := p.IPv4(b); ip != nil {
		ip.SetChecksum(0)
	}
	for _, h := range []ICMP{p.ICMP(b), p.ICMPv6(b)} {
		if h != nil {
			h.SetChecksum(0)
		}
	}
	if h := p.TCP(b); h != nil {
		h.SetChecksum(0)
	}
	return b
}

// Parsed is reused for packet after packet; a zero one belongs to no packet.
func TestAnswerToNothing(t *testing.T) {
	for kind, answer := range answers {
		for _, b := range [][]byte{nil, example(t, "A"), example(t, "D")[:10]} {
			if all, ok := answer(nil, b, new(Parsed)); ok || all != nil {
				t.Errorf("%s: %x", kind, all)
			}
		}
	}
}

func BenchmarkAppendReset(b *testing.B)       { benchmarkAnswer(b, "reset", "A", "D") }
func BenchmarkAppendUnreachable(b *testing.B) { benchmarkAnswer(b, "unreachable", "B", "E") }

func benchmarkAnswer(b *testing.B, kind string, ids ...string) {
	for _, id := range ids {
		data := example(b, id)
		b.Run(id, func(b *testing.B) {
			b.ReportAllocs()
			var p Parsed
			var buf []byte
			for b.Loop() {
				p.Parse(data)
				var ok bool
				if buf, ok = answers[kind](buf[:0], data, &p); !ok {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// FuzzAnswers checks that the answers to any packet obey RFC 1122, RFC 4443 and RFC 9293.
func FuzzAnswers(f *testing.F) {
	for _, e := range examples {
		f.Add(unhex(f, e.hex))
	}
	f.Add(behind(f, 48))
	f.Add([]byte("a00000000000000000000000\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xe5000")) // to a mapped multicast address
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Parsed
		if !p.Parse(b) {
			return
		}
		before := slices.Clone(b)
		for kind, answer := range answers {
			got, ok := answer(nil, b, &p)
			if !bytes.Equal(b, before) {
				t.Fatal("the packet was changed")
			}
			if !ok {
				if got != nil {
					t.Fatalf("%s: no answer, but %x", kind, got)
				}
				continue
			}
			checkChecksums(t, got)
			checkMayAnswer(t, kind, b, &p)
			checkNoLoop(t, kind, got)
		}
	})
}

// checkMayAnswer fails for packets that must not be answered.
func checkMayAnswer(t *testing.T, kind string, b []byte, p *Parsed) {
	t.Helper()
	for _, a := range append(p.IPv4(b).addrs(), p.IPv6(b).addrs()...) {
		if a.IsMulticast() || a.IsUnspecified() || a.Is4() && a.As4()[0] >= 240 {
			t.Errorf("%s: answered a packet of %v", kind, a)
		}
	}
	if p.FragOff != 0 {
		t.Errorf("%s: answered a fragment at %d", kind, p.FragOff)
	}
	if h := p.TCP(b); kind == "reset" && h.Flags()&(TCPRst|TCPFin) != 0 {
		t.Errorf("answered flags %x", h.Flags())
	}
	if h := p.ICMPv6(b); kind == "unreachable" && h != nil && h.Type() < 128 {
		t.Errorf("answered ICMPv6 type %d", h.Type())
	}
	if h := p.ICMP(b); kind == "unreachable" && h != nil && slices.Contains([]uint8{3, 4, 5, 11, 12}, h.Type()) {
		t.Errorf("answered ICMP type %d", h.Type())
	}
}

// checkNoLoop fails for answers that would be answered.
func checkNoLoop(t *testing.T, kind string, b []byte) {
	t.Helper()
	var p Parsed
	p.Parse(b)
	if again, ok := answers[kind](nil, b, &p); ok {
		t.Errorf("%s: the answer %x is answered %x", kind, b, again)
	}
}

// addrs returns source and destination, or nothing for an absent header.
func (h IPv4) addrs() []netip.Addr {
	if h == nil {
		return nil
	}
	return []netip.Addr{h.Src(), h.Dst()}
}

func (h IPv6) addrs() []netip.Addr {
	if h == nil {
		return nil
	}
	return []netip.Addr{h.Src(), h.Dst()}
}
