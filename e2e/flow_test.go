//go:build linux

package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

var flowSequences = []struct {
	name   string
	filter string
	client string // acts on host A
	want   string
}{
	{
		"TCP", "true",
		`socket l tcp4
		 bind l 127.0.0.1:8080
		 listen l
		 socket c tcp4
		 connect c 127.0.0.1:8080
		 accept s l
		 reset c
		 close s
		 close l`,
		`ESTABLISHED client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #1
		 ESTABLISHED client 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #2<3
		 DELETED client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #1
		 DELETED client 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #2<3`,
	},
	{
		"TCP over IPv6, in order", "true",
		`socket l tcp6
		 bind l [::1]:8080
		 listen l
		 socket c tcp6
		 connect c [::1]:8080
		 accept s l
		 close c
		 close s`,
		`ESTABLISHED client 6 [::1]:* [::1]:8080 sniffed,lo,v6 #1
		 ESTABLISHED client 6 [::1]:8080 [::1]:* sniffed,in,lo,v6 #2<3
		 DELETED client 6 [::1]:* [::1]:8080 sniffed,lo,v6 #1
		 DELETED client 6 [::1]:8080 [::1]:* sniffed,in,lo,v6 #2<3`,
	},
	{
		"a connection that fails is none", "true",
		`socket c tcp4
		 connect c 10.77.0.2:81 = ECONNREFUSED
		 close c`,
		``,
	},
	{
		"UDP in both directions", "true",
		`socket l udp4
		 bind l 0.0.0.0:5353
		 socket c udp4
		 bind c 0.0.0.0:5354
		 send c 10.77.0.1:5353
		 recv l
		 send l 10.77.0.1:5354
		 recv c
		 send c 10.77.0.1:5353
		 recv l
		 close c
		 close l`,
		`ESTABLISHED client 17 10.77.0.1:5354 10.77.0.1:5353 sniffed,lo #1
		 ESTABLISHED client 17 10.77.0.1:5353 10.77.0.1:5354 sniffed,in,lo #2
		 DELETED client 17 10.77.0.1:5354 10.77.0.1:5353 sniffed,lo #1
		 DELETED client 17 10.77.0.1:5353 10.77.0.1:5354 sniffed,in,lo #2`,
	},
	{
		"UDP over IPv6, to another host", "true",
		`socket c udp6
		 bind c [::]:5354
		 send c [fd77::2]:5353
		 send c [fd77::2]:5355
		 send c [fd77::2]:5353
		 close c`,
		`ESTABLISHED client 17 [fd77::1]:5354 [fd77::2]:5353 sniffed,v6 #1
		 ESTABLISHED client 17 [fd77::1]:5354 [fd77::2]:5355 sniffed,v6 #1
		 DELETED client 17 [fd77::1]:5354 [fd77::2]:5353 sniffed,v6 #1
		 DELETED client 17 [fd77::1]:5354 [fd77::2]:5355 sniffed,v6 #1`,
	},
	{
		"only what matches", "event == ESTABLISHED and remotePort == 5355",
		`socket c udp4
		 bind c 0.0.0.0:5354
		 send c 10.77.0.2:5353
		 send c 10.77.0.2:5355
		 close c`,
		`ESTABLISHED client 17 10.77.0.1:5354 10.77.0.2:5355 sniffed #1`,
	},
	{
		"the end of what matched not when it began", "event == DELETED and udp",
		`socket c udp4
		 bind c 0.0.0.0:5354
		 send c 10.77.0.2:5353
		 close c`,
		`DELETED client 17 10.77.0.1:5354 10.77.0.2:5353 sniffed #1`,
	},
	{
		"ICMP", "true",
		`socket c icmp4
		 bind c 127.0.0.1:4711
		 ping c 127.0.0.1:0
		 recv c
		 ping c 127.0.0.1:0
		 recv c
		 close c`,
		`ESTABLISHED client 1 127.0.0.1:4711 127.0.0.1:0 sniffed,lo #1
		 DELETED client 1 127.0.0.1:4711 127.0.0.1:0 sniffed,lo #1`,
	},
	{
		"ICMP over IPv6", "icmpv6",
		`socket c icmp6
		 bind c [::1]:4711
		 ping c [::1]:0
		 recv c
		 close c`,
		`ESTABLISHED client 58 [::1]:4711 [::1]:0 sniffed,lo,v6 #1
		 DELETED client 58 [::1]:4711 [::1]:0 sniffed,lo,v6 #1`,
	},
}

// TestFlowSequences compares the actions of processes with the flows that a handle reports.
func TestFlowSequences(t *testing.T) {
	for _, e := range []divert.Engine{divert.EngineAuto, divert.EngineInterpreter} {
		for _, tt := range flowSequences {
			t.Run(fmt.Sprintf("engine %d/%s", e, tt.name), func(t *testing.T) {
				pair := lab.TwoHostsT(t, lab.LinkOptions{})
				d := openEvents(t, pair.A, packet.LayerFlow, tt.filter, divert.Sniff, divert.WithEngine(e))
				if err := pair.A.Sysctl("net.ipv4.ping_group_range", "0 2147483647"); err != nil {
					t.Fatal(err)
				}
				p := startPerformer(t, pair.A)
				p.script(tt.client)
				compareLines(t, collect(t, d, map[uint32]string{p.pid: "client"}), tt.want)
			})
		}
	}
}

// TestFlowDeletedHasTheSameData compares the layer data of the two events of a flow byte by byte
// (specification: api.md 16).
func TestFlowDeletedHasTheSameData(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openEvents(t, pair.A, packet.LayerFlow, "udp", divert.Sniff)
	p := startPerformer(t, pair.A)
	p.script("socket c udp4\nsend c 10.77.0.2:5353\nclose c")
	var ps [2]divert.Packet
	for i := range ps {
		_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := d.RecvBatch(ps[i : i+1]); n != 1 {
			t.Fatal(err)
		}
	}
	if *ps[0].Addr.Union() != *ps[1].Addr.Union() {
		t.Errorf("%x\n%x", *ps[0].Addr.Union(), *ps[1].Addr.Union())
	}
	if ps[0].Addr.Timestamp >= ps[1].Addr.Timestamp {
		t.Error("the timestamps do not ascend")
	}
}
