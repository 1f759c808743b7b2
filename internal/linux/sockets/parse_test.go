//go:build linux

package sockets

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/packet"
)

func TestRecord(t *testing.T) {
	b := make([]byte, codegen.EventSize)
	ne := binary.NativeEndian
	ne.PutUint64(b[codegen.EventTime:], 5)
	ne.PutUint64(b[codegen.EventEndpoint:], 6)
	ne.PutUint64(b[codegen.EventParent:], 7)
	putAddr(b[codegen.EventLocal:], netip.MustParseAddr("10.0.0.1"))
	putAddr(b[codegen.EventRemote:], netip.MustParseAddr("fd77::2"))
	ne.PutUint32(b[codegen.EventProcess:], 8)
	ne.PutUint16(b[codegen.EventLocalPort:], 9)
	ne.PutUint16(b[codegen.EventRemotePort:], 10)
	b[codegen.EventProtocol], b[codegen.EventLoopback], b[codegen.EventKind] = 6, 1, byte(packet.EventSocketAccept)
	ne.PutUint32(b[codegen.EventFlags:], flagRefused|flagDestroy|flagPassive)
	var r Record
	if !r.parse(b) {
		t.Fatal("no record")
	}
	want := Record{Time: 5, Event: packet.EventSocketAccept, Loopback: true, Inbound: true, Refused: true, Destroy: true, Data: packet.FlowData{
		EndpointID: 6, ParentEndpointID: 7, ProcessID: 8, LocalPort: 9, RemotePort: 10, Protocol: 6,
		LocalAddr: netip.MustParseAddr("::ffff:10.0.0.1"), RemoteAddr: netip.MustParseAddr("fd77::2"),
	}}
	if r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
	if r.parse(b[:len(b)-1]) {
		t.Error("a record that is cut")
	}
}

