package inject

import (
	"errors"
	"fmt"

	"github.com/opendivert/divert/packet"
)

// NewSegmenter is packet.NewSegmenter for a packet that goes into the stack. If the header of a source route does not tell the
// last address, the checksums of segments cannot be computed: that is ErrNotSegmentable too.
func NewSegmenter(pkt []byte, size int) (s packet.Segmenter, err error) {
	v, err := version(pkt)
	if err != nil {
		return s, err
	}
	if v == 6 {
		c, err := walk(pkt)
		if err != nil {
			return s, err
		}
		if _, _, known := ends(pkt); c.rerouted && !known {
			return s, ErrNotSegmentable
		}
	}
	s, err = packet.NewSegmenter(pkt, size)
	for _, e := range []struct{ from, to error }{{packet.ErrMalformed, ErrMalformed}, {packet.ErrNotSegmentable, ErrNotSegmentable}} {
		if errors.Is(err, e.from) {
			return s, fmt.Errorf("%w: %w", e.to, err)
		}
	}
	return s, err
}
