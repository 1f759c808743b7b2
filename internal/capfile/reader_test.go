package capfile

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/opendivert/divert/packet"
)

// TestTimesOfAnyResolution compares the conversion with an exact one.
func TestTimesOfAnyResolution(t *testing.T) {
	for _, test := range []struct {
		resolution uint8
		units      uint64
		want       string
	}{
		{6, 1500000, "1.5s"}, {0, 3, "3s"}, {3, 1500, "1.5s"}, {9, 1, "1ns"}, {12, 1999, "1ns"}, {30, 1<<64 - 1, "0s"}, {127, 1<<64 - 1, "0s"},
		{BinaryResolution, 3, "3s"}, {BinaryResolution | 1, 3, "1.5s"}, {BinaryResolution | 63, 3 << 62, "1.5s"}, {BinaryResolution | 64, 1 << 63, "500ms"},
		{BinaryResolution | 127, 1<<64 - 1, "0s"},
	} {
		i := pcapngInterface{resolution: test.resolution}
		if got := i.time(test.units).Sub(time.Unix(0, 0)).String(); got != test.want {
			t.Errorf("%#x, %d units: %s, want %s", test.resolution, test.units, got, test.want)
		}
	}
}

// FuzzReader reads any file to its end or its first error: packets stay within the file's bytes.
func FuzzReader(f *testing.F) {
	le := binary.LittleEndian
	file := le.AppendUint32(nil, MagicMicroseconds)
	file = le.AppendUint16(le.AppendUint16(file, 2), 4)
	file = le.AppendUint32(append(file, make([]byte, 12)...), uint32(LinkTypeRaw))
	datagram := append([]byte{0x45, 0, 0, 20}, make([]byte, 16)...)
	file = le.AppendUint32(le.AppendUint32(append(file, make([]byte, 8)...), 20), 20)
	f.Add(append(file, datagram...))
	ng := le.AppendUint32(le.AppendUint32(nil, BlockSection), 28)
	ng = append(le.AppendUint32(ng, ByteOrderMagic), 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 28, 0, 0, 0)
	ng = append(ng, 1, 0, 0, 0, 20, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0)
	ng = append(ng, 3, 0, 0, 0, 36, 0, 0, 0, 20, 0, 0, 0)
	f.Add(append(append(ng, datagram...), 36, 0, 0, 0))
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := NewReader(bytes.NewReader(file), packet.LayerNetwork)
		if err != nil {
			return
		}
		var p Packet
		for err = r.Next(&p); err == nil; err = r.Next(&p) {
			if len(p.Data) == 0 || len(p.Data) > p.Length || p.Addr.Layer != packet.LayerNetwork || p.Addr.Outbound != (p.Direction == Out) {
				t.Fatalf("packet %+v", p)
			}
		}
		if err != io.EOF && err.Error() == "" {
			t.Fatal("an error without text")
		}
		r.Complaints()
	})
}
