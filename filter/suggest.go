package filter

import (
	"slices"
	"strings"

	"github.com/opendivert/divert/packet"
)

// otherWords are words of other filter languages, in lower case, with their names here. Only fields of the layer are
// suggested.
var otherWords = map[string][]string{
	"port":      {"tcp.DstPort", "udp.DstPort", "localPort", "remotePort"},
	"portrange": {"tcp.DstPort", "udp.DstPort", "localPort", "remotePort"},
	"srcport":   {"tcp.SrcPort", "udp.SrcPort", "localPort", "remotePort"},
	"sport":     {"tcp.SrcPort", "udp.SrcPort", "localPort", "remotePort"},
	"dstport":   {"tcp.DstPort", "udp.DstPort", "localPort", "remotePort"},
	"dport":     {"tcp.DstPort", "udp.DstPort", "localPort", "remotePort"},
	"tcp.port":  {"tcp.SrcPort", "tcp.DstPort"},
	"udp.port":  {"udp.SrcPort", "udp.DstPort"},
	"src":       {"ip.SrcAddr", "ipv6.SrcAddr", "localAddr", "remoteAddr"},
	"dst":       {"ip.DstAddr", "ipv6.DstAddr", "localAddr", "remoteAddr"},
	"saddr":     {"ip.SrcAddr", "ipv6.SrcAddr", "localAddr", "remoteAddr"},
	"daddr":     {"ip.DstAddr", "ipv6.DstAddr", "localAddr", "remoteAddr"},
	"ip.src":    {"ip.SrcAddr"},
	"ip.dst":    {"ip.DstAddr"},
	"ip.saddr":  {"ip.SrcAddr"},
	"ip.daddr":  {"ip.DstAddr"},
	"ipv6.src":  {"ipv6.SrcAddr"},
	"ipv6.dst":  {"ipv6.DstAddr"},
	"ip.addr":   {"ip.SrcAddr", "ip.DstAddr", "localAddr", "remoteAddr"},
	"ipv6.addr": {"ipv6.SrcAddr", "ipv6.DstAddr", "localAddr", "remoteAddr"},
	"addr":      {"localAddr", "remoteAddr", "ip.SrcAddr", "ip.DstAddr"},
	"host":      {"localAddr", "remoteAddr", "ip.SrcAddr", "ip.DstAddr"},
	"net":       {"localAddr", "remoteAddr", "ip.SrcAddr", "ip.DstAddr"},
	"proto":     {"protocol", "ip.Protocol"},
	"ip.proto":  {"ip.Protocol"},
	"ip4":       {"ip"},
	"ipv4":      {"ip"},
	"inet":      {"ip"},
	"ip6":       {"ipv6"},
	"inet6":     {"ipv6"},
	"icmp6":     {"icmpv6"},
	"pid":       {"processId"},
	"ttl":       {"ip.TTL"},
	"hoplimit":  {"ipv6.HopLimit"},
	"tos":       {"ip.TOS"},
	"dscp":      {"ip.DSCP", "ipv6.DSCP"},
	"syn":       {"tcp.Syn"},
	"ack":       {"tcp.Ack"},
	"fin":       {"tcp.Fin"},
	"rst":       {"tcp.Rst"},
	"psh":       {"tcp.Psh"},
	"push":      {"tcp.Psh"},
	"urg":       {"tcp.Urg"},
	"seq":       {"tcp.SeqNum"},
	"tcp.seq":   {"tcp.SeqNum"},
	"window":    {"tcp.Window"},
	"payload":   {"tcp.Payload", "udp.Payload"},
	"data":      {"tcp.Payload", "udp.Payload", "packet"},
	"len":       {"length"},
	"size":      {"length"},
	"incoming":  {"inbound"},
	"ingress":   {"inbound"},
	"outgoing":  {"outbound"},
	"egress":    {"outbound"},
	"out":       {"outbound"},
	"interface": {"iface", "ifIdx"},
	"iif":       {"iface", "ifIdx"},
	"oif":       {"iface", "ifIdx"},
	"dev":       {"iface", "ifIdx"},
	"lo":        {"loopback"},
	"frag":      {"fragment"},
	"fragments": {"fragment"},
	"time":      {"timestamp"},
	"rand":      {"random8", "random16", "random32"},
	"random":    {"random8", "random16", "random32"},
	"any":       {"true"},
	"all":       {"true"},
	"none":      {"false"},
	"equals":    {"=="},
	"eq":        {"=="},
	"is":        {"=="},
	"ne":        {"!="},
	"lt":        {"<"},
	"le":        {"<="},
	"gt":        {">"},
	"ge":        {">="},
	"http":      {"tcp.DstPort == 80"},
	"https":     {"tcp.DstPort == 443"},
	"ssh":       {"tcp.DstPort == 22"},
	"dns":       {"udp.DstPort == 53"},
	"ntp":       {"udp.DstPort == 123"},
	"localhost": {"loopback", "127.0.0.1", "::1"},
}

