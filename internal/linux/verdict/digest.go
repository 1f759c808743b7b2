//go:build linux

package verdict

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"

	"github.com/opendivert/divert/packet"
)

// A packet that is sent with its captured bytes can go on as it is, as Accept lets it: nothing is copied into the kernel, and a
// whole batch needs one verdict. The packet's token carries a digest of the captured bytes, which tells whether they are the
// same.

// The key of the digests: random numbers of this process. Without them nobody can make packets with equal digests.
var (
	digestWords             = randomWords()                // added to the words of a block
	digestFirst, digestJoin = rand.Uint64(), rand.Uint64() // the start of the chain, and the number that each block is added to
)

func randomWords() (words [blockWords]uint64) {
	for i := range words {
		words[i] = rand.Uint64()
	}
	return words
}

// blockWords is how many words of 64 bits the inner hash takes at a time, and blockSize the same in bytes.
const (
	blockWords = 128
	blockSize  = 8 * blockWords
)

// digest returns a number that two different packets share with a probability of some 2^-60, never 0. It is the hash
// NH of UMAC (RFC 4418, 5.2.1) with words of 64 bits, whose results a chain of multiplications joins.
func digest(b []byte) uint64 {
	d := uint64(len(b)) ^ digestFirst
	for ; len(b) > blockSize; b = b[blockSize:] {
		d = joined(d, hashBlock((*[blockSize]byte)(b)))
	}
	return max(joined(d, hashRest(b)), 1)
}

// wide is a sum modulo 2^128.
type wide struct{ lo, hi uint64 }

// plus adds the product of two words.
func (w wide) plus(a, b uint64) wide {
	hi, lo := bits.Mul64(a, b)
	var carry uint64
	w.lo, carry = bits.Add64(w.lo, lo, 0)
	w.hi, _ = bits.Add64(w.hi, hi, carry)
	return w
}

// joined returns the chain with one more block.
func joined(d uint64, w wide) uint64 {
	hi, lo := bits.Mul64(d^w.lo, w.hi+digestJoin)
	return hi ^ lo
}

// hashBlock is the inner hash of a block: each word gets its part of the key added, and the products of neighbouring words are
// added up.
func hashBlock(b *[blockSize]byte) (sum wide) {
	le := binary.LittleEndian
	for i := 0; i < blockWords; i += 4 { // two products at a time: twice as fast as one
		m, k := (*[32]byte)(b[8*i:]), (*[4]uint64)(digestWords[i:])
		sum = sum.plus(le.Uint64(m[0:])+k[0], le.Uint64(m[8:])+k[1])
		sum = sum.plus(le.Uint64(m[16:])+k[2], le.Uint64(m[24:])+k[3])
	}
	return sum
}

// hashRest is the inner hash of a block or less. A rest behind the last two whole words is hashed together with the
// bytes before it; less than two words are padded with zeros.
func hashRest(b []byte) (sum wide) {
	le := binary.LittleEndian
	i := 0
	for ; i <= len(b)-16 && i < blockSize; i += 16 {
		m, k := (*[16]byte)(b[i:]), (*[2]uint64)(digestWords[i/8:])
		sum = sum.plus(le.Uint64(m[0:])+k[0], le.Uint64(m[8:])+k[1])
	}
	if i >= len(b) || i >= blockSize {
		return sum
	}
	var last [16]byte
	if i > 0 {
		last = [16]byte(b[len(b)-16:])
	} else {
		copy(last[:], b)
	}
	k := (*[2]uint64)(digestWords[i/8:])
	return sum.plus(le.Uint64(last[:])+k[0], le.Uint64(last[8:])+k[1])
}

// habit is the known behaviour of a program towards captured packets: digests are worth their time only for
// those that send packets, and change few of them. The zero habit is that of a program that has sent none.
type habit struct{ credit atomic.Int32 }

const (
	fullCredit = 64 // packets in a row that must have changed for the digests to end
	noCredit   = -1 // since then one of probeEvery packets has a digest
	probeEvery = 64
)

// wants reports whether the packet with the number is to have a digest.
func (h *habit) wants(id uint32) bool {
	credit := h.credit.Load()
	return credit > 0 || credit == noCredit && id%probeEvery == 0
}

// learn records the captured packets that one call has sent: those that were unchanged, those that were not, and those of which
// this is not known.
func (h *habit) learn(same, changed, unknown int32) {
	credit := h.credit.Load()
	next := credit
	switch {
	case same > 0, unknown > 0 && credit == 0:
		next = fullCredit
	case changed > 0 && credit > 0:
		if next = credit - changed; next <= 0 {
			next = noCredit
		}
	}
	if next != credit {
		h.credit.Store(next)
	}
}

// same reports whether a packet is unchanged since its capture: every byte, and the parts of its address that Send uses.
func (t *token) same(b []byte, a *packet.Address) bool {
	return t.digest != 0 && t.sums == sumsOf(a) && (t.outbound() || a.Network().IfIdx == t.ifIdx) && digest(b) == t.digest
}

// The bits of sumsOf.
const (
	sumIP = 1 << iota
	sumTCP
	sumUDP
)

// sumsOf returns which checksums of a packet its address calls right, in bits.
func sumsOf(a *packet.Address) (sums uint8) {
	if a.IPChecksum {
		sums |= sumIP
	}
	if a.TCPChecksum {
		sums |= sumTCP
	}
	if a.UDPChecksum {
		sums |= sumUDP
	}
	return sums
}
