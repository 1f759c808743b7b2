//go:build linux

package superpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

func TestMain(m *testing.M) { lab.Main(m) }

// openAt opens a tap on a host.
func openAt(t testing.TB, h *lab.Host) *Tap {
	t.Helper()
	var tap *Tap
	if err := h.Do(func() (err error) { tap, err = Open(1 << 20); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	})
	return tap
}

// datagram returns a datagram between other ends than those of the test: they may have been translated.
func datagram(t testing.TB, six bool, payload []byte) []byte {
	t.Helper()
	h := packet.Header{Src: netip.MustParseAddrPort("192.0.2.1:1"), Dst: netip.MustParseAddrPort("192.0.2.2:2")}
	if six {
		h = packet.Header{Src: netip.MustParseAddrPort("[2001:db8::1]:1"), Dst: netip.MustParseAddrPort("[2001:db8::2]:2")}
	}
	b, err := h.AppendUDP(nil, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func payload(n int, first byte) []byte {
	b := slices.Repeat([]byte{7}, n)
	b[0] = first
	return b
}

// TestSizes sends superpackets and plain datagrams, and asks for the sizes of what has come by then.
func TestSizes(t *testing.T) {
	const solUDP, udpSegment = 17, 103
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	there, here := openAt(t, pair.B), openAt(t, pair.A)
	for _, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
		conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		raw, err := from.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for i, row := range []struct {
			payload    []byte
			size, want int
		}{
			{payload(4500, 1), 1000, 1000},
			{payload(2, 2), 1, 1},
			{payload(1001, 3), 1000, 1000},
			{payload(900, 4), 0, 0},
			{payload(4500, 5), 1200, 1200},
			{payload(1200, 6), 400, 400},
			{payload(1200, 6), 0, 0}, // a plain one that begins alike
			{payload(1200, 6), 300, 300},
		} {
			t.Run(fmt.Sprintf("%v/%d", addr, i), func(t *testing.T) {
				var failed error
				if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), solUDP, udpSegment, row.size) }); err != nil || failed != nil {
					t.Skip("no segmentation of UDP here", err, failed)
				}
				if _, err := from.Write(row.payload); err != nil {
					t.Fatal(err)
				}
				for n := 0; n < len(row.payload); { // all of it has come
					conn.SetReadDeadline(time.Now().Add(10 * time.Second))
					got, _, err := conn.ReadFrom(make([]byte, 1<<16))
					if err != nil {
						t.Fatal(err)
					}
					n += got
				}
				b := datagram(t, addr.Is6(), row.payload)
				there.Look()
				if got := there.Size(b); got != row.want {
					t.Errorf("the size is %d, want %d", got, row.want)
				}
				here.Look()
				if got := here.Size(b); got != 0 {
					t.Errorf("the sender's size is %d: it has not come in there", got)
				}
				b[len(b)-len(row.payload)]++ // another payload
				if got := there.Size(b); got != 0 {
					t.Errorf("the size of another is %d", got)
				}
			})
		}
	}
}

