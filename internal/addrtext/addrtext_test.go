package addrtext

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/race"
)

func TestParseIPv4Address(t *testing.T) {
	tests := []struct {
		name, text string
		ok         bool
		want       uint32
	}{
		{"plain", "1.2.3.4", true, 0x01020304},
		{"zero", "0.0.0.0", true, 0},
		{"largest", "255.255.255.255", true, 0xFFFFFFFF},
		{"leading zeros", "001.02.0000000000000000000000000000000000000000000003.4", true, 0x01020304},
		{"no octal", "010.0.0.1", true, 0x0A000001},
		{"Quirk: only the low 32 bits count, 2^32", "4294967296.0.0.1", true, 1},
		{"Quirk: only the low 32 bits count, 2^32+255", "4294967551.0.0.1", true, 0xFF000001},
		{"Quirk: 2^128-2^32 counts as 0", "340282366920938463463374607427473244160.0.0.1", true, 1},
		{"2^128-1 is 2^32-1 in the low bits", "340282366920938463463374607431768211455.0.0.1", false, 0},
		{"2^128 is too large", "340282366920938463463374607431768211456.0.0.1", false, 0},
		{"2^64 squared times ten is too large", "3402823669209384634633746074317682114560.0.0.1", false, 0},
		{"256", "256.0.0.1", false, 0},
		{"empty", "", false, 0},
		{"one part", "1", false, 0},
		{"three parts", "1.2.3", false, 0},
		{"three parts and a dot", "1.2.3.", false, 0},
		{"five parts", "1.2.3.4.5", false, 0},
		{"dot in front", ".1.2.3.4", false, 0},
		{"two dots", "1..2.3", false, 0},
		{"space in front", " 1.2.3.4", false, 0},
		{"space behind", "1.2.3.4 ", false, 0},
		{"NUL behind", "1.2.3.4\x00", false, 0},
		{"hex", "0x1.2.3.4", false, 0},
		{"sign", "+1.2.3.4", false, 0},
		{"letters", "a.b.c.d", false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := ParseIPv4(tt.text); ok != tt.ok || got != tt.want {
				t.Errorf("%08x, %v", got, ok)
			}
			if got, ok := ParseIPv4([]byte(tt.text)); ok != tt.ok || got != tt.want {
				t.Errorf("as bytes: %08x, %v", got, ok)
			}
		})
	}
}

func TestParseIPv6Address(t *testing.T) {
	mapped := Words{0x01020304, 0xFFFF}
	compatible := Words{0x01020304}
	ones := Words{0x00070008, 0x00050006, 0x00030004, 0x00010002} // 1:2:3:4:5:6:7:8
	tests := []struct {
		name, text string
		want       *Words // nil: an error
	}{
		{"all zero", "::", &Words{}},
		{"groups before", "1::", &Words{0, 0, 0, 0x00010000}},
		{"both cases", "1234::fFFf", &Words{0xFFFF, 0, 0, 0x12340000}},
		{"eight groups", "1:2:3:4:5:6:7:8", &ones},
		{"leading zeros", "0001:02:003:4:5:6:7:0008", &ones},
		{"seven groups before", "1:2:3:4:5:6:7::", &Words{0x00070000, 0x00050006, 0x00030004, 0x00010002}},
		{"seven groups behind", "::1:2:3:4:5:6:7", &Words{0x00060007, 0x00040005, 0x00020003, 0x00000001}},
		{"IPv4-compatible", "::1.2.3.4", &compatible},
		{"IPv4-mapped", "::ffff:1.2.3.4", &mapped},
		{"IPv4-mapped, a zero in front", "::0:ffff:1.2.3.4", &mapped},
		{"IPv4-mapped, zeros in front", "0:0:0::ffff:1.2.3.4", &mapped},
		{"the tail has the quirks of IPv4", "::4294967297.02.3.4", &compatible},

		{"Quirk: a ninth group is not looked at", "1:2:3:4:5:6:7:8:9", &ones},
		{"Quirk: nor is a colon in the end", "1:2:3:4:5:6:7:8:", &ones},
		{"Quirk: nor is anything else", "1:2:3:4:5:6:7:8:zzz", &ones},
		{"Quirk: nor is a second ::", "1:2:3:4:5:6:7:8::", &ones},
		{"Quirk: :: for no group, in the middle", "1:2:3:4::5:6:7:8", &ones},
		{"Quirk: :: for no group, in front", "::1:2:3:4:5:6:7:8", &ones},
		{"Quirk: :: for no group and more behind", "1:2:3:4::5:6:7:8:zzz", &ones},
		{"Quirk: plain IPv4", "1.2.3.4", &compatible},
		{"Quirk: five groups before IPv4", "0:0:0:0:0:1.2.3.4", &compatible},
		{"Quirk: six groups before IPv4", "0:0:0:0:0:ffff:1.2.3.4", nil},
		{"Quirk: six zero groups before IPv4", "0:0:0:0:0:0:1.2.3.4", nil},
		{"Quirk: ffff is not anchored at the right", "0:0:0:0:ffff:1.2.3.4", nil},
		{"Quirk: six groups between :: and IPv4", "::0:0:0:0:0:ffff:1.2.3.4", &mapped},
		{"Quirk, not kept as recommended: seven groups between :: and IPv4 are too many", "::0:0:0:0:0:0:0:1.2.3.4", nil},
		{"nine groups in all overlap", "0:0:0:0:0::0:ffff:1.2.3.4", &mapped},

		{"a group before IPv4", "1::1.2.3.4", nil},
		{"another group before IPv4", "::1:1.2.3.4", nil},
		{"NAT64", "64:ff9b::1.2.3.4", nil},
		{"ffff at the wrong place", "::ffff:0:1.2.3.4", nil},
		{"IPv4 and more", "::1.2.3.4:5", nil},
		{"IPv4 out of range", "::1.2.3.256", nil},
		{"seven groups", "1:2:3:4:5:6:7", nil},
		{"one group and a colon", "1:", nil},
		{"a colon in front", ":1", nil},
		{"a colon alone", ":", nil},
		{"three colons", ":::", nil},
		{"two :: in front", "::1::", nil},
		{"two ::", "1::2::3", nil},
		{"five digits", "12345::", nil},
		{"not hex", "::g", nil},
		{"empty", "", nil},
		{"one group", "0", nil},
		{"zone", "fe80::1%eth0", nil},
		{"brackets", "[::1]", nil},
		{"prefix length", "::1/64", nil},
		{"space behind", "::1 ", nil},
		{"space in front", " ::1", nil},
		{"eight groups and a letter", "1:2:3:4:5:6:7:8z", nil},
		{"not ASCII", "::\u0661", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var want Words
			if tt.want != nil {
				want = *tt.want
			}
			if got, ok := ParseIPv6(tt.text); ok != (tt.want != nil) || got != want {
				t.Errorf("%08x, %v", [4]uint32(got), ok)
			}
			if got, ok := ParseIPv6([]byte(tt.text)); ok != (tt.want != nil) || got != want {
				t.Errorf("as bytes: %08x, %v", [4]uint32(got), ok)
			}
		})
	}
}

