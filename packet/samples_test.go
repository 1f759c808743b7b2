package packet

import (
	"encoding/hex"
	"slices"
	"testing"
)

// examples are the worked examples of the specification (packets.md 9.1).
var examples = []struct{ id, hex string }{
	{"A", "4500002c1c4640004006507b0a010203c0000207c000005001020304000000006002faf00ad40000020405b4"},                                           // IPv4 TCP SYN, MSS option
	{"B", "45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f"},                                                                 // IPv4 UDP, 5-byte payload
	{"C", "45000020000700004001accb0a010203c0000207080033360001000261626364"},                                                                   // IPv4 ICMP echo request, 4-byte payload
	{"D", "612345670017064020010db800000000000000000000000120010db800000000000000000000000201bbc350deadbeef112233445018faf0bfda000078797a"},     // IPv6 TCP ACK, 3-byte payload, traffic class 0x12, flow label 0x34567
	{"E", "600000000013004020010db800000000000000000000000120010db8000000000000000000000002110001040000000004d210e1000b8aae010203"},             // IPv6, hop-by-hop (8 bytes) then UDP
	{"F", "6000000000083aff20010db800000000000000000000000120010db80000000000000000000000028100111312340001"},                                   // IPv6 ICMPv6 echo reply
	{"G", "4500002c0001200040118cb50a010203c000020703e807d00040000030313233343536373839616263646566"},                                           // IPv4 first fragment (MF=1, offset 0) of a UDP datagram
	{"H", "45000024000100034011acba0a010203c00002074142434445464748494a4b4c4d4e4f50"},                                                           // IPv4 later fragment (offset 3*8)
	{"I", "6000000000182c4020010db800000000000000000000000120010db80000000000000000000000023a0000010000000980000000000100013132333435363738"},   // IPv6 first fragment (offset 0, MF=1) holding an ICMPv6 echo request
	{"J", "6000000000102c4020010db800000000000000000000000120010db80000000000000000000000023a000010000000094142434445464748"},                   // IPv6 later fragment (byte offset 16)
	{"K", "460000201c46000040118d7b0a010203c00002070101010000090009000831c1"},                                                                   // IPv4 with 4 option bytes, UDP, zero payload
	{"L", "4500002c1c460000400600000a010203c0000207000100020000000300000004f010faf00000000001010100"},                                           // IPv4 TCP whose data-offset says 60 bytes but only 24 are present
	{"M", "450000201c460000400690870a010203c0000207000100020000000300000004"},                                                                   // IPv4 TCP with only 12 bytes of transport data
	{"N", "45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f45000020000700004001accb0a010203c0000207080033360001000261626364"}, // packet B followed by packet C in one buffer
	{"O", "4500002c1c4640004006507b0a010203c0000207c0000050010203040000"},                                                                       // packet A cut to its first 30 bytes
}

// example returns a new copy of a worked example.
func example(t testing.TB, id string) []byte {
	t.Helper()
	for _, e := range examples {
		if e.id == id {
			return unhex(t, e.hex)
		}
	}
	t.Fatalf("no example %q", id)
	return nil
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// change returns a copy of b with the bytes at an offset replaced.
func change(b []byte, at int, by ...byte) []byte {
	b = slices.Clone(b)
	copy(b[at:], by)
	return b
}
