package tcpdump

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Result is a converted filter.
type Result struct {
	Filter string   // in the extended dialect of Divert, for the layers NETWORK and FORWARD
	Notes  []string // possible differences, a sentence each
}

// Convert converts a filter of tcpdump. The error is an *Error. If Syntax is set, the text is not in tcpdump's language;
// otherwise the named part has no counterpart.
func Convert(filter string) (Result, error) {
	if len(filter) > maxText {
		return Result{}, &Error{Text: filter, Message: fmt.Sprintf("the filter is longer than %d bytes", maxText), Syntax: true}
	}
	n, err := parse(filter)
	if err != nil {
		return Result{}, err
	}
	c := converter{text: filter}
	cond, err := c.node(n)
	if err != nil {
		return Result{}, err
	}
	if cond == constant(false) {
		return Result{}, &Error{Text: filter, Len: len(filter), Message: "no IP packet can match, and handles see IP packets only"}
	}
	return Result{text(cond, false), c.notes}, nil
}

// maxText is the longest filter, in bytes.
const maxText = 1 << 16

type converter struct {
	text  string
	notes []string
}

func (c *converter) note(s string) {
	if !slices.Contains(c.notes, s) {
		c.notes = append(c.notes, s)
	}
}

func (c *converter) fail(at, length int, format string, args ...any) error {
	return &Error{Text: c.text, At: at, Len: length, Message: fmt.Sprintf(format, args...)}
}

func (c *converter) node(n node) (condition, error) {
	switch n := n.(type) {
	case *logic:
		a, err := c.node(n.a)
		if err != nil {
			return nil, err
		}
		b, err := c.node(n.b)
		if err != nil {
			return nil, err
		}
		if n.and {
			return allOf(a, b), nil
		}
		return anyOf(a, b), nil
	case *negation:
		a, err := c.node(n.a)
		if err != nil {
			return nil, err
		}
		return negate(a), nil
	case *relation:
		return c.relation(n)
	}
	return c.primitive(n.(*primitive))
}

// protocols are the words for protocols that stand alone, as tests of Divert.
var protocols = map[string]condition{
	"ip": field("ip"), "ip6": field("ipv6"), "tcp": field("tcp"), "udp": field("udp"), "icmp": field("icmp"), "icmp6": field("icmpv6"),
	"igmp": equals("ip.Protocol", "2"), "igrp": equals("ip.Protocol", "9"), "pim": carried("103"), "vrrp": equals("ip.Protocol", "112"),
	"carp": equals("ip.Protocol", "112"), "ah": carried("51"), "esp": carried("50"), "sctp": carried("132"),
}

// carried tests the protocol number in either header.
func carried(number string) condition {
	return anyOf(equals("ip.Protocol", number), equals("ipv6.NextHdr", number))
}

// protocolNumbers are the names that may follow proto.
var protocolNumbers = map[string]string{
	"icmp": "1", "igmp": "2", "tcp": "6", "igrp": "9", "udp": "17", "gre": "47", "esp": "50", "ah": "51", "icmp6": "58", "ospf": "89",
	"pim": "103", "vrrp": "112", "carp": "112", "sctp": "132",
}

// etherTypes are the types of frames that carry IP.
var etherTypes = map[string]condition{
	"ip": field("ip"), "0x0800": field("ip"), "0x800": field("ip"), "2048": field("ip"),
	"ip6": field("ipv6"), "0x86dd": field("ipv6"), "0x86DD": field("ipv6"), "34525": field("ipv6"),
}

// without gives the reasons why words have no counterpart.
var without = map[string]string{
	"ifname": "interfaces are not part of the language; choose one with -i, or test ifIdx", "on": "interfaces are not part of the language; choose one with -i, or test ifIdx",
	"ifindex": "write ifIdx == and the index",
	"vlan":    "handles see packets behind the VLAN header; choose the VLAN's interface by ifIdx", "mpls": "handles see IP packets only",
	"broadcast": "broadcast depends on each network's prefix; write ip.DstAddr == and the address", "multicast": "multicast of the link layer is not seen; write ip multicast or ip6 multicast",
	"gateway": "link-layer addresses are not seen",
}

