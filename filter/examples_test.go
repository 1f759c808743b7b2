package filter

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// packetHex are the packets of the worked examples (specification: packets.md 9.1).
var packetHex = map[string]string{
	"A": "4500002c1c4640004006507b0a010203c0000207c000005001020304000000006002faf00ad40000020405b4",
	"B": "45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f",
	"C": "45000020000700004001accb0a010203c0000207080033360001000261626364",
	"D": "612345670017064020010db800000000000000000000000120010db800000000000000000000000201bbc350deadbeef112233445018faf0bfda000078797a",
	"E": "600000000013004020010db800000000000000000000000120010db8000000000000000000000002110001040000000004d210e1000b8aae010203",
	"F": "6000000000083aff20010db800000000000000000000000120010db80000000000000000000000028100111312340001",
	"G": "4500002c0001200040118cb50a010203c000020703e807d00040000030313233343536373839616263646566",
	"H": "45000024000100034011acba0a010203c00002074142434445464748494a4b4c4d4e4f50",
	"I": "6000000000182c4020010db800000000000000000000000120010db80000000000000000000000023a0000010000000980000000000100013132333435363738",
	"J": "6000000000102c4020010db800000000000000000000000120010db80000000000000000000000023a000010000000094142434445464748",
	"K": "460000201c46000040118d7b0a010203c00002070101010000090009000831c1",
	"L": "4500002c1c460000400600000a010203c0000207000100020000000300000004f010faf00000000001010100",
	"M": "450000201c460000400690870a010203c0000207000100020000000300000004",
	"N": "45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f45000020000700004001accb0a010203c0000207080033360001000261626364",
	"O": "4500002c1c4640004006507b0a010203c0000207c0000050010203040000",
}

func TestRandomFields(t *testing.T) { // packets.md 9.4
	for _, tt := range []struct {
		packet       string
		timestamp    int64
		r8, r16, r32 uint32
	}{
		{"A", 0, 217, 17186, 1660824667},
		{"A", 123456789, 42, 62558, 3981655981},
		{"B", 0, 127, 32365, 1421832515},
		{"B", 123456789, 161, 23484, 3935229286},
		{"D", 0, 231, 51872, 1827289429},
		{"D", 123456789, 178, 17332, 2037198856},
		{"F", 0, 34, 10421, 755003678},
		{"F", 123456789, 65, 15885, 2973003958},
		{"O", 0, 207, 40961, 2527858034},
		{"O", 123456789, 86, 32238, 492939300},
	} {
		t.Run(fmt.Sprintf("%s at %d", tt.packet, tt.timestamp), func(t *testing.T) {
			text := fmt.Sprintf("random8 == %d and random16 == %d and random32 == %d", tt.r8, tt.r16, tt.r32)
			p := mustCompile(t, text, packet.LayerNetwork, Strict)
			b := mustHex(t, packetHex[tt.packet])
			a := packet.Address{Timestamp: tt.timestamp, IPv6: b[0]>>4 == 6}
			if match, err := p.Eval(b, &a); !match || err != nil {
				t.Errorf("Eval = %v, %v", match, err)
			}
			a.Timestamp++
			if p.Match(b, &a) {
				t.Error("the random fields do not depend on the timestamp")
			}
		})
	}
}

