package packet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestCalcChecksumsExamples checks the table of packets.md 9.5 and the sentences behind it.
func TestCalcChecksumsExamples(t *testing.T) {
	const keep = true // the packet as listed; otherwise with its checksums zeroed
	tests := []struct {
		id        string
		flags     ChecksumFlags
		keep      bool
		ok        bool
		bits      string
		ip, upper uint16
		at        int // of the transport checksum, 0 for none
	}{
		{"A", 0, !keep, true, "IP+TCP", 0x507b, 0x0ad4, 36},
		{"B", 0, !keep, true, "IP+UDP", 0x2cd2, 0xd8d8, 26},
		{"C", 0, !keep, true, "IP", 0xaccb, 0x3336, 22},
		{"D", 0, !keep, true, "TCP", 0, 0xbfda, 56},
		{"E", 0, !keep, true, "UDP", 0, 0x8aae, 54},
		{"F", 0, !keep, true, "", 0, 0x1113, 42},
		{"G", 0, !keep, false, "IP", 0x8cb5, 0, 26},
		{"H", 0, !keep, true, "IP", 0xacba, 0, 0},
		{"I", 0, !keep, false, "", 0, 0, 50},
		{"J", 0, !keep, true, "", 0, 0, 0},
		{"K", 0, !keep, true, "IP+UDP", 0x8d7b, 0x31c1, 30},
		{"M", 0, !keep, true, "IP", 0x9087, 0, 0},
		{"N", 0, keep, true, "IP+UDP", 0x2cd2, 0xd8d8, 26},
		{"O", 0, keep, true, "IP", 0x507b, 0, 0},
		{"A", NoIPChecksum, !keep, true, "TCP", 0, 0x0ad4, 36},
		{"A", NoTCPChecksum, !keep, true, "IP", 0x507b, 0, 36},
		{"A", NoIPChecksum | NoTCPChecksum, !keep, true, "", 0, 0, 36},
		{"A", 31, !keep, true, "", 0, 0, 36},
		{"G", NoUDPChecksum, !keep, true, "IP", 0x8cb5, 0, 26},
		{"I", NoICMPv6Checksum, !keep, true, "", 0, 0, 50},
		{"C", NoICMPChecksum, !keep, true, "IP", 0xaccb, 0, 22},
		{"C", NoICMPv6Checksum | 1<<40, !keep, true, "IP", 0xaccb, 0x3336, 22},
		// The original reads beyond the buffer here; false is what the specification recommends.
		{"L", 0, !keep, false, "IP", 0x907b, 0, 36},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s flags %d", tt.id, tt.flags), func(t *testing.T) {
			want := example(t, tt.id)
			b := example(t, tt.id)
			v4 := b[0]>>4 == 4
			if v4 {
				if !tt.keep {
					IPv4(b).SetChecksum(0)
				}
				IPv4(want).SetChecksum(tt.ip)
			}
			if tt.at > 0 {
				if !tt.keep {
					be.PutUint16(b[tt.at:], 0)
				}
				be.PutUint16(want[tt.at:], tt.upper)
			}
			var addr Address
			unflagged := bytes.Clone(b)
			if ok := CalcChecksums(b, &addr, tt.flags); ok != tt.ok {
				t.Errorf("returned %v", ok)
			}
			if !bytes.Equal(b, want) {
				t.Errorf("packet %x, want %x", b, want)
			}
			wantAddr := map[string]Address{
				"": {}, "IP": {IPChecksum: true}, "TCP": {TCPChecksum: true}, "UDP": {UDPChecksum: true},
				"IP+TCP": {IPChecksum: true, TCPChecksum: true}, "IP+UDP": {IPChecksum: true, UDPChecksum: true},
			}[tt.bits]
			if addr != wantAddr {
				t.Errorf("address %+v", addr)
			}
			if ok := CalcChecksums(unflagged, nil, tt.flags); ok != tt.ok || !bytes.Equal(unflagged, want) {
				t.Errorf("without address: %v, %x", ok, unflagged)
			}
		})
	}
}

