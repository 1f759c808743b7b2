//go:build linux

package codegen

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// withValue returns a packet whose field has a value.
var withValue = map[string]func(v filter.Value) []byte{
	"udp.DstPort": func(v filter.Value) []byte {
		b := header4(protoUDP, nil, 0, udpHeader("x"))
		binary.BigEndian.PutUint16(b[22:], uint16(v.Lo))
		return b
	},
	"tcp.SeqNum": func(v filter.Value) []byte {
		b := header4(protoTCP, nil, 0, tcpHeader(5, 0, "x"))
		binary.BigEndian.PutUint32(b[24:], uint32(v.Lo))
		return b
	},
	"ip.DstAddr": func(v filter.Value) []byte {
		b := header4(protoUDP, nil, 0, udpHeader("x"))
		binary.BigEndian.PutUint32(b[16:], uint32(v.Lo))
		return b
	},
	"ipv6.SrcAddr": func(v filter.Value) []byte {
		b := header6(protoUDP, udpHeader("x"))
		binary.BigEndian.PutUint64(b[8:], v.Hi)
		binary.BigEndian.PutUint64(b[16:], v.Lo)
		return b
	},
	"remoteAddr": func(v filter.Value) []byte {
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
func addressText(v filter.Value) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	return netip.AddrFrom16(b).Unmap().String()
}

func numberText(v filter.Value) string { return fmt.Sprint(v.Lo) }

// TestSets holds sets of many shapes to filter.Set at and around all kinds of boundaries.
func TestSets(t *testing.T) {
	requireBPF(t)
	mapped := func(v uint64) filter.Value { return low(mappedPrefix | v&0xFFFFFFFF) }
	for _, row := range []struct {
		name, field string
		text        func(filter.Value) string
		n           int
		value       func(r *rand.Rand, i int) filter.Value
	}{
		{"few ports", "udp.DstPort", numberText, 10, func(r *rand.Rand, i int) filter.Value { return low(r.Uint64() & 0xFFFF) }},
		{"ports", "udp.DstPort", numberText, 5000, func(r *rand.Rand, i int) filter.Value { return low(r.Uint64() & 0xFFFF) }},
		{"few numbers", "tcp.SeqNum", numberText, 15, func(r *rand.Rand, i int) filter.Value { return low(r.Uint64() >> 32) }},
		{"numbers", "tcp.SeqNum", numberText, 4096, func(r *rand.Rand, i int) filter.Value { return low(r.Uint64() >> 32) }},
		{"small numbers and one great", "tcp.SeqNum", numberText, 3000, func(r *rand.Rand, i int) filter.Value {
			if i == 0 {
				return low(0xFFFFFFFF)
			}
			return low(uint64(3 * i))
		}},
		{"few IPv4 addresses", "ip.DstAddr", addressText, 12, func(r *rand.Rand, i int) filter.Value { return mapped(r.Uint64()) }},
		{"IPv4 addresses", "ip.DstAddr", addressText, 5000, func(r *rand.Rand, i int) filter.Value { return mapped(r.Uint64()) }},
		{"IPv4 neighbours", "ip.DstAddr", addressText, 5000, func(r *rand.Rand, i int) filter.Value { return mapped(0x0A000000 + uint64(2*i)) }},
		{"few IPv6 addresses", "ipv6.SrcAddr", addressText, 4, func(r *rand.Rand, i int) filter.Value { return filter.Value{Hi: r.Uint64(), Lo: r.Uint64()} }},
		{"IPv6 addresses", "ipv6.SrcAddr", addressText, 3000, func(r *rand.Rand, i int) filter.Value { return filter.Value{Hi: r.Uint64(), Lo: r.Uint64()} }},
		{"IPv6 addresses of one network", "ipv6.SrcAddr", addressText, 3000, func(r *rand.Rand, i int) filter.Value {
			return filter.Value{Hi: 0x20010db8 << 32, Lo: r.Uint64()}
		}},
		{"IPv6 addresses of few networks", "ipv6.SrcAddr", addressText, 3000, func(r *rand.Rand, i int) filter.Value {
			return filter.Value{Hi: 0x20010db8<<32 | uint64(i%3), Lo: r.Uint64()}
		}},
		{"addresses of both families", "remoteAddr", addressText, 2000, func(r *rand.Rand, i int) filter.Value {
			if i%2 == 0 {
				return mapped(r.Uint64())
			}
			return filter.Value{Hi: r.Uint64(), Lo: r.Uint64()}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 6))
			var texts []string
			var probes []filter.Value
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
func checkSet(t *testing.T, field, text string, probes []filter.Value, r *rand.Rand, long bool) {
	t.Helper()
	p, err := filter.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	u, err := build(p, Hook{Direction: Inbound}, Options{}, long)
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
			v = filter.Value{Hi: v.Hi, Lo: v.Lo ^ 1<<r.IntN(32)}
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