// TestFilter: the socket gets datagrams whose checksum is to be finished, and nothing else.
func TestFilter(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	out, err := pair.LinkA.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var fd int
	if err := pair.B.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(listen(fd, 1<<20), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	unfinish := func(b []byte) []byte {
		var p packet.Parsed
		p.Parse(b)
		binary.BigEndian.PutUint16(b[p.UDPOff+6:], p.PseudoHeaderSum(b))
		return b
	}
	var sent [][]byte // in order; of those that are to come the payload begins with 1
	for _, six := range []bool{false, true} {
		for n := range 300 { // with sums of all kinds
			yes := datagram(t, six, payload(n+1, 1))
			binary.BigEndian.PutUint16(yes[len(yes)-n-1-packet.UDPHeaderLen:], uint16(n*211))
			sent = append(sent, datagram(t, six, payload(n+1, 2)), unfinish(yes))
		}
	}
	fragment := unfinish(datagram(t, false, payload(64, 3)))
	fragment[6] = 0x20
	dontFragment := datagram(t, false, payload(64, 1))
	dontFragment[6] = 0x40
	tcp := unfinish(datagram(t, false, payload(64, 4)))
	tcp[9] = packet.ProtocolTCP
	options := unfinish(datagram(t, true, payload(64, 5)))
	options[6] = packet.ProtocolDestOptions
	last := unfinish(datagram(t, false, payload(64, 1)))
	sent = append(sent, fragment, unfinish(dontFragment), tcp, options, last)
	var want [][]byte
	for _, b := range sent {
		protocol, first := []byte{8, 0}, packet.IPv4HeaderLen+packet.UDPHeaderLen
		if b[0]>>4 == 6 {
			protocol, first = []byte{0x86, 0xDD}, packet.IPv6HeaderLen+packet.UDPHeaderLen
		}
		frame := slices.Concat(pair.LinkB.MAC(), pair.LinkA.MAC(), net.HardwareAddr(protocol), b)
		if err := out.Send(frame); err != nil {
			t.Fatal(err)
		}
		if b[first] == 1 {
			want = append(want, frame[:min(len(frame), snap)])
		}
	}
	for i, w := range want {
		b := make([]byte, 1<<16)
		n, err := unix.Read(fd, b)
		if err != nil || n < headerLen || !slices.Equal(b[headerLen:n], w) {
			t.Fatalf("packet %d of %d: %x, %v, want %x", i, len(want), b[:max(n, 0)], err, w)
		}
	}
}

// TestForgets: a tap remembers the latest superpackets, and a bounded number.
func TestForgets(t *testing.T) {
	tap := &Tap{sizes: [2]map[uint64]uint16{{}, {}}}
	tap.seed = maphash.MakeSeed()
	record := make([]byte, headerLen+snap)
	record[0], record[1] = needsChecksum, gsoUDP
	for i := range uint32(5 * maxSizes) {
		binary.NativeEndian.PutUint16(record[4:], uint16(i%1000+1))
		binary.BigEndian.PutUint32(record[headerLen+packet.UDPHeaderLen:], i)
		tap.take(record)
		if n := len(tap.sizes[0]) + len(tap.sizes[1]); n > 2*maxSizes {
			t.Fatalf("%d sizes", n)
		}
	}
	for i := range uint32(5 * maxSizes) {
		binary.BigEndian.PutUint32(record[headerLen+packet.UDPHeaderLen:], i)
		got, known := tap.sizes[1][tap.key(record[headerLen:])]
		if !known {
			got, known = tap.sizes[0][tap.key(record[headerLen:])]
		}
		if recent := i >= 4*maxSizes; recent && got != uint16(i%1000+1) || i < 3*maxSizes && known {
			t.Fatalf("size of %d: %d, %v", i, got, known)
		}
	}
}

func TestOpenWithoutRights(t *testing.T) {
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		return lab.WithoutRights(func() error {
			tap, err := Open(1 << 16)
			if err == nil {
				err = errors.Join(errors.New("opened"), tap.Close())
			}
			return err
		})
	})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v, want os.ErrPermission", err)
	}
}

// FuzzTake takes in whatever a packet socket may say, and looks it up.
func FuzzTake(f *testing.F) {
	f.Add([]byte{needsChecksum, gsoUDP, 0, 0, 0, 4, 20, 0, 6, 0, 1, 2, 3})
	f.Add(append([]byte{needsChecksum, gsoUDP, 0, 0, 0, 4, 0, 0, 6, 0}, make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		tap := &Tap{seed: maphash.MakeSeed(), sizes: [2]map[uint64]uint16{{}, {}}}
		tap.take(b)
		tap.Size(b)
		if n := len(tap.sizes[1]); n > 1 || n == 1 && len(b) < headerLen+packet.UDPHeaderLen {
			t.Errorf("%d sizes of %d bytes", n, len(b))
		}
	})
}
