package filter

import (
	"strings"
	"testing"

	"github.com/opendivert/divert/packet"
)

// The worked examples of the specification. (packets.md 9.7 and 9.8)

var workedObjects = []struct {
	filter string
	layer  packet.Layer
	object string
}{
	{`true`, packet.LayerNetwork, `@WinDiv_WX_WWWWAA`},
	{`false`, packet.LayerNetwork, `@WinDiv_WX_WWWWXX`},
	{`tcp`, packet.LayerNetwork, `@WinDiv_WX_eXWWAX`},
	{`not tcp`, packet.LayerNetwork, `@WinDiv_WX_eWWWAX`},
	{`!ip and tcp.Syn == 1`, packet.LayerNetwork, `@WinDiv_WY_bWWWLXX_1lWWXAX`},
	{`tcp.DstPort == 80`, packet.LayerNetwork, `@WinDiv_WX_1dWW2mAX`},
	{`tcp.DstPort = 0x50 || udp.DstPort = 53`, packet.LayerNetwork, `@WinDiv_WY_1dWW2mALX_1sWW1rAX`},
	{`outbound and tcp.DstPort == 80 or udp`, packet.LayerNetwork, `@WinDiv_WZ_YXWWLXLY_1dWW2mALY_fXWWAX`},
	{`outbound and (tcp or udp)`, packet.LayerNetwork, `@WinDiv_WZ_YXWWLXX_eXWWALY_fXWWAX`},
	{`tcp and udp or ip and ipv6`, packet.LayerNetwork, `@WinDiv_Wa_eXWWLXLY_fXWWALY_bXWWLZX_cXWWAX`},
	{`(tcp? tcp.DstPort == 80: udp.DstPort == 53)`, packet.LayerNetwork, `@WinDiv_WZ_eXWWLXLY_1dWW2mAX_1sWW1rAX`},
	{`(tcp? true: udp)`, packet.LayerNetwork, `@WinDiv_WY_eXWWALX_fXWWAX`},
	{`(tcp? udp: false)`, packet.LayerNetwork, `@WinDiv_WY_eXWWLXX_fXWWAX`},
	{`(tcp? false: true)`, packet.LayerNetwork, `@WinDiv_WX_eXWWXA`},
	{`(tcp? udp: true) and ip`, packet.LayerNetwork, `@WinDiv_WZ_eXWWLXLY_fXWWLYX_bXWWAX`},
	{`(true? tcp: udp)`, packet.LayerNetwork, `@WinDiv_WY_eXWWAX_fXWWAX`},
	{`(false? tcp: udp) and ip`, packet.LayerNetwork, `@WinDiv_WY_fXWWLXX_bXWWAX`},
	{`ip and (false? tcp: udp)`, packet.LayerNetwork, `@WinDiv_WZ_bXWWLYX_eXWWAX_fXWWAX`},
	{`tcp and false`, packet.LayerNetwork, `@WinDiv_WX_eXWWXX`},
	{`tcp or true`, packet.LayerNetwork, `@WinDiv_WX_eXWWAA`},
	{`(tcp or true) and udp`, packet.LayerNetwork, `@WinDiv_WY_eXWWLXLX_fXWWAX`},
	{`tcp.DstPort == 70000`, packet.LayerNetwork, `@WinDiv_WX_eWWWAX`},
	{`tcp.DstPort != 70000`, packet.LayerNetwork, `@WinDiv_WX_eWWXAX`},
	{`tcp.DstPort >= 0`, packet.LayerNetwork, `@WinDiv_WX_eWWXAX`},
	{`ip.SrcAddr`, packet.LayerNetwork, `@WinDiv_WX_bWWXAX`},
	{`ip.SrcAddr == 10.0.0.1`, packet.LayerNetwork, `@WinDiv_WX_rWW50000XAX`},
	{`ip.SrcAddr == 5`, packet.LayerNetwork, `@WinDiv_WX_bWWWAX`},
	{`ip.SrcAddr >= 10.0.0.0 and ip.SrcAddr <= 10.255.255.255`, packet.LayerNetwork, `@WinDiv_WY_rbW50000WLXX_rZW5FVVV=AX`},
	{`ipv6.DstAddr == fe80::1:2`, packet.LayerNetwork, `@WinDiv_WX_zWW200YWW3V8000WAX`},
	{`ipv6.DstAddr == 1.2.3.4`, packet.LayerNetwork, `@WinDiv_WX_zWWG40Oa1VV=WWAX`},
	{`localAddr == ::1`, packet.LayerNetwork, `@WinDiv_WX_1zWWXWWWAX`},
	{`localAddr = 127.0.0.1`, packet.LayerNetwork, `@WinDiv_WX_1zWW1VG000X1VV=WWAX`},
	{`timestamp > -1`, packet.LayerNetwork, `@WinDiv_WX_2naXXWAX`},
	{`timestamp >= 0x123456789a`, packet.LayerNetwork, `@WinDiv_WX_2nbWQ5CU4woAX`},
	{`packet[0] == 0x45`, packet.LayerNetwork, `@WinDiv_WX_2dWW2b1VV=AX`},
	{`packet16[-1] != 7`, packet.LayerNetwork, `@WinDiv_WX_2eXWd1VVzAX`},
	{`packet32[6b] = 0xdeadbeef`, packet.LayerNetwork, `@WinDiv_WX_2fWW3FARFNl200bAX`},
	{`tcp.Payload[-1] = 10`, packet.LayerNetwork, `@WinDiv_WX_2gWWg1VV+AX`},
	{`tcp.Payload32[0] == 0x47455420`, packet.LayerNetwork, `@WinDiv_WX_2iWW13KAL1W1VV=AX`},
	{`udp.Payload16[2] < 100`, packet.LayerNetwork, `@WinDiv_WX_2kYW3a200ZAX`},
	{`packet32[0] > -1`, packet.LayerNetwork, `@WinDiv_WX_2faXX1VV=AX`},
	{`random8 < 128`, packet.LayerNetwork, `@WinDiv_WX_2oYW4WAX`},
	{`tcp.Checksum == 0xbeef`, packet.LayerNetwork, `@WinDiv_WX_1oWW1FNlAX`},
	{`ip.Id == 4660`, packet.LayerNetwork, `@WinDiv_WX_kWW4HqAX`},
	{`icmp.Body == 0x10001`, packet.LayerNetwork, `@WinDiv_WX_1XWW200XAX`},
	{`length > 100`, packet.LayerNetwork, `@WinDiv_WX_2maW3aAX`},
	{`not packet[1] <= 5`, packet.LayerNetwork, `@WinDiv_WX_2daWb200WAX`},
	{`tcp > 0`, packet.LayerNetwork, `@WinDiv_WX_eaWWAX`},
	{`loopback == 2`, packet.LayerNetwork, `@WinDiv_WX_1wWWYAX`},
	{`event == PACKET`, packet.LayerNetwork, `@WinDiv_WX_2cWWWAX`},
	{`ifIdx = 12 and subIfIdx = 0`, packet.LayerNetwork, `@WinDiv_WY_ZWWiLXX_aWWWAX`},
	{`fragment and not impostor`, packet.LayerForward, `@WinDiv_WY_2rXWWLXX_1xWWWAX`},
	{`event == ESTABLISHED and processId == 4`, packet.LayerFlow, `@WinDiv_WY_2cWWXLXX_1yWWaAX`},
	{`event == DELETED`, packet.LayerFlow, `@WinDiv_WX_2cWWYAX`},
	{`remotePort == 443 and protocol == TCP`, packet.LayerFlow, `@WinDiv_WY_2WWWDxLXX_2XWWcAX`},
	{`event == 3`, packet.LayerFlow, `@WinDiv_WX_2cWWZAX`},
	{`event == CONNECT or event == BIND`, packet.LayerSocket, `@WinDiv_WY_2cWWaALX_2cWWZAX`},
	{`event != CLOSE`, packet.LayerSocket, `@WinDiv_WX_2cXWdAX`},
	{`endpointId == 18446744073709551615`, packet.LayerSocket, `@WinDiv_WX_2YWW3VVVVV=3VVVVV=AX`},
	{`inbound`, packet.LayerSocket, `@WinDiv_WX_XXWWAX`},
	{`ip`, packet.LayerSocket, `@WinDiv_WX_bXWWAX`},
	{`layer == SOCKET and priority > -100`, packet.LayerReflect, `@WinDiv_WY_2aWWZLXX_2baX3aAX`},
	{`event == OPEN and processId != 1234`, packet.LayerReflect, `@WinDiv_WY_2cWWeLXX_1yXW16oAX`},
	{`layer != NETWORK_FORWARD`, packet.LayerReflect, `@WinDiv_WX_2aXWXAX`},
	{`priority = -30000`, packet.LayerReflect, `@WinDiv_WX_2bWXT9mAX`},
	{`event = 0`, packet.LayerReflect, `@WinDiv_WX_2cWWWAX`},
}

