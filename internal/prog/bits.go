package prog

// bitfield says in which bits of a header a field lies. The zero bitfield is that of a field that is not bits of a header.
// (Sources: RFC 791, 8200, 792, 4443, 9293, 768.)
type bitfield struct {
	off   int32 // of the word of 4 bytes, in network byte order, from the start of the header
	shift uint8 // of the lowest bit in the word
	width uint8
}

// Bits says where the header has the value of a field.
type Bits struct {
	Header Field // the test for the header: FieldIP, FieldTCP and so on
	Offset int   // of the word of 4 bytes that has the value, in network byte order, from the start of the header
	Shift  int   // of the value's lowest bit in the word
	Width  int   // of the value, in bits
}

// HeaderBits returns where the value of a field lies, if it is that of some bits of a header.
func HeaderBits(f Field) (Bits, bool) {
	info := f.Info()
	if info.bits.width == 0 {
		return Bits{}, false
	}
	return Bits{Header: info.Base, Offset: int(info.bits.off), Shift: int(info.bits.shift), Width: int(info.bits.width)}, true
}
