//go:build linux

package superpacket

import (
	"slices"

	"golang.org/x/sys/unix"
)

// A superpacket of UDP has in place of its checksum the sum of the pseudo-header (RFC 768; RFC 8200 section 8.1), which whoever cuts
// it needs: the kernel writes it when it puts one together out of datagrams (udp_gro_complete_segment, net/ipv4/udp_offload.c),
// and expects it of senders. So do datagrams of senders on this machine, but those of other machines have a checksum.

// Offsets of loads (linux/filter.h).
const (
	network  = 0xFFF00000 // SKF_NET_OFF: of the IP header
	protocol = 0xFFFFF000 // SKF_AD_OFF and SKF_AD_PROTOCOL: the protocol of the frame
)

// load loads a value of the IP header.
func load(size uint16, at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: network + at}
}

// unless ends the program, without the packet, unless a comparison of the accumulator says yes, or no if that is wanted. rest is how many
// instructions follow before the last two: the one that takes the packet and the one that does not.
func unless(op uint16, k uint32, yes bool, rest int) unix.SockFilter {
	i := unix.SockFilter{Code: unix.BPF_JMP | op, K: k}
	if yes {
		i.Jf = uint8(rest + 1)
	} else {
		i.Jt = uint8(rest + 1)
	}
	return i
}

// sumOf takes packets of which the sum of 16-bit words, and of the protocol, is the word at check.
func sumOf(check uint32, words ...uint32) (program []unix.SockFilter) {
	tax := unix.SockFilter{Code: unix.BPF_MISC | unix.BPF_TAX}
	addX := unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X}
	program = append(program, load(unix.BPF_H, words[0]))
	for _, w := range words[1:] {
		program = append(program, tax, load(unix.BPF_H, w), addX)
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: unix.IPPROTO_UDP})
	for range 2 { // the carries
		program = append(program,
			unix.SockFilter{Code: unix.BPF_ST},
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 16},
			tax,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_MEM},
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xFFFF},
			addX,
		)
	}
	return append(program, tax, load(unix.BPF_H, check),
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X, Jf: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: snap},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K},
	)
}

// selecting is a program that takes packets for which all of tests hold and then the sum is right.
func selecting(tests []test, sum []unix.SockFilter) (program []unix.SockFilter) {
	for i, x := range tests {
		rest := 2*(len(tests)-1-i) + len(sum) - 2
		program = append(program, load(x.size, x.at), unless(x.op, x.k, x.yes, rest))
	}
	return append(program, sum...)
}

// test is a question about a value in the IP header.
type test struct {
	size, op uint16
	at, k    uint32
	yes      bool
}

// unfinished takes datagrams whose checksum is still to be finished: over IPv4 without options and not fragmented, over IPv6
// without extension headers.
func unfinished() []unix.SockFilter {
	four := selecting([]test{
		{unix.BPF_B, unix.BPF_JEQ, 0, 0x45, true},
		{unix.BPF_B, unix.BPF_JEQ, 9, unix.IPPROTO_UDP, true},
		{unix.BPF_H, unix.BPF_JSET, 6, 0x3FFF, false},
	}, sumOf(26, 12, 14, 16, 18, 24))
	words := []uint32{44}
	for at := uint32(8); at < 40; at += 2 {
		words = append(words, at)
	}
	six := selecting([]test{{unix.BPF_B, unix.BPF_JEQ, 6, unix.IPPROTO_UDP, true}}, sumOf(46, words...))
	return slices.Concat([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_ABS | unix.BPF_H, K: protocol},
		{Code: unix.BPF_JMP | unix.BPF_JEQ, K: unix.ETH_P_IP, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ, K: unix.ETH_P_IPV6, Jt: uint8(1 + len(four))},
		{Code: unix.BPF_RET | unix.BPF_K},
	}, four, six)
}
