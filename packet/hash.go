package packet

import (
	"encoding/binary"
	"math/bits"
)

// The constants of the hash: the primes of xxHash64, and words mixed with the headers.
const (
	hashPrime1 = 0x9E3779B185EBCA87
	hashPrime2 = 0xC2B2AE3D27D4EB4F
	hashPrime3 = 0x165667B19E3779F9
	hashPrime4 = 0x85EBCA77C2B2AE63
)

var hashKeys = [8]uint64{
	0x428A2F9871374491, 0xB5C0FBCFE9B5DBA5, 0x3956C25B59F111F1, 0x923F82A4AB1C5ED5,
	0xD807AA9812835B01, 0x243185BE550C7DC3, 0x72BE5D7480DEB1FE, 0x9BDC06A7C19BF174,
}

// Hash returns the hash of the IP and transport headers of the packet in b, or 0 if b is not a packet or a truncated one. It
// covers fields that change on the way too, such as TTL and checksums. The hash is WinDivert's; do not use it for tables that
// strangers can fill. (Specification: packets.md 5.)
func Hash(b []byte, seed uint64) uint64 {
	var p Parsed
	if !p.Parse(b) || p.Truncated {
		return 0
	}
	return p.Hash(b, seed)
}

// Hash returns the hash of the headers in the parsed b, even if the packet is truncated. The filter fields random8,
// random16 and random32 are taken from it (filter-language.md 6). It is 0 if the parse failed.
func (p *Parsed) Hash(b []byte, seed uint64) uint64 {
	le := binary.LittleEndian
	words := [8]uint64{seed, seed, seed, seed, seed, seed, seed, seed}
	var n int
	switch {
	case p.Family == 4 && len(b) >= IPv4HeaderLen:
		words[1] = le.Uint64(b)
		words[2] = le.Uint64(b[8:])
		words[3] = uint64(le.Uint32(b[16:]))
		n = 4
	case p.Family == 6 && len(b) >= IPv6HeaderLen:
		for i := range 5 {
			words[1+i] = le.Uint64(b[8*i:])
		}
		n = 6
	default:
		return 0
	}

	var spill uint64 // the part of a TCP header that does not fit behind an IPv6 header
	if tcp := p.TCP(b); tcp != nil {
		words[n] = le.Uint64(tcp)
		words[n+1] = le.Uint64(tcp[8:])
		last := uint64(le.Uint32(tcp[16:]))
		if n == 4 {
			words[6] = last
		} else {
			spill = last << 32
		}
	} else if off := max(p.UDPOff, p.ICMPOff, p.ICMPv6Off); off >= 0 {
		if header := part(b, off, 8); header != nil {
			words[n] = le.Uint64(header)
		}
	}

	for i := range words {
		words[i] ^= hashKeys[i]
	}
	words[1] ^= spill
	return mix(&words)
}

// FlowHash returns a hash of the addresses, and of the ports of TCP and UDP, in b, parsed as p. All packets of a flow in
// one direction share it. It is 0 if the parse failed. Do not use it for tables that strangers can fill.
func (p *Parsed) FlowHash(b []byte) uint64 {
	le := binary.LittleEndian
	var words [8]uint64
	switch {
	case p.Family == 4 && len(b) >= IPv4HeaderLen:
		words[1], words[2] = uint64(le.Uint32(b[12:])), uint64(le.Uint32(b[16:]))
	case p.Family == 6 && len(b) >= IPv6HeaderLen:
		for i := range 4 {
			words[1+i] = le.Uint64(b[8+8*i:])
		}
	default:
		return 0
	}
	if ports := part(b, max(p.TCPOff, p.UDPOff), 4); ports != nil {
		words[5] = uint64(le.Uint32(ports))
	}
	for i := range words {
		words[i] ^= hashKeys[i]
	}
	return mix(&words)
}

// mix is xxHash64 of the lower four words, with the upper four as its accumulators.
func mix(w *[8]uint64) uint64 {
	s0 := hashRound(w[4], w[0])
	s1 := hashRound(w[5], w[1])
	s2 := hashRound(w[6], w[2])
	s3 := hashRound(w[7], w[3])
	h := bits.RotateLeft64(s0, 1) + bits.RotateLeft64(s1, 7) +
		bits.RotateLeft64(s2, 12) + bits.RotateLeft64(s3, 18)
	h = hashMerge(h, s0)
	h = hashMerge(h, s1)
	h = hashMerge(h, s2)
	h = hashMerge(h, s3)
	h += 32 // the length in bytes of the lower words
	h ^= h >> 33
	h *= hashPrime2
	h ^= h >> 29
	h *= hashPrime3
	h ^= h >> 32
	return h
}

func hashRound(acc, word uint64) uint64 {
	return bits.RotateLeft64(acc+word*hashPrime2, 31) * hashPrime1
}

func hashMerge(h, acc uint64) uint64 {
	return (h^hashRound(0, acc))*hashPrime1 + hashPrime4
}
