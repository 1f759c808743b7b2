package main

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// config is a WireGuard configuration file, in the format of wg-quick(8).
type config struct {
	key       string // private; hexadecimal, as all keys here
	addresses []netip.Addr
	port      uint16
	mtu       int // bytes of IP packet in the tunnel
	peers     []peer
}

// peer is a section [Peer].
type peer struct {
	key, preshared string
	endpoint       netip.AddrPort // invalid: the peer begins
	allowed        []netip.Prefix
	keepalive      uint16 // seconds; 0: none
}

// The defaults: those of wg(8), and the usual port. A device needs a constant port, to recognise its own packets.
const (
	defaultPort = 51820
	defaultMTU  = 1420
	minMTU      = 1280 // the least for IPv6 (RFC 8200 section 5)
	maxMTU      = 65500
)

// parseConfig parses a file. Its errors name the line.
func parseConfig(text string) (*config, error) {
	c := &config{port: defaultPort, mtu: defaultMTU}
	section, number := "", 0
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		number++
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") {
			switch section = strings.ToLower(line); section {
			case "[interface]":
			case "[peer]":
				c.peers = append(c.peers, peer{})
			default:
				return nil, fmt.Errorf("line %d: there is no section %s; there are [Interface] and [Peer]", number, line)
			}
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: %q is not of the form Name = value", number, line)
		}
		if err := c.set(section, strings.TrimSpace(name), strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", number+1, err)
	}
	return c, c.check()
}

// set applies one line.
func (c *config) set(section, name, value string) (err error) {
	key := section + strings.ToLower(name)
	if section == "[peer]" {
		p := &c.peers[len(c.peers)-1]
		switch key {
		case "[peer]publickey":
			p.key, err = parseKey(value)
		case "[peer]presharedkey":
			p.preshared, err = parseKey(value)
		case "[peer]endpoint":
			p.endpoint, err = resolve(value)
		case "[peer]allowedips":
			err = each(value, func(a netip.Prefix) { p.allowed = append(p.allowed, a.Masked()) })
		case "[peer]persistentkeepalive":
			if strings.EqualFold(value, "off") {
				value = "0"
			}
			p.keepalive, err = parseNumber(value, 0, 65535)
		default:
			err = errors.New("there is no such setting of a peer")
		}
	} else {
		switch key {
		case "[interface]privatekey":
			c.key, err = parseKey(value)
		case "[interface]address":
			err = each(value, func(a netip.Prefix) { c.addresses = append(c.addresses, a.Addr()) })
		case "[interface]listenport":
			c.port, err = parseNumber(value, 1, 65535)
		case "[interface]mtu":
			var mtu uint16
			mtu, err = parseNumber(value, minMTU, maxMTU)
			c.mtu = int(mtu)
		case "[interface]table", "[interface]dns", "[interface]fwmark", "[interface]preup", "[interface]postup", "[interface]predown", "[interface]postdown", "[interface]saveconfig":
			err = errors.New("there is no interface that this could be set for: take the line out")
		default:
			err = errors.New("there is no such setting")
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// check returns an error if a setting is missing.
func (c *config) check() error {
	if c.key == "" {
		return errors.New("[Interface] has no PrivateKey; `wg genkey` makes one")
	}
	families := map[bool]int{}
	for _, a := range c.addresses {
		if families[a.Is4()]++; families[a.Is4()] > 1 {
			return fmt.Errorf("[Interface] Address %v: there can be one of IPv4 and one of IPv6", a)
		}
	}
	if len(c.addresses) == 0 {
		return errors.New("[Interface] has no Address")
	}
	for i, p := range c.peers {
		if p.key == "" {
			return fmt.Errorf("the [Peer] number %d has no PublicKey", i+1)
		}
		for _, a := range p.allowed {
			if families[a.Addr().Is4()] == 0 {
				return fmt.Errorf("[Peer] AllowedIPs %v: [Interface] has no Address of that family", a)
			}
		}
	}
	if len(c.allowed()) == 0 {
		return errors.New("no [Peer] has AllowedIPs: nothing would go through the tunnel")
	}
	return nil
}

// allowed returns the destinations behind the tunnel.
func (c *config) allowed() (all []netip.Prefix) {
	for _, p := range c.peers {
		all = append(all, p.allowed...)
	}
	return all
}

// inside returns the tunnel address of the same family as a, or the zero Addr.
func (c *config) inside(a netip.Addr) netip.Addr {
	for _, own := range c.addresses {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

// uapi returns the configuration in WireGuard's own form (www.wireguard.com/xplatform).
func (c *config) uapi() string {
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\nlisten_port=%d\n", c.key, c.port)
	for _, p := range c.peers {
		fmt.Fprintf(&b, "public_key=%s\n", p.key)
		if p.preshared != "" {
			fmt.Fprintf(&b, "preshared_key=%s\n", p.preshared)
		}
		if p.endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%v\n", p.endpoint)
		}
		if p.keepalive != 0 {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", p.keepalive)
		}
		for _, a := range p.allowed {
			fmt.Fprintf(&b, "allowed_ip=%v\n", a)
		}
	}
	return b.String()
}

func parseKey(text string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != 32 {
		return "", errors.New("a key is 32 bytes in base 64") // the text may be a secret
	}
	return hex.EncodeToString(b), nil
}

func parseNumber(text string, least, most uint16) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n < uint64(least) || n > uint64(most) {
		return 0, fmt.Errorf("%q must be a number from %d to %d", text, least, most)
	}
	return uint16(n), nil
}

// each parses addresses and prefixes separated by commas.
func each(text string, add func(netip.Prefix)) error {
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		p, err := netip.ParsePrefix(word)
		if err != nil {
			a, err := netip.ParseAddr(word)
			if err != nil || a.Zone() != "" {
				return fmt.Errorf("%q is neither an address nor a prefix such as 10.9.0.0/24", word)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("%q: write the IPv4 address itself", word)
		}
		add(p)
	}
	return nil
}

// resolve returns the address of an endpoint, which may be given by name.
func resolve(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(text); err == nil {
		return a, nil
	}
	a, err := net.ResolveUDPAddr("udp", text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: %w; write host:port", text, err)
	}
	at := a.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}