var workedErrors = []struct {
	filter string
	layer  packet.Layer
	kind   ErrorKind
	pos    uint32
}{
	{``, packet.LayerNetwork, ErrUnexpectedToken, 0},
	{`   `, packet.LayerNetwork, ErrUnexpectedToken, 3},
	{`foo`, packet.LayerNetwork, ErrBadToken, 0},
	{`  foo`, packet.LayerNetwork, ErrBadToken, 2},
	{`tcp and bar`, packet.LayerNetwork, ErrBadToken, 8},
	{`foo: tcp`, packet.LayerNetwork, ErrBadToken, 4294967295},
	{`tcp and foo: udp`, packet.LayerNetwork, ErrBadToken, 7},
	{`(tcp? xyz: udp)`, packet.LayerNetwork, ErrBadToken, 5},
	{`tcp @ udp`, packet.LayerNetwork, ErrBadToken, 5},
	{`tcp,udp`, packet.LayerNetwork, ErrBadToken, 4},
	{`tcp & udp`, packet.LayerNetwork, ErrBadToken, 5},
	{`tcp |`, packet.LayerNetwork, ErrBadToken, 5},
	{`Tcp`, packet.LayerNetwork, ErrBadToken, 0},
	{`tcp AND udp`, packet.LayerNetwork, ErrBadToken, 4},
	{`tcp.DstPort == 0X50`, packet.LayerNetwork, ErrBadToken, 15},
	{`tcp.DstPort == 12abc`, packet.LayerNetwork, ErrBadToken, 15},
	{`ip.SrcAddr == 1.2.3`, packet.LayerNetwork, ErrBadToken, 14},
	{`ip.SrcAddr == 1.2.3.256`, packet.LayerNetwork, ErrBadToken, 14},
	{`tcp.DstPort == 340282366920938463463374607431768211456`, packet.LayerNetwork, ErrBadToken, 15},
	{`ipv6.SrcAddr == 0:0:0:0:0:ffff:1.2.3.4`, packet.LayerNetwork, ErrBadToken, 16},
	{`ipv6.SrcAddr == 1::2::3`, packet.LayerNetwork, ErrBadToken, 16},
	{`(tcp? udp:icmp)`, packet.LayerNetwork, ErrBadToken, 6},
	{`aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`, packet.LayerNetwork, ErrBadToken, 0},
	{`processId == 4`, packet.LayerNetwork, ErrBadTokenForLayer, 0},
	{`tcp and processId == 4`, packet.LayerNetwork, ErrBadTokenForLayer, 8},
	{`tcp and (layer == FLOW)`, packet.LayerNetwork, ErrBadTokenForLayer, 9},
	{`inbound`, packet.LayerForward, ErrBadTokenForLayer, 0},
	{`localPort == 1`, packet.LayerForward, ErrBadTokenForLayer, 0},
	{`tcp.Syn`, packet.LayerFlow, ErrBadTokenForLayer, 0},
	{`packet[0] = 1`, packet.LayerSocket, ErrBadTokenForLayer, 0},
	{`ip`, packet.LayerReflect, ErrBadTokenForLayer, 0},
	{`event == BIND`, packet.LayerNetwork, ErrUnexpectedToken, 9},
	{`TRUE`, packet.LayerNetwork, ErrUnexpectedToken, 0},
	{`tcp == true`, packet.LayerNetwork, ErrUnexpectedToken, 7},
	{`80 == tcp.DstPort`, packet.LayerNetwork, ErrUnexpectedToken, 0},
	{`tcp.DstPort ==`, packet.LayerNetwork, ErrUnexpectedToken, 14},
	{`tcp.DstPort == = 80`, packet.LayerNetwork, ErrUnexpectedToken, 15},
	{`tcp.DstPort == --1`, packet.LayerNetwork, ErrUnexpectedToken, 16},
	{`()`, packet.LayerNetwork, ErrUnexpectedToken, 1},
	{`(tcp`, packet.LayerNetwork, ErrUnexpectedToken, 4},
	{`tcp)`, packet.LayerNetwork, ErrUnexpectedToken, 3},
	{`tcp udp`, packet.LayerNetwork, ErrUnexpectedToken, 4},
	{`not (tcp)`, packet.LayerNetwork, ErrUnexpectedToken, 4},
	{`tcp not udp`, packet.LayerNetwork, ErrUnexpectedToken, 4},
	{`tcp and`, packet.LayerNetwork, ErrUnexpectedToken, 7},
	{`or tcp`, packet.LayerNetwork, ErrUnexpectedToken, 0},
	{`tcp? udp: icmp`, packet.LayerNetwork, ErrUnexpectedToken, 3},
	{`(tcp? udp)`, packet.LayerNetwork, ErrUnexpectedToken, 9},
	{`(tcp? udp:)`, packet.LayerNetwork, ErrUnexpectedToken, 10},
	{`(tcp? udp: icmp: ip)`, packet.LayerNetwork, ErrUnexpectedToken, 15},
	{`packet`, packet.LayerNetwork, ErrUnexpectedToken, 6},
	{`packet[]`, packet.LayerNetwork, ErrUnexpectedToken, 7},
	{`packet[1`, packet.LayerNetwork, ErrUnexpectedToken, 8},
	{`packet[-]`, packet.LayerNetwork, ErrUnexpectedToken, 8},
	{`tcp[0]`, packet.LayerNetwork, ErrUnexpectedToken, 3},
	{`packet[65535]`, packet.LayerNetwork, ErrIndexOutOfBounds, 12},
	{`packet[65576]`, packet.LayerNetwork, ErrIndexOutOfBounds, 7},
	{`(packet[65576])`, packet.LayerNetwork, ErrUnexpectedToken, 8},
	{`(packet[65535])`, packet.LayerNetwork, ErrUnexpectedToken, 13},
	{`packet16[32767]`, packet.LayerNetwork, ErrIndexOutOfBounds, 14},
	{`packet[-0]`, packet.LayerNetwork, ErrIndexOutOfBounds, 9},
	{`packet32[-3b]`, packet.LayerNetwork, ErrIndexOutOfBounds, 12},
	{`packet[-65536]`, packet.LayerNetwork, ErrIndexOutOfBounds, 13},
	{`packet[1.2.3.4]`, packet.LayerNetwork, ErrIndexOutOfBounds, 7},
	{` @WinDiv_WX_eXWWAX`, packet.LayerNetwork, ErrBadToken, 2},
	{`@WinDiv_WX_eXWWAX `, packet.LayerNetwork, ErrBadObject, 0},
	{`@WinDiv_WX_eXWWA`, packet.LayerNetwork, ErrBadObject, 0},
	{`@`, packet.LayerNetwork, ErrBadObject, 0},
}