func (c *converter) primitive(n *primitive) (condition, error) {
	if why, ok := without[n.typ]; ok && !(n.typ == "multicast" && (n.proto == "ip" || n.proto == "ip6")) {
		return nil, c.fail(n.at, n.len, "%s", why)
	}
	_, isIP := protocols[n.proto]
	switch {
	case n.typ == "" && isIP:
		return protocols[n.proto], nil
	case n.proto == "ether" && n.typ == "proto":
		return c.etherType(n)
	case n.proto == "ether" || n.proto == "link" || n.proto == "wlan" || n.proto == "fddi" || n.proto == "tr":
		return nil, c.fail(n.at, n.len, "handles see IP packets, without link-layer headers")
	case n.proto != "" && !isIP:
		return constant(false), nil // not an IP packet
	case n.typ == "multicast" && n.proto == "ip":
		return equals("ip.DstAddr", "224.0.0.0/4"), nil
	case n.typ == "multicast":
		return equals("ipv6.DstAddr", "ff00::/8"), nil
	}
	switch n.typ {
	case "inbound", "outbound":
		return field(n.typ), nil
	case "less", "greater":
		v, err := parseNumber(n.id)
		if err != nil {
			return nil, c.fail(n.at, n.len, "%s needs a length in bytes", n.typ)
		}
		return c.length(map[string]string{"less": "<=", "greater": ">="}[n.typ], int64(v)), nil
	case "host":
		return c.host(n)
	case "net":
		return c.net(n)
	case "port", "portrange":
		return c.port(n)
	case "proto", "protochain":
		return c.protocol(n)
	}
	return nil, c.fail(n.at, n.len, "there is no counterpart")
}

// linkHeader is the length of an Ethernet frame's header before the IP header, in bytes.
const linkHeader = 14

// length compares the length of packets. tcpdump's length includes the link layer's header.
func (c *converter) length(op string, v int64) condition {
	c.note("length counts from the IP header on, tcpdump's from the link header: 14 bytes fewer on Ethernet.")
	return ranged("length", op, v-linkHeader, 20, 65575)
}

// ranged compares a field with values from low to high with a number, which may lie outside.
func ranged(name, op string, v, low, high int64) condition {
	switch {
	case op == "==" && (v < low || v > high), op == "<" && v <= low, op == "<=" && v < low, op == ">" && v >= high, op == ">=" && v > high:
		return constant(false)
	case op == "!=" && (v < low || v > high), op == "<" && v > high, op == "<=" && v >= high, op == ">" && v < low, op == ">=" && v <= low:
		return constant(true)
	case op == "==":
		return equals(name, strconv.FormatInt(v, 10))
	}
	return compare(name, op, strconv.FormatInt(v, 10))
}

func (c *converter) etherType(n *primitive) (condition, error) {
	if cond, ok := etherTypes[n.id]; ok {
		return cond, nil
	}
	if _, err := parseNumber(n.id); err == nil || protos[n.id] {
		return constant(false), nil // not an IP packet
	}
	return nil, c.fail(n.at, n.len, "unknown type of frames")
}

// ends makes a condition on the ends that a direction names.
func ends(dir string, end func(source bool) condition) condition {
	switch dir {
	case "src":
		return end(true)
	case "dst":
		return end(false)
	case "src and dst":
		return allOf(end(true), end(false))
	}
	return anyOf(end(true), end(false))
}

func endField(header string, source bool, what string) string {
	if source {
		return header + ".Src" + what
	}
	return header + ".Dst" + what
}

// qualified adds the protocol before a primitive.
func qualified(n *primitive, c condition) condition {
	if n.proto == "" {
		return c
	}
	return allOf(protocols[n.proto], c)
}

func (c *converter) host(n *primitive) (condition, error) {
	addr, err := netip.ParseAddr(n.id)
	switch {
	case strings.Contains(n.id, "/"):
		return c.net(n)
	case err != nil:
		return nil, c.fail(n.at, n.len, "filters know addresses, not names of hosts; look the name up first")
	case addr.Zone() != "":
		return nil, c.fail(n.at, n.len, "addresses have no zone")
	}
	return qualified(n, ends(n.dir, func(source bool) condition {
		return equals(endField(header(addr), source, "Addr"), addr.String())
	})), nil
}

func header(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ipv6"
}

func (c *converter) net(n *primitive) (condition, error) {
	prefix, err := parseNet(n.id)
	if err != nil {
		return nil, c.fail(n.at, n.len, "%v", err)
	}
	return qualified(n, ends(n.dir, func(source bool) condition {
		name := endField(header(prefix.Addr()), source, "Addr")
		switch {
		case prefix.Bits() == 0:
			return field(header(prefix.Addr()))
		case prefix.IsSingleIP():
			return equals(name, prefix.Addr().String())
		}
		return equals(name, prefix.String())
	})), nil
}

