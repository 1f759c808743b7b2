package tcpdump

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// neighbours are filters of Divert with their counterparts for tcpdump.
var neighbours = []struct{ in, want string }{
	{"true", "ip or ip6"},
	{"tcp", "tcp"},
	{"not tcp", "not tcp"},
	{"ip", "ip"},
	{"ipv6 and udp", "ip6 and udp"},
	{"icmp or icmpv6", "icmp or icmp6"},
	{"tcp.DstPort == 80", "tcp dst port 80"},
	{"tcp.DstPort != 80", "tcp and not tcp dst port 80"},
	{"not (tcp.DstPort == 80)", "not tcp dst port 80"},
	{"tcp.DstPort in {80, 8000-8999}", "tcp dst port 80 or tcp dst portrange 8000-8999"},
	{"tcp.DstPort not in {80, 443}", ""},
	{"tcp.DstPort > 1023", "tcp dst portrange 1024-65535"},
	{"udp.SrcPort < 54", "udp src portrange 0-53"},
	{"tcp.SrcPort == 22 or udp.DstPort == 53", "tcp src port 22 or udp dst port 53"},
	{"(tcp or udp) and ip.SrcAddr == 10.0.0.1", "(tcp or udp) and src host 10.0.0.1"},
	{"ip.SrcAddr == 10.0.0.0/8", "src net 10.0.0.0/8"},
	{"ip.DstAddr != 10.0.0.0/8", "ip and not dst net 10.0.0.0/8"},
	{"ip.SrcAddr >= 192.168.1.0 and ip.SrcAddr <= 192.168.2.255", ""},
	{"ip.DstAddr in {10.0.0.1-10.0.0.6}", "dst host 10.0.0.1 or dst net 10.0.0.2/31 or dst net 10.0.0.4/31 or dst host 10.0.0.6"},
	{"ip.DstAddr < 10.0.0.0", "dst net 0.0.0.0/5 or dst net 8.0.0.0/7"},
	{"ipv6.DstAddr == fe80::/10", "dst net fe80::/10"},
	{"ipv6.SrcAddr in {2001:db8::1, fe80::/10}", ""},
	{"ipv6.SrcAddr > 2001:db8::1", ""},
	{"outbound and remoteAddr == 10.0.0.1", "outbound and dst host 10.0.0.1"},
	{"inbound and remoteAddr in {10.0.0.0/8, 2001:db8::/32}", "inbound and (src net 10.0.0.0/8 or src net 2001:db8::/32)"},
	{"remotePort == 443", "(outbound and (tcp dst port 443 or udp dst port 443)) or (inbound and (tcp src port 443 or udp src port 443))"},
	{"localAddr != 10.0.0.1 and inbound", "not dst host 10.0.0.1 and inbound"},
	{"tcp.Syn and not tcp.Ack and ip", "tcp[tcpflags] & tcp-syn != 0 and tcp[tcpflags] & tcp-ack = 0 and ip"},
	{"tcp.Rst", "tcp[tcpflags] & tcp-rst != 0 or (ip6[6] = 6 and ip6[53] & 0x4 != 0)"},
	{"tcp.Window < 1000 and ip", ""},
	{"tcp.HdrLength > 5", "tcp[12] & 0xf0 >= 96 or (ip6[6] = 6 and ip6[52] & 0xf0 >= 96)"},
	{"tcp.SeqNum == 305419896", ""},
	{"udp.Length > 100", ""},
	{"udp.Checksum != 0", ""},
	{"icmp.Type == 8", "icmp[0] = 8"},
	{"icmpv6.Type in {128, 129}", ""},
	{"icmp.Code not in {0, 3-5}", ""},
	{"icmp.Body == 65537", ""},
	{"ip.TTL < 5", "ip[8] <= 4"},
	{"ip.TTL != 64", "ip[8] != 64"},
	{"ip.TTL not in {3-4, 64}", ""},
	{"ip.TTL >= 0", "ip"},
	{"ip.DF", "ip[6] & 0x40 != 0"},
	{"ip.DF == 0", "ip[6] & 0x40 = 0"},
	{"ip.HdrLength == 5", "ip[0] & 0xf = 5"},
	{"ip.TOS == 184", "ip[1] = 184"},
	{"ip.DSCP == 46", "ip[1] & 0xfc = 184"},
	{"ip.FragOff > 100", "ip[6:2] & 0x1fff >= 101"},
	{"ip.Protocol in {6, 17}", ""},
	{"ipv6.TrafficClass == 0", ""},
	{"ipv6.FlowLabel == 0", "ip6[0:4] & 0xfffff = 0"},
	{"ipv6.HopLimit > 5", "ip6[7] >= 6"},
	{"ipv6.DSCP != 0 or ip", ""},
	{"fragment", "ip[6:2] & 0x3fff != 0 or ip6[6] = 44"},
	{"protocol == 6", "ip[9] = 6 or ip6[6] = 6"},
	{"protocol != 6", ""},
	{"length > 100", "len >= 115"},
	{"length <= 100", "len <= 114"},
	{"length != 100", "len != 114"},
	{"packet[8] == 64", "ip[8] = 64 or ip6[8] = 64"},
	{"packet16[2] > 1000 and ip", ""},
	{"packet32[3] == 167772161", ""},
	{"tcp.PayloadLength > 0", ""},
	{"udp.PayloadLength == 12", ""},
	{"tcp.Payload32[0] == 0x47455420", ""},
	{"tcp.Payload[0] in {22, 71} and ip", "tcp and (tcp[((tcp[12] & 0xf0) >> 2) + 0] = 22 or tcp[((tcp[12] & 0xf0) >> 2) + 0] = 71) and ip"},
	{"udp.Payload16[0] != 258", ""},
	{"(tcp? tcp.DstPort == 443: udp.DstPort == 443)", ""},
	{"not (ip and tcp.Syn) and (tcp or icmp)", ""},
	{"not (tcp.DstPort in {22, 80} or udp)", ""},
}

