package addrtext

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/opendivert/divert/internal/vectors"
)

func TestVectorAddresses(t *testing.T) {
	type row struct {
		Family  int
		Text    *string
		OK      bool
		Value   vectors.Bytes
		TextOut string `json:"text_out"`
	}
	vectors.Run(t, "addresses", func(r row) error {
		want, ok := wordsOfBytes(r.Value)
		if r.Text == nil { // formatting
			got := FormatIPv6(want)
			if r.Family == 4 {
				got = FormatIPv4(want[0])
			}
			if !ok || got != r.TextOut {
				return fmt.Errorf("formatted %q, want %q", got, r.TextOut)
			}
			return nil
		}
		if ok != r.OK {
			return fmt.Errorf("a value of %d bytes", len(r.Value))
		}
		var got Words
		if r.Family == 4 {
			got[0], ok = ParseIPv4(*r.Text)
		} else {
			got, ok = ParseIPv6(*r.Text)
		}
		if ok != r.OK || got != want {
			return fmt.Errorf("parsed %08x, %v, want %08x", [4]uint32(got), ok, [4]uint32(want))
		}
		return nil
	})
}

// wordsOfBytes reads an address of 4 or 16 bytes in network order.
func wordsOfBytes(b []byte) (w Words, ok bool) {
	if len(b) != 4 && len(b) != 16 {
		return w, false
	}
	for i := range len(b) / 4 {
		w[i] = binary.BigEndian.Uint32(b[len(b)-4*i-4:])
	}
	return w, true
}
