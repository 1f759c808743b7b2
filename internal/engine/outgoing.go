package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/opendivert/divert/packet"
)

// Overheads are the bytes that a queued item counts beyond its own, by layer (specification: api.md 12).
var Overheads = [packet.NumLayers]int{
	packet.LayerNetwork: 63, packet.LayerForward: 63, packet.LayerFlow: 119, packet.LayerSocket: 119, packet.LayerReflect: 87,
}

// Whole returns the packet at the start of b, with the length in its IP header, after the original driver's checks of
// packets to send (api.md 8). It fails with ErrShortBuffer or ErrInvalid.
func Whole(b []byte) ([]byte, error) {
	size := 0
	switch {
	case len(b) < packet.IPv4HeaderLen:
		return nil, fmt.Errorf("%w: the packet ends within its IP header", ErrShortBuffer)
	case b[0]>>4 == 4:
		if size = int(binary.BigEndian.Uint16(b[2:])); size < packet.IPv4HeaderLen {
			return nil, fmt.Errorf("%w: the total length of the IPv4 header is %d", ErrInvalid, size)
		}
	case b[0]>>4 != 6:
		return nil, fmt.Errorf("%w: a packet of IP version %d", ErrInvalid, b[0]>>4)
	case len(b) < packet.IPv6HeaderLen:
		return nil, fmt.Errorf("%w: the packet ends within its IP header", ErrShortBuffer)
	default:
		size = int(binary.BigEndian.Uint16(b[4:])) + packet.IPv6HeaderLen
	}
	if len(b) < size {
		return nil, fmt.Errorf("%w: %d bytes of a packet of %d", ErrShortBuffer, len(b), size)
	}
	return b[:size], nil
}

// Unready reports whether Finish may have to write to a packet.
func Unready(a *packet.Address) bool {
	return a.Impostor || !a.IPChecksum || !a.TCPChecksum || !a.UDPChecksum
}

// Finish computes the checksums that the address marks as missing and decrements the hop limit of another program's
// packet, in this order, in b, a whole packet (specification: api.md 8). captured means that the packet was received and
// is not new. It fails with ErrHopLimit.
func Finish(b []byte, a *packet.Address, captured bool) error {
	complete(b, a, captured)
	if a.Impostor && !packet.DecrementTTL(b) {
		return ErrHopLimit
	}
	return nil
}
