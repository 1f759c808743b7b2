//go:build linux

package main

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// testConfig is the configuration of A in these tests; its own addresses are 192.0.2.1 and 2001:db8::1.
const testConfig = `
[Interface]
PrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= # a secret
Address = 10.9.0.1/24, fd09::1/64

[Peer]
PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
AllowedIPs = 10.9.0.0/24, 0.0.0.0/0
AllowedIPs = fd09::/64
Endpoint = 203.0.113.1:51820
PersistentKeepalive = 25
`

// fake simulates a handle: it delivers the packets of give once, or repeatedly if again is set, and keeps the packets
// sent.
type fake struct {
	give  [][]byte
	again bool
	sent  [][]byte
	drop  int
	keep  bool
}

func (f *fake) RecvBatch(ps []divert.Packet) (int, error) {
	if len(f.give) == 0 {
		return 0, io.EOF
	}
	for i, b := range f.give {
		ps[i].Data = append(ps[i].Buffer(len(b))[:0], b...)
		ps[i].Addr = divert.Address{Outbound: true, IPChecksum: true, IPv6: len(b) > 0 && b[0]>>4 == 6}
	}
	n := len(f.give)
	if !f.again {
		f.give = nil
	}
	return n, nil
}

func (f *fake) SendBatch(ps []divert.Packet) (int, error) {
	for _, p := range ps {
		if f.keep {
			f.sent = append(f.sent, bytes.Clone(p.Data))
		}
	}
	return len(ps), nil
}

func (f *fake) DropBatch(ps []divert.Packet) error { f.drop += len(ps); return nil }
func (f *fake) Accept(*divert.Packet) error        { return nil }
func (f *fake) Close() error                       { return nil }

// onFake returns a tunnel on a fake handle.
func onFake(t testing.TB, f *fake) *tunnel {
	t.Helper()
	c, err := parseConfig(testConfig)
	if err != nil {
		t.Fatal(err)
	}
	d := newTunnelOn(c, f)
	d.looked = time.Now().Add(time.Hour) // so that it does not look at this machine
	for _, a := range []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		d.locals[family(a)].Store(&a)
	}
	return d
}

// read returns the packets that WireGuard reads until the handle ends.
func read(t testing.TB, d *tunnel) (all [][]byte) {
	t.Helper()
	bufs, sizes := make([][]byte, 3), make([]int, 3)
	for i := range bufs {
		bufs[i] = make([]byte, 16+maxMTU)
	}
	for {
		n, err := d.Read(bufs, sizes, 16)
		for i := range n {
			all = append(all, bytes.Clone(bufs[i][16:16+sizes[i]]))
		}
		if err != nil {
			return all
		}
	}
}

func ends(src, dst string) *packet.Header {
	return &packet.Header{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), ID: 7, DF: true}
}

var (
	out4, out6   = ends("192.0.2.1:4000", "10.9.0.2:80"), ends("[2001:db8::1]:4000", "[fd09::2]:80")
	back4, back6 = ends("10.9.0.2:80", "10.9.0.1:4000"), ends("[fd09::2]:80", "[fd09::1]:4000")
)

func must(t testing.TB) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// TestLarge: a TCP packet of 64 KiB becomes segments that fit the tunnel, or a smaller limit that a host has announced.
func TestLarge(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	for _, mtu := range []int{1420, 1300} {
		for i, h := range []*packet.Header{out4, out6} {
			b := must(t)(h.AppendTCP(nil, packet.Segment{Seq: 1, Flags: packet.TCPAck}, payload))
			d := onFake(t, &fake{give: [][]byte{b}})
			if mtu < 1420 {
				back := []*packet.Header{back4, back6}[i]
				size := uint16(mtu - 40 - 20*i)
				syn := must(t)(back.AppendTCP(nil, packet.Segment{Flags: packet.TCPSyn, Options: []byte{2, 4, byte(size >> 8), byte(size)}}, nil))
				if _, err := d.Write([][]byte{syn}, 0); err != nil {
					t.Fatal(err)
				}
			}
			var got []byte
			for _, b := range read(t, d) {
				var p packet.Parsed
				if !p.ParseExact(b) || len(b) > mtu || !p.VerifyTransportChecksum(b) {
					t.Fatalf("%d bytes: % x", len(b), b[:60])
				}
				if src := (&divert.Packet{Data: b}).Src().Addr(); src != d.inside(src) {
					t.Fatalf("from %v", src)
				}
				got = append(got, p.Payload(b)...)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("%d bytes of %d", len(got), len(payload))
			}
		}
	}
}

// TestCut: fragments fit the tunnel, and reassemble to the datagram.
func TestCut(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 250)
	h4 := *out4
	h4.DF = false
	for i, h := range []*packet.Header{&h4, out6} {
		b := must(t)(h.AppendUDP(nil, payload))
		head := []int{20, 40}[i]
		whole := make([]byte, len(b)-head)
		end := 0
		for c := cut(b, 1280); c.left(); {
			var dst [1280]byte
			f := dst[:c.next(dst[:])]
			var p packet.Parsed
			if !p.ParseExact(f) || !p.Fragment || p.MF != c.left() || i == 0 && !p.VerifyIPChecksum(f) {
				t.Fatalf("% x", f[:60])
			}
			part := f[head+8*i:]
			copy(whole[p.FragOff:], part)
			end += len(part)
		}
		if end != len(whole) || !bytes.Equal(whole, b[head:]) {
			t.Errorf("%d bytes of %d", end, len(whole))
		}
	}
}

