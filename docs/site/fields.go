package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// fieldsPage writes the reference of filter fields from the compiler's table.
func fieldsPage() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`# Fields of the filter language

<!-- Written by go run ./docs/site -update. -->

Every field that a filter may test, with the layers that have it. A test of a field that a packet does not have fails,
whatever its operator: see [the language](filter-language.md#tests).

The column **GSO** is about TCP that the kernel carries as one packet of up to 64 KiB and cuts behind the handle
([superpackets](linux.md#superpackets)). *same*: every segment has this value. *whole*: the value is that of the uncut packet.
*first*, *last*: the value is that of the first or the last segment. With ` + "`WithSegments`" + ` each segment is a packet with
values of its own, and so is every packet that is not TCP.

The fields marked † exist in the extended dialect only, or at more layers there.
`)
	var groups []string
	rows := map[string]*strings.Builder{}
	for _, f := range filter.Fields() {
		group := fieldGroup(f.Name)
		if rows[group] == nil {
			groups, rows[group] = append(groups, group), &strings.Builder{}
		}
		cut, ok := segments[f.Name]
		if !ok {
			return nil, fmt.Errorf("what does %s mean for a packet that is still to be cut? segments in docs/site/fields.go does not say", f.Name)
		}
		name := "`" + f.Name + "`"
		if f.Kind == filter.KindBytes {
			name = "`" + f.Name + "[i]`"
		}
		if extendedOnly(f) {
			name += " †"
		}
		fmt.Fprintf(rows[group], "| %s | %s | %s | %s | %s |\n", name, fieldValues(f), layerNames(f.Layers), cut, f.Doc)
	}
	for _, group := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n| field | values | layers | GSO | meaning |\n|---|---|---|---|---|\n%s", group, rows[group])
	}
	return b.Bytes(), nil
}

// fieldGroup returns the heading for a field: the part of its name before the point.
func fieldGroup(name string) string {
	before, _, ok := strings.Cut(name, ".")
	title, known := map[string]string{
		"ip": "IPv4", "ipv6": "IPv6", "icmp": "ICMP", "icmpv6": "ICMPv6", "tcp": "TCP", "udp": "UDP", "flow": "Counts of flows",
	}[before]
	if ok && known {
		return title
	}
	return "Packets, events and handles"
}

// extendedOnly reports whether the strict dialect lacks a field at one of its layers.
func extendedOnly(f filter.FieldInfo) bool {
	name := f.Name
	switch f.Kind {
	case filter.KindBytes:
		name += "[0]"
	case filter.KindName:
		name += ` == "a"`
	}
	for _, l := range f.Layers {
		if _, err := filter.Compile(name, l, filter.Strict); err != nil {
			return true
		}
	}
	return false
}

func fieldValues(f filter.FieldInfo) string {
	switch f.Kind {
	case filter.KindName:
		return "name in quotes"
	case filter.KindIPv4, filter.KindIPv6, filter.KindAddr:
		return f.Kind.String()
	case filter.KindBool:
		if f.Min == f.Max {
			return f.Min
		}
		return "0 or 1"
	}
	return f.Min + " to " + f.Max
}

func layerNames(layers []packet.Layer) string {
	if len(layers) == int(packet.NumLayers) {
		return "all"
	}
	var names []string
	for _, l := range layers {
		names = append(names, map[packet.Layer]string{
			packet.LayerNetwork: "network", packet.LayerForward: "forward", packet.LayerFlow: "flow",
			packet.LayerSocket: "socket", packet.LayerReflect: "reflect",
		}[l])
	}
	return strings.Join(names, ", ")
}

// segments describes each field's value where the kernel carries several TCP segments as one packet (docs/linux.md,
// Superpackets). Other protocols have no such packets: the kernel always splits them before a handle sees them.
var segments = func() map[string]string {
	const none = "–"
	all := map[string]string{}
	for cut, names := range map[string]string{
		none: `zero true false event timestamp icmp icmpv6 udp icmp.Type icmp.Code icmp.Checksum icmp.Body icmpv6.Type icmpv6.Code
			icmpv6.Checksum icmpv6.Body udp.SrcPort udp.DstPort udp.Length udp.Checksum udp.PayloadLength udp.Payload udp.Payload16
			udp.Payload32 endpointId parentEndpointId layer priority fragment ip.MF ip.FragOff`,
		"same": `inbound outbound loopback impostor iface ifIdx subIfIdx ip ipv6 tcp ip.HdrLength ip.TOS ip.DF ip.TTL ip.Protocol ip.SrcAddr
			ip.DstAddr ip.DSCP ipv6.TrafficClass ipv6.FlowLabel ipv6.NextHdr ipv6.HopLimit ipv6.SrcAddr ipv6.DstAddr ipv6.DSCP
			tcp.SrcPort tcp.DstPort tcp.AckNum tcp.HdrLength tcp.Urg tcp.Ack tcp.Rst tcp.Syn tcp.Window tcp.UrgPtr process processId localAddr
			remoteAddr localPort remotePort protocol`,
		"whole; 0 above 65,535":          `ip.Length ipv6.Length`,
		"whole":                          `length tcp.PayloadLength ip.Checksum`,
		"first":                          `ip.Id tcp.SeqNum`,
		"last":                           `tcp.Fin tcp.Psh`,
		"unfinished":                     `tcp.Checksum`,
		"from the first or last segment": `packet packet16 packet32 tcp.Payload tcp.Payload16 tcp.Payload32`,
		"one for all":                    `random8 random16 random32`,
		"counts as one":                  `flow.Packets flow.Bytes flow.WayPackets flow.WayBytes`,
	} {
		for _, name := range strings.Fields(names) {
			all[name] = cut
		}
	}
	return all
}()