// skipsSamples reports whether notes name a difference that the samples do not show.
func skipsSamples(notes []string) bool {
	all := strings.Join(notes, " ")
	return strings.Contains(all, "live captures") || strings.Contains(all, "link header")
}

func compiled(t *testing.T, text string, layer packet.Layer, d filter.Dialect) *prog.Program {
	t.Helper()
	p, err := filter.Compile(text, layer, d)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return (*prog.Program)(p)
}

// TestNeighbour: filters get the right counterparts, and tcpdump itself finds the same packets with them.
func TestNeighbour(t *testing.T) {
	tcpdump, lookErr := exec.LookPath("tcpdump")
	packets := samples(t, 4000)
	file := writeSamples(t, packets)
	tried, matched := 0, 0
	for _, row := range neighbours {
		p := compiled(t, row.in, packet.LayerNetwork, filter.Extended)
		r, err := Neighbour(p)
		if err != nil {
			t.Errorf("%s: %v", row.in, err)
			continue
		}
		if row.want != "" && r.Filter != row.want {
			t.Errorf("%s\n became %s\n   want %s", row.in, r.Filter, row.want)
		}
		if lookErr != nil || skipsSamples(r.Notes) {
			continue
		}
		is := matchedBy(t, tcpdump, file, r.Filter)
		if is == nil {
			t.Errorf("%s: tcpdump refuses %s", row.in, r.Filter)
			continue
		}
		tried++
		for i, b := range packets {
			want := p.Match(b, &packet.Address{Layer: packet.LayerNetwork, Outbound: true, IPv6: b[0]>>4 == 6})
			if is[i] != want {
				t.Errorf("%s (%s): packet %x: %v, tcpdump says %v", row.in, r.Filter, b, want, is[i])
				break
			}
			if want {
				matched++
			}
		}
	}
	if lookErr != nil {
		t.Skip("there is no tcpdump to compare with (Debian: apt-get install tcpdump)")
	}
	if tried < 50 || matched < 10000 {
		t.Errorf("%d filters tried, %d matches", tried, matched)
	}
}

