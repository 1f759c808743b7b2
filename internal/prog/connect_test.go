package prog_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// TestAtConnect: the form for connects decides the connect as the filter decides the first segment, or a datagram.
func TestAtConnect(t *testing.T) {
	clients := map[bool]netip.Addr{false: netip.MustParseAddr("10.0.0.1"), true: netip.MustParseAddr("fd00::1")}
	for _, text := range []string{
		"true", "false", "zero == 0", "outbound", "inbound", "not inbound", "tcp", "udp", "!udp", "icmp or icmpv6", "not icmp", "ip", "not ip", "ipv6 == 0",
		"tcp.DstPort == 80", "tcp.DstPort != 80", "not tcp.DstPort == 80", "tcp.DstPort in {22, 80-90}", "remotePort < 100",
		"udp.DstPort == 80", "not udp.DstPort == 80", "udp.SrcPort != 1 or tcp.DstPort == 443",
		"ip.DstAddr == 192.0.2.1", "ip.DstAddr != 192.0.2.1", "not ip.DstAddr == 192.0.2.1", "ip.DstAddr in {192.0.2.0/24}", "ip.DstAddr >= 192.0.2.2",
		"ipv6.DstAddr == 2001:db8::1", "ipv6.DstAddr != 2001:db8::1", "not ipv6.DstAddr == 2001:db8::1", "ipv6.DstAddr in {2001:db8::/32}",
		"remoteAddr == 192.0.2.1", "remoteAddr == 2001:db8::1", "remoteAddr != 192.0.2.1", "remoteAddr in {192.0.2.0/24, 2001:db8::/64}",
		"protocol == 6", "protocol == 17", "protocol != 17", "ip.Protocol == 6", "ip.Protocol != 6", "not ip.Protocol == 6",
		"processId == 7", "processId != 7 and tcp.DstPort == 443", "processId in {5, 7} or ip", "udp and localPort == 53 or tcp.DstPort == 80",
		"((ip or tcp.DstPort == 80)? remotePort == 80: processId == 8)", "inbound and tcp.Syn or outbound and tcp.DstPort == 80",
	} {
		network, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		sockets := map[uint8]*prog.Program{}
		for _, protocol := range []uint8{packet.ProtocolTCP, packet.ProtocolUDP} {
			if sockets[protocol], err = network.AtConnect(protocol); err != nil && (protocol == packet.ProtocolTCP || text != "udp.SrcPort != 1 or tcp.DstPort == 443" && text != "udp and localPort == 53 or tcp.DstPort == 80") {
				t.Errorf("%s, protocol %d: %v", text, protocol, err)
			}
		}
		for _, to := range []string{"192.0.2.1", "192.0.2.2", "127.0.0.1", "2001:db8::1", "2001:db9::1", "::1"} {
			for _, port := range []uint16{22, 80, 443} {
				for _, process := range []uint32{7, 8} {
					dst := netip.AddrPortFrom(netip.MustParseAddr(to), port)
					h := packet.Header{Src: netip.AddrPortFrom(clients[dst.Addr().Is6()], 40000), Dst: dst}
					for protocol, socket := range sockets {
						b, err := h.AppendTCP(nil, packet.Segment{Flags: packet.TCPSyn}, nil)
						if protocol == packet.ProtocolUDP {
							b, err = h.AppendUDP(nil, nil)
						}
						if err != nil {
							t.Fatal(err)
						}
						if socket == nil {
							continue
						}
						var parsed packet.Parsed
						parsed.Parse(b)
						a := packet.Address{Layer: packet.LayerNetwork, Event: packet.EventPacket, Outbound: true, IPv6: dst.Addr().Is6()}
						want := network.MatchKnown(b, &parsed, &a, prog.Known{Process: process, HasProcess: true})
						a = packet.Address{Layer: packet.LayerSocket, Event: packet.EventSocketConnect, Outbound: true, IPv6: dst.Addr().Is6()}
						a.SetFlow(packet.FlowData{
							ProcessID: process, LocalAddr: h.Src.Addr(), RemoteAddr: dst.Addr(), LocalPort: h.Src.Port(), RemotePort: port, Protocol: protocol,
						})
						if got := socket.Match(nil, &a); got != want {
							t.Errorf("%s: connect of %d to %v, protocol %d: %t, of its packets %t", text, process, dst, protocol, got, want)
						}
					}
				}
			}
		}
	}
}

// TestNotAtConnect: the error names the field that is unknown then.
func TestNotAtConnect(t *testing.T) {
	for text, want := range map[string]prog.Field{
		"tcp.SrcPort == 80":                        prog.FieldTCPSrcPort,
		"localPort == 80 or tcp":                   prog.FieldLocalPort,
		"ip.SrcAddr == 10.0.0.1":                   prog.FieldIPSrcAddr,
		"tcp.PayloadLength > 0":                    prog.FieldTCPPayloadLength,
		"outbound and not udp and ifIdx == 2":      prog.FieldIfIdx,
		"loopback":                                 prog.FieldLoopback,
		"ipv6.NextHdr == 6":                        prog.FieldIPv6NextHdr,
		"udp and tcp.Syn or tcp and tcp.Ack":       prog.FieldTCPAck,
		"tcp.DstPort == 80 and tcp.Payload[0] > 3": prog.FieldTCPPayload,
	} {
		p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		var unknown *prog.ConnectError
		if q, err := p.AtConnect(packet.ProtocolTCP); !errors.As(err, &unknown) || unknown.Field != want {
			t.Errorf("%s: %v, %v, want %v", text, q, err, want)
		}
	}
	p, err := progtest.Compile("tcp.DstPort == 80 or udp.SrcPort == 53", packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	var unknown *prog.ConnectError
	if q, err := p.AtConnect(packet.ProtocolUDP); !errors.As(err, &unknown) || unknown.Field != prog.FieldUDPSrcPort {
		t.Errorf("%v, %v", q, err)
	}
}