// TestErrors: a sender whose packet may not be fragmented gets the MTU 1,420 and a quotation of its own packet; an
// error from the tunnel has that too.
func TestErrors(t *testing.T) {
	for i, h := range []*packet.Header{out4, out6} {
		b := must(t)(h.AppendICMP(nil, []uint8{8, 128}[i], 0, 1, make([]byte, 1421-28-20*i)))
		f := &fake{give: [][]byte{b}, keep: true}
		d := onFake(t, f)
		d.links = links{0, 1500, time.Now().Add(time.Hour)}
		if got := read(t, d); len(got) != 0 || len(f.sent) != 1 {
			t.Fatalf("read %d packets, and the host got %d errors", len(got), len(f.sent))
		}
		var p, q packet.Parsed
		told := f.sent[0]
		p.ParseExact(told)
		icmp := p.ICMP(told)
		if i == 1 {
			icmp = p.ICMPv6(told)
		}
		if icmp.Body() != 1420 || !p.VerifyTransportChecksum(told) {
			t.Errorf("the host got % x", told)
		}
		// A router behind the peer reports the same for a packet that came through the tunnel.
		quote := bytes.Clone(p.Payload(told))
		inside, local := d.inside(h.Src.Addr()), h.Src.Addr()
		quoted := divert.Packet{Data: quote}
		if q.Parse(quote); i == 0 {
			q.IPv4(quote).SetSrc(inside)
		} else {
			q.IPv6(quote).SetSrc(inside)
		}
		from := packet.Header{Src: h.Dst, Dst: netip.AddrPortFrom(inside, 0)}
		message := must(t)(from.AppendICMP(nil, icmp.Type(), icmp.Code(), 1300, quote))
		f.sent = nil
		if _, err := d.Write([][]byte{message}, 0); err != nil || len(f.sent) != 1 {
			t.Fatal(err, len(f.sent))
		}
		p.ParseExact(f.sent[0])
		quoted.Data = p.Payload(f.sent[0])
		if q.Parse(quoted.Data); !p.VerifyTransportChecksum(f.sent[0]) || (&divert.Packet{Data: f.sent[0]}).Dst().Addr() != local || quoted.Src().Addr() != local {
			t.Errorf("the host got % x", f.sent[0])
		}
		if got := d.paths.mtu(h.Dst.Addr(), 1420, time.Now()); got != 1300 {
			t.Errorf("the way to %v carries %d", h.Dst, got)
		}
	}
}

