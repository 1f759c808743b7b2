//go:build linux

package e2e_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestDropDecidesOnWhatCameBeforeItEnded ends dropping handles right after a burst, while most of its packets are still
// undecided. The burst arrived while the handle dropped, so every packet must be dropped and counted. Came from a bug:
// the interpreter let 127 of 300 datagrams go on.
func TestDropDecidesOnWhatCameBeforeItEnded(t *testing.T) {
	t.Parallel()
	const sockets, writes, size = 8, 250, 10
	ends := []struct {
		name string
		end  func(*divert.Handle) error
	}{
		{"closed", (*divert.Handle).Close},
		{"shut down", func(d *divert.Handle) error { return d.Shutdown(divert.ShutdownBoth) }},
	}
	bursts := []struct {
		name, filter string
		datagrams    int // of each write
	}{
		{"single", "udp.DstPort == %d", 1},
		{"segments", "udp.DstPort == %d and udp.PayloadLength == 10", 5}, // programs leave them to the handle
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, burst := range bursts {
			for _, end := range ends {
				t.Run(burst.name+"/"+end.name, func(t *testing.T) {
					conn, err := pair.B.ListenPacket("udp", net.JoinHostPort(pair.B.Addr4().String(), "0"))
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					// Waiting packets count against the socket that sent them: it takes several sockets to have many waiting.
					var senders []net.Conn
					for range sockets {
						senders = append(senders, dialSegmented(t, pair.A, conn.LocalAddr(), size))
					}
					d := openAt(t, pair.A, "outbound and "+fmt.Sprintf(burst.filter, addrPort(conn).Port()), divert.WithFlags(divert.Drop), e)
					b := make([]byte, size*burst.datagrams)
					for i := range sockets * writes {
						if _, err := senders[i%sockets].Write(b); err != nil {
							t.Fatal(err)
						}
					}
					if err := end.end(d); err != nil {
						t.Fatal(err)
					}
					if _, err := senders[0].Write([]byte("last")); err != nil {
						t.Fatal(err)
					}
					got := arrivals(t, conn, 1)
					if len(got) != 1 || got[0] != "last" {
						t.Errorf("%d datagrams arrived, want only the last", len(got))
					}
					// An ordinary user's queue has no room for them all.
					s, want := quiet(t, d), sockets*writes*uint64(burst.datagrams)
					if s.Dropped+s.DroppedFull != want || s.Matched != want {
						t.Errorf("counters %+v, want %d dropped", s, want)
					}
				})
			}
		}
	})
}
