//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// readable waits until a descriptor is readable, for milliseconds at most.
func readable(t *testing.T, fd, milliseconds int) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, milliseconds)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	}
}

// TestDescriptorOfEverySource: whatever packets come from, the descriptor is readable while there are some, and no wait ends
// for nothing.
func TestDescriptorOfEverySource(t *testing.T) {
	sniff := divert.WithFlags(divert.Sniff | divert.RecvOnly)
	interpreter := divert.WithEngine(divert.EngineInterpreter)
	for _, row := range []struct {
		name string
		opts []divert.Option
	}{
		{"divert", nil},
		{"3 queues", []divert.Option{divert.WithQueues(3)}},
		{"segments", []divert.Option{divert.WithSegments()}},
		{"interpreter", []divert.Option{interpreter}},
		{"copies", []divert.Option{sniff}},
		{"copies, interpreter", []divert.Option{sniff, interpreter}},
	} {
		t.Run(row.name, func(t *testing.T) {
			host, err := lab.NewT(t).AddHost("host")
			if err != nil {
				t.Fatal(err)
			}
			to, err := host.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close()
			var h *handle
			err = host.Do(func() error {
				port := netip.MustParseAddrPort(to.LocalAddr().String()).Port()
				d, err := divert.Open(fmt.Sprintf("outbound and udp.DstPort == %d", port), append(row.opts, engine.DropWaits().(divert.Option))...)
				if err == nil {
					h = newHandle(d)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			fd, result := h.waitable()
			if result != success {
				t.Fatal(result)
			}
			defer unix.Close(fd)
			const flows, each = 8, 40
			seen := make(map[byte]byte) // of each flow, how many packets
			d := delivery{addrs: make([]byte, packet.AddressSize), max: 1, buf: make([]byte, divert.MaxPacket)}
			got, idle := 0, 0
			var conns []interface{ Write([]byte) (int, error) }
			for range flows {
				c, err := host.Dial(t.Context(), "udp", to.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				conns = append(conns, c)
			}
			for n := range each {
				for i, c := range conns {
					if _, err := c.Write([]byte{byte(i), byte(n)}); err != nil {
						t.Fatal(err)
					}
				}
				for want := (n + 1) * flows; got < want; {
					before := got
					if !readable(t, fd, 20000) {
						t.Fatalf("%d packets have come, %d were sent", got, want)
					}
					for {
						d.size, d.count, d.atOnce = 0, 0, false
						if result = h.recvWithin(&d, 0); result != success {
							break
						}
						at := d.buf[d.size-2:]
						if at[1] != seen[at[0]] {
							t.Fatalf("packet %d of flow %d, want %d", at[1], at[0], seen[at[0]])
						}
						seen[at[0]]++
						got++
					}
					if result != timedOut {
						t.Fatalf("receiving fails with %d", result)
					}
					if got == before {
						idle++
					}
				}
				if got > (n+1)*flows {
					t.Fatalf("%d packets have come, %d were sent", got, (n+1)*flows)
				}
			}
			if idle > 0 || readable(t, fd, 0) {
				t.Errorf("%d waits ended for nothing", idle)
			}
			if result := h.shutdown(uint32(divert.ShutdownRecv)); result != success || !readable(t, fd, 20000) {
				t.Errorf("shutdown: %d", result)
			}
			if result := h.recvWithin(&d, 0); result != noData {
				t.Errorf("receiving then: %d", result)
			}
			if result := h.close(); result != success || !readable(t, fd, 0) {
				t.Errorf("close: %d", result)
			}
		})
	}
}
