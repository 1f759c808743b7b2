package redirect

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
)

// steady are the fields that are equal in all packets that one side of a connection sends, so that a decision made on the
// first holds for the others.
var steady = []string{
	"zero", "outbound", "inbound", "loopback", "ifIdx", "subIfIdx", "processId", "layer", "event", "priority",
	"ip", "ipv6", "tcp", "udp", "icmp", "icmpv6", "protocol",
	"localAddr", "remoteAddr", "localPort", "remotePort",
	"ip.SrcAddr", "ip.DstAddr", "ip.Protocol", "ipv6.SrcAddr", "ipv6.DstAddr", "ipv6.NextHdr",
	"tcp.SrcPort", "tcp.DstPort", "udp.SrcPort", "udp.DstPort",
}

// check compiles a filter, and fails if it tests a field that differs between the packets of a connection.
func check(text string) error {
	p, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
	if err != nil {
		return err
	}
	for _, name := range p.Fields() {
		if !slices.Contains(steady, name) {
			return fmt.Errorf("%w: the filter tests %s, which differs between the packets of one connection; a connection is redirected as a whole, so test %s",
				divert.ErrInvalid, name, "addresses, ports, protocols, interfaces or processId")
		}
	}
	return nil
}

// besideSockets returns a filter for the part of a filter's matches that the road of sockets may not carry. This part is:
// protocols not carried; connections to link-local addresses, whose interface programs cannot know; and UDP datagrams
// without a port of the datagram listeners, which come from sockets connected before, from sockets that have named an
// interface, and from the kernel itself. There are no ports if UDP is not carried.
func besideSockets(text string, tcp bool, ports []uint16) string {
	rest := "udp"
	for _, p := range ports {
		rest += fmt.Sprintf(" and udp.DstPort != %d and udp.SrcPort != %[1]d", p)
	}
	if tcp {
		rest += " or tcp and ipv6.DstAddr in {fe80::/10}"
	} else {
		rest += " or tcp"
	}
	return "(" + rest + ") and (" + text + ")"
}

// canMatch reports whether a filter that compiles can match anything.
func canMatch(text string) bool {
	p, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
	if err != nil {
		return true
	}
	accepts, _ := (*prog.Program)(p).Outcomes()
	return accepts
}

// compile compiles the filter of the handle: the outbound matches of the caller's filter, without the program's own
// packets if spare is set, and the packets to and from the listener's port.
func compile(text string, port uint16, spare bool) (*filter.Program, error) {
	p, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
	if err != nil {
		return nil, err
	}
	whole, err := p.Format()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "tcp and (outbound and tcp.SrcPort == %d or (inbound or loopback) and tcp.DstPort == %[1]d) or outbound and (tcp or udp) and (%s)", port, whole)
	if spare {
		fmt.Fprintf(&b, " and processId != %d", os.Getpid())
	}
	return filter.Compile(b.String(), divert.LayerNetwork, filter.Extended)
}
