//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/internal/vectors"
	"github.com/opendivert/divert/packet"
)

// TestVectorEvalBPF runs every row of the packet layers in the kernel. Rows whose buffer is not as long
// as the packet says are compared with the interpreter's strict parser: they match nothing.
func TestVectorEvalBPF(t *testing.T) {
	requireBPF(t)
	type row struct {
		Layer, Filter string
		Packet, Addr  vectors.Bytes
		Match         bool
	}
	skipped, strict, number := 0, 0, 0
	vectors.Run(t, "eval", func(r row) error {
		var a packet.Address
		if err := a.UnmarshalBinary(r.Addr); err != nil {
			return err
		}
		if r.Layer != packet.LayerNetwork.String() && r.Layer != packet.LayerForward.String() {
			return nil
		}
		p, err := progtest.Compile(r.Filter, a.Layer, filter.Strict)
		if err != nil {
			return err
		}
		want := p.MatchExact(r.Packet, &a)
		var parsed packet.Parsed
		if parsed.ParseExact(r.Packet) {
			want = r.Match
		} else {
			strict++
		}
		// A program for one family loads much faster; each eighth row also runs in one for both.
		families := []Family{familyOf(r.Packet), AnyFamily}
		if number++; number%8 != 0 {
			families = families[:1]
		}
		h := hookOf(&a)
		for _, h.Family = range families {
			got, err := evalBPF(p, h, r.Packet)
			if errors.Is(err, errUnrunnable) {
				skipped++
				return nil
			}
			if err != nil || got != want {
				return fmt.Errorf("family %d: got %v, %v, want %v", h.Family, got, err, want)
			}
		}
		return nil
	})
	t.Logf("%d rows with a length that is not the packet's, %d rows too short for BPF_PROG_TEST_RUN", strict, skipped)
}
