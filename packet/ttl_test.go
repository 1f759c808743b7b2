package packet

import (
	"bytes"
	"fmt"
	"testing"
)

func TestDecrementTTL(t *testing.T) {
	a, b, d := example(t, "A"), example(t, "B"), example(t, "D")
	tests := []struct {
		name   string
		packet []byte
		want   []byte // nil: false and unchanged
	}{
		{"A", a, change(change(a, 8, 0x3f), 10, 0x51, 0x7b)},
		{"B has TTL 1", b, nil},
		{"TTL 0", change(a, 8, 0), nil},
		{"TTL 2", change(a, 8, 2), change(change(a, 8, 1), 10, 0x51, 0x7b)},
		{"D", d, change(d, 7, 0x3f)},
		{"hop limit 1", change(d, 7, 1), nil},
		{"hop limit 0", change(d, 7, 0), nil},
		{"nothing", nil, nil},
		{"19 bytes", a[:19], nil},
		{"39 bytes of IPv6", d[:39], nil},
		{"40 bytes of IPv6", d[:40], change(d[:40], 7, 0x3f)},
		{"version 5", change(a, 0, 0x55), nil},
		{"header and total length are not checked", change(a, 0, 0x41, 0, 0, 0), change(change(change(a, 0, 0x41, 0, 0, 0), 8, 0x3f), 10, 0x51, 0x7b)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if want == nil {
				want = bytes.Clone(tt.packet)
			}
			got := bytes.Clone(tt.packet)
			if ok := DecrementTTL(got); ok != (tt.want != nil) || !bytes.Equal(got, want) {
				t.Errorf("%v, %x, want %x", ok, got, want)
			}
		})
	}
}

// TestDecrementTTLChecksum checks the table of packets.md 2.
func TestDecrementTTLChecksum(t *testing.T) {
	for _, tt := range []struct{ before, after uint16 }{
		{0x0000, 0x0100}, {0x00FF, 0x01FF}, {0xFF00, 0x0001}, {0xFDFF, 0xFEFF},
		{0xFEFF, 0x0000}, {0xFFFF, 0x0100}, {0xFFFE, 0x00FF},
	} {
		t.Run(fmt.Sprintf("%04X", tt.before), func(t *testing.T) {
			b := example(t, "A")
			IPv4(b).SetChecksum(tt.before)
			if !DecrementTTL(b) || IPv4(b).Checksum() != tt.after {
				t.Errorf("%04X, want %04X", IPv4(b).Checksum(), tt.after)
			}
		})
	}
}

// TestDecrementTTLKeepsChecksum takes each right and some wrong checksums through the decrement.
func TestDecrementTTLKeepsChecksum(t *testing.T) {
	b := example(t, "A")
	var p Parsed
	p.Parse(b)
	for id := range 0x10000 {
		IPv4(b).SetID(uint16(id))
		IPv4(b).SetTTL(uint8(id%254) + 2)
		p.WriteIPChecksum(b)
		wrong := change(b, 10, b[10]^0x10)
		if !DecrementTTL(b) || !p.VerifyIPChecksum(b) {
			t.Fatalf("wrong after: %x", b[:20])
		}
		if !DecrementTTL(wrong) || p.VerifyIPChecksum(wrong) {
			t.Fatalf("right after: %x", wrong[:20])
		}
	}
}
