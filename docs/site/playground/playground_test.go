package playground

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert/packet"
)

// TestAsk: the answers for filters that compile, and for those that do not.
func TestAsk(t *testing.T) {
	for _, test := range []struct {
		text   string
		layer  packet.Layer
		strict bool
		want   map[string]string // parts of the JSON, by key
	}{
		{"tcp.DstPort == 80", packet.LayerNetwork, false, map[string]string{
			"error": "", "normal": "tcp.DstPort = 80", "tests": "1", "object": "@WinDiv_", "noObject": "", "driver": "", "constant": "", "layers": "NETWORK",
			"neighbour": "tcp dst port 80", "neighbourNotes": "extension headers", "noNeighbour": "",
		}},
		{"tcp.DstPort in {80}", packet.LayerNetwork, true, map[string]string{"error": "^^", "normal": "", "tests": "0"}},
		{"tcp.dstport == 80", packet.LayerNetwork, false, map[string]string{"error": "did you mean tcp.DstPort?", "tcpdump": ""}},
		{"tcp port 80", packet.LayerNetwork, false, map[string]string{
			"error": "unknown word", "tcpdump": "tcp.SrcPort == 80 or tcp.DstPort == 80",
		}},
		{"remoteAddr in @blocked", packet.LayerNetwork, false, map[string]string{"object": "", "noObject": "set", "layers": "FLOW", "neighbour": "", "noNeighbour": "@blocked"}},
		{"processId == 4", packet.LayerFlow, false, map[string]string{"noNeighbour": "events"}},
		{`iface == "eth0" or process == "curl"`, packet.LayerNetwork, false, map[string]string{
			"error": "", "object": "", "noObject": "interface", "normal": "iface = ", "tests": "2", "neighbour": "", "noNeighbour": "iface",
		}},
		{"iface == eth0", packet.LayerNetwork, false, map[string]string{"error": "single quotes"}},
		{"tcp and udp", packet.LayerNetwork, false, map[string]string{"constant": "It matches nothing."}},
		{"true", packet.LayerFlow, false, map[string]string{"constant": "It matches everything at its layer."}},
		{"ifIdx == 4", packet.LayerSocket, false, map[string]string{"error": "ifIdx does not exist at layer SOCKET"}},
		{"", packet.LayerNetwork, false, map[string]string{"error": "empty"}},
		{strings.Repeat("tcp or ", 20000) + "tcp", packet.LayerNetwork, false, map[string]string{"error": "at most 65,536 bytes"}},
	} {
		text, err := json.Marshal(Ask(test.text, test.layer, test.strict))
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		for key, want := range test.want {
			part, err := json.Marshal(got[key])
			if s := strings.Trim(string(part), `"`); err != nil || !strings.Contains(s, want) || want == "" && s != "" {
				t.Errorf("%.40q at layer %v: %s is %s, want %q", test.text, test.layer, key, part, want)
			}
		}
	}
}

// TestSamples: filters match the right packets of the built-in capture.
func TestSamples(t *testing.T) {
	c, err := Samples()
	if err != nil {
		t.Fatal(err)
	}
	for filter, want := range map[string][]int{
		"outbound and tcp.DstPort in {80, 443} and tcp.Syn": {3, 9},
		"udp.DstPort == 53": {1}, "loopback": {18}, "icmpv6": {15}, "tcp.Rst": {17},
		"tcp.Payload32[0] == 0x47455420": {6}, "false": nil,
	} {
		a := Ask(filter, packet.LayerNetwork, false)
		r := c.Match(&a, 100)
		var got []int
		for _, row := range r.Rows {
			if row.Match {
				got = append(got, row.Number)
			}
		}
		if a.Error != "" || !slices.Equal(got, want) || r.Matches != len(want) || r.Packets != 18 {
			t.Errorf("%s (%s) matches %v, %d of %d, want %v", filter, a.Error, got, r.Matches, r.Packets, want)
		}
	}
	a := Ask("outbound and tcp.DstPort == 80", packet.LayerNetwork, false)
	if row := c.Match(&a, 3).Rows[2]; row != (Row{Number: 3, Time: "0.014000", Way: "out", Text: "192.0.2.10:50001 > 198.51.100.7:80 TCP SYN, payload 0", Match: true}) {
		t.Errorf("the third row is %+v", row)
	}
	steps := c.Explain(&a, 1)
	if want := []Step{{"outbound", "1", true}, {"tcp.DstPort = 80", "absent", false}}; !slices.Equal(steps, want) {
		t.Errorf("the steps of the first packet are %+v, want %+v", steps, want)
	}
	if len(c.Explain(&a, 0)) != 0 || len(c.Explain(&a, 19)) != 0 {
		t.Error("packets that are not there have steps")
	}
	other := Ask("processId == 4", packet.LayerNetwork, false)
	if row := c.Match(&other, 1).Rows[0]; row.Match || row.Unknown == "" {
		t.Errorf("the capture has no processes, but the row is %+v", row)
	}
}

// TestRead: a file that is not a capture is refused; of a damaged one the beginning is kept.
func TestRead(t *testing.T) {
	for file, want := range map[string]string{"": "empty", "nothing of the kind": "not a pcap", string(pcap()): "the file has no IP packets"} {
		if _, err := Read([]byte(file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", file, err, want)
		}
	}
	s, err := Samples()
	if err != nil {
		t.Fatal(err)
	}
	file := pcap(s.packets[0].data, s.packets[2].data)
	for cut, want := range map[int]int{0: 2, 10: 1} {
		c, err := Read(file[:len(file)-cut])
		if err != nil {
			t.Fatal(err)
		}
		a := Ask("true", packet.LayerNetwork, false)
		if r := c.Match(&a, 10); r.Matches != want || (cut > 0) != (len(r.Notes) > 0) {
			t.Errorf("without %d bytes: %+v", cut, r)
		}
	}
}

// pcap makes a file of packets.
func pcap(packets ...[]byte) []byte {
	le := binary.LittleEndian
	b := append(le.AppendUint32(nil, 0xa1b2c3d4), 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 101, 0, 0, 0)
	for _, p := range packets {
		b = append(b, make([]byte, 8)...)
		b = le.AppendUint32(le.AppendUint32(b, uint32(len(p))), uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// FuzzPlayground: no filter and no file makes the page fail.
func FuzzPlayground(f *testing.F) {
	s, err := Samples()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("tcp.Syn and not (ip.SrcAddr == 192.0.2.0/24)", uint8(0), false, pcap(s.packets[0].data, s.packets[2].data))
	f.Add("event == OPEN", uint8(4), true, []byte{})
	f.Fuzz(func(t *testing.T, text string, layer uint8, strict bool, file []byte) {
		a := Ask(text, packet.Layer(layer%uint8(packet.NumLayers)), strict)
		if (a.Error == "") != (a.program != nil) {
			t.Fatalf("%+v", a)
		}
		c, err := Read(file)
		if err != nil {
			c = s
		}
		r := c.Match(&a, 10)
		if r.Matches > r.Packets || len(r.Rows) > 10 {
			t.Fatalf("%+v", r)
		}
		c.Explain(&a, 1)
	})
}
