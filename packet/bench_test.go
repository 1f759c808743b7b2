package packet

import (
	"fmt"
	"net/netip"
	"testing"
)

func BenchmarkParse(b *testing.B) {
	for _, id := range []string{"A", "B", "D", "E", "J"} {
		data := example(b, id)
		b.Run(id, func(b *testing.B) {
			b.ReportAllocs()
			var p Parsed
			for b.Loop() {
				if !p.Parse(data) {
					b.Fatal("not a packet")
				}
			}
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	var batch []byte
	for range 64 {
		batch = append(batch, example(b, "A")...)
	}
	b.ReportAllocs()
	var p Parsed
	for b.Loop() {
		n := 0
		for packet := range p.Split(batch) {
			n += len(packet)
		}
		if n != len(batch) {
			b.Fatal(n)
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	for _, size := range []int{64, 1400, 65000} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 7)
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			var sum uint16
			for b.Loop() {
				sum += Checksum(data)
			}
			sink = uint64(sum)
		})
	}
}

func BenchmarkCalcChecksums(b *testing.B) {
	for _, size := range []int{64, 1400, 65000} {
		data := make([]byte, size)
		copy(data, example(b, "B"))
		IPv4(data).SetLength(uint16(size))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			var addr Address
			for b.Loop() {
				if !CalcChecksums(data, &addr, 0) {
					b.Fatal("no checksum")
				}
			}
		})
	}
}

func BenchmarkUpdateChecksum(b *testing.B) {
	ip := IPv6(example(b, "D"))
	src, dst := ip.Src().As16(), ip.Dst().As16()
	sum := uint16(0x1234)
	b.Run("16", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sum = UpdateChecksum16(sum, 80, 8080)
		}
	})
	b.Run("32", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sum = UpdateChecksum32(sum, 0x0A010203, 0xC0000207)
		}
	})
	b.Run("128", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sum = UpdateChecksum128(sum, src, dst)
		}
	})
	sink = uint64(sum)
}

func BenchmarkHash(b *testing.B) {
	for _, id := range []string{"A", "B", "D"} {
		data := example(b, id)
		b.Run(id, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sink += Hash(data, 1)
			}
		})
	}
}

func BenchmarkDecrementTTL(b *testing.B) {
	data := example(b, "A")
	b.ReportAllocs()
	for b.Loop() {
		data[8] = 64
		DecrementTTL(data)
	}
}

func BenchmarkAddressBinary(b *testing.B) {
	addr := Address{Timestamp: 1, Outbound: true}
	buf := make([]byte, 0, AddressSize)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = addr.AppendBinary(buf[:0])
		if err := addr.UnmarshalBinary(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// sink keeps results alive.
var sink uint64

func BenchmarkSetDst(b *testing.B) {
	for _, id := range []string{"B", "D"} {
		p := vouched(example(b, id))
		ends := [2]netip.AddrPort{p.Src(), p.Dst()}
		b.Run(id, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := p.SetDst(ends[i&1]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkStreamEdit(b *testing.B) {
	var s Stream
	p := vouched(example(b, "D"))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Edit(p, nil); err != nil {
			b.Fatal(err)
		}
	}
}
