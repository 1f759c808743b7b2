package filter

import (
	"strings"
	"testing"

	"github.com/opendivert/divert/packet"
)

const (
	atNetwork = packet.LayerNetwork
	atForward = packet.LayerForward
	atFlow    = packet.LayerFlow
	atSocket  = packet.LayerSocket
	atReflect = packet.LayerReflect
)

// The accidents of the original that the strict dialect keeps: filters that mean the same as others. (Specification:
// filter-language.md 1 to 5.)
var quirkEquals = []struct {
	name         string
	layer        packet.Layer
	filter, same string
}{
	{"1.2 stray b", atNetwork, "tcp b and b udp", "tcp and udp"},
	{"1.2 b apart from its number", atNetwork, "packet[16 b]", "packet[16]"},
	{"1.2 byte index", atNetwork, "packet16[2b]", "packet16[1]"},
	{"1.2 bare 0x", atNetwork, "tcp.DstPort == 0x", "tcp.DstPort == 0"},
	{"1.2 hexadecimal takes the b", atNetwork, "packet[0x10b]", "packet[267]"},
	{"1.2 octet beyond 32 bits", atNetwork, "ip.SrcAddr == 4294967297.2.3.4", "ip.SrcAddr == 1.2.3.4"},
	{"1.2 leading zeros", atNetwork, "ip.SrcAddr == 010.001.0.007 and tcp.DstPort == 007", "ip.SrcAddr == 10.1.0.7 and tcp.DstPort == 7"},
	{"1.2 junk after eight groups", atNetwork, "ipv6.SrcAddr == 1:2:3:4:5:6:7:8:9", "ipv6.SrcAddr == 1:2:3:4:5:6:7:8"},
	{"1.2 letters after eight groups", atNetwork, "ipv6.SrcAddr == 1:2:3:4:5:6:7:8:zzz", "ipv6.SrcAddr == 1:2:3:4:5:6:7:8"},
	{"1.2 mapped", atNetwork, "ipv6.SrcAddr == ::0:ffff:1.2.3.4", "ipv6.SrcAddr == 1.2.3.4"},
	{"1.2 not mapped", atNetwork, "ipv6.SrcAddr == ::1.2.3.4", "ipv6.SrcAddr == 0x01020304"},
	{"1.2 address as a flag", atNetwork, "tcp.Syn == ::1", "tcp.Syn == 1"},
	{"1.2 number as an address", atNetwork, "ip.SrcAddr == 0xFFFF0A000001", "ip.SrcAddr == 10.0.0.1"},
	{"1.1 one equals sign", atNetwork, "tcp.DstPort=80", "tcp.DstPort == 80"},
	{"1.1 symbols", atNetwork, "!tcp&&!udp||ip", "not tcp and not udp or ip"},
	{"1.2 colons", atNetwork, "(tcp? ipv6.SrcAddr == 1:: : udp)", "(tcp? ipv6.SrcAddr == 1::0 : udp)"},
	{"1.2 colon before a parenthesis", atNetwork, "(tcp? udp:(icmp))", "(tcp? udp : icmp)"},
	{"2 not binds to the comparison", atNetwork, "not tcp.DstPort == 80", "tcp.DstPort != 80"},
	{"2 not in pairs", atNetwork, "not not ! tcp", "not tcp"},
	{"2 bare test", atNetwork, "tcp.DstPort", "tcp.DstPort != 0"},
	{"2 constants", atNetwork, "true == 1 and false < 1", "true"},
	{"3.1 macros are numbers", atNetwork, "ifIdx == NETWORK_FORWARD and packet[TRUE]", "ifIdx == 1 and packet[1]"},
	{"3.1 CLOSE at SOCKET", atSocket, "event == CLOSE", "event == 7"},
	{"3.1 CLOSE at REFLECT", atReflect, "event == CLOSE", "event == 9"},
	{"4 negative index", atNetwork, "packet32[-1]", "packet32[-4b]"},
	{"5 false becomes absence", atNetwork, "tcp.DstPort == 70000", "tcp == 0"},
	{"5 address of the other family", atNetwork, "ip.SrcAddr == ::1", "ip == 0"},
	{"5 true becomes presence", atNetwork, "tcp.DstPort >= 0", "tcp == 1"},
	{"5 negative zero", atNetwork, "tcp.DstPort > -0", "tcp == 1"},
	{"5 negative zero is less than zero", atNetwork, "zero == -0", "false"},
	{"5 bare address", atNetwork, "ip.SrcAddr", "ip == 1"},
	{"5 negated bare address", atNetwork, "not ip.SrcAddr", "ip == 0"},
	{"5 length", atNetwork, "length", "true"},
	{"5 element of a short packet", atNetwork, "packet[1000] < 300", "true"},
	{"5 element of a short payload", atNetwork, "tcp.Payload[1000] < 300", "tcp == 1"},
	{"5 flags", atNetwork, "tcp < 5 and tcp >= 0 and tcp != 2", "true"},
	{"5 flag out of range", atNetwork, "tcp == 2", "false"},
	{"5 timestamp", atFlow, "timestamp >= -9223372036854775808", "true"},
	{"5 priority", atReflect, "priority < -30000", "false"},
}

