package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"index/suffixarray"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/packet"
)

// looked finds the ends of all occurrences of patterns, ignoring case, with the library's suffix array.
func looked(patterns [][]byte, b []byte) map[[2]int]bool {
	found, index := map[[2]int]bool{}, suffixarray.New(fold(b))
	for i, p := range patterns {
		for _, at := range index.Lookup(fold(p), -1) {
			found[[2]int{i, at + len(p)}] = true
		}
	}
	return found
}

// FuzzAutomaton: the automaton finds the same as a library, wherever the bytes are split.
func FuzzAutomaton(f *testing.F) {
	f.Add([]byte("he\x00she\x00his\x00hers"), []byte("ushers and HIS"), 2)
	f.Add([]byte("aa\x00a\x00aaa"), []byte("aaaaaa"), 1)
	f.Fuzz(func(t *testing.T, list, b []byte, cut int) {
		patterns := slices.DeleteFunc(bytes.Split(list, []byte{0}), func(p []byte) bool { return len(p) == 0 })
		if len(list) > 2000 || len(b) > 2000 {
			return
		}
		a, found, state := newAutomaton(patterns), map[[2]int]bool{}, int32(0)
		for at := 0; at < len(b); {
			n := min(max(cut, 1), len(b)-at)
			state = a.scan(state, b[at:at+n], func(p, end int) { found[[2]int{p, at + end}] = true })
			at += n
		}
		want := looked(patterns, b)
		if len(found) != len(want) {
			t.Fatalf("found %v, want %v", found, want)
		}
		for k := range want {
			if !found[k] {
				t.Fatalf("missed %v", k)
			}
		}
	})
}

// TestAllBytes: 256 different bytes in patterns are distinguished.
func TestAllBytes(t *testing.T) {
	var all []byte
	for c := range 256 {
		all = append(all, byte(c))
	}
	patterns := [][]byte{all[:128], all[128:], {255, 255}}
	got := 0
	newAutomaton(patterns).scan(0, append(all, 255), func(int, int) { got++ })
	if got != 3 {
		t.Errorf("%d found", got)
	}
}

