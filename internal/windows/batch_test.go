package windows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// ipv4 returns an IPv4 packet of a length.
func ipv4(size int) []byte {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	return b
}

// ipv6 returns an IPv6 packet of a length.
func ipv6(size int) []byte {
	b := make([]byte, size)
	b[0], b[6], b[7] = 0x60, 253, 64
	binary.BigEndian.PutUint16(b[4:], uint16(size-40))
	return b
}

// addresses returns n addresses as the driver leaves them, with rubbish where it does not write.
func addresses(layer packet.Layer, n int) []byte {
	var b []byte
	for i := range n {
		a := packet.Address{Timestamp: int64(i), Layer: layer}
		for k := range a.Union() {
			a.Union()[k] = byte(k + 1)
		}
		b, _ = a.AppendBinary(b)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestUnpack(t *testing.T) {
	for _, row := range []struct {
		name  string
		layer packet.Layer
		data  []byte
		count int
		want  [][]byte
		bad   bool
	}{
		{"one", packet.LayerNetwork, ipv4(100), 1, [][]byte{ipv4(100)}, false},
		{"several", packet.LayerNetwork, join(ipv4(20), ipv6(40), ipv4(1500)), 3, [][]byte{ipv4(20), ipv6(40), ipv4(1500)}, false},
		{"the longest", packet.LayerForward, join(ipv4(65535), ipv6(65575)), 2, [][]byte{ipv4(65535), ipv6(65575)}, false},
		{"events", packet.LayerFlow, nil, 3, [][]byte{{}, {}, {}}, false},
		{"objects", packet.LayerReflect, []byte("@WinDiv_A\x00@WinDiv_BB\x00"), 2, [][]byte{[]byte("@WinDiv_A\x00"), []byte("@WinDiv_BB\x00")}, false},
		{"nothing at all", packet.LayerNetwork, nil, 0, nil, true},
		{"no packet", packet.LayerNetwork, nil, 1, nil, true},
		{"fewer packets", packet.LayerNetwork, ipv4(60), 2, [][]byte{}, true},
		{"fewer packets, cut", packet.LayerNetwork, join(ipv4(60), ipv4(60)[:30]), 3, [][]byte{ipv4(60)}, true},
		{"of no IP version", packet.LayerNetwork, make([]byte, 200), 2, nil, true},
		{"an object without end", packet.LayerReflect, []byte("@WinDiv_A"), 1, nil, true},
		{"more objects", packet.LayerReflect, []byte("A\x00B\x00"), 1, [][]byte{[]byte("A\x00")}, true},
		{"events with data", packet.LayerSocket, []byte{1}, 1, [][]byte{{}}, true},
		{"more than asked for", packet.LayerFlow, nil, 5, nil, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			ps := make([]packet.Packet, 4)
			buffer := ps[0].Buffer(len(row.data) + 1)[:len(row.data)]
			copy(buffer, row.data)
			b := batch{layer: row.layer, data: buffer, addresses: addresses(row.layer, row.count)}
			n, err := b.unpack(ps)
			if (err != nil) != row.bad || n < len(row.want) || !row.bad && n != len(row.want) {
				t.Fatalf("%d packets, %v", n, err)
			}
			for i, want := range row.want {
				if !bytes.Equal(ps[i].Data, want) {
					t.Errorf("packet %d is %x, want %x", i, ps[i].Data, want)
				}
				if ps[i].Addr.Timestamp != int64(i) || ps[i].Addr.Layer != row.layer {
					t.Errorf("address %d is %+v", i, ps[i].Addr)
				}
				for k, c := range ps[i].Addr.Union() {
					if used := unionUsed[row.layer]; k < used && c != byte(k+1) || k >= used && c != 0 {
						t.Errorf("address %d, layer data %x", i, ps[i].Addr.Union())
						break
					}
				}
			}
		})
	}
}

// TestUnpackOwnMemory checks that the packets of a batch do not share memory.
func TestUnpackOwnMemory(t *testing.T) {
	ps := make([]packet.Packet, 3)
	data := join(ipv4(100), ipv4(100), ipv4(100))
	buffer := ps[0].Buffer(len(data))
	copy(buffer, data)
	b := batch{layer: packet.LayerNetwork, data: buffer, addresses: addresses(packet.LayerNetwork, 3)}
	if n, err := b.unpack(ps); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	clear(ps[0].Buffer(len(data)))
	ps[1].Data = append(ps[1].Data, make([]byte, 300)...)
	for _, i := range []int{1, 2} {
		if !bytes.Equal(ps[i].Data[:100], ipv4(100)) {
			t.Errorf("packet %d changed with another", i)
		}
	}
}

func TestFill(t *testing.T) {
	impostor := packet.Packet{Data: ipv6(40), Addr: packet.Address{Impostor: true}}
	impostor.Data[7] = 1
	for _, row := range []struct {
		name  string
		ps    []packet.Packet
		done  int
		count int
		bytes int
		err   error
	}{
		{"one", []packet.Packet{{Data: ipv4(100)}}, 1, 1, 100, nil},
		{"excess is left out", []packet.Packet{{Data: append(ipv4(100), 1, 2, 3)}, {Data: ipv6(50)}}, 2, 2, 150, nil},
		{"cut", []packet.Packet{{Data: ipv4(100)[:99]}, {Data: ipv6(50)}}, 2, 1, 50, engine.ErrShortBuffer},
		{"nothing", []packet.Packet{{}}, 1, 0, 0, engine.ErrShortBuffer},
		{"half an IPv6 header", []packet.Packet{{Data: ipv6(40)[:39]}}, 1, 0, 0, engine.ErrShortBuffer},
		{"a length below the header's", []packet.Packet{{Data: append([]byte{0x45, 0, 0, 19}, make([]byte, 30)...)}}, 1, 0, 0, engine.ErrInvalid},
		{"no IP version", []packet.Packet{{Data: make([]byte, 40)}}, 1, 0, 0, engine.ErrInvalid},
		{"an impostor at the end of its way", []packet.Packet{impostor, {Data: ipv4(20)}}, 2, 1, 20, engine.ErrHopLimit},
		{"as many as there is room for", []packet.Packet{{Data: ipv6(65575)}, {Data: ipv6(65575)}, {Data: ipv6(65575)}, {Data: ipv6(65575)}, {Data: ipv4(20)}}, 4, 4, 4 * 65575, nil},
		{"as many as the driver takes", make300(), 255, 255, 255 * 20, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			var o outgoing
			for range 2 { // the second time over remains of the first
				done, err := o.fill(row.ps)
				if done != row.done || !errors.Is(err, row.err) || o.count != row.count ||
					len(o.data) != row.bytes || len(o.addresses) != o.count*packet.AddressSize {
					t.Errorf("done %d, %d packets, %d bytes, %v", done, o.count, len(o.data), err)
				}
			}
		})
	}
}

