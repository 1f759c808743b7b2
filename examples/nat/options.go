package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/opendivert/divert/examples/nat/table"
)

// options are the values of the flags.
type options struct {
	out           string
	inside        []netip.Prefix
	forwards      []forward
	prefixes      string
	most, perHost int
	timeouts      table.Timeouts
}

// forward is a port that is forwarded to a host behind the NAT.
type forward struct {
	protocol uint8
	port     uint16
	to       netip.AddrPort
}

// private are the private networks (RFC 1918, RFC 6598).
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
}

// addInside parses an IPv4 prefix.
func (o *options) addInside(text string) error {
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is4() || p != p.Masked() {
		return fmt.Errorf("it must be a prefix of IPv4 such as 10.0.0.0/24")
	}
	o.inside = append(o.inside, p)
	return nil
}

// addForward parses PROTOCOL:PORT=ADDR:PORT.
func (o *options) addForward(text string) error {
	f := forward{}
	from, to, _ := strings.Cut(text, "=")
	name, port, _ := strings.Cut(from, ":")
	f.protocol = map[string]uint8{"tcp": table.TCP, "udp": table.UDP}[name]
	var err error
	if f.to, err = netip.ParseAddrPort(to); err != nil || !f.to.Addr().Is4() || f.to.Port() == 0 || f.protocol == 0 {
		return fmt.Errorf("it must be of the form tcp:8080=10.0.0.2:80")
	}
	own, err := netip.ParseAddrPort("0.0.0.0:" + port)
	if f.port = own.Port(); err != nil || f.port == 0 {
		return fmt.Errorf("there is no port %q", port)
	}
	o.forwards = append(o.forwards, f)
	return nil
}

// nptv6 parses INSIDE=OUTSIDE; nil if it is empty.
func (o *options) nptv6() (inside, outside netip.Prefix, t *table.Prefixes, err error) {
	if o.prefixes == "" {
		return
	}
	from, to, _ := strings.Cut(o.prefixes, "=")
	if inside, err = netip.ParsePrefix(from); err == nil {
		outside, err = netip.ParsePrefix(to)
	}
	if err == nil {
		var p table.Prefixes
		p, err = table.NewPrefixes(inside, outside)
		t = &p
	}
	if err != nil {
		err = fmt.Errorf("-nptv6 %s: %w", o.prefixes, err)
	}
	return inside, outside, t, err
}