// TestRules: unsupported rules are reported with file and line, and the others are used.
func TestRules(t *testing.T) {
	vars := variables{"HOME_NET": "[10.0.0.0/8,!10.1.0.0/16]"}
	for _, c := range []struct{ rule, want string }{
		{`alert tcp $HOME_NET any -> any [80,443,1000:2000,!1500] (msg:"a\;b"; content:"x|0d 0A|\""; nocase; sid:1; rev:2;)`, ""},
		{`drop udp any :53 <> any 53: (content:!"a"; dsize:>5; sid:1;)`, ""},
		{`alert http any any -> any any (http.uri; content:"/a"; startswith; pcre:"/b[0-9]+/Ri"; sid:1;)`, ""},
		{`alert tcp any any -> any any (sid:1;)`, ""},
		{`alert tcp any any -> any any (content:"a"; byte_test:1,>,1,0; sid:1;)`, "byte_test: the option is not understood"},
		{`alert tcp any any -> any any (pcre:"/(?=a)/"; sid:1;)`, "pcre: RE2 does not have it"},
		{`alert tcp any any -> any any (pcre:"/a/U"; sid:1;)`, "the flag U is not understood"},
		{`alert tcp any any -> any any (pcre:"/\xff/"; sid:1;)`, "bytes from 0x80 on"},
		{`alert tcp any any -> any any (pcre:"/[^a]+./s"; sid:1;)`, ""},
		{`alert smtp any any -> any any (content:"a"; sid:1;)`, "the protocol smtp is not understood"},
		{`pass tcp any any -> any any (content:"a"; sid:1;)`, "the action pass is not understood"},
		{`alert tcp $NO any -> any any (content:"a"; sid:1;)`, "there is no variable $NO"},
		{`alert tcp any any -> any any (content:"a"; within:5; sid:1;)`, "within: there is nothing before"},
		{`alert tcp any any -> any any (content:"abc"; depth:2; sid:1;)`, "depth: the content is longer"},
		{`alert tcp any any -> any any (content:"a"; endswith; sid:1;)`, "a stream has no end"},
		{`alert tcp any any -> any any (content:"a|0|"; sid:1;)`, "is not hexadecimal"},
		{`alert tcp any any -> any any (content:"a";)`, "there is no sid"},
		{`alert tcp any any -> any any (content:"a"; sid:1)`, "no semicolon"},
		{`alert tcp any any any any (sid:1;)`, "a head is"},
		{`alert tcp any 70000 -> any any (sid:1;)`, `"70000" is no port`},
		{`alert tcp !any any -> any any (sid:1;)`, "!any is nothing"},
		{`alert tcp any any -> any any (flow:sideways; sid:1;)`, "flow: sideways is not understood"},
		{`alert tcp any any -> any any (threshold:type limit, track by_src, count 1; sid:1;)`, "it needs type, track, count and seconds"},
		{`nonsense`, "a rule is a head"},
	} {
		rules, faults := parseRules("file.rules", "# comment\n\n"+c.rule+"\n"+`alert ip any any -> any any \`+"\n"+`(sid:9;)`, vars)
		switch {
		case c.want == "" && (len(rules) != 2 || len(faults) != 0):
			t.Errorf("%s: %v", c.rule, faults)
		case c.want != "" && (len(rules) != 1 || len(faults) != 1 || !strings.HasPrefix(faults[0].Error(), "file.rules:3: ") || !strings.Contains(faults[0].Error(), c.want)):
			t.Errorf("%s: %d rules, %v, want %q", c.rule, len(rules), faults, c.want)
		}
	}
}

func FuzzRules(f *testing.F) {
	f.Add(`alert tcp $A any -> [1.2.3.4,!::1] 80: (content:"a|00|"; nocase; pcre:"/x/i"; distance:1; within:5; sid:1;)`)
	f.Add(`drop http any any <> any any (http.uri; content:"/"; flowbits:set,a; threshold:type both, track by_src, count 2, seconds 3; sid:1;)`)
	f.Fuzz(func(t *testing.T, text string) {
		rules, _ := parseRules("f", text, variables{"A": "$B", "B": "$A"})
		if len(rules) > 0 {
			e := newEngine(rules, nowhere{}, false, func(*alert) {})
			p := peer(t, 1, 80)
			for _, b := range p.connection("GET /a HTTP/1.1\r\nHost: a\r\n\r\n", "whole") {
				_ = e.packet(&divert.Packet{Data: b}, time.Time{})
			}
		}
	})
}

// TestMatch: contents and their modifiers.
func TestMatch(t *testing.T) {
	for _, c := range []struct {
		options, text string
		want          bool
	}{
		{`content:"abc";`, "xxabcxx", true},
		{`content:"abc";`, "xxABCxx", false},
		{`content:"aBc"; nocase;`, "xxAbCxx", true},
		{`content:!"abc";`, "xxabcxx", false},
		{`content:!"abc";`, "xxx", true},
		{`content:"abc"; offset:2; depth:3;`, "xxabcxx", true},
		{`content:"abc"; offset:3;`, "xxabcxx", false},
		{`content:"abc"; depth:4;`, "xxabcxx", false},
		{`content:"abc"; startswith;`, "abcx", true},
		{`content:"abc"; startswith;`, "xabc", false},
		{`content:"abc"; endswith;`, "abcabc", true},
		{`content:"abc"; endswith;`, "abcx", false},
		{`content:"ab"; content:"cd"; distance:1; within:3;`, "abxcd", true},
		{`content:"ab"; content:"cd"; distance:1; within:2;`, "abxxcd", false},
		{`content:"ab"; content:"cd"; distance:0; within:2;`, "abab.cdabcd", true}, // the first ab does not match
		{`content:"ab"; content:"ab"; distance:-1;`, "ab", false},
		{`content:"ab"; content:!"cd"; within:2;`, "abcd", false},
		{`content:"ab"; content:!"cd"; within:2;`, "abxcd", true},
		{`content:"ab"; pcre:"/^c[0-9]+/R";`, "xxabc12", true},
		{`content:"ab"; pcre:"/^c[0-9]+/R";`, "xxabxc12", false},
		{`pcre:"/A.B/is";`, "xa\nbx", true},
		{`content:"a|0a 00|b";`, "a\n\x00b", true},
		{`dsize:3;`, "abc", true},
		{`dsize:3<>5;`, "abc", false},
		{`dsize:<3;`, "abc", false},
	} {
		rules, faults := parseRules("", "alert udp any any -> any any ("+c.options+" sid:1;)", nil)
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		alerts := 0
		e := newEngine(rules, nowhere{}, false, func(*alert) { alerts++ })
		h := packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:1000"), Dst: netip.MustParseAddrPort("10.0.0.2:2000")}
		b, err := h.AppendUDP(nil, []byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.packet(&divert.Packet{Data: b}, time.Time{}); err != nil || (alerts == 1) != c.want {
			t.Errorf("%s on %q: %d alerts, %v", c.options, c.text, alerts, err)
		}
	}
}

// ends are a client and a server.
type ends struct {
	t              testing.TB
	client, server netip.AddrPort
}

func peer(t testing.TB, n, port uint16) *ends {
	return &ends{t, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 10000+n), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port)}
}

const isn = 0xFFFFFFF0

// tcp returns a segment of the client, or of the server.
func (p *ends) tcp(server bool, seq, ack uint32, flags packet.TCPFlags, payload []byte) []byte {
	p.t.Helper()
	h := packet.Header{Src: p.client, Dst: p.server}
	if server {
		h.Src, h.Dst = h.Dst, h.Src
	}
	b, err := h.AppendTCP(nil, packet.Segment{Seq: seq, Ack: ack, Flags: flags, Window: 5000}, payload)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// handshake returns the packets that open a connection.
func (p *ends) handshake() [][]byte {
	return [][]byte{
		p.tcp(false, isn, 0, packet.TCPSyn, nil), p.tcp(true, 99, isn+1, packet.TCPSyn|packet.TCPAck, nil), p.tcp(false, isn+1, 100, packet.TCPAck, nil),
	}
}

// ways are the ways in which a stream may be split.
var ways = []string{"whole", "1-byte", "reordered", "overlapping"}

// segments returns the packets of the client that carry a text.
func (p *ends) segments(text, way string) (all [][]byte) {
	say := func(at, end int) {
		all = append(all, p.tcp(false, isn+1+uint32(at), 100, packet.TCPAck|packet.TCPPsh, []byte(text[at:min(end, len(text))])))
	}
	switch way {
	case "whole":
		say(0, len(text))
	case "1-byte":
		for i := range text {
			say(i, i+1)
		}
	case "reordered":
		for i := 0; i < len(text); i += 7 {
			say(i, i+7)
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	case "overlapping":
		for i := 0; i < len(text); i += 5 {
			say(i, i+12)
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	return all
}

// connection returns the packets of a connection on which the client sends a text; the server acknowledges it, and both
// close.
func (p *ends) connection(text, way string) [][]byte {
	all := append(p.handshake(), p.segments(text, way)...)
	end := isn + 1 + uint32(len(text))
	return append(all, p.tcp(true, 100, end, packet.TCPAck, nil), p.tcp(false, end, 100, packet.TCPAck|packet.TCPFin, nil),
		p.tcp(true, 100, end+1, packet.TCPAck|packet.TCPFin, nil), p.tcp(false, end+1, 101, packet.TCPAck, nil))
}

// plants returns 50 rules, and a matching payload for each.
func plants(action string) (rules string, payloads []string) {
	var text strings.Builder
	for i := range 50 {
		payload := fmt.Sprintf("attack-%02d\x00\xff%x", i, i*7919)
		switch i % 5 {
		case 0:
			fmt.Fprintf(&text, "%s tcp any any -> any any (msg:\"plant %d\"; content:\"attack-%02d|00 ff|%x\"; sid:%d;)\n", action, i, i, i*7919, 1000+i)
		case 1:
			fmt.Fprintf(&text, "%s tcp any any -> any any (msg:\"plant %d\"; content:\"ATTACK-%02d\"; nocase; content:\"%x\"; distance:2; within:%d; sid:%d;)\n", action, i, i, i*7919, len(fmt.Sprintf("%x", i*7919)), 1000+i)
		case 2:
			fmt.Fprintf(&text, "%s tcp any any -> any 80 (msg:\"plant %d\"; flow:established,to_server; content:\"attack-%02d\"; content:\"|ff|%x\"; sid:%d;)\n", action, i, i, i*7919, 1000+i)
		case 3:
			fmt.Fprintf(&text, "%s tcp any any -> any any (msg:\"plant %d\"; content:\"attack-%02d\"; pcre:\"/^\\x00.%x/Rs\"; sid:%d;)\n", action, i, i, i*7919, 1000+i)
		case 4:
			payload = fmt.Sprintf("GET /plant%%2d%02d HTTP/1.1\r\nHost: plant%d.test\r\nUser-Agent: planter\r\n\r\n", i, i)
			fmt.Fprintf(&text, "%s http any any -> any any (msg:\"plant %d\"; http.uri; content:\"/plant-%02d\"; http.host; content:\"plant%d.test\"; sid:%d;)\n", action, i, i, i, 1000+i)
		}
		payloads = append(payloads, payload)
	}
	return text.String(), payloads
}

// TestPlanted: inline, with rules that drop, each rule alerts however its payload is split, and the server never
// receives all of the payload. A clean stream passes whole.
func TestPlanted(t *testing.T) {
	text, payloads := plants("drop")
	rules, faults := parseRules("plants", text, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := diverttest.New()
				h, err := network.Open("tcp")
				if err != nil {
					t.Fatal(err)
				}
				var sids []int
				e := newEngine(rules, h, true, func(a *alert) { sids = append(sids, a.rule.sid) })
				done := make(chan error)
				go func() {
					for p, err := range h.Packets(t.Context()) {
						if err == nil {
							err = e.packet(p, time.Now())
						}
						if err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
				for i, payload := range payloads {
					for _, clean := range []bool{false, true} {
						stream := payload
						if i%5 != 4 {
							stream = strings.Repeat("some text before, ", 20) + payload + ", and behind"
						}
						if clean {
							stream = strings.ReplaceAll(strings.ReplaceAll(stream, "attack", "atta-k"), "plant", "plan_")
						}
						sids = nil
						p := peer(t, uint16(2*i+side(clean)), 80)
						for _, b := range append(p.handshake(), p.segments(stream, way)...) {
							if (&divert.Packet{Data: b}).Src() == p.server {
								network.Inbound(b, diverttest.Link)
							} else {
								network.Outbound(b, diverttest.Link)
							}
							synctest.Wait()
						}
						got := streamOf(network.Delivered())
						if clean && (len(sids) > 0 || got != stream) {
							t.Errorf("clean stream %d: alerts %v, %d of %d bytes", i, sids, len(got), len(stream))
						}
						if !clean && (!slices.Equal(sids, []int{1000 + i}) || strings.Contains(got, payload)) {
							t.Errorf("plant %d: alerts %v, the server got %q", i, sids, got)
						}
					}
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
				<-done
			})
		})
	}
}

// streamOf assembles the client's stream, up to the first gap.
func streamOf(ps []divert.Packet) string {
	known := map[uint32]byte{}
	for i := range ps {
		var h packet.Parsed
		if h.Parse(ps[i].Data) && ps[i].Addr.Outbound {
			for j, c := range h.Payload(ps[i].Data) {
				known[h.TCP(ps[i].Data).Seq()+uint32(j)] = c
			}
		}
	}
	var b []byte
	for seq := uint32(isn + 1); ; seq++ {
		c, ok := known[seq]
		if !ok {
			return string(b)
		}
		b = append(b, c)
	}
}

// TestSentAgainOtherwise: overlapping bytes that differ are dropped, whichever came first.
func TestSentAgainOtherwise(t *testing.T) {
	rules, _ := parseRules("", `drop tcp any any -> any any (content:"attack"; sid:1;)`, nil)
	sent := &recorder{}
	e := newEngine(rules, sent, true, func(*alert) {})
	p := peer(t, 1, 80)
	for _, b := range append(p.handshake(),
		p.tcp(false, isn+1, 100, packet.TCPAck, []byte("att.ck")), p.tcp(false, isn+1, 100, packet.TCPAck, []byte("attack")),
		p.tcp(false, isn+9, 100, packet.TCPAck, []byte("--")), p.tcp(false, isn+9, 100, packet.TCPAck, []byte("ac")),
		p.tcp(false, isn+7, 100, packet.TCPAck, []byte("++"))) {
		if err := e.packet(&divert.Packet{Data: b, Addr: divert.Address{Outbound: true}}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := streamOf(sent.on); got != "att.ck++--" || e.counters.differing != 2 {
		t.Errorf("%q, %+v", got, e.counters)
	}
}

// recorder keeps the packets that are sent on.
type recorder struct{ on []divert.Packet }

func (r *recorder) Accept(p *divert.Packet) error { r.on = append(r.on, p.Clone()); return nil }
func (r *recorder) Send(p *divert.Packet) error   { return r.Accept(p) }
func (r *recorder) Drop(*divert.Packet) error     { return nil }

// writeCapture writes packets to a file.
func writeCapture(t *testing.T, packets [][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "capture.pcap")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(65536, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	for i, b := range packets {
		at := time.Unix(1700000000, int64(i)*1e6)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(b), Length: len(b)}, b); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// seen has the parts of an alert that tests compare.
type seen struct {
	SID      int
	Src, Dst string
}

// alertsOf parses EVE JSON.
func alertsOf(t *testing.T, eve io.Reader) map[seen]bool {
	t.Helper()
	all := map[seen]bool{}
	for d := json.NewDecoder(eve); ; {
		var v event
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if v.EventType == "alert" {
			all[seen{v.Alert.SignatureID, fmt.Sprint(v.SrcIP, " ", v.SrcPort), fmt.Sprint(v.DestIP, " ", v.DestPort)}] = true
		}
	}
}

// dnsOf returns a DNS query.
func dnsOf(name string) []byte {
	b := []byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

// captured returns rules of every kind, and packets that match some of them.
func captured(t *testing.T) (rules string, packets [][]byte) {
	rules, payloads := plants("alert")
	rules += `alert udp any any -> any 9999 (msg:"size"; dsize:10<>20; content:"udp"; depth:3; sid:1;)
alert udp any any -> any 9999 (msg:"end"; content:"end"; endswith; sid:2;)
alert udp any any -> any 9999 (msg:"not"; content:"udp"; startswith; content:!"bad"; sid:3;)
alert dns any any -> any any (msg:"query"; dns.query; content:"evil.test"; nocase; endswith; sid:4;)
alert http any any -> any any (msg:"first"; flow:to_server; http.uri; content:"/first"; flowbits:set,first; flowbits:noalert; sid:5;)
alert http any any -> any any (msg:"second"; flow:to_server; http.uri; content:"/second"; flowbits:isset,first; sid:6;)
alert http any any -> any any (msg:"agent"; http.user_agent; content:"planter"; http.method; content:"GET"; sid:7;)
alert tcp any any -> any 80 (msg:"relative"; content:"one"; content:"two"; distance:1; within:5; content:"three"; distance:-3; sid:8;)
alert tcp any any -> any any (msg:"begin"; content:"BEGIN"; offset:2; depth:8; sid:9;)
alert udp any any -> any 9998 (msg:"limit"; content:"x"; threshold:type threshold, track by_src, count 3, seconds 60; sid:10;)
alert udp any any -> any 9997 (msg:"rare"; content:"x"; threshold:type both, track by_src, count 5, seconds 60; sid:11;)
alert tls any any -> any any (msg:"sni"; tls.sni; content:"evil.test"; sid:12;)
alert http any any -> any any (msg:"raw"; http.uri.raw; content:"%2d"; sid:13;)
`
	for i, p := range payloads {
		for j, way := range ways {
			e := peer(t, uint16(10*i+j), 80)
			packets = append(packets, e.connection(p, way)...)
		}
	}
	for i, text := range []string{
		"GET /first HTTP/1.1\r\nHost: a\r\n\r\nGET /second HTTP/1.1\r\nHost: a\r\n\r\n", "GET /second HTTP/1.1\r\nHost: a\r\n\r\n",
		"one.two...three", "one.twothree", "xxBEGIN", "xxxxxxxxBEGIN", helloOf("www.evil.test"), helloOf("www.good.test"),
	} {
		for j, way := range ways {
			packets = append(packets, peer(t, uint16(1000+10*i+j), 80).connection(text, way)...)
		}
	}
	for i, d := range []struct {
		port uint16
		text string
	}{
		{9999, "udp and more"}, {9999, "no udp"}, {9999, "udp to the end"}, {9999, "udp bad"}, {9999, "the end."},
		{9998, "x"}, {9998, "x"}, {9998, "x"}, {9997, "x"}, {9997, "x"}, {53, string(dnsOf("www.EVIL.test"))}, {53, string(dnsOf("evil.test.good"))},
	} {
		h := packet.Header{Src: netip.AddrPortFrom(netip.MustParseAddr("fd00::1"), uint16(5000+i)), Dst: netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), d.port)}
		b, err := h.AppendUDP(nil, []byte(d.text))
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, b)
	}
	return rules, packets
}

// helloOf returns a record with a ClientHello.
func helloOf(name string) string {
	sni := binary.BigEndian.AppendUint16(nil, uint16(len(name)+3))
	sni = binary.BigEndian.AppendUint16(append(sni, 0), uint16(len(name)))
	sni = append(sni, name...)
	extensions := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(sni)))
	extensions = append(extensions, sni...)
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(extensions))), extensions...)
	message := append([]byte{1, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(body)))...)
	message = append(message, body...)
	return string(append(binary.BigEndian.AppendUint16([]byte{22, 3, 1}, uint16(len(message))), message...))
}

// TestCapture: run on a capture file, the program finds everything planted in it, for every way of splitting.
func TestCapture(t *testing.T) {
	got := captureAlerts(t)
	missed := 0
	for i := range 50 {
		for j := range ways {
			if !got[seen{1000 + i, fmt.Sprint("10.0.0.1 ", 10000+10*i+j), "10.0.0.2 80"}] {
				missed++
			}
		}
	}
	if missed > 0 {
		t.Errorf("%d of 200 missed", missed)
	}
}

// captureAlerts has the program inspect the capture, and returns the alerts.
func captureAlerts(t *testing.T) map[seen]bool {
	rules, packets := captured(t)
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errout bytes.Buffer
	if err := run(context.Background(), &options{capture: writeCapture(t, packets), files: []string{file}}, nil, &out, &errout); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(errout.String(), "understood") {
		t.Fatal(errout.String())
	}
	return alertsOf(t, &out)
}

// TestSuricata: Suricata raises the same alerts, with the same rules on the same capture.
func TestSuricata(t *testing.T) {
	suricata, err := exec.LookPath("suricata")
	if err != nil {
		t.Skip(err)
	}
	rules, packets := captured(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "rules")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	capture := writeCapture(t, packets)
	if out, err := exec.Command(suricata, "-r", capture, "-S", file, "-l", dir, "--runmode", "single").CombinedOutput(); err != nil {
		t.Skipf("suricata: %v\n%s", err, out)
	}
	f, err := os.Open(filepath.Join(dir, "eve.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := alertsOf(t, f)
	if len(want) < 200 {
		t.Errorf("suricata alerts to %d only", len(want))
	}
	var out, errout bytes.Buffer
	if err := run(context.Background(), &options{capture: capture, files: []string{file}}, nil, &out, &errout); err != nil {
		t.Fatal(err)
	}
	got := alertsOf(t, &out)
	for a := range want {
		if !got[a] {
			t.Errorf("only Suricata: %v", a)
		}
	}
	for a := range got {
		if !want[a] {
			t.Errorf("only here: %v", a)
		}
	}
}

// TestClean: no rule matches a gigabyte of pseudo-random bytes and letters.
func TestClean(t *testing.T) {
	if os.Getenv("DIVERT_LONG") == "" {
		t.Skip("a gigabyte: only with DIVERT_LONG=1")
	}
	text, _ := plants("drop")
	rules, faults := parseRules("", text, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	e := newEngine(rules, nowhere{}, false, func(a *alert) { t.Errorf("alert %s", a.rule.message) })
	p := peer(t, 1, 80)
	for _, d := range p.handshake() {
		if err := e.packet(&divert.Packet{Data: d}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	body := make([]byte, 60000)
	random := rand.NewChaCha8([32]byte{1})
	for sent := 0; sent < 1<<30; sent += len(body) {
		_, _ = random.Read(body) // never fails
		for i := range body[:len(body)/2] {
			body[i] = "attack-GET /plan .test 0123456789\x00\xff"[body[i]%35]
		}
		d := p.tcp(false, uint32(isn+1)+uint32(sent), 100, packet.TCPAck, body)
		if err := e.packet(&divert.Packet{Data: d}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzPackets: no packet causes a panic, and packets inspected inline go on at most once.
func FuzzPackets(f *testing.F) {
	p := peer(f, 1, 80)
	for _, b := range p.connection("GET /a HTTP/1.1\r\n\r\n", "whole") {
		f.Add(b, b)
	}
	text, _ := plants("drop")
	rules, _ := parseRules("", text, nil)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		sent := &recorder{}
		e := newEngine(rules, sent, true, func(*alert) {})
		for _, d := range [][]byte{a, b, a} {
			if err := e.packet(&divert.Packet{Data: slices.Clone(d)}, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		dnsNames(a)
		normalized(b)
		if len(sent.on) > 3+2*3 {
			t.Errorf("%d packets went on", len(sent.on))
		}
	})
}

// word returns lower-case letters.
func word(r *rand.Rand, n int) string {
	w := make([]byte, n)
	for i := range w {
		w[i] = byte('a' + r.IntN(26))
	}
	return string(w)
}

// thousand returns 1,000 rules with contents of 8 to 16 and of 6 letters.
func thousand(r *rand.Rand) string {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "alert tcp any any -> any any (msg:\"one of many\"; content:%q; nocase; content:%q; sid:%d;)\n", word(r, 8+r.IntN(8)), word(r, 6), i+1)
	}
	return text.String()
}

// BenchmarkRules: a stream in segments of 1,460 bytes against 1,000 rules with contents of 8 to 16 letters.
func BenchmarkRules(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	rules, faults := parseRules("", thousand(r), nil)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	e := newEngine(rules, nowhere{}, false, func(*alert) {})
	p := peer(b, 1, 80)
	for _, d := range p.handshake() {
		if err := e.packet(&divert.Packet{Data: d}, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
	d := p.tcp(false, isn+1, 100, packet.TCPAck, []byte(word(r, 1460)))
	one := &divert.Packet{Data: d}
	seq := uint32(isn + 1)
	b.SetBytes(1460)
	b.ReportAllocs()
	for b.Loop() {
		binary.BigEndian.PutUint32(d[24:], seq)
		seq += 1460
		if err := e.packet(one, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}
