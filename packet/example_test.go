package packet_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/opendivert/divert/packet"
)

// dnsQuery is an IPv4 UDP packet from 10.1.2.3 to 192.0.2.7, port 53, with the payload "hello".
func dnsQuery() []byte {
	b, err := hex.DecodeString("45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f")
	if err != nil {
		panic(err)
	}
	return b
}

func ExampleParsed_Parse() {
	b := dnsQuery()
	var p packet.Parsed
	if !p.Parse(b) {
		fmt.Println("not a packet")
		return
	}
	if udp := p.UDP(b); udp != nil {
		ip := p.IPv4(b)
		fmt.Printf("%v:%d > %v:%d %q\n", ip.Src(), udp.SrcPort(), ip.Dst(), udp.DstPort(), p.Payload(b))
	}
	// Output: 10.1.2.3:5353 > 192.0.2.7:53 "hello"
}

func ExampleParsed_Split() {
	batch := append(dnsQuery(), dnsQuery()...)
	batch = append(batch, "rest"...)
	var p packet.Parsed
	for b, ok := range p.Split(batch) {
		if !ok {
			fmt.Printf("%q is not a packet\n", b)
			break
		}
		fmt.Println(len(b), "bytes, protocol", p.Protocol)
	}
	// Output:
	// 33 bytes, protocol 17
	// 33 bytes, protocol 17
	// "rest" is not a packet
}

func ExampleCalcChecksums() {
	b := dnsQuery()
	var p packet.Parsed
	p.Parse(b)
	p.IPv4(b).SetDst(netip.MustParseAddr("192.0.2.53"))
	p.UDP(b).SetDstPort(5300)

	var addr packet.Address
	if packet.CalcChecksums(b, &addr, 0) {
		fmt.Printf("IP %04x, UDP %04x\n", p.IPv4(b).Checksum(), p.UDP(b).Checksum())
	}
	// Output: IP 2ca4, UDP c42b
}

func ExampleUpdateChecksum16() {
	b := dnsQuery()
	var p packet.Parsed
	p.Parse(b)
	udp := p.UDP(b)
	// One port of a packet of any length changes: no need to sum up the whole packet again.
	sum := packet.UpdateChecksum16(udp.Checksum(), udp.DstPort(), 5300)
	udp.SetDstPort(5300)
	udp.SetChecksum(sum)
	fmt.Println(p.VerifyTransportChecksum(b))
	// Output: true
}

// A program that leads DNS queries elsewhere changes the destination, and Send has nothing left to compute.
func ExamplePacket_SetDst() {
	p := packet.Packet{Data: dnsQuery(), Addr: packet.Address{IPChecksum: true, UDPChecksum: true}}
	if err := p.SetDst(netip.MustParseAddrPort("192.0.2.53:5300")); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%v > %v %q, checksum %t\n", p.Src(), p.Dst(), p.Payload(), p.Addr.UDPChecksum)
	// Output: 10.1.2.3:5353 > 192.0.2.53:5300 "hello", checksum true
}

func ExamplePacket_SetPayload() {
	p := packet.Packet{Data: dnsQuery()}
	if err := p.SetPayload([]byte("hello, world")); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d bytes, %q\n", len(p.Data), p.Payload())
	// Output: 40 bytes, "hello, world"
}

func ExampleHeader_AppendTCP() {
	h := packet.Header{Src: netip.MustParseAddrPort("[2001:db8::1]:40000"), Dst: netip.MustParseAddrPort("[2001:db8::2]:80")}
	b, err := h.AppendTCP(nil, packet.Segment{Seq: 1, Flags: packet.TCPSyn, Window: 0xFFFF}, nil)
	fmt.Println(len(b), err)
	// Output: 60 <nil>
}

// A longer word replaces a word, and both ends still agree on the number of bytes.
func ExampleStream() {
	client, server := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:80")
	out, back := packet.Header{Src: client, Dst: server}, packet.Header{Src: server, Dst: client}
	request, _ := out.AppendTCP(nil, packet.Segment{Seq: 100, Flags: packet.TCPAck}, []byte("a cat"))
	answer, _ := back.AppendTCP(nil, packet.Segment{Ack: 110, Flags: packet.TCPAck}, nil)

	var s packet.Stream
	for _, data := range [][]byte{request, answer} {
		p := packet.Packet{Data: data}
		err := s.Edit(&p, func(fresh []byte) []byte {
			return bytes.ReplaceAll(fresh, []byte("cat"), []byte("elephant"))
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		var h packet.Parsed
		h.Parse(p.Data)
		fmt.Printf("%q seq %d ack %d\n", p.Payload(), h.TCP(p.Data).Seq(), h.TCP(p.Data).Ack())
	}
	// Output:
	// "a elephant" seq 100 ack 0
	// "" seq 0 ack 105
}