// TestNoNeighbour: a filter that tcpdump cannot express is refused, with the part that has no counterpart.
func TestNoNeighbour(t *testing.T) {
	for _, row := range []struct {
		in    string
		layer packet.Layer
		why   string
	}{
		{"processId == 4", packet.LayerNetwork, "processId"},
		{"tcp and ifIdx == 2", packet.LayerNetwork, "ifIdx"},
		{"remoteAddr in @blocked", packet.LayerNetwork, "@blocked"},
		{"packet[-1] == 0", packet.LayerNetwork, "end of a packet"},
		{"flow.Packets <= 6", packet.LayerNetwork, "flow.Packets"},
		{"timestamp > 0", packet.LayerNetwork, "timestamp"},
		{`iface == "eth0"`, packet.LayerNetwork, "iface"},
		{`process == "curl" or process == "wget"`, packet.LayerNetwork, "process"},
		{"impostor", packet.LayerNetwork, "impostor"},
		{"tcp and udp and false", packet.LayerNetwork, "matches nothing"},
		{"tcp", packet.LayerFlow, "FLOW"},
		{"localAddr in {10.0.0.1-10.127.255.254} and random8 == 1", packet.LayerNetwork, "random8"},
		{"ip.SrcAddr in {" + hosts(300) + "}", packet.LayerNetwork, "256 networks"},
	} {
		r, err := Neighbour(compiled(t, row.in, row.layer, filter.Extended))
		if err == nil || !strings.Contains(err.Error(), row.why) {
			t.Errorf("%s: %+v, %v; want an error about %s", row.in, r, err, row.why)
		}
	}
}

// hosts are addresses that are not adjacent.
func hosts(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("10.0.%d.%d", i/100, 2*(i%100)))
	}
	return strings.Join(list, ", ")
}

// TestNeighbourBothWays: a filter of tcpdump that was converted and converted back matches the same packets as before.
func TestNeighbourBothWays(t *testing.T) {
	packets := samples(t, 1000)
	tried := 0
	for _, row := range rows {
		r, err := Convert(row.in)
		if err != nil {
			continue
		}
		p := compiled(t, r.Filter, packet.LayerNetwork, filter.Extended)
		n, err := Neighbour(p)
		if err != nil {
			t.Errorf("%s (%s): %v", row.in, r.Filter, err)
			continue
		}
		again, err := Convert(n.Filter)
		if err != nil {
			continue // Convert reads bytes of IPv6 packets only where they are fields
		}
		tried++
		q := compiled(t, again.Filter, packet.LayerNetwork, filter.Extended)
		for _, b := range packets {
			a := &packet.Address{Layer: packet.LayerNetwork, Outbound: true, IPv6: b[0]>>4 == 6}
			if p.Match(b, a) != q.Match(b, a) {
				t.Errorf("%s became %s and %s: packet %x", r.Filter, n.Filter, again.Filter, b)
				break
			}
		}
	}
	if tried < 20 {
		t.Errorf("%d filters tried", tried)
	}
}

// FuzzNeighbour: every filter has a neighbour or an error, and the neighbour is in the language of tcpdump.
func FuzzNeighbour(f *testing.F) {
	for _, row := range neighbours {
		f.Add(row.in, false)
	}
	f.Add("tcp.DstPort != -1 and ip.TOS < 300", true)
	f.Fuzz(func(t *testing.T, in string, strict bool) {
		d := filter.Extended
		if strict {
			d = filter.Strict
		}
		p, err := filter.Compile(in, packet.LayerNetwork, d)
		if err != nil {
			return
		}
		r, err := Neighbour((*prog.Program)(p))
		if err != nil {
			return
		}
		if len(r.Filter) > 4096 || strings.Count(r.Filter, "(") > maxDepth/2 {
			return // nested deeper than parse allows
		}
		if _, err := parse(r.Filter); err != nil {
			t.Fatalf("%q became %q: %v", in, r.Filter, err)
		}
	})
}
