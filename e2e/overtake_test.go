//go:build linux

package e2e_test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestMatchesDoNotOvertake sends datagrams, every third of which matches and is accepted at once. It may not arrive
// before an earlier one that does not match.
func TestMatchesDoNotOvertake(t *testing.T) {
	t.Parallel()
	const n = 3000
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, row := range []struct {
			name string
			at   *lab.Host
		}{{"outbound", pair.A}, {"inbound", pair.B}} {
			t.Run(row.name, func(t *testing.T) {
				conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				d := openAt(t, row.at, "udp.PayloadLength == 7", e)
				w := batches(t, d, func(ps []divert.Packet) (int, error) { return d.AcceptBatch(ps) })
				from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer from.Close()
				var arrived [n]bool
				buf := make([]byte, 100)
				first := 0 // the next datagram to arrive that does not match
				for sent := 0; sent < n; {
					for range 30 {
						size := 6
						if sent%3 == 2 {
							size = 7 // matches
						}
						if _, err := from.Write(append(strconv.AppendInt(nil, int64(10000+sent), 10), "abcdef"[:size-5]...)); err != nil {
							t.Fatal(err)
						}
						sent++
					}
					for range 30 {
						conn.SetReadDeadline(time.Now().Add(5 * time.Second))
						got, _, err := conn.ReadFrom(buf)
						if err != nil {
							t.Fatal(err)
						}
						i, err := strconv.Atoi(string(buf[:5]))
						if err != nil {
							t.Fatal(err)
						}
						arrived[i-10000] = true
						for first < n && (arrived[first] || first%3 == 2) {
							first++
						}
						if got == 7 && first < i-10000 {
							t.Errorf("datagram %d, which matches, arrived before %d", i-10000, first)
						}
					}
				}
				if got := finish(t, d, w); got != n/3 {
					t.Errorf("%d datagrams received, want %d", got, n/3)
				}
			})
		}
	})
}
