package tcpdump

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// TestAsTcpdump asks tcpdump itself which of some thousand packets each filter matches; the converted filter must match
// the same.
func TestAsTcpdump(t *testing.T) {
	path, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("there is no tcpdump to compare with (Debian: apt-get install tcpdump)")
	}
	packets := samples(t, 4000)
	file := writeSamples(t, packets)
	tried, matched := 0, 0
	for _, row := range rows {
		r, err := Convert(row.in)
		if err != nil || strings.Contains(row.in, "inbound") {
			continue // a capture file does not say the direction
		}
		notes := strings.Join(r.Notes, " ")
		if strings.Contains(notes, "link header") {
			continue // these packets have no such header
		}
		p, err := filter.Compile(r.Filter, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		want := matchedBy(t, path, file, row.in)
		if want == nil {
			continue // this tcpdump refuses it
		}
		tried++
		only4 := strings.Contains(notes, "IPv4 packets only")
		for i, b := range packets {
			if only4 && b[0]>>4 != 4 {
				continue
			}
			got := p.Match(b, &packet.Address{Layer: packet.LayerNetwork, Outbound: true})
			if got != want[i] {
				t.Errorf("%s (%s): packet %x: %v, tcpdump says %v", row.in, r.Filter, b, got, want[i])
				break
			}
			if got {
				matched++
			}
		}
	}
	if tried < 40 || matched < 1000 {
		t.Errorf("%d filters tried, %d matches", tried, matched)
	}
}

// writeSamples writes packets to a capture file, with their number as time, and returns its path.
func writeSamples(t *testing.T, packets [][]byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "samples.pcap")
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	for i, p := range packets {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(p), Length: len(p)}, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// matchedBy returns which packets of a capture file match in tcpdump, nil if it refuses the filter.
func matchedBy(t *testing.T, path, file, text string) []bool {
	t.Helper()
	out, err := exec.Command(path, "-r", file, "-w", "-", text).Output()
	if err != nil {
		return nil
	}
	r, err := pcapgo.NewReader(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	is := make([]bool, 10000)
	for {
		_, ci, err := r.ReadPacketData()
		if err != nil {
			return is
		}
		is[ci.Timestamp.Unix()] = true
	}
}

// samples makes packets with the values in the rows, and with adjacent ones.
func samples(t *testing.T, n int) [][]byte {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...int) int { return list[r.IntN(len(list))] }
	addrs4 := []string{"1.2.3.4", "10.0.0.1", "10.0.0.2", "10.255.3.4", "192.168.1.9", "192.168.2.9", "224.0.0.5", "8.8.8.8"}
	addrs6 := []string{"2001:db8::1", "2001:db8::2", "fe80::1", "febf::2", "fec0::1"}
	var out [][]byte
	for range n {
		list := addrs4
		if r.IntN(3) == 0 {
			list = addrs6
		}
		port := func() uint16 {
			return uint16(pick(22, 53, 80, 81, 443, 444, 161, 162, 7999, 8000, 8080, 8999, 9000, r.IntN(65536)))
		}
		h := packet.Header{
			Src: netip.AddrPortFrom(netip.MustParseAddr(list[r.IntN(len(list))]), port()), Dst: netip.AddrPortFrom(netip.MustParseAddr(list[r.IntN(len(list))]), port()),
			TTL: uint8(pick(1, 4, 5, 6, 64, 255)), DF: r.IntN(2) == 0,
		}
		payload := make([]byte, pick(0, 4, 12, 20, 600))
		for i := range payload {
			payload[i] = byte(pick(0, 1, 0x16, 0x80, r.IntN(256)))
		}
		if r.IntN(3) == 0 {
			payload = append([]byte("GET / HTTP/1.1\r\n"), payload...)
		}
		var b []byte
		var err error
		switch r.IntN(4) {
		case 0, 1:
			b, err = h.AppendTCP(nil, packet.Segment{Flags: packet.TCPFlags(pick(2, 0x12, 0x10, 0x18, 0x11, 4, 0x14, 0, r.IntN(64)))}, payload)
		case 2:
			b, err = h.AppendUDP(nil, payload)
		default:
			b, err = h.AppendICMP(nil, uint8(pick(0, 8, 3, 128, 135)), uint8(pick(0, 1)), r.Uint32(), payload)
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}
