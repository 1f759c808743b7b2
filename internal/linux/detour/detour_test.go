//go:build linux

package detour

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// atConnect compiles a filter of layer NETWORK for connects.
func atConnect(t *testing.T, text string, protocol uint8) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = p.AtConnect(protocol); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestProgramsLoad asks the verifier about the programs, for each way to tell the program's own connections. They are not
// attached.
func TestProgramsLoad(t *testing.T) {
	for _, row := range []struct {
		text     string
		bySocket bool
		connects bool // the programs of connect have something to do
		sends    bool // those of sendmsg have
	}{
		{"true", false, true, true},
		{"true", true, true, true},
		{"false", false, false, false},
		{"udp", true, true, true},
		{"udp.DstPort == 53 and processId != 7", false, true, true},
		{"tcp.DstPort == 443 and processId != 7", false, true, false},
		{"ip.DstAddr in {10.0.0.0/8, 192.0.2.0/24} and tcp.DstPort in {22, 80-90, 443} or ipv6.DstAddr == fd00::1", true, true, true},
	} {
		cfg := &Config{TCP: atConnect(t, row.text, packet.ProtocolTCP), Max: 10, BySocket: row.bySocket, RefuseOthers: !row.bySocket,
			UDP: &Datagrams{Filter: atConnect(t, row.text, packet.ProtocolUDP), Port: 4711}}
		if row.bySocket {
			cfg.UDP.Prefix = randomPrefix()
		}
		d := &Detour{maps: map[string]*ebpf.Map{}}
		err := d.openMaps(cfg)
		if errors.Is(err, os.ErrPermission) || errors.Is(err, ErrNumbers) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		programs, err := load(cfg, d.maps)
		if err != nil {
			t.Errorf("%s: %+v", row.text, err)
		}
		for i, p := range programs {
			if want := i < 5 || i < 7 && row.sends || i >= 7 && row.connects; (p != nil) != want {
				t.Errorf("%s: %s: loaded %t", row.text, hooks[i].Name, p != nil)
			}
			p.Close()
		}
		if err := d.closeMaps(); err != nil {
			t.Error(err)
		}
	}
}

// TestFrame: the parts of the programs' frames do not overlap each other, nor the part that decisions use.
func TestFrame(t *testing.T) {
	if frameTask < codegen.EventScratchEnd {
		t.Errorf("the frame reaches down to %d, and decisions use it up to %d", frameTask, codegen.EventScratchEnd)
	}
	const stack = 512 // MAX_BPF_STACK
	if frameZero < -stack {
		t.Errorf("the frame reaches down to %d", frameZero)
	}
}

// TestParseAim: aims are read as the programs write them.
func TestParseAim(t *testing.T) {
	for _, to := range []string{"192.0.2.1:443", "[2001:db8::1]:80"} {
		want := netip.MustParseAddrPort(to)
		v := make([]byte, aimSize)
		ip := want.Addr().As16()
		binary.NativeEndian.PutUint64(v[aimAddr:], binary.BigEndian.Uint64(ip[:]))
		binary.NativeEndian.PutUint64(v[aimAddr+8:], binary.BigEndian.Uint64(ip[8:]))
		binary.BigEndian.PutUint16(v[aimPort:], want.Port())
		binary.NativeEndian.PutUint32(v[aimProcess:], 7)
		binary.BigEndian.PutUint16(v[aimAlias:], 9)
		if a, alias := parseAim(v); a.Dst != want || a.Process != 7 || alias != 9 {
			t.Errorf("%v: %+v, %d", want, a, alias)
		}
	}
}