// parseNet reads "10/8", "192.168", "1.2.3.0/24", "1.2.3.0 mask 255.255.255.0" or "fe80::/10".
func parseNet(s string) (netip.Prefix, error) {
	s, mask, masked := strings.Cut(s, " mask ")
	s, length, slashed := strings.Cut(s, "/")
	if strings.Contains(s, ":") {
		a, err := netip.ParseAddr(s)
		bits := 128
		if err == nil && slashed {
			bits, err = strconv.Atoi(length)
		}
		if err != nil || bits < 0 || bits > 128 || masked {
			return netip.Prefix{}, fmt.Errorf("not a network")
		}
		return a.Prefix(bits)
	}
	var b [4]byte
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Prefix{}, fmt.Errorf("not a network")
	}
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("filters know addresses, not names of networks")
		}
		b[i] = byte(v)
	}
	bits := 8 * len(parts)
	switch {
	case masked:
		m, err := netip.ParseAddr(mask)
		if err != nil || !m.Is4() {
			return netip.Prefix{}, fmt.Errorf("the mask is not an IPv4 address")
		}
		m4 := m.As4()
		ones, size := net.IPMask(m4[:]).Size()
		if size == 0 {
			return netip.Prefix{}, fmt.Errorf("the mask has holes")
		}
		bits = ones
	case slashed:
		v, err := strconv.Atoi(length)
		if err != nil || v < 0 || v > 32 {
			return netip.Prefix{}, fmt.Errorf("the prefix length of IPv4 is 0 to 32")
		}
		bits = v
	}
	return netip.AddrFrom4(b).Prefix(bits)
}

func (c *converter) port(n *primitive) (condition, error) {
	value, err := c.portValue(n)
	if err != nil {
		return nil, err
	}
	var list []condition
	for _, proto := range []string{"tcp", "udp"} {
		if n.proto == proto || n.proto == "" || n.proto == "ip" || n.proto == "ip6" {
			list = append(list, ends(n.dir, func(source bool) condition { return equals(endField(proto, source, "Port"), value) }))
		}
	}
	if len(list) == 0 {
		return nil, c.fail(n.at, n.len, "only tcp and udp have fields for ports")
	}
	return qualified(n, anyOf(list...)), nil
}

func (c *converter) portValue(n *primitive) (string, error) {
	from, to, isRange := strings.Cut(n.id, "-")
	low, err := portNumber(from)
	high := low
	if err == nil && isRange {
		high, err = portNumber(to)
	}
	switch {
	case err != nil && n.typ == "port": // a service may have "-" in its name
		if low, err = portNumber(n.id); err != nil {
			return "", c.fail(n.at, n.len, "unknown service; write its port's number")
		}
		high = low
	case err != nil:
		return "", c.fail(n.at, n.len, "a range of ports is two numbers, such as 8000-8999")
	}
	if low > high {
		low, high = high, low
	}
	if low == high {
		return strconv.Itoa(low), nil
	}
	return fmt.Sprintf("%d-%d", low, high), nil
}

// portNumber reads a port, or the name of a service.
func portNumber(s string) (int, error) {
	if v, err := parseNumber(s); err == nil {
		if v > 65535 {
			return 0, strconv.ErrRange
		}
		return int(v), nil
	}
	p, err := net.LookupPort("tcp", s)
	if err != nil {
		p, err = net.LookupPort("udp", s)
	}
	return p, err
}

func (c *converter) protocol(n *primitive) (condition, error) {
	v, ok := protocolNumbers[n.id]
	if !ok {
		num, err := parseNumber(n.id)
		if err != nil || num > 255 {
			return nil, c.fail(n.at, n.len, "unknown protocol; write its number, 0 to 255")
		}
		v = strconv.Itoa(int(num))
	}
	chain := n.typ == "protochain"
	switch {
	case n.proto == "ip":
		return equals("ip.Protocol", v), nil
	case n.proto == "ip6" && chain:
		return allOf(field("ipv6"), equals("protocol", v)), nil
	case n.proto == "ip6":
		return equals("ipv6.NextHdr", v), nil
	case n.proto != "":
		return nil, c.fail(n.at, n.len, "proto follows ip, ip6 or ether")
	case chain:
		return equals("protocol", v), nil
	}
	return carried(v), nil
}
