//go:build linux

package linux

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/opendivert/divert/packet"
)

// A packet that is sent with the bytes it was captured with can go on as it is, as Accept lets it: nothing is copied
// into the kernel, and a whole batch needs one verdict. Whether it has them, a digest of the captured bytes
// tells, which the packet's token carries.

// digestKey are random numbers of this process: 128 for the words of a block, and two to join the blocks. Who
// does not know them cannot make packets of equal digests.
var digestKey = func() (key [blockWords + 2]uint64) {
	var b [8 * len(key)]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	for i := range key {
		key[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return key
}()

// blockWords is how many words of 64 bits the inner hash takes at a time, and blockSize the same in bytes.
const (
	blockWords = 128
	blockSize  = 8 * blockWords
)

// digest returns a number that two different packets share with a probability of some 2^-60, never 0. It is the hash
// NH of UMAC (RFC 4418, 5.2.1) with words of 64 bits, whose results a chain of multiplications joins.
func digest(b []byte) uint64 {
	d := uint64(len(b)) ^ digestKey[blockWords]
	for {
		n := min(len(b), blockSize)
		lo, hi := blockHash(b[:n])
		hi, lo = bits.Mul64(d^lo, hi+digestKey[blockWords+1])
		d = hi ^ lo
		if b = b[n:]; len(b) == 0 {
			return max(d, 1)
		}
	}
}

// blockHash is the inner hash of at most a block: the sum, modulo 2^128, of the products of neighbouring words, to each
// of which its part of the key was added.
func blockHash(b []byte) (lo, hi uint64) {
	key := digestKey[:blockWords]
	le := binary.LittleEndian
	var carry uint64
	for len(b) >= 32 && len(key) >= 4 {
		h0, l0 := bits.Mul64(le.Uint64(b)+key[0], le.Uint64(b[8:])+key[1])
		h1, l1 := bits.Mul64(le.Uint64(b[16:])+key[2], le.Uint64(b[24:])+key[3])
		lo, carry = bits.Add64(lo, l0, 0)
		hi, _ = bits.Add64(hi, h0, carry)
		lo, carry = bits.Add64(lo, l1, 0)
		hi, _ = bits.Add64(hi, h1, carry)
		b, key = b[32:], key[4:]
	}
	for len(b) > 0 {
		var last [16]byte
		n := copy(last[:], b)
		h, l := bits.Mul64(le.Uint64(last[:])+key[0], le.Uint64(last[8:])+key[1])
		lo, carry = bits.Add64(lo, l, 0)
		hi, _ = bits.Add64(hi, h, carry)
		b, key = b[n:], key[2:]
	}
	return lo, hi
}

// habit is what a program does with what it captures, as far as it is known: digests are worth their time only for
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

// learn takes in what one call has sent of what was captured: packets that were as they had been, packets that were
// not, and others of which that is not known.
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

// same reports whether p is what was captured: every byte, and what Send goes by in its address.
func (t *token) same(p *packet.Packet) bool {
	a := &p.Addr
	return t.digest != 0 && t.sums == sumsOf(a) && (t.outbound() || a.Network().IfIdx == t.ifIdx) && digest(p.Data) == t.digest
}

// sumsOf returns which checksums of a packet its address calls right, in bits.
func sumsOf(a *packet.Address) (sums uint8) {
	for i, right := range [...]bool{a.IPChecksum, a.TCPChecksum, a.UDPChecksum} {
		if right {
			sums |= 1 << i
		}
	}
	return sums
}
