package main

// protocolNames are the names of common protocols (IANA protocol numbers).
var protocolNames = [256]string{
	0: "HOPOPT", 1: "ICMP", 2: "IGMP", 4: "IPIP", 6: "TCP", 17: "UDP", 41: "IPv6", 43: "IPv6-Route", 44: "IPv6-Frag",
	46: "RSVP", 47: "GRE", 50: "ESP", 51: "AH", 58: "ICMP6", 59: "no next header", 60: "IPv6-Opts", 88: "EIGRP", 89: "OSPF", 94: "IPIP",
	103: "PIM", 108: "IPComp", 112: "VRRP", 115: "L2TP", 132: "SCTP", 135: "Mobility", 136: "UDP-Lite", 137: "MPLS-in-IP",
}

// appendProtocol appends the name of a protocol, or "ip-proto-" and its number.
func appendProtocol(b []byte, protocol uint8) []byte {
	if name := protocolNames[protocol]; name != "" {
		return append(b, name...)
	}
	return appendNumber(append(b, "ip-proto-"...), protocol)
}

// icmpName is the name of a type of ICMP message, with the names of its common codes.
type icmpName struct {
	name  string
	codes []string
}

// codeName returns the name of a code, or "".
func (n *icmpName) codeName(code uint8) string {
	if int(code) < len(n.codes) {
		return n.codes[code]
	}
	return ""
}

// icmpNames are the types of ICMP (RFC 792, RFC 1122 section 3.2.2.1, RFC 1256, RFC 1812 section 5.2.7.1).
var icmpNames = [256]icmpName{
	0: {name: "echo reply"},
	3: {"unreachable", []string{"net", "host", "protocol", "port", "need to frag", "source route failed", "net unknown",
		"host unknown", "source isolated", "net prohibited", "host prohibited", "net TOS", "host TOS", "admin prohibited",
		"host precedence", "precedence cutoff"}},
	4:  {name: "source quench"},
	5:  {"redirect", []string{"net", "host", "TOS and net", "TOS and host"}},
	8:  {name: "echo request"},
	9:  {name: "router advertisement"},
	10: {name: "router solicitation"},
	11: {"time exceeded", []string{"in-transit", "in reassembly"}},
	12: {"parameter problem", []string{"pointer", "option missing", "bad length"}},
	13: {name: "timestamp request"},
	14: {name: "timestamp reply"},
}

// icmp6Names are the types of ICMPv6 (RFC 4443, RFC 4861, RFC 2710, RFC 3810).
var icmp6Names = [256]icmpName{
	1:   {"unreachable", []string{"no route", "admin prohibited", "beyond scope", "address", "port", "source policy", "reject route"}},
	2:   {name: "packet too big"},
	3:   {"time exceeded", []string{"in-transit", "in reassembly"}},
	4:   {"parameter problem", []string{"header field", "next header", "option"}},
	128: {name: "echo request"}, 129: {name: "echo reply"},
	130: {name: "multicast listener query"}, 131: {name: "multicast listener report"}, 132: {name: "multicast listener done"},
	133: {name: "router solicitation"}, 134: {name: "router advertisement"},
	135: {name: "neighbor solicitation"}, 136: {name: "neighbor advertisement"}, 137: {name: "redirect"},
	143: {name: "multicast listener report v2"},
}
