//go:build linux

package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

func TestDestroyRequest(t *testing.T) {
	b := requestFor(&packet.FlowData{
		EndpointID: 1<<40 | 3, Protocol: 6, LocalPort: 0x5051, RemotePort: 0x5253,
		LocalAddr: netip.MustParseAddr("::ffff:10.0.0.1"), RemoteAddr: netip.MustParseAddr("10.0.0.2"),
	})
	want := make([]byte, requestSize)
	want[0], want[1] = unix.AF_INET, 6
	copy(want[4:], []byte{255, 255, 255, 255, 0x50, 0x51, 0x52, 0x53, 10, 0, 0, 1})
	copy(want[28:], []byte{10, 0, 0, 2})
	binary.NativeEndian.PutUint32(want[48:], 3)
	binary.NativeEndian.PutUint32(want[52:], 1<<8)
	if string(b[:]) != string(want) {
		t.Errorf("%x\n%x", b, want)
	}
}
