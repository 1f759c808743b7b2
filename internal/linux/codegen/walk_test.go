//go:build linux

package codegen

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// TestExtensionHeaders compares programs with the interpreter however long the chain of extension headers is. A program that may
// not walk without a bound matches packets that it cannot decide on, and only those.
func TestExtensionHeaders(t *testing.T) {
	requireBPF(t)
	orders := map[string][]byte{
		"destination options": {protoDestination},
		"hop-by-hop first":    {protoHopByHop, protoDestination, protoDestination},
		"routing":             {protoRouting, protoDestination},
		"mobility":            {protoMobility},
		"authentication":      {protoAH, protoDestination, protoAH},
		"fragment":            {protoDestination, protoFragment, protoDestination},
		"all kinds":           {protoHopByHop, protoRouting, protoAH, protoMobility, protoFragment, protoDestination},
	}
	for _, text := range []string{
		"udp.DstPort == 53", "not udp", "tcp", "udp.Payload[0] == 120", "protocol == 17", "fragment", "ipv6",
		"remotePort == 53 and random8 < 255", "udp.PayloadLength == 1",
	} {
		p := compile(t, text)
		a := packet.Address{Outbound: true}
		for _, family := range []Family{AnyFamily, IPv6} {
			h := hookOf(&a)
			h.Family = family
			bounded := load(t, text, h, Options{Bounded: true})
			whole := bounded // where programs cannot walk without a bound
			if Loops.Err() == nil {
				whole = load(t, text, h, Options{})
			}
			for name, kinds := range orders {
				for _, n := range []int{0, 1, 63, 64, 65, 66, 100, 150, 170, 300} {
					b := chain(n, protoUDP, udpHeader("x"), kinds...)
					where := fmt.Sprintf("%s, family %d, %s, %d headers", text, family, name, n)
					want := p.MatchExact(b, &a)
					if got, err := run(whole, b); whole != bounded && (err != nil || got != want) {
						t.Errorf("%s: got %v, %v, want %v", where, got, err, want)
					}
					if past := PastWalk(b); past != (n > MaxExtensionHeaders) {
						t.Errorf("%s: past the walk: %v", where, past)
					}
					undecided := n > MaxExtensionHeaders && text != "ipv6"
					if got, err := run(bounded, b); err != nil || got != (want || undecided) {
						t.Errorf("%s, bounded: got %v, %v, want %v", where, got, err, want || undecided)
					}
				}
			}
		}
	}
}

// TestExtensionHeadersEnd compares programs with the interpreter on chains that end in the middle, or later in fragments.
func TestExtensionHeadersEnd(t *testing.T) {
	requireBPF(t)
	if err := Loops.Err(); err != nil {
		t.Skipf("programs cannot walk that far here: %v", err)
	}
	p := compile(t, "udp or protocol == 60 or protocol == 44")
	a := packet.Address{Outbound: true}
	loaded := load(t, "udp or protocol == 60 or protocol == 44", hookOf(&a), Options{})
	whole := chain(100, protoUDP, udpHeader("x"), protoDestination, protoMobility)
	for end := lenIPv6; end < len(whole); end++ {
		b := append([]byte(nil), whole[:end]...)
		b[4], b[5] = byte((end-lenIPv6)>>8), byte(end-lenIPv6)
		wantRun(t, loaded, b, p.MatchExact(b, &a))
	}
	for at := range 100 { // each header in turn is that of a later fragment, or a second one
		for _, offset := range []byte{0, 8} {
			b := append([]byte(nil), whole...)
			if at > 0 {
				b[lenIPv6+8*(at-1)] = protoFragment
			} else {
				b[6] = protoFragment
			}
			b[lenIPv6+8*at+3] = offset
			wantRun(t, loaded, b, p.MatchExact(b, &a))
		}
	}
}

// compile compiles a filter of the layer NETWORK.
func compile(t testing.TB, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// FuzzPastWalk gives PastWalk any bytes: it reads only bytes that are there, and reports packets of IPv6 only.
func FuzzPastWalk(f *testing.F) {
	for _, b := range samplePackets() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if PastWalk(b) && (len(b) < lenIPv6 || b[0]>>4 != 6) {
			t.Errorf("%x is no packet of IPv6", b)
		}
	})
}

// TestLoops compares the answer of Loops with the kernel's version: a kernel that translates programs has bpf_loop since 5.17.
func TestLoops(t *testing.T) {
	requireBPF(t)
	has := kernel.AtLeast(kernel.Version{Major: 5, Minor: 17})
	if jit, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable"); err == nil && jit[0] == '0' {
		has = false
	}
	if err := Loops.Err(); (err == nil) != has {
		t.Errorf("%+v", err)
	}
}

// TestLengthThatNoHeaderTells runs packets of TCP that are still to be cut and whose header tells no length.
func TestLengthThatNoHeaderTells(t *testing.T) {
	for _, row := range []struct {
		name string
		b    []byte
		at   int // where the length stands
	}{
		{"IPv4", header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello world")), 2},
		{"IPv6", header6(protoTCP, tcpHeader(5, 0x10, "hello world")), 4},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := load(t, "tcp.DstPort == 443 and tcp.PayloadLength == 11", Hook{}, Options{})
			for _, length := range []byte{0, 1} {
				for _, segment := range []uint32{0, 5} {
					b := append([]byte(nil), row.b...)
					b[row.at], b[row.at+1] = 0, length
					skb := make([]byte, 192) // struct __sk_buff
					binary.NativeEndian.PutUint32(skb[skbGSOSize:], segment)
					got, err := p.program.Run(&ebpf.RunOptions{Data: frame(b), Context: skb})
					if err != nil {
						t.Fatal(err)
					}
					if want := length == 0 && segment != 0; (got != 0) != want {
						t.Errorf("length %d, segments of %d: got %d, want %v", length, segment, got, want)
					}
				}
			}
		})
	}
}
