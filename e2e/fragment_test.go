//go:build linux

package e2e_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// fragmentOfIPv6 makes a fragment. extensions are the headers that every fragment carries, offset is in units of 8
// bytes, more says whether more fragments follow.
func fragmentOfIPv6(src, dst string, extensions []byte, first byte, offset uint16, more bool, payload []byte) []byte {
	b := make([]byte, packet.IPv6HeaderLen)
	b[0], b[7] = 0x60, 64
	b[6] = 44
	if len(extensions) > 0 {
		b[6] = first
	}
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	b = append(b, extensions...)
	place := offset << 3
	if more {
		place |= 1
	}
	b = append(b, packet.ProtocolUDP, 0, byte(place>>8), byte(place), 0, 0, 0x12, 0x34)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-packet.IPv6HeaderLen))
	return b
}

// TestInjectedFragmentsOfIPv6: each kind of fragment, alone, leaves unchanged, and a handle below sees it so.
func TestInjectedFragmentsOfIPv6(t *testing.T) {
	t.Parallel()
	options := []byte{44, 0, 1, 4, 0, 0, 0, 0} // padding; a fragment header follows
	rows := []struct {
		name       string
		extensions []byte
		first      byte
		offset     uint16
		more       bool
		length     int
	}{
		{"first", nil, 0, 0, true, 64},
		{"middle", nil, 0, 8, true, 64},
		{"last", nil, 0, 16, false, 61},
		{"atomic", nil, 0, 0, false, 64},
		{"first, behind hop-by-hop options", options, 0, 0, true, 64},
		{"middle, behind destination options", options, 60, 8, true, 64},
		{"last, behind hop-by-hop options", options, 0, 16, false, 3},
		{"atomic, behind destination options", options, 60, 0, false, 64},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, flags := range []divert.Flag{0, divert.Sniff, divert.Fragments, divert.Sniff | divert.Fragments} {
			t.Run(flags.String(), func(t *testing.T) {
				wire := captureOf(t, pair.LinkB)
				for _, row := range rows {
					b := fragmentOfIPv6(pair.A.Addr6().String(), pair.B.Addr6().String(), row.extensions, row.first, row.offset, row.more, make([]byte, row.length))
					low := openAt(t, pair.A, "outbound and fragment", e, divert.WithPriority(-1), divert.WithFlags(flags))
					var seen []string
					w := each(t, low, func(p *divert.Packet) {
						seen = append(seen, fmt.Sprintf("%x", p.Data))
						if flags&divert.Sniff == 0 {
							if err := low.Accept(p); err != nil {
								t.Error(err)
							}
						}
					})
					d := openAt(t, pair.A, "false", e)
					if err := d.Send(&divert.Packet{Data: b, Addr: divert.Address{Outbound: true, IPv6: true}}); err != nil {
						t.Errorf("%s: %v", row.name, err)
						continue
					}
					wire(row.name, b)
					finish(t, low, w)
					if want := []string{fmt.Sprintf("%x", b)}; fmt.Sprint(seen) != fmt.Sprint(want) {
						t.Errorf("%s: the handle below saw %q, want %q", row.name, seen, want)
					}
					for _, h := range []*divert.Handle{low, d} {
						if err := h.Close(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
	})
}

// captureOf returns a function that waits for a packet on a link.
func captureOf(t *testing.T, l *lab.Link) func(name string, want []byte) {
	t.Helper()
	c, err := l.Capture()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func(name string, want []byte) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.NextMatch(ctx, func(f lab.Frame) bool { return len(f.Data) > 14 && string(f.Data[14:]) == string(want) }); err != nil {
			t.Errorf("%s: not on the link as it was sent: %v", name, err)
		}
	}
}
