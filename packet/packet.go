package packet

// Packet is a packet with its address: the element of receive and send batches.
//
// Data is the packet, starting at its IP header. After a receive call it lies in memory that belongs to
// the Packet and stays valid until the Packet is given to a receive call again; the caller may change
// it in place, make it shorter, or set Data to memory of its own. Besides receive calls only send calls
// write to it: the checksums that Addr calls missing, and the hop limit of an impostor. A Packet must not be
// used by two goroutines at once, nor copied while both copies go on to receive: they would share their memory.
//
// The zero Packet is ready for use. Using the same Packets for call after call saves the allocations.
type Packet struct {
	Data []byte
	Addr Address

	buf []byte // what Buffer has allocated
	own []byte // what SetPayload has allocated, for packets that grew
}

// Buffer returns the packet's own memory, n bytes at least, for an engine to receive into before it
// sets Data to the part it filled. It allocates only if what it has is too small; what was in
// the memory before is lost then, Data keeps what it refers to. The memory is not cleared.
func (p *Packet) Buffer(n int) []byte {
	if n > len(p.buf) {
		p.buf = make([]byte, n)
	}
	return p.buf
}