func TestCalcChecksumsDetails(t *testing.T) {
	t.Run("not a packet", func(t *testing.T) {
		b := example(t, "A")[:19]
		var addr Address
		if CalcChecksums(b, &addr, 0) || addr != (Address{}) || !bytes.Equal(b, example(t, "A")[:19]) {
			t.Errorf("%x %+v", b, addr)
		}
	})
	t.Run("UDP result 0 is stored as FFFF", func(t *testing.T) {
		b := unhex(t, "4500001e1c4600004011907e0a010203c000020700010002000affff31cc")
		want := bytes.Clone(b)
		be.PutUint16(b[26:], 0)
		if !CalcChecksums(b, nil, 0) || !bytes.Equal(b, want) {
			t.Errorf("%x", b)
		}
	})
	t.Run("bits are never cleared", func(t *testing.T) {
		addr := Address{IPChecksum: true, TCPChecksum: true, UDPChecksum: true, Outbound: true}
		want := addr
		if CalcChecksums(example(t, "G"), &addr, 0) || addr != want {
			t.Errorf("%+v", addr)
		}
	})
	t.Run("Quirk: a packet cut behind the transport header fails", func(t *testing.T) {
		b := example(t, "A")[:42]
		var addr Address
		if CalcChecksums(b, &addr, 0) || !addr.IPChecksum || addr.TCPChecksum || !bytes.Equal(b, example(t, "A")[:42]) {
			t.Errorf("%x %+v", b, addr)
		}
	})
	t.Run("Quirk: a packet cut in the transport header does not", func(t *testing.T) {
		if !CalcChecksums(example(t, "A")[:39], nil, 0) {
			t.Error("returned false")
		}
	})
	t.Run("IPv4 options are covered", func(t *testing.T) {
		b := change(example(t, "K"), 20, 7, 4, 4, 0)
		var p Parsed
		if !CalcChecksums(b, nil, 0) || !p.Parse(b) || !p.VerifyIPChecksum(b) {
			t.Errorf("%x", b)
		}
	})
	t.Run("a fragment header with offset and MF 0 is no obstacle", func(t *testing.T) {
		b := change(example(t, "I"), 42, 0, 0)
		var p Parsed
		if !CalcChecksums(b, nil, 0) || !p.Parse(b) || !p.VerifyTransportChecksum(b) {
			t.Errorf("%x", b)
		}
	})
}

// TestChecksumLeftToHardware completes checksums that a kernel leaves to the hardware.
func TestChecksumLeftToHardware(t *testing.T) {
	for _, id := range []string{"A", "B", "D", "E", "F", "K"} {
		t.Run(id, func(t *testing.T) {
			want := example(t, id)
			b := example(t, id)
			var p Parsed
			if !p.ParseExact(b) {
				t.Fatal("not a packet")
			}
			off := int(max(p.TCPOff, p.UDPOff, p.ICMPv6Off))
			field := b[off+map[uint8]int{ProtocolTCP: 16, ProtocolUDP: 6, ProtocolICMPv6: 2}[p.Protocol]:]
			be.PutUint16(field, p.PseudoHeaderSum(b))
			// The hardware sums up the segment with the field as it is.
			if hardware := Checksum(b[off:]); hardware != be.Uint16(want[len(b)-len(field):]) {
				t.Errorf("the hardware would write %04x", hardware)
			}
			if p.VerifyTransportChecksum(b) {
				t.Error("the sum of the pseudo-header passes for a checksum")
			}
			if !p.WriteTransportChecksum(b) || !bytes.Equal(b, want) {
				t.Errorf("packet %x, want %x", b, want)
			}
			if !p.VerifyTransportChecksum(b) || p.VerifyIPChecksum(b) != (p.Family == 4) {
				t.Error("the checksums do not verify")
			}
		})
	}
	for _, id := range []string{"G", "H", "I", "J", "L", "M", "O"} {
		t.Run("nothing to write in "+id, func(t *testing.T) {
			b := example(t, id)
			var p Parsed
			p.Parse(b)
			if p.WriteTransportChecksum(b) || p.VerifyTransportChecksum(b) || !bytes.Equal(b, example(t, id)) {
				t.Errorf("%x", b)
			}
		})
	}
	t.Run("IPv6 has no header checksum", func(t *testing.T) {
		var p Parsed
		b := example(t, "D")
		p.Parse(b)
		if p.WriteIPChecksum(b) || p.VerifyIPChecksum(b) || !bytes.Equal(b, example(t, "D")) {
			t.Errorf("%x", b)
		}
	})
	t.Run("nothing was parsed", func(t *testing.T) {
		var p Parsed
		b := example(t, "A")
		if p.WriteTransportChecksum(b) || p.VerifyTransportChecksum(b) || p.PseudoHeaderSum(b) != 0 {
			t.Error("found a transport header")
		}
	})
	t.Run("UDP without checksum", func(t *testing.T) {
		var p Parsed
		v4, v6 := change(example(t, "B"), 26, 0, 0), change(example(t, "E"), 54, 0, 0)
		if p.Parse(v4); !p.VerifyTransportChecksum(v4) {
			t.Error("wrong in IPv4")
		}
		if p.Parse(v6); p.VerifyTransportChecksum(v6) {
			t.Error("right in IPv6")
		}
	})
	t.Run("no pseudo-header", func(t *testing.T) {
		for _, id := range []string{"C", "H", "M"} {
			var p Parsed
			b := example(t, id)
			p.Parse(b)
			if sum := p.PseudoHeaderSum(b); sum != 0 {
				t.Errorf("%s: %04x", id, sum)
			}
		}
	})
}

