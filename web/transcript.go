package web

import "bytes"

// transcript keeps the judged bytes of a client that the server has not acknowledged yet: retransmitted bytes must equal
// them, or the server could read bytes that were never judged.
type transcript struct {
	base   uint32 // sequence number of the first byte
	pieces []piece
	kept   int // bytes of data in the pieces, and pieceCost for each piece
}

// piece is a run of consecutive bytes.
type piece struct {
	length int
	data   []byte // nil if any bytes will do, as in a body
}

// pieceCost is the memory of a piece besides its data, in bytes.
const pieceCost = 64

// end returns the sequence number behind the last byte.
func (t *transcript) end() uint32 {
	end := t.base
	for i := range t.pieces {
		end += uint32(t.pieces[i].length)
	}
	return end
}

// fixed reports whether some bytes must not change.
func (t *transcript) fixed() bool {
	for i := range t.pieces {
		if t.pieces[i].data != nil {
			return true
		}
	}
	return false
}

// keep adds bytes at the end.
func (t *transcript) keep(b []byte, opaque bool) {
	if len(b) == 0 {
		return
	}
	if n := len(t.pieces); n > 0 && (t.pieces[n-1].data == nil) == opaque {
		last := &t.pieces[n-1]
		last.length += len(b)
		if !opaque {
			last.data = append(last.data, b...)
			t.kept += len(b)
		}
		return
	}
	p := piece{length: len(b)}
	if !opaque {
		p.data = bytes.Clone(b)
	}
	t.pieces = append(t.pieces, p)
	t.kept += pieceCost + len(p.data)
}

// forget removes the bytes before a sequence number that the server has acknowledged. It ignores numbers outside.
func (t *transcript) forget(ack uint32) {
	if before(ack, t.base) || before(t.end(), ack) {
		return
	}
	n := int(ack - t.base)
	t.base = ack
	gone := 0
	for ; gone < len(t.pieces) && n >= t.pieces[gone].length; gone++ {
		p := &t.pieces[gone]
		n -= p.length
		t.kept -= pieceCost + len(p.data)
	}
	t.pieces = append(t.pieces[:0], t.pieces[gone:]...)
	if n > 0 {
		p := &t.pieces[0]
		p.length -= n
		if p.data != nil {
			p.data = p.data[n:]
			t.kept -= n
		}
	}
}

// same reports whether bytes from a sequence number on equal those of the transcript, where both have bytes.
func (t *transcript) same(seq uint32, b []byte) bool {
	at := t.base
	for i := range t.pieces {
		p := &t.pieces[i]
		if p.data != nil && !equalOverlap(seq, b, at, p.data) {
			return false
		}
		at += uint32(p.length)
	}
	return true
}

// equalOverlap reports whether two pieces of a stream agree where both have bytes.
func equalOverlap(seqA uint32, a []byte, seqB uint32, b []byte) bool {
	if before(seqB, seqA) {
		seqA, a, seqB, b = seqB, b, seqA, a
	}
	skip := int(seqB - seqA)
	if skip >= len(a) {
		return true
	}
	a = a[skip:]
	n := min(len(a), len(b))
	return bytes.Equal(a[:n], b[:n])
}

// before reports whether a sequence number comes before another (RFC 9293 section 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }
