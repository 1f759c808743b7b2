package main

import (
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// newTestRejecter returns a rejecter without a handle, in the subnet 10.77.0.0/24.
func newTestRejecter() *rejecter {
	j := newRejecter(nil, nil)
	j.subnets.set([]net.Addr{&net.IPNet{IP: net.IPv4(10, 77, 0, 1), Mask: net.CIDRMask(24, 32)}})
	return j
}

// TestRejecter makes the answers to packets of every kind.
func TestRejecter(t *testing.T) {
	syn, udp := unhexPacket(t, synHex), unhexPacket(t, udpHex)
	change := func(b []byte, at int, by ...byte) []byte {
		b = slices.Clone(b)
		copy(b[at:], by)
		return b
	}
	for _, test := range []struct {
		name string
		data []byte
		want string // the printed answer
	}{
		{"SYN", syn, "IP 10.77.0.2.80 > 10.77.0.1.40022: Flags [R.], seq 0, ack 1000001, win 0, length 0"},
		{"FIN", change(syn, 33, byte(packet.TCPFin|packet.TCPAck)), ""},
		{"UDP", udp, "IP 10.77.0.2 > 10.77.0.1: ICMP port unreachable, for UDP 10.77.0.1.5353 > 10.77.0.2.53, length 36"},
		{"UDP to the subnet", change(udp, 19, 255), ""},
		{"UDP from the subnet", change(udp, 15, 255), ""},
		{"SYN to the subnet", change(syn, 19, 255), ""},
		{"UDP to a group", change(udp, 16, 224, 0, 0, 251), ""},
		{"another protocol", change(udp, 9, 132), ""},
		{"echo request", change(udp, 9, packet.ProtocolICMP), ""},
		{"no packet", []byte("no packet at all, this is"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newTestRejecter()
			in := divert.Packet{Data: test.data, Addr: divert.Address{Outbound: true}}
			in.Addr.SetNetwork(packet.NetworkData{IfIdx: 7})
			out := j.answerAll([]divert.Packet{in})
			if test.want == "" {
				if len(out) != 0 || j.count != (answerCounts{Unanswered: 1}) {
					t.Errorf("answered %+v, %+v", out, j.count)
				}
				return
			}
			if len(out) != 1 || j.count.Unanswered != 0 {
				t.Fatalf("not answered: %+v", j.count)
			}
			var p printer
			p.parsed.Parse(out[0].Data)
			if got := string(p.appendPacket(nil, out[0].Data)); got != test.want {
				t.Errorf("answered %s\nwant     %s", got, test.want)
			}
			if a := out[0].Addr; a.Outbound || a.Network().IfIdx != 7 || !a.IPChecksum || !a.TCPChecksum || !a.UDPChecksum {
				t.Errorf("address %+v", a)
			}
		})
	}
}

func unhexPacket(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", ":", "").Replace(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBroadcasts(t *testing.T) {
	for _, test := range []struct{ subnet, want string }{
		{"10.77.0.1/24", "10.77.0.255"},
		{"172.16.5.9/12", "172.31.255.255"},
		{"192.0.2.5/30", "192.0.2.7"},
		{"192.0.2.5/31", ""},
		{"192.0.2.5/32", ""},
		{"192.0.2.5/0", ""},
		{"fd77::1/64", ""},
		{"fd77::1/24", ""},
	} {
		p := netip.MustParsePrefix(test.subnet)
		got, ok := broadcastOf(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s: %v, %t", test.subnet, got, ok)
		}
	}
}

// TestBlockedLines compares the lines of -v.
func TestBlockedLines(t *testing.T) {
	syn := unhexPacket(t, synHex)
	all := slices.Clone(syn)
	all[33] = 0xFF
	var icmp []byte
	var p packet.Parsed
	p.Parse(unhexPacket(t, udpHex))
	icmp, _ = packet.AppendUnreachable(nil, unhexPacket(t, udpHex), &p, 3)
	for _, test := range []struct {
		data []byte
		want string
	}{
		{syn, "BLOCK ip.SrcAddr=10.77.0.1 ip.DstAddr=10.77.0.2 tcp.SrcPort=40022 tcp.DstPort=80 tcp.Flags=[SYN]\n"},
		{all, "BLOCK ip.SrcAddr=10.77.0.1 ip.DstAddr=10.77.0.2 tcp.SrcPort=40022 tcp.DstPort=80 tcp.Flags=[FIN][RST][URG][SYN][PSH][ACK]\n"},
		{unhexPacket(t, udpHex), "BLOCK ip.SrcAddr=10.77.0.1 ip.DstAddr=10.77.0.2 udp.SrcPort=5353 udp.DstPort=53\n"},
		{icmp, "BLOCK ip.SrcAddr=10.77.0.2 ip.DstAddr=10.77.0.1 icmp.Type=3 icmp.Code=3\n"},
		{unhexPacket(t, "6000000000083aff 20010db8000000000000000000000001 20010db8000000000000000000000002 8100111312340001"),
			"BLOCK ip.SrcAddr=2001:db8::1 ip.DstAddr=2001:db8::2 icmpv6.Type=129 icmpv6.Code=0\n"},
		{nil, "BLOCK\n"},
	} {
		if got := string(new(printer).appendBlocked(nil, test.data)); got != test.want {
			t.Errorf("line %q, want %q", got, test.want)
		}
	}
}

func TestRejectAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	j := newTestRejecter()
	ps, _ := received()
	ps = ps[:min(len(ps), rejectBatch)]
	if n := testing.AllocsPerRun(100, func() { j.answerAll(ps) }); n != 0 {
		t.Errorf("%v allocations for %d packets", n, len(ps))
	}
	if j.count.Resets == 0 || j.count.Unreachables == 0 || j.count.Unanswered == 0 {
		t.Errorf("not all kinds of answers: %+v", j.count)
	}
}

func BenchmarkReject(b *testing.B) {
	j := newTestRejecter()
	ps, _ := received()
	ps = ps[:min(len(ps), rejectBatch)]
	b.ReportAllocs()
	for b.Loop() {
		j.answerAll(ps)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ps)), "ns/packet")
}

// FuzzReject answers and prints arbitrary packets.
func FuzzReject(f *testing.F) {
	for _, s := range samples {
		f.Add(s.data)
	}
	j := newTestRejecter()
	f.Fuzz(func(t *testing.T, b []byte) {
		out := j.answerAll([]divert.Packet{{Data: b}})
		if len(out) > 1 || len(out) == 1 && !new(packet.Parsed).ParseExact(out[0].Data) {
			t.Fatalf("answers %+v", out)
		}
		if line := string(new(printer).appendBlocked(nil, b)); !strings.HasPrefix(line, "BLOCK") || strings.Count(line, "\n") != 1 {
			t.Fatalf("line %q", line)
		}
	})
}
