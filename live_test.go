//go:build linux

package divert_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// openAt opens a handle in a host's namespace and closes it when the test ends.
func openAt(t testing.TB, h *lab.Host, text string, opts ...divert.Option) *divert.Handle {
	t.Helper()
	var d *divert.Handle
	if err := h.Do(func() (err error) {
		d, err = divert.Open(text, opts...)
		return err
	}); err != nil {
		t.Fatalf("open %q on %v: %v", text, h, err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("close %q: %v", text, err)
		}
	})
	return d
}

// passthru accepts every packet until the handle is closed.
func passthru(t testing.TB, d *divert.Handle) (done <-chan int) {
	t.Helper()
	total := make(chan int, 1)
	go func() {
		ps := make([]divert.Packet, 64)
		count := 0
		for {
			n, err := d.RecvBatch(ps)
			if err != nil {
				total <- count
				return
			}
			count += n
			if _, err := d.AcceptBatch(ps[:n]); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept: %v", err)
			}
		}
	}()
	return total
}

var engines = []struct {
	name string
	opt  divert.Option
}{
	{"kernel", divert.WithEngine(divert.EngineKernel)},
	{"interpreter", divert.WithEngine(divert.EngineInterpreter)},
}

func TestSmoke(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			echo, err := pair.B.Echo("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			d := openAt(t, pair.A, "udp", e.opt)
			total := passthru(t, d)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r, err := lab.ExchangeUDP(ctx, pair.A, echo.Addr(), lab.Exchange{Count: 100, Size: 500, Wait: time.Second, Seed: 1})
			s, _ := d.Stats()
			t.Logf("%+v %v stats %+v", r, err, s)
			d.Close()
			if n := <-total; n != 200 || r.Echoed != 100 {
				t.Errorf("%d packets diverted, %d echoed", n, r.Echoed)
			}
		})
	}
}