// TestClamp: a SYN announces a segment size that fits the tunnel, both ways.
func TestClamp(t *testing.T) {
	syn := packet.Segment{Flags: packet.TCPSyn, Options: []byte{1, 2, 4, 5, 180}} // 1,460, at an odd offset
	f := &fake{give: [][]byte{must(t)(out4.AppendTCP(nil, syn, nil))}, keep: true}
	d := onFake(t, f)
	got := read(t, d)
	if _, err := d.Write([][]byte{must(t)(back6.AppendTCP(nil, syn, nil))}, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range append(got, f.sent...) {
		var p packet.Parsed
		p.ParseExact(b)
		if o := p.TCP(b).Options(); int(o[3])<<8|int(o[4]) != 1380-20*i || !p.VerifyTransportChecksum(b) {
			t.Errorf("options % x", o)
		}
	}
}

// TestForeign: packets for other addresses than the tunnel's do not come out of it, and packets from others do not go
// in.
func TestForeign(t *testing.T) {
	f := &fake{give: [][]byte{must(t)(ends("192.0.2.99:1", "10.9.0.2:2").AppendUDP(nil, nil))}, keep: true}
	d := onFake(t, f)
	d.refused.Store(1) // suppress the message
	if got := read(t, d); len(got) != 0 {
		t.Errorf("read %d packets", len(got))
	}
	if _, err := d.Write([][]byte{must(t)(ends("10.9.0.2:1", "192.0.2.1:2").AppendUDP(nil, nil))}, 0); err != nil || len(f.sent) != 0 {
		t.Errorf("wrote %d packets, %v", len(f.sent), err)
	}
}

// FuzzPackets: whatever the host sends and the tunnel delivers, the output is valid packets, and none is too long.
func FuzzPackets(f *testing.F) {
	for _, h := range []*packet.Header{out4, out6, back4, back6} {
		f.Add(must(f)(h.AppendTCP(nil, packet.Segment{Flags: packet.TCPSyn, Options: []byte{2, 4, 5, 180}}, nil)), uint16(0))
		f.Add(must(f)(h.AppendUDP(nil, []byte("data"))), uint16(3000))
		f.Add(must(f)(h.AppendICMP(nil, 3, 4, 1300, must(f)(h.AppendUDP(nil, nil)))), uint16(0))
		f.Add(must(f)(h.AppendICMP(nil, 2, 0, 1300, must(f)(h.AppendUDP(nil, nil)))), uint16(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, more uint16) {
		b = append(b, make([]byte, more)...)
		fk := &fake{give: [][]byte{bytes.Clone(b)}, keep: true}
		d := onFake(t, fk)
		d.refused.Store(1)
		for _, out := range read(t, d) {
			var p packet.Parsed
			if !p.ParseExact(out) || len(out) > d.mtu {
				t.Errorf("read % x", out)
			}
		}
		if _, err := d.Write([][]byte{b}, 0); err != nil {
			t.Error(err)
		}
		for _, in := range fk.sent {
			var p packet.Parsed
			if !p.ParseExact(in) {
				t.Errorf("sent % x", in)
			}
		}
	})
}

// TestConfig: WireGuard gets the settings of the file.
func TestConfig(t *testing.T) {
	c, err := parseConfig(testConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := "private_key=" + strings.Repeat("00", 32) + "\nlisten_port=51820\npublic_key=" + strings.Repeat("01", 32) +
		"\nendpoint=203.0.113.1:51820\npersistent_keepalive_interval=25\nallowed_ip=10.9.0.0/24\nallowed_ip=0.0.0.0/0\nallowed_ip=fd09::/64\n"
	if got := c.uapi(); got != want || c.mtu != 1420 {
		t.Errorf("got\n%s, MTU %d", got, c.mtu)
	}
}

// TestConfigErrors: errors in a file name their line, and no secrets.
func TestConfigErrors(t *testing.T) {
	for name, row := range map[string]struct{ old, new, want string }{
		"section":    {"[Peer]", "[Peers]", "line 6: there is no section [Peers]"},
		"no value":   {"PersistentKeepalive = 25", "PersistentKeepalive", "line 11"},
		"setting":    {"PersistentKeepalive", "Keepalive", "line 11: Keepalive: there is no such setting of a peer"},
		"wg-quick's": {"PrivateKey", "DNS = 192.0.2.53\nPrivateKey", "line 3: DNS: there is no interface"},
		"key":        {"AAAA=", "=", "line 3: PrivateKey: a key is 32 bytes"},
		"no key":     {"PrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "", "wg genkey"},
		"address":    {"10.9.0.1/24", "10.9.0", `line 4: Address: "10.9.0" is neither`},
		"two":        {"10.9.0.1/24", "10.9.0.1/24, 10.9.0.7", "10.9.0.7: there can be one"},
		"family":     {"fd09::1/64", "", "neither an address"},
		"no family":  {", fd09::1/64", "", "AllowedIPs fd09::/64: [Interface] has no Address of that family"},
		"endpoint":   {"203.0.113.1:51820", "203.0.113.1", "write host:port"},
		"MTU":        {"Address", "MTU = 576\nAddress", "from 1280 to 65500"},
		"peer's key": {"PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "", "the [Peer] number 1 has no PublicKey"},
		"no peer":    {"[Peer]", "[Interface]", "line 7: PublicKey: there is no such setting"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseConfig(strings.Replace(testConfig, row.old, row.new, 1))
			if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "AAAA") {
				t.Errorf("%v; want %q", err, row.want)
			}
		})
	}
}

// FuzzConfig: a file is valid or has an error, and WireGuard gets one setting per line.
func FuzzConfig(f *testing.F) {
	f.Add(strings.Replace(testConfig, "203.0.113.1:51820", "[2001:db8::1]:51820", 1))
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToLower(text), "endpoint") && !strings.Contains(text, "[2001:db8::1]:51820") {
			return // names are not resolved here
		}
		c, err := parseConfig(text)
		if err != nil {
			return
		}
		for line := range strings.Lines(c.uapi()) {
			if strings.Count(line, "=") != 1 {
				t.Errorf("%q", line)
			}
		}
	})
}

// BenchmarkRead measures a packet of 64 KiB on its way into the tunnel.
func BenchmarkRead(b *testing.B) {
	p := must(b)(out4.AppendTCP(nil, packet.Segment{Seq: 1, Flags: packet.TCPAck}, make([]byte, 64000)))
	d := onFake(b, &fake{give: [][]byte{p}, again: true})
	bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Read(bufs, sizes, 16); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWrite measures a batch of segments on its way out.
func BenchmarkWrite(b *testing.B) {
	d := onFake(b, &fake{})
	var from, batch [][]byte
	for i := range 45 {
		h := *back4
		h.ID = uint16(i)
		from = append(from, must(b)(h.AppendTCP(nil, packet.Segment{Seq: uint32(i * 1380), Flags: packet.TCPAck}, make([]byte, 1380))))
		batch = append(batch, bytes.Clone(from[i]))
	}
	b.SetBytes(45 * 1420)
	b.ReportAllocs()
	for b.Loop() {
		for i := range from {
			copy(batch[i], from[i])
		}
		if _, err := d.Write(batch, 0); err != nil {
			b.Fatal(err)
		}
	}
}
