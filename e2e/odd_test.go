//go:build linux

package e2e_test

import (
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/opendivert/divert/packet"
)

// oddity is one odd way to write a datagram or a SYN: its packets, in sending order. Tests use the receiving socket to
// find out which oddities a host accepts.
type oddity struct {
	name string
	make func(e ends, payload []byte) [][]byte
	// taken is set if every kernel accepts it, so that the list of accepted oddities cannot be empty by mistake.
	taken bool
}

// ends are the addresses and ports of an oddity's transport header.
type ends struct {
	src, dst     netip.Addr
	sport, dport uint16
}

// headerChain is a chain of IPv6 extension headers.
type headerChain []extension

// extension is one of them: its number, and its bytes from the third on (the first two are the next header and the
// length).
type extension struct {
	number byte
	rest   []byte
}

// Protocol numbers without a constant in package packet.
const (
	protoIPIP    = 4
	protoUDPLite = 136
	protoHIP     = 139
	protoShim6   = 140
)

// udp returns the datagram, header and payload, with its checksum.
func (e ends) udp(payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, e.sport)
	b = binary.BigEndian.AppendUint16(b, e.dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	e.seal(b, packet.ProtocolUDP, 6)
	return b
}

// syn returns a TCP header with options (a multiple of 4 bytes) and the flags.
func (e ends) syn(flags uint16, options, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, e.sport)
	b = binary.BigEndian.AppendUint16(b, e.dport)
	b = append(b, 0, 0, 0x10, 0, 0, 0, 0, 0) // sequence, acknowledgement
	b = binary.BigEndian.AppendUint16(b, uint16(5+len(options)/4)<<12|flags)
	b = append(b, 0xff, 0xff, 0, 0, 0, 0) // window, checksum, urgent pointer
	b = append(append(b, options...), payload...)
	e.seal(b, packet.ProtocolTCP, 16)
	return b
}

// seal sets the checksum of a transport header and its payload (RFC 9293 3.1, RFC 8200 8.1).
func (e ends) seal(b []byte, protocol byte, at int) {
	b[at], b[at+1] = 0, 0
	pseudo := append(append([]byte(nil), e.src.AsSlice()...), e.dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	sum := onesComplement(append(pseudo, b...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], sum)
}

// onesComplement is the Internet checksum (RFC 1071).
func onesComplement(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// v4 prepends an IPv4 header with options. Edits may change the header before its checksum is computed.
func (e ends) v4(options []byte, protocol byte, data []byte, edits ...func(h []byte)) []byte {
	h := make([]byte, 20, 20+len(options)+len(data))
	h = append(h, options...)
	for len(h)%4 != 0 {
		h = append(h, 0)
	}
	h[0], h[8], h[9] = 0x40|byte(len(h)/4), 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(data)))
	copy(h[12:], e.src.AsSlice())
	copy(h[16:], e.dst.AsSlice())
	for _, edit := range edits {
		edit(h)
	}
	binary.BigEndian.PutUint16(h[10:], onesComplement(h))
	return append(h, data...)
}

// v6 prepends an IPv6 header and extension headers.
func (e ends) v6(chain headerChain, protocol byte, data []byte, edits ...func(h []byte)) []byte {
	h := make([]byte, 40)
	h[0], h[7] = 0x60, 64
	first, body := chain.put(protocol, data)
	h[6] = first
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], e.src.AsSlice())
	copy(h[24:], e.dst.AsSlice())
	for _, edit := range edits {
		edit(h)
	}
	return append(h, body...)
}

// put returns the chain followed by data, and the number of its first header.
func (c headerChain) put(protocol byte, data []byte) (first byte, b []byte) {
	next := func(i int) byte {
		if i < len(c) {
			return c[i].number
		}
		return protocol
	}
	for i, x := range c {
		length := byte((len(x.rest)+2)/8 - 1)
		switch x.number {
		case packet.ProtocolFragment:
			length = 0 // reserved
		case packet.ProtocolAH:
			length = byte((len(x.rest)+2)/4 - 2)
		}
		b = append(append(b, next(i+1), length), x.rest...)
	}
	return next(0), append(b, data...)
}