// compiledExamples are the filters of packets.md 9.7.
var compiledExamples = []struct {
	filter    string
	layer     packet.Layer
	object    string
	formatted string
	hints     prog.Hints
}{
	{"true", packet.LayerNetwork, "@WinDiv_WX_WWWWAA", "true", 0xF0},
	{"false", packet.LayerNetwork, "@WinDiv_WX_WWWWXX", "false", 0x0},
	{"tcp", packet.LayerNetwork, "@WinDiv_WX_eXWWAX", "tcp", 0xF0},
	{"not tcp", packet.LayerNetwork, "@WinDiv_WX_eWWWAX", "not tcp", 0xF0},
	{"!ip and tcp.Syn == 1", packet.LayerNetwork, "@WinDiv_WY_bWWWLXX_1lWWXAX", "not ip and tcp.Syn", 0xB0},
	{"tcp.DstPort == 80", packet.LayerNetwork, "@WinDiv_WX_1dWW2mAX", "tcp.DstPort = 80", 0xF0},
	{"tcp.DstPort = 0x50 || udp.DstPort = 53", packet.LayerNetwork, "@WinDiv_WY_1dWW2mALX_1sWW1rAX", "tcp.DstPort = 80 or udp.DstPort = 53", 0xF0},
	{"outbound and tcp.DstPort == 80 or udp", packet.LayerNetwork, "@WinDiv_WZ_YXWWLXLY_1dWW2mALY_fXWWAX", "(outbound and tcp.DstPort = 80) or udp", 0xF0},
	{"outbound and (tcp or udp)", packet.LayerNetwork, "@WinDiv_WZ_YXWWLXX_eXWWALY_fXWWAX", "outbound and (tcp or udp)", 0xE0},
	{"tcp and udp or ip and ipv6", packet.LayerNetwork, "@WinDiv_Wa_eXWWLXLY_fXWWALY_bXWWLZX_cXWWAX", "(tcp and udp) or (ip and ipv6)", 0xF0},
	{"(tcp? tcp.DstPort == 80: udp.DstPort == 53)", packet.LayerNetwork, "@WinDiv_WZ_eXWWLXLY_1dWW2mAX_1sWW1rAX", "(tcp? tcp.DstPort = 80: udp.DstPort = 53)", 0xF0},
	{"(tcp? true: udp)", packet.LayerNetwork, "@WinDiv_WY_eXWWALX_fXWWAX", "tcp or udp", 0xF0},
	{"(tcp? udp: false)", packet.LayerNetwork, "@WinDiv_WY_eXWWLXX_fXWWAX", "tcp and udp", 0xF0},
	{"(tcp? false: true)", packet.LayerNetwork, "@WinDiv_WX_eXWWXA", "(tcp? false: true)", 0xF0},
	{"(tcp? udp: true) and ip", packet.LayerNetwork, "@WinDiv_WZ_eXWWLXLY_fXWWLYX_bXWWAX", "(tcp? udp: true) and ip", 0x70},
	{"(true? tcp: udp)", packet.LayerNetwork, "@WinDiv_WY_eXWWAX_fXWWAX", "tcp", 0xF0},
	{"(false? tcp: udp) and ip", packet.LayerNetwork, "@WinDiv_WY_fXWWLXX_bXWWAX", "udp and ip", 0x70},
	{"ip and (false? tcp: udp)", packet.LayerNetwork, "@WinDiv_WZ_bXWWLYX_eXWWAX_fXWWAX", "ip and udp", 0x70},
	{"tcp and false", packet.LayerNetwork, "@WinDiv_WX_eXWWXX", "false", 0x0},
	{"tcp or true", packet.LayerNetwork, "@WinDiv_WX_eXWWAA", "true", 0xF0},
	{"(tcp or true) and udp", packet.LayerNetwork, "@WinDiv_WY_eXWWLXLX_fXWWAX", "udp", 0xF0},
	{"tcp.DstPort == 70000", packet.LayerNetwork, "@WinDiv_WX_eWWWAX", "not tcp", 0xF0},
	{"tcp.DstPort != 70000", packet.LayerNetwork, "@WinDiv_WX_eWWXAX", "tcp", 0xF0},
	{"tcp.DstPort >= 0", packet.LayerNetwork, "@WinDiv_WX_eWWXAX", "tcp", 0xF0},
	{"ip.SrcAddr", packet.LayerNetwork, "@WinDiv_WX_bWWXAX", "ip", 0x70},
	{"ip.SrcAddr == 10.0.0.1", packet.LayerNetwork, "@WinDiv_WX_rWW50000XAX", "ip.SrcAddr = 10.0.0.1", 0xF0},
	{"ip.SrcAddr == 5", packet.LayerNetwork, "@WinDiv_WX_bWWWAX", "not ip", 0xB0},
	{"ip.SrcAddr >= 10.0.0.0 and ip.SrcAddr <= 10.255.255.255", packet.LayerNetwork, "@WinDiv_WY_rbW50000WLXX_rZW5FVVV=AX", "ip.SrcAddr >= 10.0.0.0 and ip.SrcAddr <= 10.255.255.255", 0xF0},
	{"ipv6.DstAddr == fe80::1:2", packet.LayerNetwork, "@WinDiv_WX_zWW200YWW3V8000WAX", "ipv6.DstAddr = fe80::1:2", 0xF0},
	{"ipv6.DstAddr == 1.2.3.4", packet.LayerNetwork, "@WinDiv_WX_zWWG40Oa1VV=WWAX", "ipv6.DstAddr = 1.2.3.4", 0xF0},
	{"localAddr == ::1", packet.LayerNetwork, "@WinDiv_WX_1zWWXWWWAX", "localAddr = ::1", 0xF0},
	{"localAddr = 127.0.0.1", packet.LayerNetwork, "@WinDiv_WX_1zWW1VG000X1VV=WWAX", "localAddr = 127.0.0.1", 0xF0},
	{"timestamp > -1", packet.LayerNetwork, "@WinDiv_WX_2naXXWAX", "timestamp > -1", 0xF0},
	{"timestamp >= 0x123456789a", packet.LayerNetwork, "@WinDiv_WX_2nbWQ5CU4woAX", "timestamp >= 78187493530", 0xF0},
	{"packet[0] == 0x45", packet.LayerNetwork, "@WinDiv_WX_2dWW2b1VV=AX", "packet[0b] = 0x45", 0xF0},
	{"packet16[-1] != 7", packet.LayerNetwork, "@WinDiv_WX_2eXWd1VVzAX", "packet16[-2b] != 0x7", 0xF0},
	{"packet32[6b] = 0xdeadbeef", packet.LayerNetwork, "@WinDiv_WX_2fWW3FARFNl200bAX", "packet32[6b] = 0xdeadbeef", 0xF0},
	{"tcp.Payload[-1] = 10", packet.LayerNetwork, "@WinDiv_WX_2gWWg1VV+AX", "tcp.Payload[-1b] = 0xa", 0xF0},
	{"tcp.Payload32[0] == 0x47455420", packet.LayerNetwork, "@WinDiv_WX_2iWW13KAL1W1VV=AX", "tcp.Payload32[0b] = 0x47455420", 0xF0},
	{"udp.Payload16[2] < 100", packet.LayerNetwork, "@WinDiv_WX_2kYW3a200ZAX", "udp.Payload16[4b] < 0x64", 0xF0},
	{"packet32[0] > -1", packet.LayerNetwork, "@WinDiv_WX_2faXX1VV=AX", "packet32[0b] > 0x1", 0xF0},
	{"random8 < 128", packet.LayerNetwork, "@WinDiv_WX_2oYW4WAX", "random8 < 128", 0xF0},
	{"tcp.Checksum == 0xbeef", packet.LayerNetwork, "@WinDiv_WX_1oWW1FNlAX", "tcp.Checksum = 0xbeef", 0xF0},
	{"ip.Id == 4660", packet.LayerNetwork, "@WinDiv_WX_kWW4HqAX", "ip.Id = 0x1234", 0xF0},
	{"icmp.Body == 0x10001", packet.LayerNetwork, "@WinDiv_WX_1XWW200XAX", "icmp.Body = 65537", 0xF0},
	{"length > 100", packet.LayerNetwork, "@WinDiv_WX_2maW3aAX", "length > 100", 0xF0},
	{"not packet[1] <= 5", packet.LayerNetwork, "@WinDiv_WX_2daWb200WAX", "packet[1b] > 0x5", 0xF0},
	{"tcp > 0", packet.LayerNetwork, "@WinDiv_WX_eaWWAX", "tcp > 0", 0xF0},
	{"loopback == 2", packet.LayerNetwork, "@WinDiv_WX_1wWWYAX", "loopback = 2", 0xF0},
	{"event == PACKET", packet.LayerNetwork, "@WinDiv_WX_2cWWWAX", "event = PACKET", 0xF0},
	{"ifIdx = 12 and subIfIdx = 0", packet.LayerNetwork, "@WinDiv_WY_ZWWiLXX_aWWWAX", "ifIdx = 12 and subIfIdx = 0", 0xF0},
	{"fragment and not impostor", packet.LayerForward, "@WinDiv_WY_2rXWWLXX_1xWWWAX", "fragment and not impostor", 0xF0},
	{"event == ESTABLISHED and processId == 4", packet.LayerFlow, "@WinDiv_WY_2cWWXLXX_1yWWaAX", "event = ESTABLISHED and processId = 4", 0xC0},
	{"event == DELETED", packet.LayerFlow, "@WinDiv_WX_2cWWYAX", "event = DELETED", 0x1C0},
	{"remotePort == 443 and protocol == TCP", packet.LayerFlow, "@WinDiv_WY_2WWWDxLXX_2XWWcAX", "remotePort = 443 and protocol = 6", 0x1C0},
	{"event == 3", packet.LayerFlow, "@WinDiv_WX_2cWWZAX", "event = 3", 0xC0},
	{"event == CONNECT or event == BIND", packet.LayerSocket, "@WinDiv_WY_2cWWaALX_2cWWZAX", "event = CONNECT or event = BIND", 0x6C0},
	{"event != CLOSE", packet.LayerSocket, "@WinDiv_WX_2cXWdAX", "event != CLOSE", 0x1EC0},
	{"endpointId == 18446744073709551615", packet.LayerSocket, "@WinDiv_WX_2YWW3VVVVV=3VVVVV=AX", "endpointId = 18446744073709551615", 0x3EC0},
	{"inbound", packet.LayerSocket, "@WinDiv_WX_XXWWAX", "inbound", 0x3EC0},
	{"ip", packet.LayerSocket, "@WinDiv_WX_bXWWAX", "ip", 0x3E40},
	{"layer == SOCKET and priority > -100", packet.LayerReflect, "@WinDiv_WY_2aWWZLXX_2baX3aAX", "layer = SOCKET and priority > -100", 0x0},
	{"event == OPEN and processId != 1234", packet.LayerReflect, "@WinDiv_WY_2cWWeLXX_1yXW16oAX", "event = OPEN and processId != 1234", 0x0},
	{"layer != NETWORK_FORWARD", packet.LayerReflect, "@WinDiv_WX_2aXWXAX", "layer != NETWORK_FORWARD", 0x0},
	{"priority = -30000", packet.LayerReflect, "@WinDiv_WX_2bWXT9mAX", "priority = -30000", 0x0},
	{"event = 0", packet.LayerReflect, "@WinDiv_WX_2cWWWAX", "event = 0", 0x0},
}

