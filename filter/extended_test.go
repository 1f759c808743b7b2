package filter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// render writes a program as one line: each test with its targets, "+" for accept and "-" for reject.
func render(p *prog.Program) string {
	target := func(t prog.Target) string {
		switch t {
		case prog.Accept:
			return "+"
		case prog.Reject:
			return "-"
		}
		return fmt.Sprint(int(t))
	}
	ops := [...]string{"==", "!=", "<", "<=", ">", ">=", "in", "not in"}
	var lines []string
	for _, t := range p.Tests() {
		name := t.Field.String()
		if t.Field >= prog.NumSpecFields {
			name = "our " + name
		}
		if t.Field.Info().Elem > 0 {
			name += fmt.Sprintf("[%db]", t.Index)
		}
		value := number128(t.Value)
		if t.Neg {
			value = "-" + value
		}
		if t.Set != nil {
			value = setText(t.Set)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s ? %s : %s", name, ops[t.Op], value, target(t.Succ), target(t.Fail)))
	}
	return strings.Join(lines, "; ")
}

func number128(v prog.Value) string {
	if v.Hi != 0 || v.Lo>>32 == 0xFFFF {
		return addrOf(v, true).String()
	}
	return fmt.Sprint(v.Lo)
}

func setText(s *prog.Set) string {
	var parts []string
	for _, r := range s.Ranges {
		text := number128(r.First)
		if r.Last != r.First {
			text += "-" + number128(r.Last)
		}
		parts = append(parts, text)
	}
	return "{" + strings.Join(parts, " ") + "}"
}

// Additions of the extended dialect.
var extendedPrograms = []struct {
	name   string
	layer  packet.Layer
	filter string
	want   string
}{
	{"negated parenthesis", atNetwork, "not (tcp.DstPort == 80)", "tcp.DstPort == 80 ? - : +"},
	{"negated test", atNetwork, "not tcp.DstPort == 80", "tcp.DstPort != 80 ? + : -"},
	{"exclamation mark", atNetwork, "!(tcp and udp)", "tcp != 0 ? 1 : +; udp != 0 ? - : +"},
	{"negated or", atNetwork, "not (tcp or udp)", "tcp != 0 ? - : 1; udp != 0 ? - : +"},
	{"negated twice", atNetwork, "not !(tcp)", "tcp != 0 ? + : -"},
	{"negation inside negation", atNetwork, "not (not (tcp) and not udp)", "tcp != 0 ? + : 1; udp == 0 ? - : +"},
	{"negated conditional", atNetwork, "not (tcp? udp: icmp)", "tcp != 0 ? 1 : 2; udp != 0 ? - : +; icmp != 0 ? - : +"},
	{"negation binds to the parenthesis", atNetwork, "not (tcp) and udp", "tcp != 0 ? - : 1; udp != 0 ? + : -"},
	{"negated constant", atNetwork, "not (true)", "zero == 0 ? - : -"},
	{"swallowed colon", atNetwork, "(tcp? udp:icmp)", "tcp != 0 ? 1 : 2; udp != 0 ? + : -; icmp != 0 ? + : -"},
	{"swallowed colon behind a number", atNetwork, "(tcp? ip.TTL == 1:udp)", "tcp != 0 ? 1 : 2; ip.TTL == 1 ? + : -; udp != 0 ? + : -"},
	{"swallowed colon behind an address", atNetwork, "(tcp? localAddr == ::1:udp)", "tcp != 0 ? 1 : 2; localAddr == 1 ? + : -; udp != 0 ? + : -"},
	{"swallowed colon behind colons", atNetwork, "(tcp? localAddr == 1:::not udp)", "tcp != 0 ? 1 : 2; localAddr == 1:: ? + : -; udp == 0 ? + : -"},
	{"prefix", atNetwork, "ip.SrcAddr == 10.0.0.0/8", "ip.SrcAddr in {10.0.0.0-10.255.255.255} ? + : -"},
	{"prefix, not equal", atNetwork, "ip.SrcAddr != 10.0.0.0/8", "ip.SrcAddr not in {10.0.0.0-10.255.255.255} ? + : -"},
	{"prefix, negated", atNetwork, "not ip.SrcAddr == 10.0.0.0/8", "ip.SrcAddr not in {10.0.0.0-10.255.255.255} ? + : -"},
	{"prefix of one address", atNetwork, "ip.SrcAddr == 10.0.0.1/32", "ip.SrcAddr == 10.0.0.1 ? + : -"},
	{"prefix of one address, not equal", atNetwork, "ip.SrcAddr != 10.0.0.1/32", "ip.SrcAddr != 10.0.0.1 ? + : -"},
	{"prefix of all addresses", atNetwork, "ip.SrcAddr == 0.0.0.0/0", "ip.SrcAddr in {0.0.0.0-255.255.255.255} ? + : -"},
	{"prefix of IPv6", atNetwork, "ipv6.DstAddr != 2001:db8::/32", "ipv6.DstAddr not in {2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff} ? + : -"},
	{"prefix of 64 bits", atNetwork, "localAddr == fe80::/64", "localAddr in {fe80::-fe80::ffff:ffff:ffff:ffff} ? + : -"},
	{"prefix of either family", atFlow, "localAddr == 192.168.0.0/16", "localAddr in {192.168.0.0-192.168.255.255} ? + : -"},
	{"set", atNetwork, "tcp.DstPort in {443, 80, 8000-8999}", "tcp.DstPort in {80 443 8000-8999} ? + : -"},
	{"set, negated", atNetwork, "tcp.DstPort not in {80, 443}", "tcp.DstPort not in {80 443} ? + : -"},
	{"set, negated in front", atNetwork, "not tcp.DstPort in {80, 443}", "tcp.DstPort not in {80 443} ? + : -"},
	{"set, negated twice", atNetwork, "!tcp.DstPort !in {80, 443}", "tcp.DstPort in {80 443} ? + : -"},
	{"set of one", atNetwork, "tcp.DstPort in {80,}", "tcp.DstPort == 80 ? + : -"},
	{"set of neighbours", atNetwork, "tcp.DstPort in {2, 1, 3-4}", "tcp.DstPort in {1-4} ? + : -"},
	{"set of addresses", atNetwork, "ip.SrcAddr in {10.0.0.0/8, 192.168.1.5, 10.1.0.1-10.1.0.9}", "ip.SrcAddr in {10.0.0.0-10.255.255.255 192.168.1.5} ? + : -"},
	{"set of both families", atFlow, "remoteAddr in {::1, 10.0.0.1}", "remoteAddr in {1 10.0.0.1} ? + : -"},
	{"set of macros", atNetwork, "protocol in {TCP, UDP}", "protocol in {6 17} ? + : -"},
	{"set of events", atSocket, "event in {BIND, LISTEN}", "event in {3 5} ? + : -"},
	{"set for an element", atNetwork, "packet16[6] in {0x800, 0x86dd}", "packet16[12b] in {2048 34525} ? + : -"},
	{"set for a constant", atNetwork, "true in {0, 1}", "zero == 0 ? + : +"},
	{"set for a constant, never", atNetwork, "false not in {0, 1}", "zero == 0 ? - : -"},
	{"signed field", atReflect, "priority == -5", "priority == -5 ? + : -"},
	{"negative zero", atFlow, "timestamp > -0", "timestamp > 0 ? + : -"},
	{"flow label", atNetwork, "ipv6.FlowLabel == 0x34567", "our ipv6.FlowLabel == 214375 ? + : -"},
	{"family of a flow", atFlow, "ip or not ipv6", "our ip != 0 ? + : 1; our ipv6 == 0 ? + : -"},
	{"family of a packet", atNetwork, "ip or not ipv6", "ip != 0 ? + : 1; ipv6 == 0 ? + : -"},
	{"always true", atNetwork, "tcp.DstPort >= 0 and length > 10", "tcp == 1 ? + : -"},
	{"constants may be false", atNetwork, "true == 0 or zero != 0", "zero == 0 ? - : -"},
	{"bare address", atNetwork, "not ip.SrcAddr", "ip == 0 ? + : -"},
	{"long number", atNetwork, "tcp.DstPort == " + strings.Repeat("0", 50) + "80", "tcp.DstPort == 80 ? + : -"},
	{"object", atNetwork, "@WinDiv_WX_eXWWAX", "tcp != 0 ? + : -"},
}

func TestExtendedPrograms(t *testing.T) {
	for _, row := range extendedPrograms {
		p, err := compiled(row.filter, row.layer, Extended)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		} else if got := render(p); got != row.want {
			t.Errorf("%s: %s: got %s, want %s", row.name, row.filter, got, row.want)
		}
	}
}