// Extension headers.
var (
	padded         = []byte{1, 4, 0, 0, 0, 0}
	hopByHop       = extension{packet.ProtocolHopByHop, padded}
	destOpts       = extension{packet.ProtocolDestOptions, padded}
	routed         = extension{packet.ProtocolRouting, []byte{4, 0, 0, 0, 0, 0}} // type 4, no segments left
	atomicFragment = extension{packet.ProtocolFragment, []byte{0, 0, 0, 0, 0x12, 0x34}}
	mobility       = extension{packet.ProtocolMobility, make([]byte, 6)}
	authentic      = extension{packet.ProtocolAH, make([]byte, 22)}
	hip            = extension{protoHIP, make([]byte, 38)}
	shim6          = extension{protoShim6, make([]byte, 6)}
)

// options makes an options header of n bytes.
func options(number byte, n int) extension {
	rest := make([]byte, n-2)
	for i := 0; i < len(rest); {
		length := min(len(rest)-i-2, 255)
		if length < 0 {
			break // one byte of padding
		}
		if length > 7 {
			length = 5 // Linux accepts at most 7 bytes of padding in a row (RFC 8504 5.3); other options are of type 0x1e
			rest[i] = 0x1e
		} else {
			rest[i] = 1
		}
		rest[i+1] = byte(length)
		i += length + 2
	}
	return extension{number, rest}
}

// part is a piece of a datagram, carried by one fragment: from and length are in bytes.
type part struct {
	from, length int
	edit         func(data []byte) // changes this fragment's bytes
	last         int               // 1: the flag "more fragments" is set on the last one; -1: it is clear although more follow
}

// parts cuts n bytes into pieces at the given offsets.
func parts(n int, cuts ...int) (list []part) {
	from := 0
	for _, c := range append(cuts, n) {
		list = append(list, part{from: from, length: c - from})
		from = c
	}
	return list
}

// more returns the fragment's flag "more fragments".
func (p part) more(n int) bool { return p.last == 1 || p.last == 0 && p.from+p.length < n }

// bytes returns the fragment's bytes.
func (p part) bytes(data []byte) []byte {
	b := slices.Clone(data[p.from : p.from+p.length])
	if p.edit != nil {
		p.edit(b)
	}
	return b
}

// fragments4 writes the parts of a datagram as fragments of IPv4.
func (e ends) fragments4(id uint16, protocol byte, data []byte, list []part, edits ...func(h []byte)) (all [][]byte) {
	for _, p := range list {
		place := uint16(p.from / 8)
		if p.more(len(data)) {
			place |= 0x2000
		}
		all = append(all, e.v4(nil, protocol, p.bytes(data), append([]func([]byte){func(h []byte) {
			binary.BigEndian.PutUint16(h[4:], id)
			binary.BigEndian.PutUint16(h[6:], place)
		}}, edits...)...))
	}
	return all
}

// fragments6 writes the parts of a datagram as fragments of IPv6, after a chain.
func (e ends) fragments6(id uint32, chain headerChain, protocol byte, data []byte, list []part) (all [][]byte) {
	for _, p := range list {
		place := uint16(p.from)
		if p.more(len(data)) {
			place |= 1
		}
		rest := binary.BigEndian.AppendUint16(nil, place)
		rest = binary.BigEndian.AppendUint32(rest, id)
		whole := append(slices.Clone(chain), extension{packet.ProtocolFragment, rest})
		all = append(all, e.v6(whole, protocol, p.bytes(data)))
	}
	return all
}

