//go:build linux

package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// TestBigTCPIsSeen sniffs a transfer of packets that are too long for the length field of their headers, which is 0 then.
func TestBigTCPIsSeen(t *testing.T) {
	needPrograms(t)
	for _, six := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", six), func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			for _, l := range []*lab.Link{pair.LinkA, pair.LinkB} {
				longSegments(t, l)
			}
			h := openOn(t, pair.A, engine.Config{
				Program: program(t, "outbound and tcp.PayloadLength > 1000"), Flags: engine.FlagSniff, Mode: engine.ModeKernel, Queues: 1,
				Limits: engine.Limits{Length: 4096, Time: 10 * time.Second, Size: 4 << 20}, Snap: 100,
			})
			to := pair.B.Addr4()
			if six {
				to = pair.B.Addr6()
			}
			// TCP decides how long packets get: receive until one is long.
			seen, wait := make(chan error, 1), patience(t, h, 30*time.Second)
			go func() { seen <- receiveLong(h, wait, six) }()
			for {
				if _, err := lab.TransferTCP(t.Context(), pair.A, pair.B, netip.AddrPortFrom(to, 0), 20<<20, 7); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-seen:
					if err != nil {
						t.Fatal("no long packet among those that were seen:", err)
					}
					return
				default:
				}
			}
		})
	}
}

// receiveLong receives until a packet's header cannot tell its length.
func receiveLong(h engine.Handle, w engine.Wait, six bool) error {
	ps := make([]packet.Packet, 64)
	for {
		n, err := h.Recv(w, ps)
		if err != nil {
			return err
		}
		for i := range ps[:n] {
			b := ps[i].Data
			if !six && binary.BigEndian.Uint16(b[2:]) == 0 || six && binary.BigEndian.Uint16(b[4:]) == 0 {
				return nil
			}
		}
	}
}

// longSegments lets TCP hand packets of up to 180,000 bytes to a link, or skips.
func longSegments(t *testing.T, l *lab.Link) {
	t.Helper()
	nl, err := l.Host().Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	link, err := nl.LinkByName(l.Name())
	if err == nil {
		const most = 180_000
		err = errors.Join(nl.LinkSetGSOMaxSize(link, most), nl.LinkSetGSOIPv4MaxSize(link, most))
	}
	if err != nil {
		t.Skipf("no BIG TCP here: %v", err)
	}
	// Whatever round trip TCP has seen: a long one, as on a busy machine, would make packets shorter.
	if err := l.Host().Sysctl("net.ipv4.tcp_tso_rtt_log", "30"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestBigTCPIsAccepted diverts such a transfer and lets it go on: a packet comes cut, and goes on whole.
func TestBigTCPIsAccepted(t *testing.T) {
	needPrograms(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, l := range []*lab.Link{pair.LinkA, pair.LinkB} {
		longSegments(t, l)
	}
	h := openOn(t, pair.A, engine.Config{
		Program: program(t, "outbound and tcp"), Mode: engine.ModeKernel, Queues: 1,
		Limits: engine.Limits{Length: 4096, Time: 10 * time.Second, Size: 4 << 20},
	})
	done := make(chan error, 1)
	go func() {
		ps := make([]packet.Packet, 64)
		for {
			n, err := h.Recv(engine.Wait{}, ps)
			if err == nil {
				_, err = h.Accept(ps[:n])
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	if _, err := lab.TransferTCP(t.Context(), pair.A, pair.B, netip.AddrPortFrom(pair.B.Addr6(), 0), 20<<20, 7); err != nil {
		t.Fatal(err)
	}
	s, err := h.Stats()
	if err != nil || s.Dropped+s.DroppedLong+s.DroppedFull != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Error(err)
	}
	if err := <-done; err != io.EOF {
		t.Error(err)
	}
}
