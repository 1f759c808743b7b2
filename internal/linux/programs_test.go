//go:build linux

package linux

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// compiled compiles a filter of the layer NETWORK.
func compiled(t testing.TB, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A filter that the kernel refuses in one direction leaves the one before in force in both.
func TestSetFilterThatFailsHalfWayKeepsTheOld(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	var opened engine.Handle
	err := pair.A.Do(func() (err error) {
		opened, err = Open(engine.Config{
			Program: compiled(t, "udp.Payload[0] == 1"), Flags: engine.FlagRecvOnly, Mode: engine.ModeKernel, Queues: 1,
			Limits: engine.Limits{Length: 64, Time: 16 * time.Second, Size: 65535},
		})
		return err
	})
	if errors.Is(err, engine.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()

	a, err := pair.A.ListenPacket("udp", netip.AddrPortFrom(pair.A.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	// matched sends datagrams for either filter both ways, and returns how many of each the handle has got.
	matched := func() (got [2][2]uint64) {
		before, err := opened.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for filter := range 2 {
			for way, c := range []struct{ from, to net.PacketConn }{{a, b}, {b, a}} {
				if _, err := c.from.WriteTo([]byte{byte(filter + 1)}, c.to.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				// Packets that are not captured arrive, and captured ones are counted, whichever comes first.
				s := before
				arrived := make([]byte, 1)
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
					if s, err = opened.Stats(); err != nil || s.Matched > before.Matched {
						break
					}
					_ = c.to.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
					if _, _, err := c.to.ReadFrom(arrived); err == nil {
						break
					}
				}
				got[filter][way] = s.Matched - before.Matched
				before = s
			}
		}
		return got
	}
	old, changed := [2][2]uint64{{1, 1}, {0, 0}}, [2][2]uint64{{0, 0}, {1, 1}}
	if got := matched(); got != old {
		t.Fatalf("the first filter matches %v, want %v", got, old)
	}
	set := setEntry
	defer func() { setEntry = set }()
	refused := errors.New("refused")
	for step := 1; step <= 2; step++ {
		n := 0
		setEntry = func(e *codegen.Entry, p slots) error {
			if n++; n == step {
				return refused
			}
			return set(e, p)
		}
		if err := opened.SetFilter(compiled(t, "udp.Payload[0] == 2")); !errors.Is(err, refused) {
			t.Errorf("step %d: %v", step, err)
		}
		if got := matched(); got != old {
			t.Errorf("after step %d has failed %v match, want %v", step, got, old)
		}
	}
	setEntry = set
	if err := opened.SetFilter(compiled(t, "udp.Payload[0] == 2")); err != nil {
		t.Fatal(err)
	}
	if got := matched(); got != changed {
		t.Errorf("the second filter matches %v, want %v", got, changed)
	}
}