// repeat returns n times s with sep between.
func repeat(n int, s, sep string) string {
	return strings.TrimSuffix(strings.Repeat(s+sep, n), sep)
}

// nested returns s in n parentheses.
func nested(n int, s string) string {
	return strings.Repeat("(", n) + s + strings.Repeat(")", n)
}

var workedLimits = []struct {
	name, filter string
	kind         ErrorKind
	pos          uint32
}{
	{"340 parentheses", nested(340, "tcp"), 0, 0},
	{"341 parentheses", nested(341, "tcp"), ErrUnexpectedToken, 341},
	{"341 empty parentheses", nested(341, ""), ErrTooDeep, 341},
	{"639 and", repeat(639, "true", " and "), 0, 0},
	{"640 and", repeat(640, "true", " and "), ErrTooLong, 5750},
	{"640 or", repeat(640, "true", " or "), ErrTooLong, 5111},
	{"1276 not", strings.Repeat("not ", 1276) + "tcp", 0, 0},
	{"1277 not", strings.Repeat("not ", 1277) + "tcp", ErrTooLong, 5111},
	{"320 comparisons", repeat(320, "zero == 0", " and "), ErrTooLong, 4473},
	{"255 tests", repeat(255, "tcp", " and "), 0, 0},
	{"256 tests", repeat(256, "tcp", " and "), 0, 0},
	{"257 tests", repeat(257, "tcp", " and "), ErrTooLong, 0},
}