// otherThings are words for features that filters lack, in lower case, with advice.
var otherThings = map[string]string{
	"contains":    "filters compare single bytes and words of the payload, as in tcp.Payload32[0] == 0x47455420",
	"matches":     "filters compare single bytes and words of the payload, as in tcp.Payload32[0] == 0x47455420",
	"arp":         "ARP is not IP, and handles see only IP packets",
	"ether":       "handles see packets from the IP header on, without that of Ethernet",
	"eth":         "handles see packets from the IP header on, without that of Ethernet",
	"vlan":        "handles see packets from the IP header on, without that of Ethernet",
	"processname": "processes are known by their name and number: process == \"curl\" or processId == 4711",
	"exe":         "processes are known by their name and number: process == \"curl\" or processId == 4711",
	"program":     "processes are known by their name and number: process == \"curl\" or processId == 4711",
	"uid":         "processes are known by their number, not by their user: processId == 4711",
	"user":        "processes are known by their number, not by their user: processId == 4711",
	"echo":        "types of ICMP are numbers: icmp.Type == 8 is an echo request, 0 a reply; icmpv6.Type 128 and 129",
	"echoreply":   "types of ICMP are numbers: icmp.Type == 8 is an echo request, 0 a reply; icmpv6.Type 128 and 129",
	"icmp-echo":   "types of ICMP are numbers: icmp.Type == 8 is an echo request, 0 a reply; icmpv6.Type 128 and 129",
	"greater":     "lengths are compared, as in length >= 100",
	"less":        "lengths are compared, as in length <= 100",
}

// suggest returns likely meanings of an unknown word, or nothing.
func suggest(s string, layer packet.Layer, d Dialect) string {
	const longest = 40
	if len(s) > longest {
		return ""
	}
	if hint := numberAdvice(s); hint != "" {
		return hint
	}
	lower := strings.ToLower(s)
	if hint := otherThings[lower]; hint != "" {
		return hint
	}
	if m := matching(layer, d, func(name string) bool { return strings.ToLower(name) == lower }); m != nil {
		return didYouMean(m)
	}
	if m := onLayer(otherWords[lower], layer, d); m != nil {
		return didYouMean(m)
	}
	if m := matching(layer, d, func(name string) bool {
		return strings.HasSuffix(strings.ToLower(name), "."+lower)
	}); m != nil {
		return didYouMean(m)
	}
	if m := nearest(lower, layer, d); m != nil {
		return didYouMean(m)
	}
	return hostAdvice(lower)
}

// withValue suggests tests for a word of another language with a value behind it and no operator, as in "port 53"; rest
// is the text behind the word. It returns nothing if that is no value, or the word is not such a word.
func withValue(s, rest string, layer packet.Layer, d Dialect) string {
	names := otherWords[strings.ToLower(s)]
	rest = strings.TrimLeft(rest, " \t\r\n")
	n := 0
	for n < len(rest) && n < 40 && strings.IndexByte("0123456789abcdefABCDEF.:/", rest[n]) >= 0 {
		n++
	}
	var tests []string
	for _, name := range onLayer(names, layer, d) {
		if test := name + " == " + rest[:n]; n > 0 {
			if _, err := Compile(test, layer, d); err == nil {
				tests = append(tests, test)
			}
		}
	}
	return didYouMean(tests)
}

