package tcpdump

import (
	"errors"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// rows are filters of tcpdump with their conversions.
var rows = []struct{ name, in, want string }{
	{"port of a protocol", "tcp port 80", "tcp.SrcPort == 80 or tcp.DstPort == 80"},
	{"port of either", "port 53", "tcp.SrcPort == 53 or tcp.DstPort == 53 or udp.SrcPort == 53 or udp.DstPort == 53"},
	{"protocol and port", "tcp and port 80", "tcp.SrcPort == 80 or tcp.DstPort == 80"},
	{"source port", "udp src port 53", "udp.SrcPort == 53"},
	{"service", "tcp dst port https", "tcp.DstPort == 443"},
	{"several ports", "tcp dst port 80 or 443 or 8080", "tcp.DstPort in {80, 443, 8080}"},
	{"several ports in parentheses", "tcp port (80 or 443)", "tcp.SrcPort in {80, 443} or tcp.DstPort in {80, 443}"},
	{"range of ports", "tcp dst portrange 8000-8999", "tcp.DstPort in {8000-8999}"},
	{"host", "host 1.2.3.4", "ip.SrcAddr == 1.2.3.4 or ip.DstAddr == 1.2.3.4"},
	{"bare address", "1.2.3.4", "ip.SrcAddr == 1.2.3.4 or ip.DstAddr == 1.2.3.4"},
	{"source host", "src host 10.0.0.1", "ip.SrcAddr == 10.0.0.1"},
	{"source without host", "src 10.0.0.1 and dst 10.0.0.2", "ip.SrcAddr == 10.0.0.1 and ip.DstAddr == 10.0.0.2"},
	{"both ends", "src and dst host 10.0.0.1", "ip.SrcAddr == 10.0.0.1 and ip.DstAddr == 10.0.0.1"},
	{"IPv6 host", "host 2001:db8::1", "ipv6.SrcAddr == 2001:db8::1 or ipv6.DstAddr == 2001:db8::1"},
	{"short network", "net 10/8 and not arp", "ip.SrcAddr == 10.0.0.0/8 or ip.DstAddr == 10.0.0.0/8"},
	{"network by octets", "src net 192.168", "ip.SrcAddr == 192.168.0.0/16"},
	{"network with mask", "dst net 192.168.1.0 mask 255.255.255.0", "ip.DstAddr == 192.168.1.0/24"},
	{"IPv6 network", "net fe80::/10", "ipv6.SrcAddr == fe80::/10 or ipv6.DstAddr == fe80::/10"},
	{"and and or bind alike", "icmp or tcp and dst port 22", "(icmp or tcp) and (tcp.DstPort == 22 or udp.DstPort == 22)"},
	{"parentheses", "host 1.2.3.4 and (port 80 or port 443)", "(ip.SrcAddr == 1.2.3.4 or ip.DstAddr == 1.2.3.4) and (tcp.SrcPort in {80, 443} or tcp.DstPort in {80, 443} or udp.SrcPort in {80, 443} or udp.DstPort in {80, 443})"},
	{"not", "not port 22", "not (tcp.SrcPort == 22 or tcp.DstPort == 22 or udp.SrcPort == 22 or udp.DstPort == 22)"},
	{"not a protocol", "ip and not tcp", "ip and not tcp"},
	{"symbols", "!(udp || icmp) && dst 10.0.0.1", "not (udp or icmp) and ip.DstAddr == 10.0.0.1"},
	{"beginnings", "tcp[tcpflags] & tcp-syn != 0", "tcp.Syn"},
	{"beginnings or ends", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp.Syn or tcp.Fin"},
	{"beginnings, manual's example", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src and dst net 10.0.0.0/8", "(tcp.Syn or tcp.Fin) and not (ip.SrcAddr == 10.0.0.0/8 and ip.DstAddr == 10.0.0.0/8)"},
	{"flags equal", "tcp[13] == 2", "not tcp.Urg and not tcp.Ack and not tcp.Psh and not tcp.Rst and tcp.Syn and not tcp.Fin"},
	{"flags under a mask", "tcp[13] & 0x12 = 0x12", "tcp.Ack and tcp.Syn"},
	{"no flag of some", "tcp[13] & 6 == 0", "not tcp.Rst and not tcp.Syn"},
	{"resets", "'tcp[13] & 4!=0'", ""},
	{"payload", "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)", "(tcp.SrcPort == 80 or tcp.DstPort == 80) and tcp.PayloadLength != 0"},
	{"GET", "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420", "tcp.Payload32[0b] == 0x47455420"},
	{"GET, without a mask", "tcp[(tcp[12]>>2):4] = 0x47455420", "tcp.Payload32[0b] == 0x47455420"},
	{"TLS hello", "tcp[((tcp[12] & 0xf0) >> 2)] = 0x16", "tcp.Payload[0b] == 22"},
	{"later byte of the payload", "tcp[((tcp[12] & 0xf0) >> 2) + 5] = 1", "tcp.Payload[5b] == 1"},
	{"UDP payload", "udp[10:2] & 0x8000 = 0", "udp.Payload16[2b] < 32768"},
	{"ping", "icmp[icmptype] = icmp-echo", "icmp.Type == 8"},
	{"pings", "icmp[icmptype] == icmp-echo or icmp[icmptype] == icmp-echoreply", "icmp.Type in {8, 0}"},
	{"no ping, manual's example", "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply", "icmp.Type != 8 and icmp.Type != 0"},
	{"neighbours", "icmp6[icmp6type] = icmp6-neighborsolicit", "icmpv6.Type == 135"},
	{"time to live", "ip[8] < 5", "ip.TTL < 5"},
	{"time to live, turned", "5 > ip[8]", "ip.TTL < 5"},
	{"options", "ip[0] & 0xf != 5", "ip.HdrLength != 5"},
	{"length in the header, manual's example", "ip[2:2] > 576", "ip.Length > 576"},
	{"don't fragment", "ip[6] & 0x40 != 0", "ip.DF"},
	{"fragments", "ip[6:2] & 0x3fff != 0", "ip.MF or ip.FragOff != 0"},
	{"first fragments", "ip[6:2] & 0x1fff = 0", "ip.FragOff == 0"},
	{"address under a mask", "ip[12:4] & 0xffffff00 = 0xc0a80100", "ip.SrcAddr == 192.168.1.0/24"},
	{"odd place", "ip[1:2] = 0x0102", "ip and packet16[1b] == 258"},
	{"protocol number", "ip proto 47", "ip.Protocol == 47"},
	{"protocol by name", `ip proto \tcp`, "ip.Protocol == 6"},
	{"either header", "proto 47", "ip.Protocol == 47 or ipv6.NextHdr == 47"},
	{"type of frame", `ether proto \ip6`, "ipv6"},
	{"multicast", "ip multicast", "ip.DstAddr == 224.0.0.0/4"},
	{"length", "greater 114", "length >= 100"},
	{"length compared", "len > 114", "length > 100"},
	{"direction", "inbound and udp", "inbound and udp"},
	{"not ARP", "not arp", "true"},
	{"snmp traffic, tutorial", "udp and (port 161 or port 162)", "udp.SrcPort in {161, 162} or udp.DstPort in {161, 162}"},
}

func TestConvert(t *testing.T) {
	for _, row := range rows {
		if row.want == "" {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			r, err := Convert(row.in)
			if err != nil {
				t.Fatal(err)
			}
			if r.Filter != row.want {
				t.Errorf("%s\n became %s\n   want %s", row.in, r.Filter, row.want)
			}
			if _, err := filter.Compile(r.Filter, packet.LayerNetwork, filter.Extended); err != nil {
				t.Errorf("%s: %v", r.Filter, err)
			}
		})
	}
}

// TestWithoutCounterpart: the error names the part without a counterpart.
func TestWithoutCounterpart(t *testing.T) {
	for _, row := range []struct{ in, part, why string }{
		{"tcp and vlan 5", "vlan 5", "VLAN"},
		{"host example.com", "host example.com", "look the name up"},
		{"ether host 00:11:22:33:44:55", "ether host 00:11:22:33:44:55", "link-layer"},
		{"tcp port 80 and broadcast", "broadcast", "prefix"},
		{"arp", "arp", "IP packets only"},
		{"tcp[20] = 1", "tcp[20] = 1", "no field"},
		{"sctp port 80", "sctp port 80", "tcp and udp"},
		{"tcp[13] & 0xc0 != 0", "tcp[13] & 0xc0 != 0", "ECE"},
		{"ip[ip[0]] = 1", "ip[ip[0]] = 1", "depends on the packet"},
		{"ip[0] = tcp[0]", "ip[0] = tcp[0]", "one place"},
	} {
		_, err := Convert(row.in)
		var e *Error
		if !errors.As(err, &e) || e.Syntax {
			t.Errorf("%s: %v", row.in, err)
			continue
		}
		if part := row.in[e.At : e.At+e.Len]; part != row.part || !strings.Contains(e.Message, row.why) {
			t.Errorf("%s: %q: %s", row.in, part, e.Message)
		}
	}
}

// TestOtherLanguages recognises filters of other languages, above all those of Divert.
func TestOtherLanguages(t *testing.T) {
	for _, in := range []string{
		"", "tcp.DstPort == 80", "tcp.DstPort 80", "tcp and udp.DstPort == 53", "remoteAddr in {10.0.0.0/8}", "not (tcp.Syn)", "tcp and", "(tcp",
		"tcp)", "tcp[", "tcp[0", "tcp[0:3] = 1", "port", "foo bar", "tcp == 1", "$", "processName == \"curl\"", "tcp port 80 {", "80",
		strings.Repeat("(", 500) + "tcp" + strings.Repeat(")", 500), strings.Repeat("not ", 500) + "tcp",
	} {
		r, err := Convert(in)
		var e *Error
		if !errors.As(err, &e) || !e.Syntax {
			t.Errorf("%.80q: %+v, %v", in, r, err)
		}
	}
}

func FuzzConvert(f *testing.F) {
	for _, row := range rows {
		f.Add(row.in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := Convert(in)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.At < 0 || e.Len < 0 || e.At > len(in) {
				t.Fatalf("%#v", err)
			}
			_ = e.Error()
			return
		}
		if _, err := filter.Compile(r.Filter, packet.LayerNetwork, filter.Extended); err != nil {
			t.Fatalf("%q became %q: %v", in, r.Filter, err)
		}
	})
}
