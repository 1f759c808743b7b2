//go:build linux

package eventmap

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/sockdiag"
)

// TestStored reads the beginning of an older socket's storage as a record.
func TestStored(t *testing.T) {
	for _, tt := range []struct {
		name          string
		family, state uint8
		at, with      string
		local, remote string
		flags         [2]bool // of IPv6, loopback
	}{
		{"listener", unix.AF_INET, sockdiag.StateListen, "[::ffff:127.0.0.1]:80", "[::ffff:0.0.0.0]:0", "::ffff:127.0.0.1", "::", [2]bool{false, true}},
		{"connection", unix.AF_INET, sockdiag.StateEstablished, "[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:81", "::ffff:10.0.0.1", "::ffff:10.0.0.2", [2]bool{false, false}},
		{"IPv6", unix.AF_INET6, sockdiag.StateListen, "[::]:80", "[::]:0", "::", "::", [2]bool{true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := sockdiag.Socket{
				Family: tt.family, State: tt.state, Protocol: 6, Cookie: 1<<40 | 3,
				Local: netip.MustParseAddrPort(tt.at), Remote: netip.MustParseAddrPort(tt.with),
			}
			body := stored(&s, 77, "a name of 19 bytes.")
			var r Record
			if !r.Parse(append(make([]byte, codegen.EventEndpoint), body[:]...)) {
				t.Fatal("no record")
			}
			if r.Data.LocalAddr.String() != tt.local || r.Data.RemoteAddr.String() != tt.remote || r.Data.ProcessID != 77 || r.Data.EndpointID != s.Cookie ||
				r.Data.LocalPort != 80 || r.IPv6 != tt.flags[0] || r.Loopback != tt.flags[1] {
				t.Errorf("%+v", r)
			}
			if got := string(r.Name[:]); got != "a name of 19 by\x00" {
				t.Errorf("name %q", got)
			}
		})
	}
}

// TestRoom: there is room for the sockets that exist, and for new ones.
func TestRoom(t *testing.T) {
	if n := Room(); n < leastKnown {
		t.Errorf("room for %d", n)
	}
}
