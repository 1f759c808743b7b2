package tcpdump

import "net/netip"

// The words of primitives (pcap-filter(7)).
var (
	protos = set("ether", "fddi", "tr", "wlan", "ppp", "slip", "link", "ip", "ip6", "arp", "rarp", "decnet", "lat", "sca", "moprc", "mopdl",
		"iso", "clnp", "esis", "isis", "es-is", "is-is", "aarp", "atalk", "ipx", "netbeui", "stp",
		"tcp", "udp", "icmp", "icmp6", "sctp", "igmp", "igrp", "pim", "vrrp", "carp", "ah", "esp")
	types = set("host", "net", "port", "portrange", "proto", "protochain", "gateway")
	// alone are the words that stand alone.
	alone = set("broadcast", "multicast", "inbound", "outbound", "vlan", "mpls", "pppoed", "pppoes", "geneve", "llc")
	// withValue are the words with a value behind them that take no other qualifier.
	withValue = set("less", "greater", "ifname", "on", "ifindex", "rnr", "rulenum", "reason", "rset", "ruleset", "srnr", "subrulenum", "action", "type", "subtype", "dir")
)

func set(words ...string) map[string]bool {
	m := make(map[string]bool, len(words))
	for _, w := range words {
		m[w] = true
	}
	return m
}

// primitive reads one primitive. A value without qualifiers inherits those of before.
func (p *parser) primitive(before *primitive) (node, error) {
	first := p.peek()
	n := &primitive{at: first.at}
	if first.kind != word {
		return nil, p.fail(first, "a test was expected")
	}
	defer func() {
		last := p.tokens[max(p.pos-1, 0)]
		n.len = max(last.at+len(last.text)-n.at, 1)
	}()
	if !first.raw && withValue[first.text] {
		p.next()
		v := p.next()
		if v.kind != word {
			return nil, p.fail(v, "a value was expected behind "+first.text)
		}
		n.typ, n.id = first.text, v.text
		return n, nil
	}
	if t := p.peek(); !t.raw && protos[t.text] {
		n.proto = p.next().text
	}
	p.direction(n)
	if t := p.peek(); t.kind == word && !t.raw && (types[t.text] || n.dir == "" && alone[t.text]) {
		n.typ = p.next().text
		if alone[n.typ] {
			p.optionalValue(n)
			return n, nil
		}
	}
	qualified := n.proto != "" || n.dir != "" || n.typ != ""
	t := p.peek()
	if t.kind == symbol && t.text == "(" && (n.dir != "" || n.typ != "") {
		p.next()
		return p.values(n)
	}
	if !qualified && before != nil && before.id != "" {
		n.proto, n.dir, n.typ = before.proto, before.dir, before.typ
	}
	if n.dir == "" && n.typ == "" && (t.kind != word || !t.raw && (t.text == "and" || t.text == "or" || t.text == "not")) && n.proto != "" {
		return n, nil // a protocol by itself
	}
	if t.kind != word {
		return nil, p.fail(t, "a value was expected")
	}
	if n.proto != "" && n.dir == "" && n.typ == "" && qualified {
		return nil, p.fail(t, "and, or, or a word such as port or host was expected")
	}
	p.next()
	n.id = p.address(t)
	if n.typ == "" {
		if !looksLikeHost(n.id) {
			return nil, p.fail(t, "unknown word")
		}
		n.typ = "host"
	}
	return n, nil
}

// values reads the values in parentheses that share the qualifiers of n, as in "port (80 or 443)".
func (p *parser) values(n *primitive) (node, error) {
	shared := *n
	shared.id = " " // so that a value inherits
	list, err := p.expression(&shared)
	if err == nil && !p.is(")") {
		err = p.fail(p.peek(), "\")\" was expected")
	}
	return list, err
}

// direction reads src, dst, "src or dst" or "src and dst".
func (p *parser) direction(n *primitive) {
	if !p.is("src", "dst") {
		return
	}
	n.dir = p.tokens[p.pos-1].text
	at := p.pos
	if p.is("or", "||", "and", "&&") {
		both := p.tokens[p.pos-1].text
		if p.is("src", "dst") {
			if n.dir = ""; both == "and" || both == "&&" {
				n.dir = "src and dst"
			}
			return
		}
	}
	p.pos = at
}

// optionalValue takes the number behind vlan and mpls.
func (p *parser) optionalValue(n *primitive) {
	if t := p.peek(); t.kind == word && (n.typ == "vlan" || n.typ == "mpls" || n.typ == "pppoes") {
		if _, err := parseNumber(t.text); err == nil {
			n.id = p.next().text
		}
	}
}

// address takes an optional suffix behind the first word of a value: a prefix length, or a mask.
func (p *parser) address(first token) string {
	id := first.text
	if t := p.peek(); t.kind == symbol && t.text == "/" {
		p.next()
		if v := p.peek(); v.kind == word {
			p.next()
			return id + "/" + v.text
		}
		return id + "/"
	}
	if p.peek().text == "mask" && p.peek().kind == word {
		p.next()
		if v := p.peek(); v.kind == word {
			p.next()
			return id + " mask " + v.text
		}
	}
	return id
}

// looksLikeHost reports whether a word without qualifiers is an address.
func looksLikeHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}