// Errors of the extended dialect. hint must be a part of the error's hint.
var extendedErrors = []struct {
	name   string
	layer  packet.Layer
	filter string
	kind   ErrorKind
	pos    uint32
	token  string
	hint   string
}{
	{"empty", atNetwork, " ", ErrUnexpectedToken, 1, "", "true matches everything"},
	{"first error wins", atNetwork, "tcp udp foo", ErrUnexpectedToken, 4, "udp", "missing"},
	{"first error wins in parentheses", atNetwork, "(packet[65576])", ErrIndexOutOfBounds, 8, "65576", "0 to 65534"},
	{"case of a field", atNetwork, "tcp.dstport == 80", ErrBadToken, 0, "tcp.dstport", "did you mean tcp.DstPort?"},
	{"case of a keyword", atNetwork, "tcp AND udp", ErrBadToken, 4, "AND", "did you mean and?"},
	{"typing error", atNetwork, "tcp.DstProt == 80", ErrBadToken, 0, "tcp.DstProt", "did you mean tcp.DstPort?"},
	{"typing error at FLOW", atFlow, "locaPort == 80", ErrBadToken, 0, "locaPort", "did you mean localPort?"},
	{"last part of a name", atNetwork, "TTL == 1", ErrBadToken, 0, "TTL", "did you mean ip.TTL?"},
	{"port", atNetwork, "port == 80", ErrBadToken, 0, "port", "did you mean tcp.DstPort, udp.DstPort, localPort or remotePort?"},
	{"port at FLOW", atFlow, "port == 80", ErrBadToken, 0, "port", "did you mean localPort or remotePort?"},
	{"src", atForward, "src == 10.0.0.1", ErrBadToken, 0, "src", "did you mean ip.SrcAddr or ipv6.SrcAddr?"},
	{"host", atSocket, "host == 10.0.0.1", ErrBadToken, 0, "host", "did you mean localAddr or remoteAddr?"},
	{"port without an operator", atNetwork, "port 53", ErrBadToken, 0, "port", "did you mean tcp.DstPort == 53, udp.DstPort == 53,"},
	{"port without an operator at FLOW", atFlow, "port 53", ErrBadToken, 0, "port", "did you mean localPort == 53 or remotePort == 53?"},
	{"host without an operator", atNetwork, "host fe80::1", ErrBadToken, 0, "host", "did you mean localAddr == fe80::1 or remoteAddr == fe80::1?"},
	{"field without an operator", atNetwork, "tcp.DstPort 80", ErrUnexpectedToken, 12, "80", "is an operator missing? tcp.DstPort == 80"},
	{"byte without an operator", atNetwork, "udp and packet[0] 5", ErrUnexpectedToken, 18, "5", "is an operator missing? packet[0] == 5"},
	{"nothing to compare", atNetwork, "true 80", ErrUnexpectedToken, 5, "80", ""},
	{"two numbers", atNetwork, "tcp.DstPort == 80 81", ErrUnexpectedToken, 18, "81", ""},
	{"greater", atNetwork, "greater 100", ErrBadToken, 0, "greater", "length >= 100"},
	{"contains", atNetwork, `tcp.Payload contains "x"`, ErrBadToken, 12, "contains", "tcp.Payload32[0] == "},
	{"arp", atNetwork, "arp", ErrBadToken, 0, "arp", "handles see only IP packets"},
	{"name of an ICMP type", atNetwork, "icmp.Type == echo", ErrBadToken, 13, "echo", "icmp.Type == 8"},
	{"name of a process", atNetwork, "processName == 1", ErrBadToken, 0, "processName", "processId == 4711"},
	{"name of a host", atNetwork, "ip.DstAddr == www.example.com", ErrBadToken, 14, "www.example.com", "addresses, not names of hosts"},
	{"no name of a host", atNetwork, "udp.abcdefghij == 1", ErrBadToken, 0, "udp.abcdefghij", ""},
	{"nothing similar", atNetwork, "qwertyuiop", ErrBadToken, 0, "qwertyuiop", ""},
	{"single ampersand", atNetwork, "tcp & udp", ErrBadToken, 4, "&", "&&"},
	{"single bar", atNetwork, "tcp | udp", ErrBadToken, 4, "|", "||"},
	{"quotes", atNetwork, `tcp == "1"`, ErrUnexpectedToken, 7, `"1"`, "iface and process are"},
	{"single quotes", atNetwork, `tcp == '1'`, ErrBadToken, 7, `'`, "double quotes"},
	{"not ASCII", atNetwork, "tcp é", ErrBadToken, 4, "é", ""},
	{"field of other layers", atNetwork, "endpointId == 4", ErrBadTokenForLayer, 0, "endpointId", "FLOW, SOCKET"},
	{"process of a forwarded packet", atForward, "processId == 4", ErrBadTokenForLayer, 0, "processId", "NETWORK, FLOW, SOCKET, REFLECT"},
	{"macro of another layer", atNetwork, "event == BIND", ErrUnexpectedToken, 9, "BIND", "SOCKET"},
	{"macro as a test", atNetwork, "TRUE", ErrUnexpectedToken, 0, "TRUE", "true"},
	{"number first", atNetwork, "80 < tcp.DstPort", ErrUnexpectedToken, 0, "80", "tcp.DstPort > 80"},
	{"alternative without field", atNetwork, "tcp.DstPort == 80 or 443", ErrUnexpectedToken, 21, "443", "tcp.DstPort == 443"},
	{"field on the right", atNetwork, "tcp.DstPort == tcp.SrcPort", ErrUnexpectedToken, 15, "tcp.SrcPort", "numbers and addresses"},
	{"true on the right", atNetwork, "tcp == true", ErrUnexpectedToken, 7, "true", "TRUE"},
	{"three equals signs", atNetwork, "tcp === 1", ErrUnexpectedToken, 6, "=", "=="},
	{"less or equal turned round", atNetwork, "tcp.DstPort =< 80", ErrUnexpectedToken, 13, "<", "the operator is <="},
	{"greater or equal turned round", atNetwork, "tcp.DstPort => 80", ErrUnexpectedToken, 13, ">", "the operator is >="},
	{"unequal turned round", atNetwork, "tcp.DstPort =! 80", ErrUnexpectedToken, 13, "!", "the operator is !="},
	{"unequal with two equals signs", atNetwork, "tcp.DstPort ==!80", ErrUnexpectedToken, 14, "!", "the operator is !="},
	{"unequal of other languages", atNetwork, "tcp.DstPort <> 80", ErrUnexpectedToken, 13, ">", "the operator is !="},
	{"unequal of other languages turned round", atNetwork, "tcp.DstPort >< 80", ErrUnexpectedToken, 13, "<", "the operator is !="},
	{"greater and two equals signs", atNetwork, "packet[0] >== 80", ErrUnexpectedToken, 12, "=", "the operator is >="},
	{"less or equal apart", atNetwork, "packet[0] <\t= 80", ErrUnexpectedToken, 12, "=", "the operator is <="},
	{"less and two equals signs", atNetwork, "packet[0] <== 80", ErrUnexpectedToken, 12, "=", "the operator is <="},
	{"unequal with two equals signs, in the right order", atNetwork, "packet[0] !== 80", ErrUnexpectedToken, 12, "=", "the operator is !="},
	{"greater or equal apart", atNetwork, "packet[0] > = 80", ErrUnexpectedToken, 12, "=", "the operator is >="},
	{"equals signs apart", atNetwork, "packet[0] = = 80", ErrUnexpectedToken, 12, "=", "the operator is =="},
	{"not on the right", atNetwork, "tcp == not 1", ErrUnexpectedToken, 7, "not", ""},
	{"two operators", atNetwork, "tcp < <= 1", ErrUnexpectedToken, 6, "<=", ""},
	{"conditional without parentheses", atNetwork, "tcp? udp: icmp", ErrUnexpectedToken, 3, "?", "(a? b: c)"},
	{"empty condition", atNetwork, "(? udp: icmp)", ErrUnexpectedToken, 1, "?", ""},
	{"colon outside a conditional", atNetwork, "udp:icmp", ErrUnexpectedToken, 3, ":", "conditional"},
	{"open parenthesis", atNetwork, "(tcp", ErrUnexpectedToken, 4, "", "not closed"},
	{"extra parenthesis", atNetwork, "tcp)", ErrUnexpectedToken, 3, ")", "no open"},
	{"not in the middle", atNetwork, "tcp not udp", ErrUnexpectedToken, 4, "not", "missing"},
	{"index missing", atNetwork, "not packet == 1", ErrUnexpectedToken, 11, "==", "packet[0]"},
	{"index of a scalar", atNetwork, "tcp[0]", ErrUnexpectedToken, 3, "[", "no index"},
	{"list without set", atNetwork, "tcp.DstPort == 80, 443", ErrUnexpectedToken, 17, ",", "in {"},
	{"range without set", atNetwork, "tcp.DstPort == 80-90", ErrUnexpectedToken, 17, "-", "in {"},

	{"stray b", atNetwork, "packet[16 b]", ErrBadToken, 10, "b", "packet[16b]"},
	{"byte mark out of place", atNetwork, "tcp.DstPort == 80b", ErrUnexpectedToken, 15, "80b", "index"},
	{"bare 0x", atNetwork, "tcp.DstPort == 0x", ErrBadToken, 15, "0x", "digits"},
	{"0X", atNetwork, "tcp.DstPort == 0X50", ErrBadToken, 15, "0X50", "0x"},
	{"hexadecimal without 0x", atNetwork, "tcp.DstPort == 5f", ErrBadToken, 15, "5f", "0x"},
	{"more than 128 bits", atNetwork, "tcp.DstPort == 340282366920938463463374607431768211456", ErrBadToken, 15, "340282366920938463463374607431768211456", "128 bits"},
	{"octet beyond 32 bits", atNetwork, "ip.SrcAddr == 4294967297.2.3.4", ErrBadToken, 14, "4294967297.2.3.4", "255"},
	{"octet beyond 255", atNetwork, "ip.SrcAddr == 1.2.3.256", ErrBadToken, 14, "1.2.3.256", "255"},
	{"junk after eight groups", atNetwork, "ipv6.SrcAddr == 1:2:3:4:5:6:7:8:9", ErrBadToken, 16, "1:2:3:4:5:6:7:8:9", "eight groups"},
	{"incomplete address", atNetwork, "ipv6.SrcAddr == 2001:db8:1", ErrBadToken, 16, "2001:db8:1", "eight groups"},

	{"port out of range", atNetwork, "tcp.DstPort == 70000", ErrOutOfRange, 15, "70000", "0 to 65535"},
	{"negative port", atNetwork, "tcp.DstPort > - 1", ErrOutOfRange, 14, "- 1", "0 to 65535"},
	{"TOS", atNetwork, "ip.TOS == 300", ErrOutOfRange, 10, "300", "0 to 255"},
	{"sequence number", atNetwork, "tcp.SeqNum == 0x100000000", ErrOutOfRange, 14, "0x100000000", "0 to 4294967295"},
	{"flag", atNetwork, "tcp == 2", ErrOutOfRange, 7, "2", "0 or 1"},
	{"loopback", atNetwork, "loopback == 2", ErrOutOfRange, 12, "2", "0 or 1"},
	{"priority", atReflect, "priority > -30001", ErrOutOfRange, 11, "-30001", "-30000 to 30000"},
	{"event of another layer", atNetwork, "event == 5", ErrOutOfRange, 9, "5", "PACKET"},
	{"no event", atFlow, "event == 0", ErrOutOfRange, 9, "0", "ESTABLISHED, DELETED"},
	{"never less", atNetwork, "tcp.DstPort < 0", ErrOutOfRange, 0, "tcp.DstPort < 0", "0 to 65535"},
	{"never greater", atNetwork, "tcp and tcp.DstPort > 65535", ErrOutOfRange, 8, "tcp.DstPort > 65535", "0 to 65535"},
	{"never the opposite", atNetwork, "not tcp.DstPort >= 0", ErrOutOfRange, 4, "tcp.DstPort >= 0", "0 to 65535"},
	{"never so short", atNetwork, "length == 10", ErrOutOfRange, 0, "length == 10", "20 to 65575"},
	{"element", atNetwork, "packet[5] == 300", ErrOutOfRange, 13, "300", "0 to 255"},
	{"IPv6 address for IPv4", atNetwork, "ip.SrcAddr == ::1", ErrOutOfRange, 14, "::1", "use ipv6.SrcAddr"},
	{"IPv4 address for IPv6", atNetwork, "ipv6.DstAddr == 1.2.3.4", ErrOutOfRange, 16, "1.2.3.4", "use ip.DstAddr"},
	{"number for IPv4", atNetwork, "ip.SrcAddr == 5", ErrOutOfRange, 14, "5", "0.0.0.0 to 255.255.255.255"},
	{"address for a port", atNetwork, "tcp.DstPort == 10.0.0.1", ErrOutOfRange, 15, "10.0.0.1", "0 to 65535"},

	{"host bits", atNetwork, "ip.SrcAddr == 10.0.0.1/8", ErrBadPrefix, 14, "10.0.0.1/8", "10.0.0.0/8"},
	{"host bits of IPv6", atNetwork, "ipv6.SrcAddr == 2001:db8::1/64", ErrBadPrefix, 16, "2001:db8::1/64", "2001:db8::/64"},
	{"prefix too long", atNetwork, "ip.SrcAddr == 10.0.0.0/33", ErrBadPrefix, 23, "33", "0 to 32"},
	{"ordered prefix", atNetwork, "ip.SrcAddr < 10.0.0.0/8", ErrBadPrefix, 21, "/", "== or !="},
	{"prefix of a port", atNetwork, "tcp.DstPort == 80/8", ErrBadPrefix, 17, "/", "10.0.0.0/8"},
	{"prefix of a number", atNetwork, "ipv6.SrcAddr == 0x20/8", ErrBadPrefix, 20, "/", "10.0.0.0/8"},
	{"prefix of the other family", atNetwork, "ipv6.SrcAddr == 10.0.0.0/8", ErrOutOfRange, 16, "10.0.0.0", "use ip.SrcAddr"},
	{"prefix without length", atNetwork, "ip.SrcAddr == 10.0.0.0/ or tcp", ErrUnexpectedToken, 24, "or", ""},

	{"empty set", atNetwork, "tcp.DstPort in {}", ErrBadSet, 16, "}", "at least one"},
	{"set of a comma", atNetwork, "tcp.DstPort in {,}", ErrUnexpectedToken, 16, ",", "80, 443"},
	{"comma missing", atNetwork, "tcp.DstPort in {80 443}", ErrUnexpectedToken, 19, "443", ""},
	{"two commas", atNetwork, "tcp.DstPort in {80,,443}", ErrUnexpectedToken, 19, ",", "80, 443"},
	{"open set", atNetwork, "tcp.DstPort in {80", ErrUnexpectedToken, 18, "", ""},
	{"braces missing", atNetwork, "tcp.DstPort in 80", ErrUnexpectedToken, 15, "80", "in {80"},
	{"set without in", atNetwork, "tcp.DstPort == {80}", ErrUnexpectedToken, 15, "{", "tcp.DstPort in {"},
	{"range backwards", atNetwork, "tcp.DstPort in {90-80}", ErrBadSet, 16, "90-80", "lower end first"},
	{"range of both families", atNetwork, "localAddr in {10.0.0.0-ffff::}", ErrBadSet, 14, "10.0.0.0-ffff::", "each"},
	{"element out of range", atNetwork, "tcp.DstPort in {80, 70000}", ErrOutOfRange, 20, "70000", "0 to 65535"},
	{"end of a range out of range", atNetwork, "tcp.DstPort in {80-70000}", ErrOutOfRange, 19, "70000", "0 to 65535"},
	{"negative element", atNetwork, "tcp.DstPort in {-5}", ErrOutOfRange, 16, "-5", "0 to 65535"},
	{"negative element of a signed field", atReflect, "priority in {-5}", ErrBadSet, 13, "-5", "priority == -5"},
	{"field in a set", atNetwork, "tcp.DstPort in {udp}", ErrUnexpectedToken, 16, "udp", "80, 443"},

	{"name missing", atNetwork, "ip.SrcAddr in @", ErrBadToken, 14, "@", "remoteAddr in @blocked"},
	{"name of a sign", atNetwork, "ip.SrcAddr in @{", ErrBadToken, 14, "@", "remoteAddr in @blocked"},
	{"name too long", atNetwork, "ip.SrcAddr in @" + strings.Repeat("a", 64), ErrBadToken, 14, "@" + strings.Repeat("a", 64), "63 characters"},
	{"name without in", atNetwork, "tcp and @blocked", ErrUnexpectedToken, 8, "@blocked", "remoteAddr in @blocked"},
	{"name compared", atNetwork, "ip.SrcAddr == @blocked", ErrUnexpectedToken, 14, "@blocked", "ip.SrcAddr in @blocked"},
	{"name in braces", atNetwork, "ip.SrcAddr in {@blocked}", ErrUnexpectedToken, 15, "@blocked", "ip.SrcAddr in @blocked"},
	{"name for both kinds", atNetwork, "ip.SrcAddr in @a and tcp.DstPort in @a", ErrBadSet, 36, "@a", "two sets"},
	{"flag in a named set", atNetwork, "tcp and tcp.Syn in @a", ErrBadSet, 8, "tcp.Syn in @a", "name alone"},
	{"event in a named set", atFlow, "event in @a", ErrBadSet, 0, "event in @a", "compare"},
	{"only a name", atNetwork, "@blocked", ErrBadObject, 0, "", "remoteAddr in @blocked"},
	{"name first", atNetwork, "@blocked and tcp", ErrBadObject, 0, "", "remoteAddr in @blocked"},

	{"too deep", atNetwork, nested(1025, "tcp"), ErrTooDeep, 1025, "tcp", ""},
	{"too many tests", atNetwork, repeat(65536, "tcp", " or "), ErrTooLong, 65535 * 7, "tcp", "sets"},
	{"too long", atNetwork, strings.Repeat(" ", maxText) + "tcp", ErrTooLong, 0, "", "sets"},
	{"object", atNetwork, "@WinDiv_", ErrBadObject, 0, "", "this one is damaged"},
	{"object cut off", atNetwork, "@WinDiv_WX_eXWWA", ErrBadObject, 0, "", "this one is damaged"},
	{"object and more", atNetwork, "@WinDiv_WX_eXWWAX and udp", ErrBadObject, 0, "", "this one is damaged"},
	{"object of 256 tests", atNetwork, "@WinDiv_WW", ErrBadObject, 0, "", "256 tests"},
	{"no object", atNetwork, "@tcp", ErrBadObject, 0, "", "start with @WinDiv_"},
}

