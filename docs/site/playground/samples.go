package playground

import (
	"net/netip"
	"time"

	"github.com/opendivert/divert/packet"
)

// The hosts of the samples, in networks reserved for examples (RFC 5737, RFC 3849).
var (
	host4, host6     = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	server4, server6 = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:1::7")
	resolver         = netip.MustParseAddr("203.0.113.53")
	localhost        = netip.MustParseAddr("127.0.0.1")
)

// sample is a packet of the built-in capture.
type sample struct {
	from, to          netip.Addr
	fromPort, toPort  uint16
	protocol          byte
	flags             packet.TCPFlags
	icmpType          uint8
	payload           string
	inbound, loopback bool
}

const (
	icmp = 1
	tcp  = 6
	udp  = 17
)

// A DNS query for example.com and the beginning of its answer (RFC 1035), the first bytes of a ClientHello (RFC 8446),
// and the first byte of a QUIC Initial with its version (RFC 9000).
const (
	dnsQuery  = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"
	dnsAnswer = "\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc6\x33\x64\x07"
	hello     = "\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"
	initial   = "\xc3\x00\x00\x00\x01\x08"
)

var samples = []sample{
	{from: host4, to: resolver, fromPort: 40001, toPort: 53, protocol: udp, payload: dnsQuery},
	{from: resolver, to: host4, fromPort: 53, toPort: 40001, protocol: udp, payload: dnsAnswer, inbound: true},
	{from: host4, to: server4, fromPort: 50001, toPort: 80, protocol: tcp, flags: packet.TCPSyn},
	{from: server4, to: host4, fromPort: 80, toPort: 50001, protocol: tcp, flags: packet.TCPSyn | packet.TCPAck, inbound: true},
	{from: host4, to: server4, fromPort: 50001, toPort: 80, protocol: tcp, flags: packet.TCPAck},
	{from: host4, to: server4, fromPort: 50001, toPort: 80, protocol: tcp, flags: packet.TCPPsh | packet.TCPAck, payload: "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"},
	{from: server4, to: host4, fromPort: 80, toPort: 50001, protocol: tcp, flags: packet.TCPPsh | packet.TCPAck, payload: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", inbound: true},
	{from: host4, to: server4, fromPort: 50001, toPort: 80, protocol: tcp, flags: packet.TCPFin | packet.TCPAck},
	{from: host6, to: server6, fromPort: 50002, toPort: 443, protocol: tcp, flags: packet.TCPSyn},
	{from: server6, to: host6, fromPort: 443, toPort: 50002, protocol: tcp, flags: packet.TCPSyn | packet.TCPAck, inbound: true},
	{from: host6, to: server6, fromPort: 50002, toPort: 443, protocol: tcp, flags: packet.TCPPsh | packet.TCPAck, payload: hello},
	{from: host6, to: server6, fromPort: 50003, toPort: 443, protocol: udp, payload: initial},
	{from: host4, to: server4, protocol: icmp, icmpType: 8, payload: "ping"},
	{from: server4, to: host4, protocol: icmp, icmpType: 0, payload: "ping", inbound: true},
	{from: server6, to: host6, protocol: icmp, icmpType: 128, payload: "ping", inbound: true},
	{from: host4, to: server4, fromPort: 50004, toPort: 22, protocol: tcp, flags: packet.TCPSyn},
	{from: server4, to: host4, fromPort: 22, toPort: 50004, protocol: tcp, flags: packet.TCPRst | packet.TCPAck, inbound: true},
	{from: localhost, to: localhost, fromPort: 50005, toPort: 5432, protocol: tcp, flags: packet.TCPSyn, loopback: true},
}

// Samples returns the built-in capture.
func Samples() (*Capture, error) {
	c := &Capture{begin: time.Unix(0, 0)}
	for i, s := range samples {
		b, err := s.packet()
		if err != nil {
			return nil, err
		}
		at := time.Unix(0, int64(i)*int64(7*time.Millisecond))
		c.packets = append(c.packets, captured{b, packet.Address{
			Timestamp: at.UnixNano(), Layer: packet.LayerNetwork, Outbound: !s.inbound, Loopback: s.loopback, IPv6: s.from.Is6(),
		}, at})
	}
	return c, nil
}

// packet makes the packet of a sample.
func (s *sample) packet() ([]byte, error) {
	h := packet.Header{Src: netip.AddrPortFrom(s.from, s.fromPort), Dst: netip.AddrPortFrom(s.to, s.toPort), DF: true}
	switch s.protocol {
	case tcp:
		return h.AppendTCP(nil, packet.Segment{Seq: 1000, Flags: s.flags, Window: 64240}, []byte(s.payload))
	case udp:
		return h.AppendUDP(nil, []byte(s.payload))
	}
	return h.AppendICMP(nil, s.icmpType, 0, 1<<16|1, []byte(s.payload))
}