func TestWorkedObjects(t *testing.T) {
	for _, row := range workedObjects {
		if got := compileResult(row.filter, row.layer); got != row.object {
			t.Errorf("%s %s: got %s, want %s", row.layer, row.filter, got, row.object)
		}
	}
}

func TestWorkedErrors(t *testing.T) {
	for _, row := range workedErrors {
		checkError(t, row.filter, row.filter, row.layer, row.kind, row.pos)
	}
}

func TestWorkedLimits(t *testing.T) {
	for _, row := range workedLimits {
		checkError(t, row.name, row.filter, packet.LayerNetwork, row.kind, row.pos)
	}
	if got := compileResult(repeat(256, "tcp", " and "), packet.LayerNetwork); got != "@WinDiv_WW" {
		t.Errorf("256 tests: got %s", got)
	}
}

// checkError compiles in the strict dialect and compares kind and position of the error.
func checkError(t *testing.T, name, text string, layer packet.Layer, kind ErrorKind, pos uint32) {
	t.Helper()
	gotKind, gotPos := ErrorKind(0), uint32(0)
	if _, err := compiled(text, layer, Strict); err != nil {
		e := err.(*Error)
		gotKind, gotPos = e.Kind, e.Pos
	}
	if gotKind != kind || gotPos != pos {
		t.Errorf("%s: got %v at %d, want %v at %d", name, gotKind, gotPos, kind, pos)
	}
}