func TestExtendedErrors(t *testing.T) {
	for _, row := range extendedErrors {
		_, err := compiled(row.filter, row.layer, Extended)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %s: got %v, want an error", row.name, shortened(row.filter), err)
			continue
		}
		if e.Kind != row.kind || e.Pos != row.pos || e.Token != row.token {
			t.Errorf("%s: got kind %d at %d token %q, want %d at %d, %q: %v",
				row.name, e.Kind, e.Pos, e.Token, row.kind, row.pos, row.token, e)
		}
		if !strings.Contains(e.Hint, row.hint) || row.hint == "" && e.Hint != "" {
			t.Errorf("%s: got hint %q, want %q", row.name, e.Hint, row.hint)
		}
	}
}

// Limits of the strict dialect only.
func TestExtendedLimits(t *testing.T) {
	for _, row := range []struct {
		name, filter string
		tests        int
	}{
		{"tests", repeat(65535, "tcp", " or "), 65535},
		{"tokens without tests", strings.Repeat("not ", 100000) + "tcp", 1},
		{"nesting", nested(1024, "tcp"), 1},
		{"negated nesting", strings.Repeat("not (", 1024) + "tcp" + strings.Repeat(")", 1024), 1},
		{"elements", "tcp.DstPort in {" + repeat(100000, "80,443", ",") + "}", 1},
	} {
		p, err := compiled(row.filter, atNetwork, Extended)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		} else if p.Len() != row.tests {
			t.Errorf("%s: got %d tests, want %d", row.name, p.Len(), row.tests)
		}
	}
}

