//go:build linux

package codegen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// withValue returns a packet whose field has a value.
var withValue = map[string]func(v prog.Value) []byte{
	"udp.DstPort": func(v prog.Value) []byte {
		b := header4(protoUDP, nil, 0, udpHeader("x"))
		binary.BigEndian.PutUint16(b[22:], uint16(v.Lo))
		return b
	},
	"tcp.SeqNum": func(v prog.Value) []byte {
		b := header4(protoTCP, nil, 0, tcpHeader(5, 0, "x"))
		binary.BigEndian.PutUint32(b[24:], uint32(v.Lo))
		return b
	},
	"ip.DstAddr": func(v prog.Value) []byte {
		b := header4(protoUDP, nil, 0, udpHeader("x"))
		binary.BigEndian.PutUint32(b[16:], uint32(v.Lo))
		return b
	},
	"ipv6.SrcAddr": func(v prog.Value) []byte {
		b := header6(protoUDP, udpHeader("x"))
		binary.BigEndian.PutUint64(b[8:], v.Hi)
		binary.BigEndian.PutUint64(b[16:], v.Lo)
		return b
	},
	"remoteAddr": func(v prog.Value) []byte {
		if v.Hi == 0 && v.Lo>>32 == 0xFFFF {
			b := header4(protoUDP, nil, 0, udpHeader("x"))
			binary.BigEndian.PutUint32(b[12:], uint32(v.Lo))
			return b
		}
		b := header6(protoUDP, udpHeader("x"))
		binary.BigEndian.PutUint64(b[8:], v.Hi)
		binary.BigEndian.PutUint64(b[16:], v.Lo)
		return b
	},
}

// addressText writes a value as an address.
func addressText(v prog.Value) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	return netip.AddrFrom16(b).Unmap().String()
}

func numberText(v prog.Value) string { return fmt.Sprint(v.Lo) }

// TestSets compares sets of many shapes with prog.Set at and around all kinds of boundaries.
func TestSets(t *testing.T) {
	requireBPF(t)
	mapped := func(v uint64) prog.Value { return low(mappedPrefix | v&0xFFFFFFFF) }
	for _, row := range []struct {
		name, field string
		text        func(prog.Value) string
		n           int
		value       func(r *rand.Rand, i int) prog.Value
	}{
		{"few ports", "udp.DstPort", numberText, 10, func(r *rand.Rand, i int) prog.Value { return low(r.Uint64() & 0xFFFF) }},
		{"ports", "udp.DstPort", numberText, 5000, func(r *rand.Rand, i int) prog.Value { return low(r.Uint64() & 0xFFFF) }},
		{"few numbers", "tcp.SeqNum", numberText, 15, func(r *rand.Rand, i int) prog.Value { return low(r.Uint64() >> 32) }},
		{"numbers", "tcp.SeqNum", numberText, 4096, func(r *rand.Rand, i int) prog.Value { return low(r.Uint64() >> 32) }},
		{"small numbers and one great", "tcp.SeqNum", numberText, 3000, func(r *rand.Rand, i int) prog.Value {
			if i == 0 {
				return low(0xFFFFFFFF)
			}
			return low(uint64(3 * i))
		}},
		{"few IPv4 addresses", "ip.DstAddr", addressText, 12, func(r *rand.Rand, i int) prog.Value { return mapped(r.Uint64()) }},
		{"IPv4 addresses", "ip.DstAddr", addressText, 5000, func(r *rand.Rand, i int) prog.Value { return mapped(r.Uint64()) }},
		{"IPv4 neighbours", "ip.DstAddr", addressText, 5000, func(r *rand.Rand, i int) prog.Value { return mapped(0x0A000000 + uint64(2*i)) }},
		{"few IPv6 addresses", "ipv6.SrcAddr", addressText, 4, func(r *rand.Rand, i int) prog.Value { return prog.Value{Hi: r.Uint64(), Lo: r.Uint64()} }},
		{"IPv6 addresses", "ipv6.SrcAddr", addressText, 3000, func(r *rand.Rand, i int) prog.Value { return prog.Value{Hi: r.Uint64(), Lo: r.Uint64()} }},
		{"IPv6 addresses of one network", "ipv6.SrcAddr", addressText, 3000, func(r *rand.Rand, i int) prog.Value {
			return prog.Value{Hi: 0x20010db8 << 32, Lo: r.Uint64()}
		}},
		{"IPv6 addresses of few networks", "ipv6.SrcAddr", addressText, 3000, func(r *rand.Rand, i int) prog.Value {
			return prog.Value{Hi: 0x20010db8<<32 | uint64(i%3), Lo: r.Uint64()}
		}},
		{"addresses of both families", "remoteAddr", addressText, 2000, func(r *rand.Rand, i int) prog.Value {
			if i%2 == 0 {
				return mapped(r.Uint64())
			}
			return prog.Value{Hi: r.Uint64(), Lo: r.Uint64()}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 6))
			var texts []string
			var probes []prog.Value
			for i := range row.n {
				v := row.value(r, i)
				texts = append(texts, row.text(v))
				probes = append(probes, v)
			}
			text := row.field + " in {" + strings.Join(texts, ", ") + "}"
			for _, long := range []bool{false, true} {
				checkSet(t, row.field, text, probes, r, long)
			}
		})
	}
}