func TestQuirkEquals(t *testing.T) {
	for _, row := range quirkEquals {
		got, want := compileResult(row.filter, row.layer), compileResult(row.same, row.layer)
		if !strings.HasPrefix(want, "@") || got != want {
			t.Errorf("%s: %s: got %s, want that of %s: %s", row.name, row.filter, got, row.same, want)
		}
	}
}

// Comparisons that the strict dialect keeps although they are out of range. (filter-language.md 5)
var quirkKept = []struct{ name, filter, object string }{
	{"ip.TOS up to 65535", "ip.TOS == 300", "@WinDiv_WX_iWW9iAX"},
	{"sequence number beyond 32 bits", "tcp.SeqNum == 0x100000005", "@WinDiv_WX_1eWWbAX"},
	{"loopback is not folded", "loopback == 2", "@WinDiv_WX_1wWWYAX"},
	{"unreachable test", "(true? tcp: udp)", "@WinDiv_WY_eXWWAX_fXWWAX"},
	{"unreachable test dropped", "(false? tcp: udp)", "@WinDiv_WX_fXWWAX"},
	{"dead test in the middle", "ip and (false? tcp: udp)", "@WinDiv_WZ_bXWWLYX_eXWWAX_fXWWAX"},
}

func TestQuirkKept(t *testing.T) {
	for _, row := range quirkKept {
		if got := compileResult(row.filter, atNetwork); got != row.object {
			t.Errorf("%s: %s: got %s, want %s", row.name, row.filter, got, row.object)
		}
	}
}

