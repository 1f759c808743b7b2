//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// here returns options with which programs load on this kernel.
func here(o Options) Options {
	o.Bounded = o.Bounded || Loops.Err() != nil
	return o
}

// requireBPF skips the test where programs cannot be loaded.
func requireBPF(t testing.TB) {
	t.Helper()
	p, err := progtest.Compile("true", packet.LayerNetwork, filter.Strict)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Build(p, Hook{}, here(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := u.Load()
	if errors.Is(err, os.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("needs CAP_BPF: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	loaded.Close()
}

// hookOf is a hook at which the metadata are those of an address.
func hookOf(a *packet.Address) Hook {
	n := a.Network()
	h := Hook{
		Direction: Inbound, Impostor: a.Impostor, Event: a.Event,
		IfIdx: n.IfIdx, SubIfIdx: n.SubIfIdx,
		Clock: ClockConstant, Timestamp: a.Timestamp,
	}
	if a.Outbound {
		h.Direction = Outbound
	}
	if a.Loopback {
		h.Loopback = AlwaysLoopback
	}
	return h
}

// familyOf narrows a hook to the family of a packet.
func familyOf(b []byte) Family {
	switch {
	case len(b) > 0 && b[0]>>4 == 4:
		return IPv4
	case len(b) > 0 && b[0]>>4 == 6:
		return IPv6
	}
	return AnyFamily
}

// frame puts an Ethernet header before a packet: BPF_PROG_TEST_RUN takes it off again. The kernel
// refuses packets shorter than the header their ethertype promises (net/bpf/test_run.c); those get the
// ethertype of local experiments. Programs do not look at it.
func frame(b []byte) []byte {
	ethertype := [2]byte{0x88, 0xB5}
	switch family := familyOf(b); {
	case family == IPv4 && len(b) >= lenIPv4:
		ethertype = [2]byte{0x08, 0x00}
	case family == IPv6 && len(b) >= lenIPv6:
		ethertype = [2]byte{0x86, 0xDD}
	}
	f := make([]byte, 12, 14+len(b))
	f[0] = 0x02
	return append(append(f, ethertype[:]...), b...)
}

// errUnrunnable says that BPF_PROG_TEST_RUN does not take a packet.
var errUnrunnable = errors.New("not a packet for BPF_PROG_TEST_RUN")

// run runs a loaded program on a packet.
func run(p *Program, b []byte) (bool, error) {
	// Packets without a single byte behind the Ethernet header are refused (net/bpf/test_run.c).
	if len(b) == 0 {
		return false, errUnrunnable
	}
	result, err := p.program.Run(&ebpf.RunOptions{Data: frame(b)})
	return result != 0, err
}

// evalBPF answers as the kernel does: whether a filter matches a packet at a hook.
func evalBPF(p *prog.Program, h Hook, b []byte) (bool, error) {
	u, err := Build(p, h, here(Options{}))
	if err != nil {
		return false, err
	}
	if u.Outcome == Never {
		return false, nil
	}
	loaded, err := u.Load()
	if err != nil {
		return false, fmt.Errorf("%+v", err)
	}
	defer loaded.Close()
	return run(loaded, b)
}