// checkSet compares a filter's program with the interpreter for values at, before and behind the probes.
func checkSet(t *testing.T, field, text string, probes []prog.Value, r *rand.Rand, long bool) {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	u, err := build(p, Hook{Direction: Inbound}, here(Options{}), long)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := u.Load()
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer loaded.Close()
	matched := 0
	for i := range 400 {
		v := probes[r.IntN(len(probes))]
		switch i % 4 {
		case 1:
			v = add1(v)
		case 2:
			v = sub1(v)
		case 3:
			v = prog.Value{Hi: v.Hi, Lo: v.Lo ^ 1<<r.IntN(32)}
		}
		b := withValue[field](v)
		want := p.MatchExact(b, &packet.Address{})
		if want {
			matched++
		}
		if got, err := run(loaded, b); err != nil || got != want {
			t.Fatalf("long %v, value %+v: got %v, %v, want %v", long, v, got, err, want)
		}
	}
	if matched < 100 {
		t.Errorf("only %d values matched", matched)
	}
}

// TestLargeSets loads sets of 500,000 prefixes, which no text has room for, and logs what they cost.
func TestLargeSets(t *testing.T) {
	requireBPF(t)
	const n = 500_000
	for _, six := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", six), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			prefixes := make([]netip.Prefix, n)
			for i := range prefixes {
				var b [16]byte
				binary.BigEndian.PutUint64(b[:], r.Uint64())
				prefixes[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte(b[:4])), 24+r.IntN(9))
				if b[0] = 0x20; six {
					prefixes[i] = netip.PrefixFrom(netip.AddrFrom16(b), 32+r.IntN(33))
				}
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			e, field := filter.IPDstAddr.In(prefixes...), "ip.DstAddr"
			if six {
				e, field = filter.IPv6SrcAddr.In(prefixes...), "ipv6.SrcAddr"
			}
			f, err := e.Compile(packet.LayerNetwork)
			if err != nil {
				t.Fatal(err)
			}
			p := (*prog.Program)(f)
			compiled := time.Since(start)
			runtime.GC()
			runtime.ReadMemStats(&after)
			start = time.Now()
			u, err := Build(p, Hook{}, here(Options{}))
			if err != nil {
				t.Fatal(err)
			}
			built := time.Since(start)
			start = time.Now()
			loaded, err := u.Load()
			if limit := new(LimitError); errors.As(err, &limit) && !kernel.AtLeast(kernel.Version{Major: 6, Minor: 1}) {
				t.Skip(err) // see RefusedSets
			}
			if err != nil {
				t.Fatalf("%+v", err)
			}
			defer loaded.Close()
			t.Logf("compiled in %v, program of %d MiB; built in %v, loaded in %v, %d KiB in the kernel", compiled,
				(after.HeapAlloc-before.HeapAlloc)>>20, built, time.Since(start), loaded.maps[setsMap].ValueSize()>>10)
			compareSet(t, p, loaded, field, prefixes, r)
		})
	}
}

// compareSet compares a program with the interpreter for addresses in and near prefixes.
func compareSet(t *testing.T, p *prog.Program, loaded *Program, field string, prefixes []netip.Prefix, r *rand.Rand) {
	t.Helper()
	matched := 0
	for i := range 500 {
		prefix := prefixes[r.IntN(len(prefixes))]
		b := prefix.Masked().Addr().As16()
		v := prog.Value{Hi: binary.BigEndian.Uint64(b[:]), Lo: binary.BigEndian.Uint64(b[8:])}
		if i%2 == 0 {
			v = sub1(v)
		}
		packet4or6 := withValue[field](v)
		want := p.MatchExact(packet4or6, &packet.Address{IPv6: prefix.Addr().Is6()})
		if want {
			matched++
		}
		if got, err := run(loaded, packet4or6); err != nil || got != want {
			t.Fatalf("%v, value %+v: got %v, %v, want %v", prefix, v, got, err, want)
		}
	}
	if matched < 250 || matched == 500 {
		t.Errorf("%d values matched", matched)
	}
}
