//go:build linux

package codegen

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// benchFilters are filters of different sizes that do not match the packet of their benchmark; all of
// their tests are executed.
var benchFilters = []struct {
	name, text string
	packet     []byte
}{
	{"1 test", "tcp.DstPort == 80", header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"10 tests", ports(10), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"100 tests", ports(100), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"4096 tests", ports(4096), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"10 ports in a set", set("tcp.DstPort", 10, port), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"10000 ports in a set", set("tcp.DstPort", 10000, port), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"10 IPv4 addresses", set("ip.SrcAddr", 10, address4), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"10000 IPv4 addresses", set("ip.SrcAddr", 10000, address4), header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"10 IPv6 addresses", set("ipv6.SrcAddr", 10, randomIPv6), header6(protoTCP, tcpHeader(5, 0x10, "hello"))},
	{"10000 IPv6 addresses", set("ipv6.SrcAddr", 10000, randomIPv6), header6(protoTCP, tcpHeader(5, 0x10, "hello"))},
	{"random", "random32 == 1", header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
	{"payload", "tcp.Payload32[0] == 1", header4(protoTCP, nil, 0, tcpHeader(5, 0x10, "hello"))},
}

func ports(n int) string {
	return join(n, " or ", func(i int) string { return fmt.Sprintf("tcp.%s == %d", turns("DstPort", "SrcPort", i), 10000+2*i) })
}

func port(r *rand.Rand) string { return fmt.Sprint(1000 + 2*r.IntN(30000)) }
func address4(r *rand.Rand) string {
	return fmt.Sprintf("11.%d.%d.%d", r.IntN(256), r.IntN(256), r.IntN(256))
}

func set(field string, n int, value func(*rand.Rand) string) string {
	r := rand.New(rand.NewPCG(3, 4))
	return field + " in {" + join(n, ", ", func(int) string { return value(r) }) + "}"
}

func compiled(b testing.TB, text string) *prog.Program {
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func BenchmarkBuild(b *testing.B) {
	for _, f := range benchFilters {
		p := compiled(b, f.text)
		b.Run(f.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Build(p, Hook{Direction: Inbound}, here(Options{})); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	requireBPF(b)
	for _, f := range benchFilters {
		p := compiled(b, f.text)
		for _, family := range []Family{AnyFamily, familyOf(f.packet)} {
			u, err := Build(p, Hook{Direction: Inbound, Family: family}, here(Options{}))
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/family %d", f.name, family), func(b *testing.B) {
				for b.Loop() {
					loaded, err := u.Load()
					if err != nil {
						b.Fatal(err)
					}
					loaded.Close()
				}
				b.ReportMetric(float64(len(u.Instructions)), "instructions")
			})
		}
	}
}

// BenchmarkRun reports what the kernel measures; ns/op is of one packet.
func BenchmarkRun(b *testing.B) {
	requireBPF(b)
	for _, f := range benchFilters {
		p := compiled(b, f.text)
		u, err := Build(p, Hook{Direction: Inbound}, here(Options{}))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(f.name, func(b *testing.B) {
			loaded, err := u.Load()
			if err != nil {
				b.Fatal(err)
			}
			defer loaded.Close()
			start := time.Now()
			_, err = loaded.program.Run(&ebpf.RunOptions{Data: frame(f.packet), Repeat: uint32(b.N)})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns/op")
		})
	}
}

func BenchmarkJoiner(b *testing.B) {
	for _, n := range []uint32{1500, MaxSnap + 51} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			captured := min(n, MaxSnap)
			end := make([]byte, RecordSize+tailSize)
			binary.NativeEndian.PutUint32(end[8:], n)
			sample := append(bytes.Clone(end[:RecordSize]), make([]byte, captured)...)
			binary.NativeEndian.PutUint32(sample[12:], captured)
			var j Joiner
			b.ReportAllocs()
			b.SetBytes(int64(n))
			for b.Loop() {
				if n > MaxSnap {
					if _, _, ok, err := j.Decode(end); ok || err != nil {
						b.Fatal(ok, err)
					}
				}
				if r, _, ok, err := j.Decode(sample); !ok || err != nil || r.Captured != n {
					b.Fatal(r, ok, err)
				}
			}
		})
	}
}