func TestCompiledExamples(t *testing.T) {
	for _, tt := range compiledExamples {
		t.Run(tt.layer.String()+" "+tt.filter, func(t *testing.T) {
			p := mustCompile(t, tt.filter, tt.layer, Strict)
			if object, err := p.Object(); object != tt.object || err != nil {
				t.Errorf("Object = %s, %v, want %s", object, err, tt.object)
			}
			if text, err := p.Format(); text != tt.formatted || err != nil {
				t.Errorf("Format = %s, %v, want %s", text, err, tt.formatted)
			}
			if hints := p.Hints(); hints != tt.hints {
				t.Errorf("Hints = %#x, want %#x", hints, tt.hints)
			}
			// The object alone suffices for Format and Hints.
			again := mustCompile(t, tt.object, tt.layer, Strict)
			if text := again.String(); text != tt.formatted {
				t.Errorf("the object prints as %s, want %s", text, tt.formatted)
			}
			if hints := again.Hints(); hints != tt.hints {
				t.Errorf("the object has the hints %#x, want %#x", hints, tt.hints)
			}
		})
	}
}

func TestObjectSizes(t *testing.T) { // packets.md 9.7, filter-object.md 4.3
	tests := func(n int) string { return strings.Repeat("tcp and ", n-1) + "tcp" }
	for _, tt := range []struct {
		name    string
		n       int
		dialect Dialect
		size    int
		start   string
	}{
		{"the most that the driver accepts", 255, Strict, 2273, "@WinDiv_W7=_"},
		{"quirk: 256 tests are counted as none", 256, Strict, 10, "@WinDiv_WW"},
		{"256 tests in the extended dialect", 256, Extended, 2282, "@WinDiv_W8W_"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			object, err := mustCompile(t, tests(tt.n), packet.LayerNetwork, tt.dialect).Object()
			if err != nil || len(object) != tt.size || !strings.HasPrefix(object, tt.start) {
				t.Errorf("Object = %.16s… of %d characters, %v", object, len(object), err)
			}
		})
	}
	p, err := Compile(tests(257), packet.LayerNetwork, Extended)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Object(); kindOf(err) != ErrTooLong {
		t.Errorf("257 tests: %v, want ErrTooLong", err)
	}
}