func make300() []packet.Packet {
	ps := make([]packet.Packet, 300)
	for i := range ps {
		ps[i].Data = ipv4(20)
	}
	return ps
}

// FuzzUnpack reads anything that a driver, or an impostor of one, may write into the buffers.
func FuzzUnpack(f *testing.F) {
	f.Add(uint8(0), join(ipv4(60), ipv6(60)), addresses(packet.LayerNetwork, 2), 4)
	f.Add(uint8(1), ipv4(60), addresses(packet.LayerForward, 1), 1)
	f.Add(uint8(2), []byte{}, addresses(packet.LayerFlow, 3), 3)
	f.Add(uint8(4), []byte("A\x00B\x00"), addresses(packet.LayerReflect, 2), 8)
	f.Fuzz(func(t *testing.T, layer uint8, data, addresses []byte, count int) {
		if layer >= uint8(packet.NumLayers) || count < 1 || count > batchMax {
			return
		}
		ps := make([]packet.Packet, count)
		buffer := ps[0].Buffer(len(data) + 1)[:len(data)]
		copy(buffer, data)
		b := batch{layer: packet.Layer(layer), data: buffer, addresses: bytes.Clone(addresses)}
		n, err := b.unpack(ps)
		total := 0
		for _, p := range ps[:n] {
			if !bytes.Equal(p.Data, data[total:total+len(p.Data)]) {
				t.Fatalf("packet %x is not what stood in the batch", p.Data)
			}
			total += len(p.Data)
		}
		if err == nil && (n != len(addresses)/packet.AddressSize || total != len(data)) {
			t.Fatalf("%d packets of %d bytes, without an error", n, total)
		}
	})
}

// FuzzVersion reads answers to the handshake.
func FuzzVersion(f *testing.F) {
	var v versionRecord
	v.offer(64)
	f.Add(v[:])
	copy(v[:], "#WdivSYS")
	f.Add(v[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var v versionRecord
		copy(v[:], b)
		_ = v.String()
		le := binary.LittleEndian
		if good := le.Uint64(v[0:]) == magicDriver && le.Uint32(v[8:]) >= 2; (v.check() == nil) != good {
			t.Fatalf("%x: %v", v, v.check())
		}
	})
}

// FuzzFill sends arbitrary bytes: the driver gets only whole packets.
func FuzzFill(f *testing.F) {
	f.Add(ipv4(40), ipv6(60), true)
	f.Add([]byte{}, []byte{0x45}, false)
	f.Fuzz(func(t *testing.T, a, b []byte, impostor bool) {
		var o outgoing
		ps := []packet.Packet{{Data: a, Addr: packet.Address{Impostor: impostor}}, {Data: b}}
		done, err := o.fill(ps)
		if done != 2 || o.count > 2 || (err == nil) != (o.count == 2) {
			t.Fatalf("done %d, %d packets, %v", done, o.count, err)
		}
		var p packet.Parsed
		rest, n := o.data, 0
		for len(rest) > 0 {
			first, err := engine.Whole(rest)
			if err != nil {
				t.Fatal(err)
			}
			p.Parse(first)
			rest = rest[len(first):]
			n++
		}
		if n != o.count {
			t.Fatalf("%d packets, said to be %d", n, o.count)
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	ps := make([]packet.Packet, 64)
	var data []byte
	for range ps {
		data = append(data, ipv4(1000)...)
	}
	buffer := ps[0].Buffer(len(data))
	bt := batch{layer: packet.LayerNetwork, addresses: addresses(packet.LayerNetwork, len(ps))}
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		copy(buffer, data)
		bt.data = buffer
		if _, err := bt.unpack(ps); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	ps := make300()
	var o outgoing
	b.ReportAllocs()
	for b.Loop() {
		if _, err := o.fill(ps); err != nil {
			b.Fatal(err)
		}
	}
}
