//go:build linux

package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// chainLengths are how many extension headers the packets of TestExtensionHeadersHideNothing have.
var chainLengths = []int{0, 1, 64, 65, 100, 150, 170}

// TestExtensionHeadersHideNothing sends datagrams behind chains of extension headers past a handle, on both ways. Real sockets
// receive them: one at a port that the filter names, one at another. The length of a chain must not change which of them
// receives a datagram.
func TestExtensionHeadersHideNothing(t *testing.T) {
	for _, e := range []struct {
		name    string
		mode    engine.Mode
		bounded bool
	}{
		{"kernel", engine.ModeKernel, false},
		{"kernel without loops", engine.ModeKernel, true},
		{"interpreter", engine.ModeInterpret, false},
	} {
		for _, inbound := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, inbound %v", e.name, inbound), func(t *testing.T) {
				if e.mode == engine.ModeKernel {
					needPrograms(t)
				}
				before := review.Bounded
				defer func() { review.Bounded = before }()
				review.Bounded = func() bool { return e.bounded }
				chainsPast(t, e.mode, inbound)
			})
		}
	}
}

// needPrograms skips where programs cannot be loaded.
func needPrograms(t *testing.T) {
	t.Helper()
	if err := probe(); err != nil {
		t.Skipf("no eBPF here: %v", err)
	}
}

