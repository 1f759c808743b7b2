//go:build linux

package capture

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/inject"
	"github.com/opendivert/divert/packet"
)

// pieces cuts the copy of a superpacket into the packets that the network gets, as the kernel does it.
type pieces struct {
	left      bool
	whole     []byte
	longest   int // of a piece, in bytes
	segmenter packet.Segmenter
	record    codegen.Record
	decided   bool // the filter has decided on the whole
}

// begin takes a superpacket with segments of size bytes of payload, and reports whether it can be cut. That is so with
// TCP, and with UDP whose checksum is still to be finished: then its datagrams, and not those in a tunnel, are the segments.
func (c *pieces) begin(b []byte, size int) bool {
	var p packet.Parsed
	if !p.ParseExact(b) || p.UDPOff >= 0 && !engine.Unfinished(b) {
		return false
	}
	whole := append(c.whole[:0], b...)
	s, err := inject.NewSegmenter(whole, size)
	if err != nil {
		return false
	}
	*c = pieces{left: true, whole: whole, segmenter: s, longest: min(int(p.HeaderLen)+size, len(b))}
	return true
}

// next makes the next piece, if one is left.
func (c *pieces) next(p *packet.Packet) bool {
	n := c.segmenter.Next(p.Buffer(c.longest)[:c.longest])
	c.left = n > 0
	p.Data = p.Buffer(c.longest)[:n]
	return c.left
}
