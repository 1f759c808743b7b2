package packet_test

import (
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
	// One port of a packet of any length changes: no need to sum it all up again.
	sum := packet.UpdateChecksum16(udp.Checksum(), udp.DstPort(), 5300)
	udp.SetDstPort(5300)
	udp.SetChecksum(sum)
	fmt.Println(p.VerifyTransportChecksum(b))
	// Output: true
}

func ExampleFormatIPv6Address() {
	w, ok := packet.ParseIPv6Address("1:0:3:4:5:6:7:8")
	fmt.Println(ok, packet.FormatIPv6Address(w), w.Addr())
	// Output: true 1::3:4:5:6:7:8 1:0:3:4:5:6:7:8
}