// sumModel sums up words one by one (RFC 1071).
func sumModel(b []byte, initial uint16) uint16 {
	sum := uint64(initial)
	for i, v := range b {
		if i%2 == 0 {
			sum += uint64(v) << 8
		} else {
			sum += uint64(v)
		}
	}
	for sum > 0xFFFF {
		sum = sum>>16 + sum&0xFFFF
	}
	return uint16(sum)
}

func TestSum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	patterns := map[string]func() byte{
		"random": func() byte { return byte(rnd.Uint32()) },
		"ones":   func() byte { return 0xFF }, // a carry out of every addition
		"zeros":  func() byte { return 0 },
	}
	for name, next := range patterns {
		t.Run(name, func(t *testing.T) {
			for size := range 300 {
				b := make([]byte, size)
				for i := range b {
					b[i] = next()
				}
				for _, initial := range []uint16{0, 1, 0xFFFF, 0x1234} {
					if got, want := Sum(b, initial), sumModel(b, initial); got != want {
						t.Fatalf("%d bytes from %04x: %04x, want %04x", size, initial, got, want)
					}
				}
			}
		})
	}
	t.Run("RFC 1071 section 3", func(t *testing.T) {
		if got := Sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0); got != 0xddf2 {
			t.Errorf("%04x", got)
		}
	})
	t.Run("parts", func(t *testing.T) {
		b := example(t, "B")
		if got, want := Sum(b[12:], Sum(b[:12], 0)), Sum(b, 0); got != want {
			t.Errorf("%04x, want %04x", got, want)
		}
	})
}

// TestUpdateChecksum compares each update with the checksum computed anew.
func TestUpdateChecksum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	edges := [][]byte{bytes.Repeat([]byte{0}, 16), bytes.Repeat([]byte{0xFF}, 16)}
	for i := range 20000 {
		b := make([]byte, 40)
		for j := range b {
			b[j] = byte(rnd.Uint32())
		}
		after := make([]byte, 16)
		for j := range after {
			after[j] = byte(rnd.Uint32())
		}
		if i%4 == 0 {
			copy(b[8:], edges[rnd.IntN(2)])
		}
		if i%4 == 1 {
			after = edges[rnd.IntN(2)]
		}
		before := bytes.Clone(b[8:24])
		checksum := Checksum(b)
		for size, got := range map[int]uint16{
			2:  UpdateChecksum16(checksum, be.Uint16(before), be.Uint16(after)),
			4:  UpdateChecksum32(checksum, be.Uint32(before), be.Uint32(after)),
			16: UpdateChecksum128(checksum, [16]byte(before), [16]byte(after)),
		} {
			if want := Checksum(change(b, 8, after[:size]...)); got != want {
				t.Fatalf("%d bytes of %x to %x: %04x, want %04x", size, b, after, got, want)
			}
		}
	}
	t.Run("RFC 1624 section 4", func(t *testing.T) {
		if got := UpdateChecksum16(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
			t.Errorf("%04x", got)
		}
	})
}

func FuzzCalcChecksums(f *testing.F) {
	for _, e := range examples {
		f.Add(unhex(f, e.hex), uint64(0))
		f.Add(unhex(f, e.hex), uint64(9))
	}
	f.Fuzz(func(t *testing.T, b []byte, flags uint64) {
		before := bytes.Clone(b)
		var addr Address
		var p Parsed
		parsed := p.Parse(b)
		ok := CalcChecksums(b, &addr, ChecksumFlags(flags))
		if !parsed {
			if ok || !bytes.Equal(b, before) || addr != (Address{}) {
				t.Fatal("something was done to what is no packet")
			}
			return
		}
		if addr.IPChecksum != (p.Family == 4 && flags&1 == 0) {
			t.Fatalf("address %+v", addr)
		}
		if addr.IPChecksum && !p.VerifyIPChecksum(b) {
			t.Fatal("the IPv4 checksum is wrong")
		}
		if (addr.TCPChecksum || addr.UDPChecksum) && !p.VerifyTransportChecksum(b) {
			t.Fatal("the transport checksum is wrong")
		}
		if udp := p.UDP(b); addr.UDPChecksum && udp.Checksum() == 0 {
			t.Fatal("a UDP checksum of 0")
		}
		var may []int // the bytes that may have changed
		if p.Family == 4 {
			may = append(may, 10, 11)
		}
		for _, field := range []int32{p.TCPOff + 16, p.UDPOff + 6, p.ICMPOff + 2, p.ICMPv6Off + 2} {
			may = append(may, int(field), int(field)+1)
		}
		for _, i := range may {
			if i < len(b) {
				before[i] = b[i]
			}
		}
		if !bytes.Equal(b, before) {
			t.Fatalf("more than the checksums changed: %x", b)
		}
		if again := CalcChecksums(before, nil, ChecksumFlags(flags)); again != ok || !bytes.Equal(b, before) {
			t.Fatal("the second time is different")
		}
	})
}
