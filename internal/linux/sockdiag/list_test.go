//go:build linux

package sockdiag

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// diagMessage is a struct inet_diag_msg.
func diagMessage(family, state uint8, local, remote netip.AddrPort, cookie uint64, inode uint32) []byte {
	b := make([]byte, messageSize)
	b[0], b[1] = family, state
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], remote.Port())
	copy(b[8:24], local.Addr().AsSlice())
	copy(b[24:40], remote.Addr().AsSlice())
	ne := binary.NativeEndian
	ne.PutUint32(b[44:], uint32(cookie))
	ne.PutUint32(b[48:], uint32(cookie>>32))
	ne.PutUint32(b[68:], inode)
	return b
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name    string
		message []byte
		want    Socket
		listens bool
	}{
		{"listener", diagMessage(unix.AF_INET, StateListen, netip.MustParseAddrPort("127.0.0.1:80"), netip.MustParseAddrPort("0.0.0.0:0"), 1<<40|3, 5), Socket{
			Family: unix.AF_INET, State: StateListen, Protocol: protoTCP, Inode: 5, Cookie: 1<<40 | 3,
			Local: netip.MustParseAddrPort("[::ffff:127.0.0.1]:80"), Remote: netip.MustParseAddrPort("[::ffff:0.0.0.0]:0"),
		}, true},
		{"IPv6", diagMessage(unix.AF_INET6, StateEstablished, netip.MustParseAddrPort("[fd77::1]:80"), netip.MustParseAddrPort("[fd77::2]:81"), 7, 0), Socket{
			Family: unix.AF_INET6, State: StateEstablished, Protocol: protoTCP, Cookie: 7,
			Local: netip.MustParseAddrPort("[fd77::1]:80"), Remote: netip.MustParseAddrPort("[fd77::2]:81"),
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, ok := parse(tt.message, protoTCP)
			if !ok || s != tt.want || s.Listens() != tt.listens {
				t.Errorf("%v %+v", ok, s)
			}
			if _, ok := parse(tt.message[:len(tt.message)-1], protoTCP); ok {
				t.Error("a message that is cut")
			}
		})
	}
}

// TestList finds a socket of this process, its holder and its description.
func TestList(t *testing.T) {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // a socket of MPTCP is above those that the kernel lists
	l, err := plain.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	said, ok := Describe(int(file.Fd()))
	if !ok {
		t.Fatal("the socket does not describe itself")
	}
	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(s Socket) bool { return s.Cookie == said.Cookie })
	if i < 0 || !list[i].Listens() || list[i].Protocol != said.Protocol || list[i].Local.Port() != uint16(l.Addr().(*net.TCPAddr).Port) {
		t.Fatalf("%+v is not in the list of %d sockets", said, len(list))
	}
	if h := Holders()[list[i].Inode]; h.Process != uint32(os.Getpid()) {
		t.Errorf("%+v holds it, want process %d", h, os.Getpid())
	} else if own, err := os.ReadFile("/proc/self/comm"); err != nil || h.Name()+"\n" != string(own) {
		t.Errorf("its name is %q, want %q, %v", h.Name(), own, err)
	}
	if n := Count(); n == 0 {
		t.Error("no sockets are counted")
	}
	live, err := ListLive()
	if err != nil {
		t.Fatal(err)
	}
	if live.Gone(&packet.FlowData{EndpointID: said.Cookie, Protocol: protoTCP}) || !live.Gone(&packet.FlowData{EndpointID: 1 << 63, Protocol: protoTCP}) {
		t.Error("which sockets live")
	}
}

func TestInUse(t *testing.T) {
	const text = "sockets: used 17\nTCP: inuse 70000 orphan 0 tw 5 alloc 1 mem 227\nUDP: inuse 20 mem 0\nUDPLITE: inuse 3\nRAW: inuse 9\nFRAG: inuse 0 memory 0\n"
	if n := inUse(text); n != 70020 {
		t.Errorf("%d sockets", n)
	}
	if n := inUse("TCP6: inuse 4\nUDP6: inuse x\nTCP: inuse"); n != 4 {
		t.Errorf("%d sockets of IPv6", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(diagMessage(unix.AF_INET6, StateListen, netip.MustParseAddrPort("[::1]:80"), netip.MustParseAddrPort("[::]:0"), 9, 5))
	f.Add(diagMessage(unix.AF_INET, 1, netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:81"), 9, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parse(b, protoTCP); ok && (!s.Local.IsValid() || !s.Remote.IsValid()) {
			t.Errorf("%x: %+v", b, s)
		}
	})
}

func FuzzInUse(f *testing.F) {
	f.Add("TCP: inuse 1 orphan 0\nUDP6: inuse 2\n")
	f.Fuzz(func(t *testing.T, text string) { inUse(text) })
}