func TestSnippet(t *testing.T) {
	long := repeat(40, "tcp", " and ")
	for _, row := range []struct{ name, filter, want string }{
		{"middle", "tcp and foo9 and udp", "  tcp and foo9 and udp\n          ^^^^\nunknown word \"foo9\""},
		{"end", "tcp and", "  tcp and\n         ^\nthe filter ends where a test was expected"},
		{"line of several", "tcp and\n\tudp and\nxyzzy9", "  xyzzy9\n  ^^^^^^\nunknown word \"xyzzy9\""},
		{"tab", "tcp\tand foo9", "  tcp and foo9\n          ^^^^\nunknown word \"foo9\""},
		{"not ASCII", "tcp é", "  tcp é\n      ^\nillegal character \"é\""},
		{"not UTF-8", "tcp \xff", "  tcp \uFFFD\n      ^\nillegal character \"\\xff\""},
		{"long", long + " and foo9 and " + long,
			"  … p and tcp and tcp and tcp and foo9 and tcp and tcp and tcp and tcp and tcp a …\n" +
				"                                  ^^^^\nunknown word \"foo9\""},
		{"no place", "@WinDiv_", "filter: " + ErrBadObject.String() + "; " + objectHint("@WinDiv_")},
	} {
		_, err := compiled(row.filter, atNetwork, Extended)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: got %v, want an error", row.name, err)
		} else if got := e.Snippet(); got != row.want {
			t.Errorf("%s: got\n%s\nwant\n%s", row.name, got, row.want)
		}
	}
}

