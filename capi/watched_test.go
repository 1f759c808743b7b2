//go:build linux && cgo

package main

import (
	"fmt"
	"io"
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

// TestDescriptorOfEverySource: whatever the source of packets, the descriptor is readable while packets wait, and every
// wake-up finds one.
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
			seen := make(map[byte]byte) // number of packets of each flow
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

// TestCutBalances: superpackets that pass a handle again, in pieces, count once.
func TestCutBalances(t *testing.T) {
	for _, row := range []struct {
		name string
		opts []divert.Option
	}{
		{"divert", nil},
		{"2 queues", []divert.Option{divert.WithQueues(2)}},
		{"interpreter", []divert.Option{divert.WithEngine(divert.EngineInterpreter)}},
	} {
		t.Run(row.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			l, err := pair.B.Listen("tcp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			const size = 300_000
			arrived := make(chan int64, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					arrived <- -1
					return
				}
				defer c.Close()
				n, _ := io.Copy(io.Discard, c)
				arrived <- n
			}()
			c, err := pair.A.Dial(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var h *handle
			if err := pair.A.Do(func() error {
				d, err := divert.Open("outbound and tcp", row.opts...)
				if err == nil {
					h = newHandle(d)
					h.cutter = engine.CutterOf(d)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = c.Write(make([]byte, size))
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			big := delivery{buf: make([]byte, divert.MaxPacket), addrs: make([]byte, packet.AddressSize), max: 1}
			if result := h.recv(&big); result != success || big.size <= 1500 {
				t.Fatalf("the first packet: %d, %d bytes", result, big.size)
			}
			_, result := h.send(big.buf[:big.size], big.addrs)
			delivered := uint64(1)
			over := make(chan struct{})
			go func() {
				defer close(over)
				if n := <-arrived; n != size {
					t.Errorf("%d bytes have arrived", n)
				}
				_ = h.shutdown(uint32(divert.ShutdownRecv))
			}()
			small := delivery{buf: make([]byte, 1500), addrs: make([]byte, packet.AddressSize), max: 1}
			for result == success {
				small.size, small.count = 0, 0
				if result = h.recv(&small); result == success {
					delivered++
					_, result = h.send(small.buf[:small.size], small.addrs)
				}
			}
			<-over
			if result != noData {
				t.Errorf("receiving ends with %d", result)
			}
			s, err := h.divert.Stats()
			if err != nil || s.Received != delivered || s.Reinjected != delivered || s.Matched != delivered || s.Waiting != 0 {
				t.Errorf("%d packets were delivered: %+v, %v", delivered, s, err)
			}
			if result := h.close(); result != success {
				t.Errorf("close: %d", result)
			}
		})
	}
}
