package filter

import (
	"fmt"
	"strings"
	"testing"
)

func benchmarkCompile(b *testing.B, text string, d Dialect) {
	b.Helper()
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := compiled(text, atNetwork, d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, tests := range []int{1, 10, 100} {
		text := repeat(tests, "tcp.DstPort == 443", " or ")
		for _, d := range []Dialect{Strict, Extended} {
			b.Run(fmt.Sprintf("%s/%d", d, tests), func(b *testing.B) { benchmarkCompile(b, text, d) })
		}
	}
	for _, family := range []struct{ name, field, format string }{
		{"IPv4", "ip.SrcAddr", "10.%d.%d.0/25, "},
		{"IPv6", "ipv6.SrcAddr", "2001:db8:%x:%x::/96, "},
	} {
		var set strings.Builder
		set.WriteString(family.field + " in {")
		for i := range 10000 {
			fmt.Fprintf(&set, family.format, i>>8, i&0xFF)
		}
		set.WriteString("}")
		b.Run("set/"+family.name+"/10000", func(b *testing.B) { benchmarkCompile(b, set.String(), Extended) })
	}
}