// orders are ways to fragment a datagram of 64 bytes or more and to order the fragments. Both families share them.
func orders(n int) map[string][]part {
	be := binary.BigEndian
	port := func(b []byte) { be.PutUint16(b[2:], be.Uint16(b[2:])+1) }
	other := func(b []byte) {
		for i := range b {
			b[i] ^= 0x55
		}
	}
	end := n / 8 * 8
	two, three := parts(n, 32), parts(n, 24, 48)
	turned := func(list []part, order ...int) (out []part) {
		for _, i := range order {
			out = append(out, list[i])
		}
		return out
	}
	with := func(p part, edit func([]byte)) part { p.edit = edit; return p }
	open := func(p part) part { p.last = 1; return p }
	shut := func(p part) part { p.last = -1; return p }
	return map[string][]part{
		"two":                                   two,
		"two, the last first":                   turned(two, 1, 0),
		"three":                                 three,
		"three, shuffled":                       turned(three, 2, 0, 1),
		"three, backwards":                      turned(three, 2, 1, 0),
		"the first twice":                       turned(three, 0, 0, 1, 2),
		"the middle twice":                      turned(three, 0, 1, 1, 2),
		"the last twice":                        turned(three, 0, 2, 2, 1),
		"all twice":                             turned(three, 0, 1, 2, 0, 1, 2),
		"a first of eight bytes":                parts(n, 8),
		"a last of one byte":                    parts(n, end),
		"as small as can be":                    parts(n, 8, 16, 24, 32, 40, 48, 56),
		"the first twice, another port before":  {with(three[0], port), three[0], three[1], three[2]},
		"the first twice, another port behind":  {three[0], with(three[0], port), three[1], three[2]},
		"the middle twice, other bytes before":  {three[0], with(three[1], other), three[1], three[2]},
		"the middle twice, other bytes behind":  {three[0], three[1], with(three[1], other), three[2]},
		"overlapping, the same bytes":           {three[0], {from: 16, length: 32}, three[2]},
		"overlapping, other bytes":              {three[0], with(part{from: 16, length: 32}, other), three[2]},
		"overlapping the ports":                 {{from: 0, length: 24, edit: port}, {from: 0, length: 48}, three[2]},
		"overlapping the ports, the last first": {three[2], {from: 0, length: 48}, {from: 0, length: 24, edit: port}},
		"one inside another":                    {{from: 0, length: 48}, {from: 24, length: 8}, three[2]},
		"nothing in between":                    {three[0], {from: 24, length: 0}, three[1], three[2]},
		"the last says that more follow":        {three[0], three[1], open(three[2])},
		"the middle is the end":                 {three[0], shut(part{from: 24, length: 24}), three[2]},
		"two ends":                              {three[0], three[1], three[2], shut(part{from: 24, length: 16})},
		"one alone, more follow":                {{from: 0, length: end, last: 1}},
		"one alone, none follow":                {{from: 0, length: n}},
		"no first":                              turned(three, 1, 2),
	}
}

