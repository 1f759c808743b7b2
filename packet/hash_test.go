package packet

import "testing"

// TestHashExamples checks the table of packets.md 9.3.
func TestHashExamples(t *testing.T) {
	seeds := [3]uint64{0, 1, 0x0123456789ABCDEF}
	for _, tt := range []struct {
		id   string
		want [3]uint64
	}{
		{"A", [3]uint64{0x5ed9432262fe2c5b, 0x7b94989ed33cbe86, 0x19536fe415ec4e91}},
		{"B", [3]uint64{0x597f7e6d54bf7143, 0xaad1deccbf862c06, 0x37177e46d1bf194d}},
		{"C", [3]uint64{0xb7cdd73121e84a54, 0x6e836e4ee8010b05, 0x1100178038d04998}},
		{"D", [3]uint64{0x37e7caa06cea3955, 0x6486ba7e3df49e1e, 0x684ccc556f0c6075}},
		{"E", [3]uint64{0x04db0432a6ebb766, 0xf94f213446fd6e3a, 0xf270e48c2a7b97de}},
		{"F", [3]uint64{0xbd2228b52d00711e, 0x10921b68893b8b6b, 0x765ccbdf5d654339}},
		{"G", [3]uint64{0xafc3493ef1bdfbe4, 0x0e8fd883014fcce3, 0x0c5cc75398885c18}},
		{"H", [3]uint64{0x400f7413053912b7, 0x741ef6aed57ac1b5, 0xc42b982c4fe72908}},
		{"I", [3]uint64{0x9af42f91fc0492ca, 0x47b3f41e266110dc, 0x4ab318914ebe0c9c}},
		{"J", [3]uint64{0xf26f6cdf05a52d96, 0xb02d2e4c3deccd2d, 0x0493f50878212aea}},
		{"K", [3]uint64{0xa416b63f12a7aa1f, 0x2f7315d4cef6c2f6, 0x11066786b2e47d16}},
		{"L", [3]uint64{0xa88a6f2ae0257805, 0x7516ff139e80d0bd, 0xa63217b1363e6164}},
		{"M", [3]uint64{0x0035d8f9a5d346ba, 0xa075d3e25cb876d2, 0x528907cccc246bd8}},
		{"N", [3]uint64{0x597f7e6d54bf7143, 0xaad1deccbf862c06, 0x37177e46d1bf194d}},
		{"O", [3]uint64{0x0000000000000000, 0x0000000000000000, 0x0000000000000000}},
	} {
		t.Run(tt.id, func(t *testing.T) {
			for i, seed := range seeds {
				if got := Hash(example(t, tt.id), seed); got != tt.want[i] {
					t.Errorf("seed %x: %016x, want %016x", seed, got, tt.want[i])
				}
			}
		})
	}
}

// TestHashRandomFields checks the table of packets.md 9.4: the bits of the hash in the random fields, also for the
// truncated packet O.
func TestHashRandomFields(t *testing.T) {
	for _, tt := range []struct {
		id       string
		seed     uint64
		random8  uint8
		random16 uint16
		random32 uint32
	}{
		{"A", 0, 217, 17186, 1660824667},
		{"A", 123456789, 42, 62558, 3981655981},
		{"B", 0, 127, 32365, 1421832515},
		{"B", 123456789, 161, 23484, 3935229286},
		{"D", 0, 231, 51872, 1827289429},
		{"D", 123456789, 178, 17332, 2037198856},
		{"F", 0, 34, 10421, 755003678},
		{"F", 123456789, 65, 15885, 2973003958},
		{"O", 0, 207, 40961, 2527858034},
		{"O", 123456789, 86, 32238, 492939300},
	} {
		t.Run(tt.id, func(t *testing.T) {
			b := example(t, tt.id)
			var p Parsed
			if !p.Parse(b) {
				t.Fatal("not a packet")
			}
			h := p.Hash(b, tt.seed)
			if uint8(h>>48) != tt.random8 || uint16(h>>32) != tt.random16 || uint32(h) != tt.random32 {
				t.Errorf("hash %016x", h)
			}
		})
	}
}

func TestHashDetails(t *testing.T) {
	t.Run("not a packet", func(t *testing.T) {
		var p Parsed
		p.Parse(nil)
		if Hash(nil, 1) != 0 || Hash(example(t, "A")[:19], 1) != 0 || p.Hash(nil, 1) != 0 {
			t.Error("not 0")
		}
	})
	t.Run("a shorter buffer than the one that was parsed", func(t *testing.T) {
		for _, e := range examples {
			b := unhex(t, e.hex)
			var p Parsed
			p.Parse(b)
			for n := range len(b) {
				p.Hash(b[:n], 1) // stays within b
			}
		}
	})
	t.Run("headers count, options and payload do not", func(t *testing.T) {
		a, b, k := example(t, "A"), example(t, "B"), example(t, "K")
		for _, tt := range []struct {
			name    string
			a, b    []byte
			differs bool
		}{
			{"TTL", a, change(a, 8, 63), true},
			{"TCP urgent pointer", a, change(a, 39, 1), true},
			{"TCP options", a, change(a, 43, 1), false},
			{"UDP checksum", b, change(b, 26, 1), true},
			{"payload", b, change(b, 28, 'j'), false},
			{"IPv4 options", k, change(k, 20, 7), false},
			{"IPv6 TCP urgent pointer", example(t, "D"), change(example(t, "D"), 59, 1), true},
			{"IPv6 extension header", example(t, "E"), change(example(t, "E"), 42, 2), false},
		} {
			if (Hash(tt.a, 0) != Hash(tt.b, 0)) != tt.differs {
				t.Errorf("%s", tt.name)
			}
		}
	})
}