// hostAdvice advises on a word that looks like a host name: labels of letters, digits and hyphens between dots, the last
// of letters only (RFC 1123 section 2.1), and the first not one of the language's headers.
func hostAdvice(s string) string {
	labels := strings.Split(s, ".")
	last := labels[len(labels)-1]
	if len(labels) < 2 || len(last) < 2 || strings.Trim(last, "abcdefghijklmnopqrstuvwxyz") != "" {
		return ""
	}
	for name := range words {
		if header, _, ok := strings.Cut(name, "."); ok && strings.ToLower(header) == labels[0] {
			return ""
		}
	}
	return "filters know addresses, not names of hosts; look the name up first"
}

// numberAdvice advises on a word that should be a number or an address.
func numberAdvice(s string) string {
	isDecimal := strings.Trim(s, "0123456789") == ""
	switch {
	case isDecimal:
		return "numbers have at most 128 bits"
	case strings.HasPrefix(s, "0X"):
		return "hexadecimal numbers start with 0x, in lower case"
	case strings.HasPrefix(s, "0x"):
		return "hexadecimal numbers have the digits 0-9, a-f, A-F and at most 128 bits"
	case strings.Trim(s, "0123456789.") == "":
		return "an IPv4 address has four parts from 0 to 255"
	case strings.IndexByte(s, ':') >= 0 && strings.Trim(s, "0123456789abcdefABCDEF.:") == "":
		return "this is not an IPv6 address; one has eight groups, or fewer with a single \"::\""
	case '0' <= s[0] && s[0] <= '9' && strings.Trim(s, "0123456789abcdefABCDEF") == "":
		return "hexadecimal numbers start with 0x"
	}
	return ""
}

// matching returns the reserved words for which match holds, in alphabetical order: those of the layer if there are any,
// else all.
func matching(layer packet.Layer, d Dialect, match func(name string) bool) []string {
	var here, elsewhere []string
	for name, w := range words {
		switch {
		case w.kind == tokIn && d == Strict || !match(name):
		case w.on(layer, d):
			here = append(here, name)
		default:
			elsewhere = append(elsewhere, name)
		}
	}
	if here == nil {
		here = elsewhere
	}
	slices.Sort(here)
	return here
}

// on reports whether the word can be used on a layer.
func (w word) on(layer packet.Layer, d Dialect) bool {
	switch w.kind {
	case tokField:
		return w.constant() || w.field.Info().In(d == Strict).Has(layer)
	case tokMacro:
		_, ok := macroValue(w, layer)
		return ok
	}
	return true
}

// onLayer returns the names that are fields of the layer or no fields; all of them if none qualifies.
func onLayer(names []string, layer packet.Layer, d Dialect) []string {
	var here []string
	for _, name := range names {
		if w, reserved := words[name]; !reserved || w.on(layer, d) {
			here = append(here, name)
		}
	}
	if here == nil {
		return names
	}
	return here
}

// nearest returns the reserved words of the layer that differ least from s, a word in lower case, if
// they differ by less than a third.
func nearest(s string, layer packet.Layer, d Dialect) []string {
	best, most := len(s)/3+1, 4
	if len(s) < 3 {
		return nil
	}
	var found []string
	for name, w := range words {
		if !w.on(layer, d) || w.kind == tokIn && d == Strict {
			continue
		}
		switch n := distance(s, strings.ToLower(name)); {
		case n < best:
			best, found = n, append(found[:0], name)
		case n == best && found != nil:
			found = append(found, name)
		}
	}
	if len(found) > most {
		return nil
	}
	slices.Sort(found)
	return found
}

// distance returns the number of characters that must be inserted, deleted, replaced or exchanged with their neighbours
// to turn a into b.
func distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}

// didYouMean makes a question of the names, "" if there are none.
func didYouMean(names []string) string {
	switch n := len(names); n {
	case 0:
		return ""
	case 1:
		return "did you mean " + names[0] + "?"
	default:
		return "did you mean " + strings.Join(names[:n-1], ", ") + " or " + names[n-1] + "?"
	}
}
