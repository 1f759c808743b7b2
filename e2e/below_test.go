//go:build linux

package e2e_test

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestHandlesBelowAStoppedOne: a stopped process with an open handle of higher priority delays no other process that
// opens and closes handles below, and those see every packet.
func TestHandlesBelowAStoppedOne(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		needEngine(t, pair.A, divert.EngineKernel) // with the interpreter all traffic would wait for the stopped process
		startCarrier(t, pair.A, "udp.DstPort == 9").signal(t, syscall.SIGSTOP)
		seeEveryPacket(t, pair, e)
	})
}

// TestHandlesBelowABusyOne: as soon as Open returns, a handle sees all packets that the handle above sends on, however
// busy that is.
func TestHandlesBelowABusyOne(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		above := openAt(t, pair.A, "outbound and udp", e)
		w := passthru(t, above)
		sink, err := pair.B.ListenPacket("udp", net.JoinHostPort(pair.B.Addr4().String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		flood, err := pair.A.Dial(t.Context(), "udp", sink.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			const window = 256 // packets in flight, so that no queue is ever full
			for b := make([]byte, 64); ; {
				for range window {
					_, _ = flood.Write(b)
				}
				for range window {
					if _, _, err := sink.ReadFrom(b); err != nil {
						return
					}
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		seeEveryPacket(t, pair, e)
		close(stop)
		select {
		case <-stopped:
		case <-time.After(20 * time.Second):
			t.Error("a packet of the load was lost")
			sink.Close()
			<-stopped
		}
		flood.Close()
		if finish(t, above, w) == 0 {
			t.Error("the handle above saw nothing")
		}
	})
}

// seeEveryPacket repeatedly opens and closes a handle below others.
func seeEveryPacket(t *testing.T, pair *lab.Pair, e divert.Option) {
	t.Helper()
	echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
	for range 10 {
		below := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", echo.Addr().Port()), e, divert.WithPriority(-1))
		w := passthru(t, below)
		const count = 10
		if x := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: count}); x.Echoed != count {
			t.Errorf("%+v", x)
		}
		if n := finish(t, below, w); n != count {
			t.Errorf("the handle below saw %d of %d packets", n, count)
		}
		if err := below.Close(); err != nil {
			t.Error(err)
		}
	}
}