// TestRecordKeyIsTheKernels compares the key of a flow with the layout that programs use.
func TestRecordKeyIsTheKernels(t *testing.T) {
	r := Record{Data: packet.FlowData{
		EndpointID: 6, LocalAddr: netip.MustParseAddr("::ffff:10.0.0.1"), RemoteAddr: netip.MustParseAddr("fd77::2"),
		LocalPort: 9, RemotePort: 10, Protocol: 17,
	}}
	var want []byte
	ne := binary.NativeEndian
	for _, v := range []uint64{6, 0, 0xFFFF0A000001, 0xFD77 << 48, 2} {
		want = ne.AppendUint64(want, v)
	}
	want = ne.AppendUint16(ne.AppendUint16(want, 9), 10)
	want = ne.AppendUint32(want, 17)
	if got := r.key(); string(got[:]) != string(want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// diagMessage is a struct inet_diag_msg.
func diagMessage(family, state uint8, local, remote netip.AddrPort, cookie uint64, inode uint32) []byte {
	b := make([]byte, diagSize)
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

func TestOlderSockets(t *testing.T) {
	owners := map[uint32]uint32{5: 77}
	for _, tt := range []struct {
		name          string
		message       []byte
		local, remote string
		flags         [2]byte // of IPv6, loopback
		listens       bool
	}{
		{"listener", diagMessage(unix.AF_INET, stateListen, netip.MustParseAddrPort("127.0.0.1:80"), netip.MustParseAddrPort("0.0.0.0:0"), 1<<40|3, 5),
			"::ffff:127.0.0.1", "::", [2]byte{0, 1}, true},
		{"connection", diagMessage(unix.AF_INET, 1, netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:81"), 1<<40|3, 5),
			"::ffff:10.0.0.1", "::ffff:10.0.0.2", [2]byte{0, 0}, false},
		{"IPv6", diagMessage(unix.AF_INET6, stateListen, netip.MustParseAddrPort("[::]:80"), netip.MustParseAddrPort("[::]:0"), 1<<40|3, 5),
			"::", "::", [2]byte{1, 0}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, ok := parseOlder(tt.message, protoTCP, owners)
			if !ok || o.endpoint != 1<<40|3 || o.listens != tt.listens {
				t.Fatalf("%v %+v", ok, o)
			}
			var r Record
			if !r.parse(append(make([]byte, codegen.EventEndpoint), o.body[:]...)) {
				t.Fatal("no record")
			}
			if r.Data.LocalAddr.String() != tt.local || r.Data.RemoteAddr.String() != tt.remote || r.Data.ProcessID != 77 ||
				r.Data.LocalPort != 80 || r.IPv6 != (tt.flags[0] == 1) || r.Loopback != (tt.flags[1] == 1) {
				t.Errorf("%+v", r)
			}
		})
	}
	if _, ok := parseOlder(diagMessage(unix.AF_INET, 1, netip.AddrPort{}, netip.AddrPort{}, 1, 6), protoTCP, owners); ok {
		t.Error("a socket of nobody")
	}
}

func TestProgramNames(t *testing.T) {
	for _, k := range []cursor.Key{cursor.NewKey(-30000, 0), cursor.NewKey(0, 3), cursor.NewKey(30000, 255)} {
		name := programName(k)
		if got, ok := parseProgramName(name); len(name) > 15 || !ok || got != k {
			t.Errorf("%q: %v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "divert_probe", "divert_", "divert_00000g", "divert_0000001", "other_000001"} {
		if k, ok := parseProgramName(name); ok {
			t.Errorf("%q is %v", name, k)
		}
	}
}

func TestDiagRequest(t *testing.T) {
	b := diagRequest(&packet.FlowData{
		EndpointID: 1<<40 | 3, Protocol: 6, LocalPort: 0x5051, RemotePort: 0x5253,
		LocalAddr: netip.MustParseAddr("::ffff:10.0.0.1"), RemoteAddr: netip.MustParseAddr("10.0.0.2"),
	})
	want := make([]byte, diagRequestSize)
	want[0], want[1] = unix.AF_INET, 6
	copy(want[4:], []byte{255, 255, 255, 255, 0x50, 0x51, 0x52, 0x53, 10, 0, 0, 1})
	copy(want[28:], []byte{10, 0, 0, 2})
	binary.NativeEndian.PutUint32(want[48:], 3)
	binary.NativeEndian.PutUint32(want[52:], 1<<8)
	if string(b[:]) != string(want) {
		t.Errorf("%x\n%x", b, want)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(make([]byte, codegen.EventSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Record
		if r.parse(b) && (len(b) < codegen.EventSize || r.Event >= packet.NumEvents) {
			t.Errorf("%x: %+v", b, r)
		}
	})
}

func FuzzOlderSocket(f *testing.F) {
	f.Add(diagMessage(unix.AF_INET6, stateListen, netip.MustParseAddrPort("[::1]:80"), netip.MustParseAddrPort("[::]:0"), 9, 5))
	f.Add(diagMessage(unix.AF_INET, 1, netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:81"), 9, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, ok := parseOlder(b, protoTCP, map[uint32]uint32{5: 7}); ok {
			var r Record
			if !r.parse(append(make([]byte, codegen.EventEndpoint), o.body[:]...)) || r.Data.EndpointID != o.endpoint {
				t.Errorf("%x: %+v", b, o)
			}
		}
	})
}

// TestRoomForOlderSockets counts the sockets that there are before they are listed.
func TestRoomForOlderSockets(t *testing.T) {
	const text = "sockets: used 17\nTCP: inuse 70000 orphan 0 tw 5 alloc 1 mem 227\nUDP: inuse 20 mem 0\nUDPLITE: inuse 3\nRAW: inuse 9\nFRAG: inuse 0 memory 0\n"
	if n := inUse(text); n != 70020 {
		t.Errorf("%d sockets", n)
	}
	if n := inUse("TCP6: inuse 4\nUDP6: inuse x\nTCP: inuse"); n != 4 {
		t.Errorf("%d sockets of IPv6", n)
	}
	if n := olderRoom(); n < leastOlder {
		t.Errorf("room for %d", n)
	}
}

func FuzzInUse(f *testing.F) {
	f.Add("TCP: inuse 1 orphan 0\nUDP6: inuse 2\n")
	f.Fuzz(func(t *testing.T, text string) { inUse(text) })
}
