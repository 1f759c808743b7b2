package packet

// Packet is a packet with its address: the element of receive and send batches.
//
// Data is the packet, from its IP header on. After a receive call it lies in memory that belongs to the Packet and stays
// valid until the Packet is given to a receive call again; the caller may change it in place, shorten it, or set Data to
// other memory. Besides receive calls only send calls write to it: the checksums that Addr marks as missing, and the hop
// limit of an impostor. A Packet must not be used by two goroutines at once, nor copied if both copies go on to receive:
// they would share their memory.
//
// The zero Packet is ready for use. Using the same Packets for call after call saves the allocations.
type Packet struct {
	Data []byte
	Addr Address

	buf []byte // allocated by Buffer
	own []byte // allocated by SetPayload, for packets that grew
}

// Buffer returns the packet's own memory, at least n bytes, for an engine to receive into before it sets Data to the part
// that it filled. It allocates only if that memory is too small; the new memory lacks the old contents, and Data still
// refers to the old memory. Buffer does not clear memory.
func (p *Packet) Buffer(n int) []byte {
	if n > len(p.buf) {
		p.buf = make([]byte, n)
	}
	return p.buf
}