func TestFormatIPv6Address(t *testing.T) {
	groups := func(g ...uint32) Words {
		return Words{g[6]<<16 | g[7], g[4]<<16 | g[5], g[2]<<16 | g[3], g[0]<<16 | g[1]}
	}
	tests := []struct {
		name  string
		words Words
		want  string
	}{
		{"all zero", groups(0, 0, 0, 0, 0, 0, 0, 0), "::"},
		{"zeros behind", groups(1, 0, 0, 0, 0, 0, 0, 0), "1::"},
		{"zeros in front", groups(0, 0, 0, 0, 0, 0, 0, 1), "::1"},
		{"the first of equal runs", groups(1, 0, 0, 4, 0, 0, 7, 8), "1::4:0:0:7:8"},
		{"the longest run", groups(1, 0, 3, 0, 0, 6, 0, 8), "1:0:3::6:0:8"},
		{"longest in the end", groups(0, 0, 3, 4, 5, 0, 0, 0), "0:0:3:4:5::"},
		{"no zero", groups(1, 2, 3, 4, 5, 6, 7, 8), "1:2:3:4:5:6:7:8"},
		{"Quirk: one zero group, in the middle", groups(1, 0, 3, 4, 5, 6, 7, 8), "1::3:4:5:6:7:8"},
		{"Quirk: one zero group, in the end", groups(1, 2, 3, 4, 5, 6, 7, 0), "1:2:3:4:5:6:7::"},
		{"Quirk: one zero group, in front", groups(0, 2, 3, 4, 5, 6, 7, 8), "::2:3:4:5:6:7:8"},
		{"link-local", groups(0xfe80, 0, 0, 0, 0xabcd, 0, 0, 1), "fe80::abcd:0:0:1"},
		{"lower case, all digits", groups(0xABCD, 0xEF01, 0x2345, 0x6789, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF), "abcd:ef01:2345:6789:ffff:ffff:ffff:ffff"},
		{"IPv4-mapped", groups(0, 0, 0, 0, 0, 0xffff, 0x102, 0x304), "1.2.3.4"},
		{"IPv4-mapped zero", groups(0, 0, 0, 0, 0, 0xffff, 0, 0), "0.0.0.0"},
		{"nearly IPv4-mapped", groups(0, 0, 0, 0, 0, 0xfffe, 0x102, 0x304), "::fffe:102:304"},
		{"Quirk: IPv4-compatible", groups(0, 0, 0, 0, 0, 0, 0x102, 0x304), "::102:304"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := FormatIPv6(tt.words); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if got := AppendIPv6([]byte("x"), tt.words); string(got) != "x"+tt.want {
				t.Errorf("appended %q", got)
			}
		})
	}
	for text, addr := range map[string]uint32{"0.0.0.0": 0, "1.2.3.4": 0x01020304, "255.255.255.255": 0xFFFFFFFF, "10.0.200.30": 0x0A00C81E} {
		if got := FormatIPv4(addr); got != text {
			t.Errorf("%q, want %q", got, text)
		}
	}
}

func TestFormatAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	buf := make([]byte, 0, 39)
	w := Words{1, 2, 3, 4}
	if n := testing.AllocsPerRun(100, func() {
		buf = AppendIPv6(buf[:0], w)
		buf = AppendIPv4(buf[:0], w[0])
		if _, ok := ParseIPv6(buf); !ok {
			t.Error("not an address")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAddrWords(t *testing.T) {
	tests := []struct {
		addr  netip.Addr
		words Words
		back  netip.Addr
	}{
		{netip.MustParseAddr("1.2.3.4"), Words{0x01020304, 0xFFFF}, netip.MustParseAddr("1.2.3.4")},
		{netip.MustParseAddr("::ffff:1.2.3.4"), Words{0x01020304, 0xFFFF}, netip.MustParseAddr("1.2.3.4")},
		{netip.MustParseAddr("::1.2.3.4"), Words{0x01020304}, netip.MustParseAddr("::1.2.3.4")},
		{netip.MustParseAddr("1:2:3:4:5:6:7:8"), Words{0x00070008, 0x00050006, 0x00030004, 0x00010002}, netip.MustParseAddr("1:2:3:4:5:6:7:8")},
		{netip.MustParseAddr("fe80::1%eth0"), Words{1, 0, 0, 0xfe800000}, netip.MustParseAddr("fe80::1")},
		{netip.Addr{}, Words{}, netip.IPv6Unspecified()},
	}
	for _, tt := range tests {
		t.Run(tt.addr.String(), func(t *testing.T) {
			words := wordsOf(tt.addr)
			if words != tt.words || addrOf(words) != tt.back {
				t.Errorf("%08x, back %v", [4]uint32(words), addrOf(words))
			}
			if words.Is4In6() != tt.back.Is4() {
				t.Errorf("Is4In6: %v", words.Is4In6())
			}
		})
	}
}

// wordsOf returns the words of an address, all zero for the zero Addr.
func wordsOf(a netip.Addr) Words {
	if !a.IsValid() {
		return Words{}
	}
	ip := a.As16()
	be := binary.BigEndian
	return Words{be.Uint32(ip[12:]), be.Uint32(ip[8:]), be.Uint32(ip[4:]), be.Uint32(ip[0:])}
}

// addrOf returns an address; an IPv4-mapped one as IPv4.
func addrOf(w Words) netip.Addr { return netip.AddrFrom16(w.As16()).Unmap() }

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		"1.2.3.4", "4294967296.0.0.1", "::", "::ffff:1.2.3.4", "1:2:3:4:5:6:7:8:zzz", "1:2:3:4::5:6:7:8",
		"::0:0:0:0:0:0:0:1.2.3.4", "fe80::abcd:0:0:1", "::1::", "12345::",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if addr, ok := ParseIPv4(s); ok {
			text := FormatIPv4(addr)
			if again, ok := ParseIPv4(text); !ok || again != addr {
				t.Fatalf("%q became %q", s, text)
			}
			if std, err := netip.ParseAddr(text); err != nil || wordsOf(std)[0] != addr {
				t.Fatalf("%q became %q, which netip reads as %v", s, text, std)
			}
		}
		words, ok := ParseIPv6(s)
		// Texts that netip parses as IPv6 addresses, without zone and dotted tail, are addresses here too.
		std, err := netip.ParseAddr(s)
		plain := err == nil && std.Is6() && std.Zone() == "" && !strings.Contains(s, ".")
		if plain && (!ok || words.As16() != std.As16()) {
			t.Fatalf("%q is %v, %v", s, words, ok)
		}
		if !ok {
			if words != (Words{}) {
				t.Fatalf("%q left %v", s, words)
			}
			return
		}
		text := FormatIPv6(words)
		again, ok := ParseIPv6(text)
		if words.Is4In6() { // printed without its prefix
			again[1] |= 0xFFFF
		}
		if !ok || again != words {
			t.Fatalf("%q became %q", s, text)
		}
	})
}

func FuzzFormatIPv6Address(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0}, 16))
	f.Add([]byte{0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 6, 0, 0, 0, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		words, ok := wordsOfBytes(b)
		if !ok || len(b) != 16 || words.Is4In6() {
			return
		}
		text := FormatIPv6(words)
		std, err := netip.ParseAddr(text)
		if err != nil || std.As16() != [16]byte(b) {
			t.Fatalf("%x is %q, which netip reads as %v, %v", b, text, std, err)
		}
		if again, ok := ParseIPv6(text); !ok || again != words {
			t.Fatalf("%x is %q, read back as %v", b, text, again)
		}
		if len(text) > 39 {
			t.Fatalf("%q has %d bytes", text, len(text))
		}
	})
}