// Errors and positions of the strict dialect that surprise. (filter-language.md 1, 2, 4, 7, 8)
var quirkErrors = []struct {
	name   string
	layer  packet.Layer
	filter string
	kind   ErrorKind
	pos    uint32
}{
	{"1.1 three equals signs", atNetwork, "tcp === 1", ErrUnexpectedToken, 6},
	{"1.2 case", atNetwork, "TCP == 1", ErrUnexpectedToken, 0},
	{"1.2 39 characters", atNetwork, "tcp == " + strings.Repeat("0", 38) + "1", 0, 0},
	{"1.2 40 characters", atNetwork, "tcp == " + strings.Repeat("0", 39) + "1", ErrBadToken, 7},
	{"1.2 40 characters with the colon", atNetwork, "(tcp? tcp == " + strings.Repeat("0", 39) + ": udp)", ErrBadToken, 13},
	{"1.2 two colons stay", atNetwork, "(tcp? ipv6.SrcAddr == 1::: udp)", ErrBadToken, 22},
	{"1.2 full form of a mapped address", atNetwork, "ipv6.SrcAddr == 0:0:0:0:0:ffff:1.2.3.4", ErrBadToken, 16},
	{"1.2 swallowed colon", atNetwork, "(tcp? udp:icmp)", ErrBadToken, 6},
	{"1.2 no plus", atNetwork, "tcp == +1", ErrBadToken, 8},
	{"1.2 not ASCII", atNetwork, "tcp é", ErrBadToken, 5},
	{"1.2 NUL", atNetwork, "tcp\x00", ErrBadToken, 4},
	{"1.2 word in of ours", atNetwork, "tcp in", ErrBadToken, 4},
	{"1.1 brace of ours", atNetwork, "tcp == {", ErrBadToken, 8},
	{"1.3 white space behind the last token", atNetwork, strings.Repeat("not ", 1277) + "tcp  ", ErrTooLong, 5111},
	{"1.3 number with b is two tokens", atNetwork, strings.Repeat("not ", 1270) + "packet[1b] = 1", 0, 0},
	{"1.3 number with b is one too many", atNetwork, strings.Repeat("not ", 1271) + "packet[1b] = 1", ErrTooLong, 1271*4 + 14},
	{"1.3 lone b is none", atNetwork, strings.Repeat("not ", 1276) + "tcp b b", 0, 0},
	{"2 negated parenthesis", atNetwork, "not (tcp)", ErrUnexpectedToken, 4},
	{"2 empty condition", atNetwork, "(? tcp : udp)", ErrUnexpectedToken, 1},
	{"2 condition in error", atNetwork, "(tcp == ? udp : icmp)", ErrUnexpectedToken, 8},
	{"2 empty condition, error behind it", atNetwork, "(? packet[65576] : udp)", ErrIndexOutOfBounds, 10},
	{"3 fields of this host at NETWORK_FORWARD", atForward, "protocol == 6", ErrBadTokenForLayer, 0},
	{"3.1 foreign macro", atNetwork, "event == BIND", ErrUnexpectedToken, 9},
	{"4 last index", atNetwork, "packet[65534]", 0, 0},
	{"4 negative zero", atNetwork, "packet[-0]", ErrIndexOutOfBounds, 9},
	{"4 element beyond the end", atNetwork, "packet16[-1b]", ErrIndexOutOfBounds, 12},
	{"4 number too large wins", atNetwork, "packet[65576b", ErrIndexOutOfBounds, 7},
	{"4 offset before the bracket", atNetwork, "packet[65535)", ErrIndexOutOfBounds, 12},
	{"8 bad token before a syntax error", atNetwork, "tcp udp foo", ErrBadToken, 8},
	{"8 colon cut off at the start", atNetwork, "foo: tcp", ErrBadToken, 4294967295},
	{"8 colon cut off from a foreign field", atNetwork, "tcp and processId: udp", ErrBadTokenForLayer, 7},
	{"8 single ampersand", atNetwork, "tcp &", ErrBadToken, 5},
	{"8 end after white space", atNetwork, "tcp and  ", ErrUnexpectedToken, 9},
	{"8 error in parentheses", atNetwork, "(packet[65576])", ErrUnexpectedToken, 8},
	{"8 error before a parenthesis", atNetwork, "(packet[65535)", ErrIndexOutOfBounds, 13},
	{"8 error in a then part", atNetwork, "(tcp? packet[65576]: udp)", ErrIndexOutOfBounds, 13},
	{"8 error in an else part", atNetwork, "(tcp? udp: packet[65576])", ErrIndexOutOfBounds, 18},
	{"8 byte mark out of place", atNetwork, "tcp.DstPort == 80b", ErrUnexpectedToken, 15},
	{"9 only constants at layers that do not exist", packet.NumLayers, "true == TRUE and NETWORK", ErrUnexpectedToken, 17},
	{"9 no fields at layers that do not exist", packet.NumLayers, "zero", ErrBadTokenForLayer, 0},
	{"9 no events at layers that do not exist", packet.NumLayers, "true == PACKET", ErrUnexpectedToken, 8},
}

func TestQuirkErrors(t *testing.T) {
	for _, row := range quirkErrors {
		checkError(t, row.name+": "+shortened(row.filter), row.filter, row.layer, row.kind, row.pos)
	}
}