// oddities4 are odd ways to write a datagram in IPv4.
func oddities4() (list []oddity) {
	be := binary.BigEndian
	add := func(taken bool, name string, f func(e ends, payload []byte) [][]byte) {
		list = append(list, oddity{name, f, taken})
	}
	header := func(taken bool, name string, edit func(h []byte)) {
		add(taken, name, func(e ends, p []byte) [][]byte { return [][]byte{e.v4(nil, packet.ProtocolUDP, e.udp(p), edit)} })
	}
	bytes := func(taken bool, name string, edit func(b []byte) []byte) {
		add(taken, name, func(e ends, p []byte) [][]byte { return [][]byte{edit(e.v4(nil, packet.ProtocolUDP, e.udp(p)))} })
	}
	header(true, "plain", func([]byte) {})
	for _, ttl := range []byte{0, 1, 255} {
		header(ttl == 255, fmt.Sprintf("TTL %d", ttl), func(h []byte) { h[8] = ttl })
	}
	header(true, "every bit of TOS", func(h []byte) { h[1] = 0xff })
	header(true, "do not fragment", func(h []byte) { h[6] = 0x40 })
	header(true, "the reserved flag", func(h []byte) { h[6] = 0x80 })
	header(false, "another version", func(h []byte) { h[0] = 0x65 })
	header(false, "a header of 16 bytes", func(h []byte) { h[0] = 0x44 })
	header(false, "a header beyond the packet", func(h []byte) { h[0] = 0x4f; be.PutUint16(h[2:], 40) })
	header(false, "a length below the header", func(h []byte) { be.PutUint16(h[2:], 19) })
	header(false, "a length above the packet", func(h []byte) { be.PutUint16(h[2:], be.Uint16(h[2:])+8) })
	header(false, "a length of zero", func(h []byte) { be.PutUint16(h[2:], 0) })
	header(false, "UDP-Lite", func(h []byte) { h[9] = protoUDPLite })
	for _, n := range []int{1, 18, 100} {
		bytes(true, fmt.Sprintf("%d bytes behind the packet", n), func(b []byte) []byte { return append(b, make([]byte, n)...) })
	}
	bytes(false, "a wrong header checksum", func(b []byte) []byte { b[10]++; return b })
	bytes(true, "no checksum", func(b []byte) []byte { b[26], b[27] = 0, 0; return b })
	bytes(false, "a wrong checksum", func(b []byte) []byte { b[26]++; return b })
	for _, d := range []int{-8, -1, 1, 8, 1000} {
		add(false, fmt.Sprintf("a UDP length off by %d", d), func(e ends, p []byte) [][]byte {
			// The checksum covers the length in the header.
			b := e.udp(p)
			n := len(b) + d
			whole := b[:min(n, len(b))]
			be.PutUint16(whole[4:], uint16(n))
			e.seal(whole, packet.ProtocolUDP, 6)
			return [][]byte{e.v4(nil, packet.ProtocolUDP, b)}
		})
	}
	for _, n := range []uint16{0, 7, 8} {
		add(false, fmt.Sprintf("a UDP length of %d", n), func(e ends, p []byte) [][]byte {
			b := e.udp(p)
			be.PutUint16(b[4:], n)
			b[6], b[7] = 0, 0
			return [][]byte{e.v4(nil, packet.ProtocolUDP, b)}
		})
	}
	add(true, "a source port of zero", func(e ends, p []byte) [][]byte {
		e.sport = 0
		return [][]byte{e.v4(nil, packet.ProtocolUDP, e.udp(p))}
	})
	for name, to := range sorted(map[string]string{"broadcast": "255.255.255.255", "all hosts": "224.0.0.1"}) {
		add(false, "to "+name, func(e ends, p []byte) [][]byte {
			e.dst = netip.MustParseAddr(to)
			return [][]byte{e.v4(nil, packet.ProtocolUDP, e.udp(p))}
		})
	}
	for name, from := range sorted(map[string]string{"nowhere": "0.0.0.0", "loopback": "127.0.0.1", "a class E address": "240.0.0.1"}) {
		add(false, "from "+name, func(e ends, p []byte) [][]byte {
			e.src = netip.MustParseAddr(from)
			return [][]byte{e.v4(nil, packet.ProtocolUDP, e.udp(p))}
		})
	}
	add(false, "from the receiver", func(e ends, p []byte) [][]byte {
		e.src = e.dst
		return [][]byte{e.v4(nil, packet.ProtocolUDP, e.udp(p))}
	})
	add(false, "IP in IP", func(e ends, p []byte) [][]byte {
		return [][]byte{e.v4(nil, protoIPIP, e.v4(nil, packet.ProtocolUDP, e.udp(p)))}
	})

	hop := []byte{0, 0, 0, 0}
	for name, o := range sorted(map[string][]byte{
		"no operation":                    {1, 1, 1, 1},
		"40 times no operation":           slices.Repeat([]byte{1}, 40),
		"end of options, more behind":     {0, 7, 7, 4, 1, 2, 3, 4},
		"record route":                    {7, 7, 4, 0, 0, 0, 0, 0},
		"record route, full":              {7, 7, 8, 1, 2, 3, 4, 0},
		"timestamp":                       {68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"timestamp, overflowing":          {68, 12, 13, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0},
		"router alert":                    {148, 4, 0, 0},
		"security":                        {130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"stream id":                       {136, 4, 0, 1},
		"unknown":                         {0x99, 4, 0, 0},
		"a length of zero":                {0x99, 0, 0, 0},
		"a length of one":                 {0x99, 1, 0, 0},
		"beyond the header":               {0x99, 40, 0, 0},
		"loose source route, at its end":  append([]byte{0x83, 7, 8}, append(hop, 0)...),
		"strict source route, at its end": append([]byte{0x89, 7, 8}, append(hop, 0)...),
		"loose source route":              append([]byte{0x83, 7, 4}, append([]byte{10, 77, 0, 2}, 0)...),
	}) {
		taken := name == "no operation" || name == "40 times no operation" || name == "record route" || name == "router alert"
		add(taken, "option: "+name, func(e ends, p []byte) [][]byte {
			return [][]byte{e.v4(o, packet.ProtocolUDP, e.udp(p))}
		})
	}

	for name, o := range sorted(orders(8 + oddPayload)) {
		taken := name == "two" || name == "three, backwards" || name == "as small as can be"
		add(taken, "fragments: "+name, func(e ends, p []byte) [][]byte {
			return e.fragments4(be.Uint16(p[4:]), packet.ProtocolUDP, e.udp(p), o)
		})
	}
	for name, edit := range sorted(map[string]func(i int, h []byte){
		"other TTLs":         func(i int, h []byte) { h[8] = byte(60 + i) },
		"other TOS":          func(i int, h []byte) { h[1] = byte(i << 2) },
		"congestion":         func(i int, h []byte) { h[1] = byte(2 + i%2) },
		"other protocols":    func(i int, h []byte) { h[9] -= byte(i) },
		"other sources":      func(i int, h []byte) { h[15] += byte(i) },
		"do not fragment":    func(i int, h []byte) { h[6] |= 0x40 },
		"the reserved flag":  func(i int, h []byte) { h[6] |= 0x80 },
		"options in the 2nd": nil,
	}) {
		add(name == "other TTLs", "fragments: "+name, func(e ends, p []byte) (all [][]byte) {
			data := e.udp(p)
			for i, f := range orders(len(data))["three"] {
				if edit == nil {
					opts := []byte(nil)
					if i == 1 {
						opts = []byte{148, 4, 0, 0}
					}
					place := uint16(f.from / 8)
					if f.more(len(data)) {
						place |= 0x2000
					}
					all = append(all, e.v4(opts, packet.ProtocolUDP, f.bytes(data), func(h []byte) {
						copy(h[4:6], p[4:6])
						be.PutUint16(h[6:], place)
					}))
					continue
				}
				all = append(all, e.fragments4(be.Uint16(p[4:]), packet.ProtocolUDP, data, []part{f}, func(h []byte) { edit(i, h) })[0])
			}
			return all
		})
	}
	return list
}

// oddities6 are odd ways to write a datagram in IPv6.
func oddities6() (list []oddity) {
	be := binary.BigEndian
	add := func(taken bool, name string, f func(e ends, payload []byte) [][]byte) {
		list = append(list, oddity{name, f, taken})
	}
	chain := func(taken bool, name string, c headerChain) {
		add(taken, name, func(e ends, p []byte) [][]byte { return [][]byte{e.v6(c, packet.ProtocolUDP, e.udp(p))} })
	}
	header := func(taken bool, name string, edit func(h []byte)) {
		add(taken, name, func(e ends, p []byte) [][]byte { return [][]byte{e.v6(nil, packet.ProtocolUDP, e.udp(p), edit)} })
	}
	header(true, "plain", func([]byte) {})
	for _, ttl := range []byte{0, 1, 255} {
		header(ttl == 255, fmt.Sprintf("hop limit %d", ttl), func(h []byte) { h[7] = ttl })
	}
	header(true, "every bit of the traffic class and the flow label", func(h []byte) { h[0], h[1], h[2], h[3] = 0x6f, 0xff, 0xff, 0xff })
	header(false, "another version", func(h []byte) { h[0] = 0x40 })
	header(false, "a length above the packet", func(h []byte) { be.PutUint16(h[4:], be.Uint16(h[4:])+8) })
	header(false, "a length of zero", func(h []byte) { be.PutUint16(h[4:], 0) })
	for _, n := range []int{1, 18, 100} {
		add(true, fmt.Sprintf("%d bytes behind the packet", n), func(e ends, p []byte) [][]byte {
			return [][]byte{append(e.v6(nil, packet.ProtocolUDP, e.udp(p)), make([]byte, n)...)}
		})
	}
	add(false, "no checksum", func(e ends, p []byte) [][]byte {
		b := e.udp(p)
		b[6], b[7] = 0, 0
		return [][]byte{e.v6(nil, packet.ProtocolUDP, b)}
	})
	add(true, "a source port of zero", func(e ends, p []byte) [][]byte {
		e.sport = 0
		return [][]byte{e.v6(nil, packet.ProtocolUDP, e.udp(p))}
	})
	for _, d := range []int{-8, -1, 8} {
		add(false, fmt.Sprintf("a UDP length off by %d", d), func(e ends, p []byte) [][]byte {
			b := e.udp(p)
			n := len(b) + d
			whole := b[:min(n, len(b))]
			be.PutUint16(whole[4:], uint16(n))
			e.seal(whole, packet.ProtocolUDP, 6)
			return [][]byte{e.v6(nil, packet.ProtocolUDP, b)}
		})
	}
	add(false, "to all nodes", func(e ends, p []byte) [][]byte {
		e.dst = netip.MustParseAddr("ff02::1")
		return [][]byte{e.v6(nil, packet.ProtocolUDP, e.udp(p))}
	})
	for _, from := range []string{"::", "::1", "fe80::7", "::ffff:10.77.0.1"} {
		add(false, "from "+from, func(e ends, p []byte) [][]byte {
			e.src = netip.MustParseAddr(from)
			return [][]byte{e.v6(nil, packet.ProtocolUDP, e.udp(p))}
		})
	}
	add(false, "IPv6 in IPv6", func(e ends, p []byte) [][]byte {
		return [][]byte{e.v6(nil, 41, e.v6(nil, packet.ProtocolUDP, e.udp(p)))}
	})
	add(false, "no next header", func(e ends, p []byte) [][]byte { return [][]byte{e.v6(nil, 59, e.udp(p))} })

	// Every order of up to three of the headers that the kernel knows.
	kinds := map[string]extension{"hop": hopByHop, "dst": destOpts, "rt": routed, "frag": atomicFragment}
	names := []string{"hop", "dst", "rt", "frag"}
	var walk func(prefix string, c headerChain)
	walk = func(prefix string, c headerChain) {
		if len(c) > 0 {
			chain(len(c) == 1 && c[0].number != packet.ProtocolRouting, "headers:"+prefix, c)
		}
		if len(c) == 3 {
			return
		}
		for _, n := range names {
			walk(prefix+" "+n, append(slices.Clone(c), kinds[n]))
		}
	}
	walk("", nil)
	for name, x := range sorted(map[string]extension{"mobility": mobility, "authentication": authentic, "HIP": hip, "shim6": shim6}) {
		chain(false, "header: "+name, headerChain{x})
		chain(false, "header: "+name+" between options", headerChain{destOpts, x, destOpts})
	}
	for _, n := range []int{7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 66, 100, 127, 128, 129, 150, 170} {
		chain(n == 170, fmt.Sprintf("%d headers", n), slices.Repeat(headerChain{destOpts}, n))
		chain(false, fmt.Sprintf("%d headers, an atomic fragment in front", n), append(headerChain{atomicFragment}, slices.Repeat(headerChain{destOpts}, n-1)...))
		chain(false, fmt.Sprintf("%d headers, an atomic fragment behind", n), append(slices.Repeat(headerChain{destOpts}, n-1), atomicFragment))
		chain(false, fmt.Sprintf("%d routing headers", n), slices.Repeat(headerChain{routed}, n))
	}
	for _, n := range []int{16, 64, 256, 512, 1024} {
		chain(false, fmt.Sprintf("options of %d bytes", n), headerChain{options(packet.ProtocolDestOptions, n)})
	}
	for name, rest := range sorted(map[string][]byte{
		"router alert":                  {5, 2, 0, 0, 1, 0},
		"jumbo payload":                 {0xc2, 4, 0, 0, 0, 72},
		"jumbo payload, above 65535":    {0xc2, 4, 0, 1, 0, 72},
		"unknown, to be skipped":        {0x1e, 4, 0, 0, 0, 0},
		"unknown, to be dropped":        {0x5e, 4, 0, 0, 0, 0},
		"unknown, to be answered":       {0x9e, 4, 0, 0, 0, 0},
		"one byte of padding six times": {0, 0, 0, 0, 0, 0},
		"padding that is not zero":      {1, 4, 1, 2, 3, 4},
		"beyond the header":             {0x1e, 9, 0, 0, 0, 0},
		"home address":                  {0xc9, 4, 0, 0, 0, 0},
		"tunnel limit":                  {4, 1, 3, 1, 1, 0},
	}) {
		chain(name == "unknown, to be skipped", "destination option: "+name, headerChain{{packet.ProtocolDestOptions, rest}})
		chain(name == "router alert", "hop-by-hop option: "+name, headerChain{{packet.ProtocolHopByHop, rest}})
	}
	for _, kind := range []byte{0, 1, 2, 3, 4, 253} {
		for _, left := range []byte{0, 1} {
			for _, segments := range []int{0, 1} {
				rest := []byte{kind, left, 0, 0, 0, 0}
				if kind == 4 && segments > 0 {
					rest[2] = byte(segments - 1) // the last entry
				}
				rest = append(rest, make([]byte, 16*segments)...)
				add(false, fmt.Sprintf("routing header of type %d, %d segments, %d left", kind, segments, left), func(e ends, p []byte) [][]byte {
					rest := slices.Clone(rest)
					if segments > 0 {
						copy(rest[6:], e.dst.AsSlice())
					}
					return [][]byte{e.v6(headerChain{{packet.ProtocolRouting, rest}}, packet.ProtocolUDP, e.udp(p))}
				})
			}
		}
	}
	add(false, "an atomic fragment with the reserved bits", func(e ends, p []byte) [][]byte {
		return [][]byte{e.v6(headerChain{{packet.ProtocolFragment, []byte{0, 6, 1, 2, 3, 4}}}, packet.ProtocolUDP, e.udp(p))}
	})

	id := func(p []byte) uint32 { return be.Uint32(p[4:]) }
	for name, o := range sorted(orders(8 + oddPayload)) {
		taken := name == "two" || name == "as small as can be"
		add(taken, "fragments: "+name, func(e ends, p []byte) [][]byte {
			return e.fragments6(id(p), nil, packet.ProtocolUDP, e.udp(p), o)
		})
		add(false, "fragments behind options: "+name, func(e ends, p []byte) [][]byte {
			return e.fragments6(id(p), headerChain{hopByHop, destOpts}, packet.ProtocolUDP, e.udp(p), o)
		})
	}
	for _, in := range []struct {
		name string
		c    headerChain
		cuts []int
	}{
		{"options in the first", headerChain{destOpts}, []int{40}},
		{"options in the first, the ports in the second", headerChain{destOpts}, []int{8}},
		{"options in the first, half of the ports' header in the second", headerChain{destOpts}, []int{16}},
		{"two options, cut in between", headerChain{destOpts, destOpts}, []int{8, 16}},
		{"a long header cut in two", headerChain{options(packet.ProtocolDestOptions, 64)}, []int{32}},
		{"64 headers in fragments", slices.Repeat(headerChain{destOpts}, 64), []int{256, 512, 528}},
		{"an atomic fragment in fragments", headerChain{atomicFragment}, []int{40}},
		{"hop-by-hop options in fragments", headerChain{hopByHop}, []int{40}},
		{"a routing header in fragments", headerChain{routed}, []int{40}},
	} {
		for _, backwards := range []bool{false, true} {
			name := "fragments: " + in.name
			if backwards {
				name += ", backwards"
			}
			add(false, name, func(e ends, p []byte) [][]byte {
				first, data := in.c.put(packet.ProtocolUDP, e.udp(p))
				list := parts(len(data), in.cuts...)
				if backwards {
					slices.Reverse(list)
				}
				return e.fragments6(id(p), nil, first, data, list)
			})
		}
	}
	for _, protocol := range []byte{packet.ProtocolTCP, 59, packet.ProtocolDestOptions, packet.ProtocolHopByHop} {
		for _, turned := range []bool{false, true} {
			add(false, fmt.Sprintf("fragments: the second says that %d follows, turned %v", protocol, turned), func(e ends, p []byte) [][]byte {
				data := e.udp(p)
				list := parts(len(data), 40)
				a := e.fragments6(id(p), nil, packet.ProtocolUDP, data, list[:1])
				b := e.fragments6(id(p), nil, protocol, data, list[1:])
				if turned {
					a, b = b, a
				}
				return append(a, b...)
			})
		}
	}
	return list
}

// oddSYNs are odd ways to begin a TCP connection; wrap prepends the IP header.
func oddSYNs(wrap func(e ends, b []byte) []byte) (list []oddity) {
	add := func(taken bool, name string, flags uint16, options []byte, payload string, edit func(b []byte)) {
		list = append(list, oddity{name: name, taken: taken, make: func(e ends, _ []byte) [][]byte {
			b := e.syn(flags, options, []byte(payload))
			if edit != nil {
				edit(b)
				e.seal(b, packet.ProtocolTCP, 16)
			}
			return [][]byte{wrap(e, b)}
		}})
	}
	const syn = 2
	add(true, "SYN", syn, nil, "", nil)
	for i, name := range []string{"FIN", "", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE", "reserved 4", "reserved 2", "reserved 1"} {
		if name != "" {
			add(name == "PSH", "SYN with "+name, syn|1<<i, nil, "", nil)
		}
	}
	add(true, "SYN with data", syn, nil, "data", nil)
	add(true, "SYN with an urgent pointer", syn, nil, "", func(b []byte) { b[18], b[19] = 0xff, 0xff })
	add(true, "SYN with 40 bytes of options", syn, slices.Repeat([]byte{1}, 40), "", nil)
	add(false, "SYN with an option of no length", syn, []byte{2, 0, 0, 0}, "", nil)
	add(false, "SYN with an option beyond the header", syn, []byte{2, 40, 0, 0}, "", nil)
	add(false, "SYN with a small maximum segment", syn, []byte{2, 4, 0, 1}, "", nil)
	add(true, "SYN with options behind their end", syn, []byte{0, 2, 4, 1, 1, 1, 1, 1}, "", nil)
	add(false, "SYN with a header of 16 bytes", syn, nil, "", func(b []byte) { b[12] = 0x40 | b[12]&15 })
	add(false, "SYN with a header beyond the packet", syn, nil, "", func(b []byte) { b[12] = 0xf0 | b[12]&15 })
	add(false, "SYN with a window of zero", syn, nil, "", func(b []byte) { b[14], b[15] = 0, 0 })
	return list
}

// sorted iterates over a map in the order of its keys.
func sorted[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// oddPayload is the length of a datagram's payload in the lists of oddities.
const oddPayload = 65