func TestFields(t *testing.T) {
	fields := Fields()
	names := make(map[string]bool)
	for f := range prog.Field(prog.NumFields) {
		if name := f.Info().Name; name != "" {
			names[name] = true
		}
	}
	if len(fields) != len(names) {
		t.Fatalf("got %d fields, want %d", len(fields), len(names))
	}
	for _, f := range fields {
		if f.Name == "" || f.Doc == "" || len(f.Layers) == 0 {
			t.Errorf("incomplete: %+v", f)
		}
		text := f.Name
		if f.Kind == KindName {
			text += ` == "x"`
		}
		if f.Kind == KindBytes {
			text += "[0]"
		}
		for layer := range packet.NumLayers {
			if _, err := compiled(text, layer, Extended); (err == nil) != slices.Contains(f.Layers, layer) {
				t.Errorf("%s at %v: %v", f.Name, layer, err)
			}
		}
		if f.Name == "length" || f.Name == "event" || f.Name == "true" || f.Name == "false" {
			continue // their ends are no comparisons, or depend on the layer
		}
		for _, end := range []string{f.Min, f.Max} {
			if f.Kind == KindName {
				if end != "" {
					t.Errorf("%s has the end %q", f.Name, end)
				}
				continue
			}
			if _, err := compiled(text+" == "+end, f.Layers[0], Extended); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDSCP: the six upper bits of the type of service and of the traffic class; the strict dialect does not know them.
func TestDSCP(t *testing.T) {
	four, six := make([]byte, 20), make([]byte, 40)
	four[0], four[1], four[3] = 0x45, 46<<2|3, 20
	six[0], six[1] = 0x60|46>>2, 46<<6&0xFF|3<<4 // the traffic class lies across both
	for _, row := range []struct {
		filter string
		b      []byte
		want   bool
	}{
		{"ip.DSCP == 46", four, true}, {"ip.DSCP != 46", four, false}, {"ip.DSCP in {10, 40-48}", four, true}, {"ipv6.DSCP >= 0", four, false},
		{"ipv6.DSCP == 46", six, true}, {"ipv6.DSCP < 46", six, false}, {"ip.DSCP >= 0", six, false},
	} {
		p := mustCompile(t, row.filter, atNetwork, Extended)
		if got := p.Match(row.b, &packet.Address{IPv6: row.b[0]>>4 == 6}); got != row.want {
			t.Errorf("%s: %v", row.filter, got)
		}
	}
	for text, d := range map[string]Dialect{"ip.DSCP == 46": Strict, "ip.DSCP == 64": Extended} {
		_, err := compiled(text, atNetwork, d)
		if err == nil || d == Strict && err.(*Error).Hint != "ip.DSCP exists in the extended dialect only, at NETWORK, NETWORK_FORWARD" {
			t.Errorf("%s in the %v dialect: %v", text, d, err)
		}
	}
}
