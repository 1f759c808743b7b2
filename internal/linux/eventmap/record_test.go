//go:build linux

package eventmap

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

func TestRecord(t *testing.T) {
	b := make([]byte, codegen.EventSize)
	ne := binary.NativeEndian
	ne.PutUint64(b[codegen.EventTime:], 5)
	ne.PutUint64(b[codegen.EventEndpoint:], 6)
	ne.PutUint64(b[codegen.EventParent:], 7)
	codegen.PutAddr(b[codegen.EventLocal:], netip.MustParseAddr("10.0.0.1"))
	codegen.PutAddr(b[codegen.EventRemote:], netip.MustParseAddr("fd77::2"))
	ne.PutUint32(b[codegen.EventProcess:], 8)
	ne.PutUint16(b[codegen.EventLocalPort:], 9)
	ne.PutUint16(b[codegen.EventRemotePort:], 10)
	b[codegen.EventProtocol], b[codegen.EventLoopback], b[codegen.EventKind] = 6, 1, byte(packet.EventSocketAccept)
	copy(b[codegen.EventName:], "curl")
	ne.PutUint32(b[codegen.EventFlags:], FlagRefused|FlagDestroy|FlagPassive)
	var r Record
	if !r.Parse(b) {
		t.Fatal("no record")
	}
	want := Record{Time: 5, Event: packet.EventSocketAccept, Name: [codegen.NameSize]byte{'c', 'u', 'r', 'l'}, Loopback: true, Inbound: true, Refused: true, Destroy: true, Data: packet.FlowData{
		EndpointID: 6, ParentEndpointID: 7, ProcessID: 8, LocalPort: 9, RemotePort: 10, Protocol: 6,
		LocalAddr: netip.MustParseAddr("::ffff:10.0.0.1"), RemoteAddr: netip.MustParseAddr("fd77::2"),
	}}
	if r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
	if r.Parse(b[:len(b)-1]) {
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

func FuzzRecord(f *testing.F) {
	f.Add(make([]byte, codegen.EventSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Record
		if r.Parse(b) && (len(b) < codegen.EventSize || r.Event >= packet.NumEvents) {
			t.Errorf("%x: %+v", b, r)
		}
	})
}
