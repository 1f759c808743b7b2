package addrtext

import "testing"

func BenchmarkAppendIPv6Address(b *testing.B) {
	w, _ := ParseIPv6("2001:db8::abcd:0:0:1")
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendIPv6(buf[:0], w)
	}
}

func BenchmarkParseIPv6Address(b *testing.B) {
	text := []byte("2001:db8::abcd:0:0:1")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := ParseIPv6(text); !ok {
			b.Fatal("no address")
		}
	}
}