// chainsPast is the test of an engine and a direction.
func chainsPast(t *testing.T, mode engine.Mode, inbound bool) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	from, to := pair.A, pair.B
	if inbound {
		from, to = to, from
	}
	named, other := listenUDP6(t, to), listenUDP6(t, to)
	port := named.LocalAddr().(*net.UDPAddr).Port
	for _, action := range []struct {
		name  string
		flags uint64
	}{{"divert", 0}, {"sniff", engine.FlagSniff}, {"drop", engine.FlagDrop}} {
		cfg := engine.Config{
			Program: program(t, fmt.Sprintf("udp.DstPort == %d", port)), Flags: action.flags, Mode: mode, Queues: 1,
			Limits: engine.Limits{Length: 64, Time: time.Second, Size: 1 << 20},
		}
		h := openOn(t, pair.A, cfg)
		for _, n := range chainLengths {
			sendRaw(t, from, chained(from.Addr6(), to.Addr6(), port, n))
			sendRaw(t, from, chained(from.Addr6(), to.Addr6(), other.LocalAddr().(*net.UDPAddr).Port, n))
		}
		want := chainLengths
		if action.flags&engine.FlagDrop == 0 {
			if got := receiveChains(t, h, len(want), action.flags == 0); !slices.Equal(got, want) {
				t.Errorf("%s: received %v, want %v", action.name, got, want)
			}
		} else {
			want = nil
		}
		// Datagrams do not overtake each other on this way: when the other socket has its last one, this one has all that it will
		// get. A bounded program that drops also drops packets that it cannot decide on.
		rest := chainLengths
		if action.flags&engine.FlagDrop != 0 && mode == engine.ModeKernel && review.Bounded() {
			rest = []int{0, 1, 64}
		}
		if got := arrived(t, other, len(rest)); !slices.Equal(got, rest) {
			t.Errorf("%s: at the other port arrived %v, want %v", action.name, got, rest)
		}
		if got := arrived(t, named, len(want)); !slices.Equal(got, want) {
			t.Errorf("%s: arrived %v, want %v", action.name, got, want)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func program(t testing.TB, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openOn opens a handle in the namespace of a host.
func openOn(t testing.TB, host *lab.Host, cfg engine.Config) (h engine.Handle) {
	t.Helper()
	if err := host.Do(func() (err error) {
		h, err = Open(cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return h
}

// patience returns a Wait that ends a handle's receive calls after a time, or with the test.
func patience(t testing.TB, h engine.Handle, d time.Duration) engine.Wait {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	context.AfterFunc(ctx, h.Wake)
	return engine.Wait{Context: ctx.Done()}
}

func listenUDP6(t testing.TB, host *lab.Host) net.PacketConn {
	t.Helper()
	c, err := host.ListenPacket("udp6", netip.AddrPortFrom(host.Addr6(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// chained makes a datagram behind n headers with destination options, whose payload is that number.
func chained(src, dst netip.Addr, port, n int) []byte {
	b := make([]byte, packet.IPv6HeaderLen)
	b[0], b[6], b[7] = 0x60, packet.ProtocolUDP, 64
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	for i := range n {
		if i == 0 {
			b[6] = packet.ProtocolDestOptions
		}
		next := byte(packet.ProtocolDestOptions)
		if i == n-1 {
			next = packet.ProtocolUDP
		}
		b = append(b, next, 0, 1, 4, 0, 0, 0, 0) // PadN of 6 bytes
	}
	payload := fmt.Sprint(n)
	be := binary.BigEndian
	b = be.AppendUint16(b, 4000)
	b = be.AppendUint16(b, uint16(port))
	b = be.AppendUint16(b, uint16(packet.UDPHeaderLen+len(payload)))
	b = append(be.AppendUint16(b, 0), payload...)
	be.PutUint16(b[4:], uint16(len(b)-packet.IPv6HeaderLen))
	packet.CalcChecksums(b, nil, 0)
	return b
}

// sendRaw sends a packet of IPv6 as it is.
func sendRaw(t testing.TB, from *lab.Host, b []byte) {
	t.Helper()
	err := from.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b, 0, &unix.SockaddrInet6{Addr: [16]byte(b[24:40])})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// receiveChains receives n packets from a handle, lets them go on if that is wanted, and returns the numbers in them.
func receiveChains(t testing.TB, h engine.Handle, n int, accept bool) (numbers []int) {
	t.Helper()
	wait := patience(t, h, 10*time.Second)
	for len(numbers) < n {
		ps := make([]packet.Packet, n)
		got, err := h.Recv(wait, ps)
		if err != nil {
			t.Errorf("after %v: %v", numbers, err)
			return numbers
		}
		for i := range ps[:got] {
			numbers = append(numbers, numberIn(ps[i].Data))
		}
		if accept {
			if _, err := h.Accept(ps[:got]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return numbers
}

// numberIn reads the number in the payload of a packet of chained.
func numberIn(b []byte) (n int) {
	var p packet.Parsed
	p.Parse(b)
	fmt.Sscan(string(p.Payload(b)), &n)
	return n
}

// arrived receives n datagrams, and any others that are there.
func arrived(t testing.TB, c net.PacketConn, n int) (numbers []int) {
	t.Helper()
	buf := make([]byte, 100)
	for {
		wait := 10 * time.Second
		if len(numbers) >= n {
			wait = 10 * time.Millisecond
		}
		c.SetReadDeadline(time.Now().Add(wait))
		got, _, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return numbers
		}
		if err != nil {
			t.Fatal(err)
		}
		var number int
		fmt.Sscan(string(buf[:got]), &number)
		numbers = append(numbers, number)
	}
}

// TestExtensionHeadersHideNoPeer refuses the first datagram of a peer, which comes behind a chain of extension headers.
func TestExtensionHeadersHideNoPeer(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, n := range []int{0, 1, 2, 64, 65, 170} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			refused, other := listenUDP6(t, pair.A), listenUDP6(t, pair.A)
			port := refused.LocalAddr().(*net.UDPAddr).Port
			p, err := progtest.Compile(fmt.Sprintf("event == ACCEPT and localPort == %d", port), packet.LayerSocket, filter.Extended)
			if err != nil {
				t.Fatal(err)
			}
			var h engine.Handle
			err = pair.A.Do(func() (err error) {
				h, err = Open(engine.Config{
					Program: p, Flags: engine.FlagRecvOnly, Queues: 1, Limits: engine.Limits{Length: 64, Time: time.Second, Size: 1 << 20},
				})
				return err
			})
			if errors.Is(err, engine.ErrNotSupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			sendRaw(t, pair.B, chained(pair.B.Addr6(), pair.A.Addr6(), port, n))
			sendRaw(t, pair.B, chained(pair.B.Addr6(), pair.A.Addr6(), other.LocalAddr().(*net.UDPAddr).Port, min(n, 64)))
			if got := arrived(t, other, 1); len(got) != 1 {
				t.Errorf("at the other port arrived %v", got)
			}
			if got := arrived(t, refused, 0); len(got) != 0 {
				t.Errorf("arrived %v", got)
			}
		})
	}
}
