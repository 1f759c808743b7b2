package prog

// bitfield is the place of a field in a header. It is zero for fields that are not bits of a header. (Sources: RFC 791,
// 8200, 792, 4443, 9293, 768.)
type bitfield struct {
	off   int32 // of the word of 4 bytes, in network byte order, from the start of the header
	shift uint8 // of the lowest bit in the word
	width uint8
}

// Bits is the place of a field's value in its header.
type Bits struct {
	Header Field // the test for the header: FieldIP, FieldTCP and so on
	Offset int   // of the 4-byte word with the value, in network byte order, from the start of the header
	Shift  int   // of the value's lowest bit in the word
	Width  int   // of the value, in bits
}

// HeaderBits returns the place of a field's value, if it is bits of a header.
func HeaderBits(f Field) (Bits, bool) {
	info := f.Info()
	if info.bits.width == 0 {
		return Bits{}, false
	}
	return Bits{Header: info.Base, Offset: int(info.bits.off), Shift: int(info.bits.shift), Width: int(info.bits.width)}, true
}