func TestEvaluationExamples(t *testing.T) { // packets.md 9.9
	for _, tt := range []struct {
		filter, packet, direction string
		want                      bool
	}{
		{"tcp.DstPort != 80", "B", "out", false},
		{"not tcp.DstPort == 80", "B", "out", false},
		{"not tcp.DstPort", "B", "out", false},
		{"not tcp", "B", "out", true},
		{"not tcp or tcp.DstPort != 80", "B", "out", true},
		{"tcp.DstPort == 70000", "B", "out", true},
		{"tcp.DstPort != 70000", "B", "out", false},
		{"tcp.SeqNum > -1", "B", "out", false},
		{"packet[1000] == 0", "B", "out", false},
		{"packet[1000] < 255", "B", "out", false},
		{"packet[1000] < 300", "B", "out", true},
		{"packet[-33] == 0x45", "B", "out", true},
		{"packet[-34] == 0x45", "B", "out", false},
		{"udp.Payload[0] == 0x68", "B", "out", true},
		{"udp.Payload[-1] == 0x6f", "B", "out", true},
		{"udp.Payload[5] == 0", "B", "out", false},
		{"udp.Payload[-6] >= 0", "B", "out", true},
		{"udp.Payload[-6] < 255", "B", "out", false},
		{"udp.Payload16[1] == 0x6c6c", "B", "out", true},
		{"udp.Payload16[1b] == 0x656c", "B", "out", true},
		{"udp.Payload16[4b] < 65535", "B", "out", false},
		{"udp.Payload16[3b] == 0x6c6f", "B", "out", true},
		{"udp.Payload32[-1] == 0x656c6c6f", "B", "out", true},
		{"length == 33 and udp.PayloadLength == 5 and udp.Length == 13", "B", "out", true},
		{"localAddr == 10.1.2.3 and localPort == 5353", "B", "out", true},
		{"localAddr == ::10.1.2.3", "B", "out", false},
		{"remoteAddr == 192.0.2.7 and remotePort == 53", "B", "out", true},
		{"ip.SrcAddr == ::ffff:10.1.2.3", "B", "out", true},
		{"ip.SrcAddr < 10.1.2.4", "B", "out", true},
		{"ip.TTL == 1 and ip.Id == 0xbeef", "B", "out", true},
		{"ipv6.SrcAddr >= ::", "B", "out", false},
		{"localAddr >= ::", "B", "out", true},
		{"localAddr == 10.1.2.3", "B", "in", false},
		{"remoteAddr == 10.1.2.3 and remotePort == 5353", "B", "in", true},
		{"inbound", "B", "in", true},
		{"localPort == 8", "C", "out", true},
		{"remotePort == 0", "C", "out", true},
		{"localPort == 0", "C", "in", true},
		{"remotePort == 8", "C", "in", true},
		{"icmp.Type == 8 and icmp.Body == 0x10002", "C", "in", true},
		{"ipv6.TrafficClass == 0x12", "D", "out", true},
		{"ipv6.FlowLabel == 0x34567", "D", "out", false},
		{"ipv6.FlowLabel > 0x34567", "D", "out", true},
		{"ipv6.SrcAddr == 2001:db8::1", "D", "out", true},
		{"ipv6.SrcAddr > 2001:db8::", "D", "out", true},
		{"ip", "D", "out", false},
		{"protocol == TCP", "D", "out", true},
		{"ipv6.NextHdr == 6", "D", "out", true},
		{"tcp.Payload[0] == 0x78 and tcp.Psh and tcp.Ack and not tcp.Syn", "D", "out", true},
		{"localPort == 443", "D", "out", true},
		{"localPort == 129", "F", "out", true},
		{"icmpv6.Type == 129 and not icmp", "F", "out", true},
		{"icmp.Type == 129", "F", "out", false},
		{"fragment", "G", "in", true},
		{"udp", "G", "in", true},
		{"udp.Length == 64 and udp.PayloadLength == 16", "G", "in", true},
		{"ip.MF and ip.FragOff == 0", "G", "in", true},
		{"fragment", "H", "in", true},
		{"udp", "H", "in", false},
		{"protocol == UDP", "H", "in", true},
		{"ip.FragOff == 3", "H", "in", true},
		{"localPort == 0", "H", "in", true},
		{"tcp", "O", "out", false},
		{"protocol == TCP", "O", "out", true},
		{"length == 30 and ip.Length == 44", "O", "out", true},
	} {
		t.Run(fmt.Sprintf("%s %s %s", tt.filter, tt.packet, tt.direction), func(t *testing.T) {
			p := mustCompile(t, tt.filter, packet.LayerNetwork, Strict)
			b := mustHex(t, packetHex[tt.packet])
			a := packet.Address{Outbound: tt.direction == "out", IPv6: b[0]>>4 == 6}
			if match, err := p.Eval(b, &a); match != tt.want || err != nil {
				t.Errorf("Eval = %v, %v, want %v", match, err, tt.want)
			}
		})
	}
}

// kindOf returns the kind of a filter error, 0 for other errors and none.
func kindOf(err error) ErrorKind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}
