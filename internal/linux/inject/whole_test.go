//go:build linux

package inject

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

func TestWholeOf(t *testing.T) {
	const ack, syn, rst, psh, urg, cwr = 0x10, 0x02, 0x04, 0x08, 0x20, 0x80
	four := func(flags byte, options, n int) []byte {
		return tcp("10.0.0.1", "10.0.0.2", 1, flags, make([]byte, options), pattern(n))
	}
	options := append([]byte{0x46}, four(ack, 0, 3000)[1:20]...)
	options = append(append(options, 1, 1, 1, 0), four(ack, 0, 3000)[20:]...)
	binary.BigEndian.PutUint16(options[2:], uint16(len(options)))
	rows := []struct {
		name string
		b    []byte
		mss  int
		want whole
		ok   bool
	}{
		{"IPv4", four(ack|psh, 12, 3000), 1448, whole{1448, 20, 52}, true},
		{"IPv6", tcp("2001:db8::1", "2001:db8::2", 1, ack, nil, pattern(3000)), 1440, whole{1440, 40, 60}, true},
		{"all the options there can be", tcp("2001:db8::1", "2001:db8::2", 1, ack, make([]byte, 40), pattern(3000)), 1440, whole{1440, 40, 100}, true},
		{"a byte too long", four(ack, 0, 1001), 1000, whole{1000, 20, 40}, true},
		{"it fits", four(ack, 0, 1000), 1000, whole{}, false},
		{"no size", four(ack, 0, 1000), 0, whole{}, false},
		{"SYN", four(syn, 0, 3000), 1000, whole{}, false},
		{"RST", four(rst, 0, 3000), 1000, whole{}, false},
		{"URG", four(ack|urg, 0, 3000), 1000, whole{}, false},
		{"CWR, which is for the first segment only", four(ack|cwr, 0, 3000), 1000, whole{}, false},
		{"IP options", summed(options), 1000, whole{}, false},
		{"UDP", udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(3000)), 1000, whole{}, false},
		{"cut", four(ack, 0, 3000)[:2000], 1000, whole{}, false},
		{"nothing", nil, 1000, whole{}, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if got, ok := wholeOf(row.b, row.mss); ok != row.ok || ok && got != row.want {
				t.Errorf("%+v, %t", got, ok)
			}
		})
	}
}

// checkBegin checks the beginning of a frame that begin writes for a packet.
func checkBegin(t *testing.T, pkt []byte, o whole) {
	t.Helper()
	before := bytes.Clone(pkt)
	var w write
	n := o.begin(w.head[:], pkt)
	if n != o.headers || !bytes.Equal(pkt, before) {
		t.Fatalf("%d bytes of headers, want %d; the packet changed: %t", n, o.headers, !bytes.Equal(pkt, before))
	}
	ne := binary.NativeEndian
	want := whole{size: int(ne.Uint16(w.head[4:])), ip: int(ne.Uint16(w.head[6:])) - etherHeaderLen, headers: int(ne.Uint16(w.head[2:])) - etherHeaderLen}
	if want != o || w.head[0] != 1 || ne.Uint16(w.head[8:]) != 16 {
		t.Errorf("%x, want %+v", w.head[:virtioHeaderLen], o)
	}
	if kind := map[byte]byte{4: 1, 6: 4}[pkt[0]>>4]; w.head[1] != kind {
		t.Errorf("kind %d", w.head[1])
	}
	// Completed by what the field covers, the sum is right.
	sent := append(bytes.Clone(w.head[len(frameHeader{}):][:n]), pkt[n:]...)
	field := sent[o.ip+16:]
	binary.BigEndian.PutUint16(field, packet.Checksum(sent[o.ip:]))
	var p packet.Parsed
	if !p.ParseExact(sent) || !p.VerifyTransportChecksum(sent) || p.Family == 4 && !p.VerifyIPChecksum(sent) {
		t.Errorf("the checksums of %x are wrong", sent[:n])
	}
}

func TestBegin(t *testing.T) {
	for name, b := range map[string][]byte{
		"IPv4": tcp("10.0.0.1", "10.0.0.2", 1, 0x18, make([]byte, 12), pattern(3001)),
		"IPv6": tcp("2001:db8::1", "2001:db8::2", 1, 0x10, nil, pattern(3000)),
	} {
		t.Run(name, func(t *testing.T) {
			b[len(b)-1]++ // its checksum is not right
			o, ok := wholeOf(b, 1400)
			if !ok {
				t.Fatal("it is to be cut before")
			}
			checkBegin(t, b, o)
		})
	}
	var w write
	b := tcp("10.0.0.1", "10.0.0.2", 1, 0x10, nil, nil)
	if n := new(whole).begin(w.head[:], b); n != 0 || w.head != (write{}).head {
		t.Errorf("%d bytes of a packet that stays as it is: %x", n, w.head)
	}
}

func FuzzWhole(f *testing.F) {
	f.Add(tcp("10.0.0.1", "10.0.0.2", 1, 0x18, make([]byte, 12), pattern(3001)), uint16(1400))
	f.Add(tcp("2001:db8::1", "2001:db8::2", 1, 0x10, nil, pattern(3000)), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, mss uint16) {
		if o, ok := wholeOf(b, int(mss)); ok {
			checkBegin(t, b, o)
		}
	})
}

func TestBeginAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	b := tcp("10.0.0.1", "10.0.0.2", 1, 0x18, make([]byte, 12), pattern(3001))
	var w write
	if n := testing.AllocsPerRun(100, func() {
		o, ok := wholeOf(b, 1400)
		if !ok || o.begin(w.head[:], b) == 0 {
			t.Fatal("it is to be cut before")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkWhole measures the work in user space on a packet of 64 KiB that the kernel is to cut.
func BenchmarkWhole(b *testing.B) {
	pkt := tcp("10.0.0.1", "10.0.0.2", 1, 0x18, make([]byte, 12), pattern(64000))
	var w write
	b.ReportAllocs()
	for b.Loop() {
		o, _ := wholeOf(pkt, 1448)
		o.begin(w.head[:], pkt)
	}
}
