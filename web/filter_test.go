package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/internal/quicinitial"
	"github.com/opendivert/divert/internal/quicinitial/quictest"
	"github.com/opendivert/divert/packet"
)

// clientISN and serverISN are sequence numbers that overflow soon.
const (
	clientISN = 0xFFFFFF00
	serverISN = 0xFFFFFFFE
)

// bench is a filter on a fake network and a fake clock.
type bench struct {
	*Filter
	t       *testing.T
	network *diverttest.Network
	cancel  context.CancelFunc
	done    chan error
	events  []Event
}

// begin starts a filter in the bubble of the test that blocks names.
func begin(t *testing.T, c Config, names ...string) *bench {
	t.Helper()
	b := &bench{t: t, network: diverttest.New(), done: make(chan error, 1)}
	if c.Hosts == nil {
		c.Hosts = NewHosts()
		if err := c.Hosts.Replace(names...); err != nil {
			t.Fatal(err)
		}
	}
	c.Open = b.network.OpenProgram
	c.Blocked = func(e Event) { b.events = append(b.events, e) }
	c.Report = func(err error) { t.Error(err) }
	var err error
	if b.Filter, err = Open(c); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	go func() { b.done <- b.Run(ctx) }()
	synctest.Wait()
	return b
}

// end ends the filter, which must keep nothing then.
func (b *bench) end() {
	b.t.Helper()
	b.cancel()
	if err := <-b.done; !errors.Is(err, context.Canceled) {
		b.t.Errorf("Run: %v", err)
	}
	if err := b.Close(); err != nil {
		b.t.Errorf("Close: %v", err)
	}
	if s := b.Stats(); s.Memory != 0 || s.Flows != 0 || b.network.Handles() != 0 {
		b.t.Errorf("at the end: %+v", s)
	}
}

// reasons returns the reasons of blocked connections.
func (b *bench) reasons() (words []string) {
	for _, e := range b.events {
		words = append(words, strings.TrimSpace(e.Protocol+" "+e.Reason+" "+e.Host))
	}
	return words
}

// peer is a client and its server, played by the test.
type peer struct {
	*bench
	client, server netip.AddrPort
	ack            uint32 // the client's
}

// connect begins a connection of TCP to a port.
func (b *bench) connect(local, port uint16) *peer {
	b.t.Helper()
	p := b.handshake(local, port)
	if out := p.out(); len(out) != 3 {
		b.t.Fatalf("of the handshake %d packets went on", len(out))
	}
	return p
}

// handshake is connect without a check of the packets that go on.
func (b *bench) handshake(local, port uint16) *peer {
	b.t.Helper()
	p := &peer{b, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), local), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), serverISN + 1}
	p.fromClient(clientISN, packet.TCPSyn, "")
	p.fromServer(serverISN, clientISN+1, packet.TCPSyn|packet.TCPAck, "")
	p.fromClient(clientISN+1, packet.TCPAck, "")
	return p
}

// fromClient puts a packet of the client on the network.
func (p *peer) fromClient(seq uint32, flags packet.TCPFlags, payload string) {
	p.t.Helper()
	h := packet.Header{Src: p.client, Dst: p.server}
	s := packet.Segment{Seq: seq, Flags: flags, Window: 1000}
	if flags&packet.TCPAck != 0 {
		s.Ack = p.ack
	}
	b, err := h.AppendTCP(nil, s, []byte(payload))
	if err != nil {
		p.t.Fatal(err)
	}
	p.network.Outbound(b, diverttest.Link)
	synctest.Wait()
}

// fromServer puts a packet of the server on the network.
func (p *peer) fromServer(seq, ack uint32, flags packet.TCPFlags, payload string) {
	p.t.Helper()
	s := packet.Segment{Seq: seq, Ack: ack, Flags: flags, Window: 500}
	if flags&packet.TCPSyn != 0 {
		s.Options = []byte{optionSACKPermitted, 2}
	}
	h := packet.Header{Src: p.server, Dst: p.client}
	b, err := h.AppendTCP(nil, s, []byte(payload))
	if err != nil {
		p.t.Fatal(err)
	}
	p.network.Inbound(b, diverttest.Link)
	p.ack = seq + uint32(len(payload)) + 1&uint32(flags>>1)
	synctest.Wait()
}

// say sends bytes from an offset of the client's stream.
func (p *peer) say(offset int, payload string) {
	p.t.Helper()
	p.fromClient(clientISN+1+uint32(offset), packet.TCPAck|packet.TCPPsh, payload)
}

// reply has the server acknowledge n bytes of the stream and send a payload.
func (p *peer) reply(n int, payload string) {
	p.t.Helper()
	p.fromServer(p.ack, clientISN+1+uint32(n), packet.TCPAck, payload)
}

// seen is a packet that went on.
type seen struct {
	toServer bool
	seq, ack uint32
	flags    packet.TCPFlags
	options  []byte
	data     string
}

// out returns the packets that have gone on. Their checksums must be correct.
func (b *bench) out() (all []seen) {
	b.t.Helper()
	synctest.Wait()
	for _, d := range b.network.Delivered() {
		var h packet.Parsed
		if !h.ParseExact(d.Data) || !h.VerifyTransportChecksum(d.Data) || d.Addr.IPv6 == false && !h.VerifyIPChecksum(d.Data) {
			b.t.Fatalf("packet % x", d.Data)
		}
		s := seen{toServer: d.Addr.Outbound, data: string(h.Payload(d.Data))}
		if tcp := h.TCP(d.Data); tcp != nil {
			s.seq, s.ack, s.flags, s.options = tcp.Seq(), tcp.Ack(), tcp.Flags(), tcp.Options()
		}
		all = append(all, s)
	}
	return all
}

// received returns the bytes of the client's stream that the server gets from packets, and whether it was reset.
func received(all []seen) (text string, reset bool) {
	stream := map[uint32]byte{}
	for _, s := range all {
		if s.toServer {
			for i := range len(s.data) {
				stream[s.seq+uint32(i)] = s.data[i]
			}
			reset = reset || s.flags&packet.TCPRst != 0
		}
	}
	var b []byte
	for seq := uint32(clientISN + 1); ; seq++ {
		c, ok := stream[seq]
		if !ok {
			break
		}
		b = append(b, c)
	}
	if text = string(b); len(text) != len(stream) {
		return fmt.Sprintf("%d bytes with gaps", len(stream)), reset
	}
	return text, reset
}

// clientHello returns the first records of a TLS client: with Go's post-quantum keys, more than a segment.
func clientHello(t testing.TB, name string) string {
	t.Helper()
	var sent recorder
	_ = tls.Client(&sent, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() // fails: nobody answers
	if sent.Len() < 1300 {
		t.Fatalf("a hello of %d bytes", sent.Len())
	}
	return sent.String()
}

// recorder is a connection that keeps sent bytes and receives none.
type recorder struct {
	bytes.Buffer
	net.Conn
}

func (r *recorder) Read([]byte) (int, error)           { return 0, net.ErrClosed }
func (r *recorder) Write(b []byte) (int, error)        { return r.Buffer.Write(b) }
func (r *recorder) Close() error                       { return nil }
func (r *recorder) SetDeadline(time.Time) error        { return nil }
func (r *recorder) SetWriteDeadline(t time.Time) error { return nil }

// part is a piece of a client's bytes.
type part struct {
	offset int
	data   []byte
}

// splitHello cuts a hello into pieces of at most n bytes.
func splitHello(hello []byte, n int) (parts []part) {
	for _, p := range quictest.Split(hello, n) {
		parts = append(parts, part{p.Offset, p.Data})
	}
	return parts
}

// initialOf returns a client's Initial packet with CRYPTO frames, padded to a size.
func initialOf(t testing.TB, v *quicinitial.Version, id, src []byte, number uint8, size int, parts ...part) []byte {
	t.Helper()
	var list []quictest.Part
	for _, p := range parts {
		list = append(list, quictest.Part{Offset: p.offset, Data: p.data})
	}
	return quictest.Initial(t, v, id, src, number, size, list...)
}

var ways = map[string]func(text string) []part{
	"whole":            func(text string) []part { return []part{{0, []byte(text)}} },
	"halves":           func(text string) []part { return splitHello([]byte(text), (len(text)+1)/2) },
	"1-byte":           func(text string) []part { return splitHello([]byte(text), 1) },
	"backwards":        func(text string) []part { p := splitHello([]byte(text), 500); slices.Reverse(p); return p },
	"reordered":        func(text string) []part { return shuffled(splitHello([]byte(text), 100)) },
	"1-byte reordered": func(text string) []part { return shuffled(splitHello([]byte(text), 1)) },
	"overlapping": func(text string) (p []part) {
		for at := 0; at < len(text); at += 50 {
			p = append(p, part{at, []byte(text[at:min(at+120, len(text))])})
		}
		return shuffled(p)
	},
}

func shuffled(p []part) []part {
	rand.Shuffle(len(p), func(i, j int) { p[i], p[j] = p[j], p[i] })
	return p
}

// TestTCP: names are found however the bytes come. The server gets either all of them or no byte.
func TestTCP(t *testing.T) {
	for _, c := range []struct {
		name, blocked, allowed string
		port                   uint16
		page                   bool
	}{
		{"HTTP", "GET / HTTP/1.1\r\nHost: www.blocked.test\r\n\r\n", "GET / HTTP/1.1\r\nHost: notblocked.test\r\n\r\n", 80, true},
		{"TLS", clientHello(t, "www.blocked.test"), clientHello(t, "notblocked.test"), 443, false},
		{"TLS at another port", clientHello(t, "blocked.test"), clientHello(t, "test"), 80, false},
	} {
		for way, cut := range ways {
			t.Run(c.name+" "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := begin(t, Config{}, "blocked.test")
					p := b.connect(1000, c.port)
					for _, s := range cut(c.blocked) {
						p.say(s.offset, string(s.data))
					}
					all := p.out()
					text, reset := received(all)
					if text != "" || !reset || len(b.events) != 1 {
						t.Errorf("the server got %d bytes, reset: %v; events %v", len(text), reset, b.reasons())
					}
					if n := slices.IndexFunc(all, func(s seen) bool { return s.toServer }); all[n].seq != clientISN+1 {
						t.Errorf("the server was reset at %d", all[n].seq)
					}
					page := slices.ContainsFunc(all, func(s seen) bool {
						return !s.toServer && strings.HasPrefix(s.data, "HTTP/1.1 403 ") && strings.Contains(s.data, "<b>www.blocked.test</b>") && s.flags&packet.TCPFin != 0 && s.seq == serverISN+1
					})
					clientReset := slices.ContainsFunc(all, func(s seen) bool { return !s.toServer && s.flags&packet.TCPRst != 0 && s.seq == serverISN+1 })
					if page != c.page || clientReset == c.page {
						t.Errorf("page %v, reset %v", page, clientReset)
					}
					p.say(0, c.blocked) // a retransmission
					if text, _ := received(p.out()); text != "" {
						t.Errorf("later the server got %d bytes", len(text))
					}

					p = b.connect(1001, c.port)
					for _, s := range cut(c.allowed) {
						p.say(s.offset, string(s.data))
					}
					if text, reset := received(p.out()); text != c.allowed || reset {
						t.Errorf("the server got %d bytes of %d, reset: %v", len(text), len(c.allowed), reset)
					}
					if s := b.Stats(); len(b.events) != 1 || s.Blocked != 1 || s.HTTP+s.TLS != 2 {
						t.Errorf("%v, %+v", b.reasons(), s)
					}
					b.end()
				})
			})
		}
	}
}

// TestOthersUntouched: with 10,000 names listed, no packet of 1,000 other hosts is held, changed or reset.
func TestOthersUntouched(t *testing.T) {
	names := make([]string, 10000)
	for i := range names {
		names[i] = fmt.Sprintf("site%d.test", i)
	}
	hello := clientHello(t, "other0000.test")
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, names...)
		for i := range 1000 {
			name := fmt.Sprintf("other%04d.test", i)
			text, port := strings.Replace(hello, "other0000.test", name, 1), uint16(443)
			if i%2 == 0 {
				text, port = "GET / HTTP/1.1\r\nHost: "+name+"\r\n\r\n", 80
			}
			p := b.connect(uint16(1000+i), port)
			p.say(0, text)
			if got, reset := received(p.out()); got != text || reset {
				t.Fatalf("%s: %d bytes, reset: %v", name, len(got), reset)
			}
		}
		s, err := b.Handle().Stats()
		if err != nil || len(b.events) != 0 || s.Injected != 0 || s.Abandoned != 0 {
			t.Errorf("events %v, handle %+v, %v", b.reasons(), s, err)
		}
		b.end()
	})
}

// TestTLSPasses: once the server has acknowledged the hello and the client goes on encrypted, the flow is accepted.
func TestTLSPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		p := b.connect(1000, 443)
		hello := clientHello(t, "a.test")
		p.say(0, hello)
		p.reply(len(hello), "server hello")
		p.say(len(hello), "\x14\x03\x03\x00\x01\x01"+"\x17\x03\x03\x00\x05hello")
		p.reply(len(hello)+16, "more")
		if s, err := b.Handle().Stats(); err != nil || s.FlowAccepted != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		p.say(len(hello)+16, "data")
		p.reply(len(hello)+20, "data")
		if s, err := b.Handle().Stats(); err != nil || s.FlowAccepted != 2 || s.Matched-s.Received != 2 {
			t.Errorf("%+v, %v", s, err)
		}
		b.end()
	})
}

// TestSecondHello: the hello after HelloRetryRequest is judged too.
func TestSecondHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		p := b.connect(1000, 443)
		first := clientHello(t, "a.test")
		p.say(0, first)
		p.reply(len(first), "retry")
		second := "\x14\x03\x03\x00\x01\x01" + clientHello(t, "blocked.test")
		p.say(len(first), second[:700])
		p.say(len(first)+700, second[700:])
		if text, reset := received(p.out()); text != first || !reset {
			t.Errorf("%d bytes, reset %v", len(text), reset)
		}
		b.end()
	})
}

// offering returns a hello that also offers early data.
func offering(hello string) string {
	b := []byte(hello)
	at := 5 + 4 + 2 + 32
	at += 1 + int(b[at])                             // session
	at += 2 + int(binary.BigEndian.Uint16(b[at:]))   // suites
	at += 1 + int(b[at])                             // compression
	for _, length := range []int{3, 5 + 4 - 2, at} { // of the record, of the message, of the extensions
		binary.BigEndian.PutUint16(b[length:], binary.BigEndian.Uint16(b[length:])+4)
	}
	return string(b) + "\x00\x2a\x00\x00"
}

// serverHelloOf returns the beginning of a server's answer.
func serverHelloOf(random [32]byte) string {
	return "\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + string(random[:]) + strings.Repeat("x", 84)
}

// TestEarlyData: a hello that offers early data may be followed by that data and, if the server asks for it, by a second
// hello. If the server does not ask, the kernel carries the bytes behind the early data.
func TestEarlyData(t *testing.T) {
	record := func(n int) string { return string([]byte{23, 3, 3, byte(n >> 8), byte(n)}) + strings.Repeat("e", n) }
	const changed = "\x14\x03\x03\x00\x01\x01"
	first, blocked, other := offering(clientHello(t, "a.test")), clientHello(t, "blocked.test"), clientHello(t, "b.test")
	retry, accepted := serverHelloOf(helloRetry), serverHelloOf([32]byte{1, 2, 3})
	for name, row := range map[string]struct {
		early, answer string
		piece         int // bytes of the answer in one packet
		second        string
		want          string // bytes that the server gets behind the first hello
		passed        bool   // the kernel carries the rest
	}{
		"none, another hello":      {"", retry, 1000, changed + blocked, "", false},
		"some":                     {changed + record(700) + record(100), retry, 1000, blocked, changed + record(700) + record(100), false},
		"an answer byte by byte":   {changed + record(700), retry, 1, blocked, changed + record(700), false},
		"allowed":                  {record(700), retry, 1000, other + record(9), record(700) + other + record(9), true},
		"the server has accepted":  {record(700), accepted, 1000, record(9), record(700) + record(9), true},
		"so it has, byte by byte":  {record(700), accepted, 1, record(9), record(700) + record(9), true},
		"the server has refused":   {record(700), "\x15\x03\x03\x00\x02\x02\x28", 1000, record(9), record(700) + record(9), true},
		"not offered":              {"", accepted, 1000, changed + record(9), changed + record(9), true},
		"an answer in tiny pieces": {record(700), "\x16\x03\x03\x00\x01\x02" + strings.Repeat("\x16\x03\x03\x00\x01x", 50), 1000, blocked, record(700), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := begin(t, Config{}, "blocked.test")
				p := b.connect(1000, 443)
				sent := 0
				say := func(text string) {
					for len(text) > 0 {
						n := min(len(text), 400)
						p.say(sent, text[:n])
						sent, text = sent+n, text[n:]
					}
				}
				hello := first
				if name == "not offered" {
					hello = clientHello(t, "a.test")
				}
				say(hello)
				say(row.early)
				for rest := row.answer; len(rest) > 0; {
					n := min(len(rest), row.piece)
					p.reply(sent, rest[:n])
					rest = rest[n:]
				}
				say(row.second)
				if text, reset := received(p.out()); text != hello+row.want || reset == row.passed {
					t.Errorf("the server has got %d bytes, want %d; reset %v", len(text), len(hello+row.want), reset)
				}
				p.reply(sent, "data")
				p.say(sent, "more")
				if s, err := b.Handle().Stats(); err != nil || s.FlowAccepted > 0 != row.passed {
					t.Errorf("%+v, %v", s, err)
				}
				b.end()
			})
		})
	}
}

// FuzzAnswer: a server's answer in pieces of any size is read like the whole.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(serverHelloOf(helloRetry)), uint8(7))
	f.Add([]byte(serverHelloOf([32]byte{})), uint8(1))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40}, uint8(3))
	f.Fuzz(func(t *testing.T, answer []byte, piece uint8) {
		read := func(piece int) bool {
			c := connection{ack: serverISN + 1}
			c.stream.early = true
			for at := 0; at < len(answer) && c.stream.early; at += piece {
				c.answered(c.ack+uint32(at), answer[at:min(at+piece, len(answer))])
				c.answered(c.ack+uint32(at), answer[at:min(at+piece, len(answer))]) // sent again
				c.answered(c.ack+uint32(at+2*piece), []byte("from behind a gap"))
			}
			if len(c.reply) > serverHello {
				t.Fatalf("keeps %d bytes", len(c.reply))
			}
			return c.stream.early
		}
		if whole, pieces := read(len(answer)+1), read(1+int(piece)); whole != pieces {
			t.Errorf("as a whole early data goes on: %v; in pieces of %d: %v", whole, 1+int(piece), pieces)
		}
	})
}

// TestKeepAlive: each request of a connection is judged, and a request behind an unanswered one gets no page.
func TestKeepAlive(t *testing.T) {
	const allowed = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
	post := "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5000\r\n\r\n" + strings.Repeat("x", 5000)
	const blocked = "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n"
	for _, answered := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t, Config{Page: []byte("our page")}, "blocked.test")
			p := b.connect(1000, 80)
			sent := ""
			for _, request := range []string{allowed, post, allowed} {
				p.say(len(sent), request)
				sent += request
				if answered {
					p.reply(len(sent), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}
			if text, _ := received(p.out()); text != sent {
				t.Errorf("%d bytes of %d", len(text), len(sent))
			}
			at := p.ack
			p.say(len(sent), blocked)
			all := p.out()
			page := slices.IndexFunc(all, func(s seen) bool { return !s.toServer && strings.HasSuffix(s.data, "our page") })
			if text, reset := received(all); text != "" || !reset || (page >= 0) != answered || answered && (all[page].seq != at || all[page].ack != clientISN+1+uint32(len(sent+blocked))) {
				t.Errorf("answered %v: %d bytes, reset %v, %+v", answered, len(text), reset, all)
			}
			b.end()
		})
	}
}

// TestPageDelivered: the page is sent again until the client acknowledges it and its FIN.
func TestPageDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page := bytes.Repeat([]byte("page"), 1000)
		b := begin(t, Config{Page: page}, "blocked.test")
		p := b.connect(1000, 80)
		const request = "POST / HTTP/1.1\r\nHost: blocked.test\r\nContent-Length: 10\r\n\r\n"
		get := func() (text string, fin bool, end uint32) {
			for _, s := range p.out() {
				if !s.toServer {
					text += s.data
					fin = fin || s.flags&packet.TCPFin != 0
					end = s.seq + uint32(len(s.data))
				}
			}
			return text, fin, end
		}
		p.say(0, request)
		first, fin, end := get()
		if !fin || !strings.HasSuffix(first, string(page)) {
			t.Errorf("%d bytes, FIN %v", len(first), fin)
		}
		p.say(0, request) // the page was lost
		if again, fin, _ := get(); again != first || !fin {
			t.Errorf("again %d bytes, FIN %v", len(again), fin)
		}
		p.ack = end + 1
		p.say(len(request), "0123456789")
		p.fromClient(clientISN+1+uint32(len(request))+10, packet.TCPAck|packet.TCPFin, "")
		all := p.out()
		if len(all) != 2 || all[1].toServer || all[1].ack != clientISN+1+uint32(len(request))+11 || all[1].seq != end+1 {
			t.Errorf("the rest was answered with %+v", all)
		}
		b.end()
	})
}

// TestSentAgainOtherwise: bytes that the server may not have are the same when they are sent again, or dropped: a decoy
// that never arrives does not get the true request through.
func TestSentAgainOtherwise(t *testing.T) {
	const decoy = "GET / HTTP/1.1\r\nHost: aaaaaaa.test\r\n\r\n"
	const real = "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n"
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		p := b.connect(1000, 80)
		p.say(0, decoy)
		p.say(0, real)
		p.say(10, real[10:20])
		p.say(20, real[20:])
		if text, _ := received(p.out()); text != decoy {
			t.Errorf("the server got %q", text)
		}
		p = b.connect(1001, 80) // ahead of a gap
		p.say(20, decoy[20:])
		p.say(20, real[20:])
		p.say(0, decoy[:20])
		if text, _ := received(p.out()); text != decoy {
			t.Errorf("the server got %q", text)
		}
		p = b.connect(1002, 80) // before the beginning
		p.say(-20, strings.Repeat("x", 20)+decoy)
		p.say(-1, "x") // a probe
		if all := p.out(); len(all) != 1 || all[0].data != "x" {
			t.Errorf("before the beginning: %+v", all)
		}
		p = b.connect(1003, 443)
		hello, other := clientHello(t, "aaaaaaa.test"), clientHello(t, "blocked.test")
		p.say(0, hello)
		p.say(0, other)
		p.say(100, other[100:])
		if text, _ := received(p.out()); text != hello {
			t.Error("another hello has passed")
		}
		if s := b.Stats(); s.Differing != 5 {
			t.Errorf("%+v", s)
		}
		b.end()
	})
}

// TestDataInSYN: the data is removed, and judged when the client sends it again.
func TestDataInSYN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		p := &peer{b, netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("192.0.2.1:80"), 0}
		p.fromClient(clientISN, packet.TCPSyn, "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n")
		if all := p.out(); len(all) != 1 || all[0].data != "" || all[0].flags != packet.TCPSyn || all[0].seq != clientISN {
			t.Errorf("went on: %+v", all)
		}
		b.end()
	})
}

// TestUrgent: bytes that servers read in two ways are refused.
func TestUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{})
		p := b.connect(1000, 80)
		p.fromClient(clientISN+1, packet.TCPAck|packet.TCPUrg, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if text, reset := received(p.out()); text != "" || !reset || !slices.Equal(b.reasons(), []string{"other ambiguous"}) {
			t.Errorf("%q, reset %v, %v", text, reset, b.reasons())
		}
		b.end()
	})
}

// TestNothingKnown: a connection without a name, incomplete for too long, too long or of another protocol passes, or is
// blocked.
func TestNothingKnown(t *testing.T) {
	halfHello := clientHello(t, "blocked.test")[:600]
	for _, c := range []struct {
		name, text string
		wait       time.Duration
		nameless   string // the reason with BlockNameless
		closed     string // with FailClosed
	}{
		{"no Host", "GET / HTTP/1.0\r\n\r\n", 0, "http nameless", ""},
		{"SSH", "SSH-2.0-x\r\n", 0, "other nameless", ""},
		{"half a hello", halfHello, holdTime, "", "tls late"},
		{"half a request", "GET / HTTP/1.1\r\nHost: ", holdTime, "", "other late"},
		{"too long", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead), 0, "", "other too-long"},
		{"a WebSocket", "GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\n\r\n\x81\x85", 0, "", ""},
		{"ambiguous", "GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 0, "other ambiguous", "other ambiguous"},
	} {
		for _, config := range []Config{{}, {BlockNameless: true}, {FailClosed: true}} {
			want := ""
			switch {
			case config.BlockNameless:
				want = c.nameless
			case config.FailClosed, strings.HasSuffix(c.closed, "ambiguous"):
				want = c.closed
			}
			if c.closed != "" && c.wait > 0 && config.BlockNameless {
				want = "" // it fails open
			}
			t.Run(fmt.Sprintf("%s/%v/%v", c.name, config.BlockNameless, config.FailClosed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := begin(t, config, "blocked.test")
					p := b.connect(1000, 80)
					p.say(0, c.text)
					if c.wait > 0 {
						if text, reset := received(p.out()); text != "" || reset {
							t.Errorf("at once: %q, reset %v", text, reset)
						}
						time.Sleep(c.wait)
					}
					text, reset := received(p.out())
					if got := strings.Join(b.reasons(), ","); got != want || reset != (want != "") || (text == c.text) != (want == "") || text != c.text && text != "" {
						t.Errorf("%d of %d bytes, reset %v, %q, want %q", len(text), len(c.text), reset, got, want)
					}
					b.end()
				})
			})
		}
	}
}

// TestOlder: connections from before the filter go on; a request in them is judged.
func TestOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		p := &peer{b, netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("192.0.2.1:443"), 5}
		p.say(0, "\x17\x03\x03\x00\x05hello")
		p.say(-10, "0123456789") // lost before the filter
		if all := p.out(); len(all) != 2 {
			t.Errorf("%+v", all)
		}
		p.client = netip.MustParseAddrPort("10.0.0.1:1001")
		p.say(0, "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n")
		if text, reset := received(p.out()); text != "" || !reset {
			t.Errorf("%q, reset %v", text, reset)
		}
		b.end()
	})
}

// TestSmallSegments: a client whose small segments wait learns that all but the first have arrived.
func TestSmallSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		p := b.connect(1000, 80)
		for i := range 4 {
			p.say(i, "GET "[i:i+1])
		}
		all := p.out()
		want := []byte{optionNone, optionNone, optionSACK, 10, 0xFF, 0xFF, 0xFF, 2, 0xFF, 0xFF, 0xFF, 5}
		if len(all) != 2 || all[1].toServer || all[1].ack != clientISN+1 || !bytes.Equal(all[1].options, want) {
			t.Errorf("%+v", all)
		}
		b.end()
	})
}

// TestFlood: many connections that begin and wait stay within the memory limit, and a new one still gets its packets
// through.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{MaxFlows: 100, MaxMemory: 20000}, "blocked.test")
		for i := range 1000 {
			p := b.handshake(uint16(1000+i), 80)
			p.say(0, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 500))
			if s := b.Stats(); s.Flows > 100 || s.Memory > 20000 {
				t.Fatalf("%+v", s)
			}
		}
		if b.out(); b.Stats().FailedOpen == 0 {
			t.Error("there was memory for all")
		}
		time.Sleep(holdTime)
		p := b.handshake(3000, 80)
		p.say(0, "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n")
		if len(b.events) != 1 {
			t.Errorf("events %v", b.reasons())
		}
		b.end()
	})
}

// TestQUIC: both versions, in one datagram or several in any order.
func TestQUIC(t *testing.T) {
	id, src := []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{9, 9, 9}
	for i := range quicinitial.Versions {
		v := &quicinitial.Versions[i]
		for _, size := range []int{5000, 800, 100} {
			for _, blockedName := range []bool{true, false} {
				t.Run(fmt.Sprintf("version %d, pieces of %d, blocked %v", i+1, size, blockedName), func(t *testing.T) {
					name := "www.blocked.test"
					if !blockedName {
						name = "notblocked.test"
					}
					hello := quictest.Hello(t, name)
					synctest.Test(t, func(t *testing.T) {
						b := begin(t, Config{}, "blocked.test")
						var datagrams []string
						parts := shuffled(splitHello(hello, size))
						for n := 0; n < len(parts); n += 2 {
							datagrams = append(datagrams, string(initialOf(t, v, id, src, uint8(n), 1200, parts[n:min(n+2, len(parts))]...)))
						}
						for n, d := range datagrams {
							b.datagram(1000, d)
							if all := b.out(); n < len(datagrams)-1 && len(all) != 0 {
								t.Fatalf("datagram %d of %d: %d went on", n+1, len(datagrams), len(all))
							} else if n == len(datagrams)-1 {
								checkQUIC(t, v, id, src, datagrams, all, blockedName)
							}
						}
						b.datagram(1000, "\xC0\x00\x00\x00\x01 no packet")
						b.datagram(1000, "\x40 a short header")
						if all := b.out(); blockedName != (len(all) == 1) {
							t.Errorf("later %d datagrams went on", len(all))
						}
						b.end()
					})
				})
			}
		}
	}
}

// checkQUIC checks which datagrams have gone on once the last one has come.
func checkQUIC(t *testing.T, v *quicinitial.Version, id, src []byte, datagrams []string, all []seen, blocked bool) {
	t.Helper()
	if !blocked {
		for i, s := range all {
			if !s.toServer || i >= len(datagrams) || s.data != datagrams[i] {
				t.Errorf("datagram %d is another", i)
			}
		}
		if len(all) != len(datagrams) {
			t.Errorf("%d datagrams went on", len(all))
		}
		return
	}
	if len(all) != 1 || all[0].toServer {
		t.Fatalf("blocked: %+v", all)
	}
	h, rest, err := quicinitial.Parse([]byte(all[0].data))
	if err != nil || len(rest) != 0 || !bytes.Equal(h.Dst, src) || h.Version != v {
		t.Fatalf("answer %x: %v", all[0].data, err)
	}
	keys, err := quicinitial.NewKeys(v, id, "server in")
	if err != nil {
		t.Fatal(err)
	}
	if frames, ok := keys.Open(nil, &h); !ok || !bytes.HasPrefix(frames, []byte{quicinitial.FrameClose, 2, 0, 0}) {
		t.Errorf("answer %x, %v", frames, ok)
	}
}

// datagram puts a datagram of a client at a port on the network.
func (b *bench) datagram(port uint16, payload string) {
	b.t.Helper()
	h := packet.Header{Src: netip.AddrPortFrom(netip.MustParseAddr("fd00::1"), port), Dst: netip.MustParseAddrPort("[fd00::2]:443")}
	d, err := h.AppendUDP(nil, []byte(payload))
	if err != nil {
		b.t.Fatal(err)
	}
	b.network.Outbound(d, diverttest.Link)
	synctest.Wait()
}

// TestQUICAgain: a second connection between the same ports is judged, later packets of the first do not disturb it, and
// a repeated hello must be the same.
func TestQUICAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{}, "blocked.test")
		v, id, src := &quicinitial.Versions[0], []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte(nil)
		hello := quictest.Hello(t, "aaaaaaa.test")
		first := string(initialOf(t, v, id, src, 0, 1200, splitHello(hello, 5000)...))
		b.datagram(1000, first)
		keys, err := quicinitial.NewKeys(v, id, "client in")
		if err != nil {
			t.Fatal(err)
		}
		later := string(keys.Seal(nil, v, []byte("server's"), src, 1, []byte{quicinitial.FrameAck, 0, 0, 0, 0, quicinitial.FramePadding, quicinitial.FramePadding}))
		b.datagram(1000, later)
		if all := b.out(); len(all) != 2 || all[0].data != first || all[1].data != later {
			t.Errorf("the first: %+v", all)
		}
		other := quictest.Hello(t, "blocked.test")
		b.datagram(1000, string(initialOf(t, v, []byte{8, 7, 6, 5, 4, 3, 2, 1}, src, 0, 1200, splitHello(other, 5000)...)))
		b.datagram(1000, string(initialOf(t, v, id, src, 2, 1200, splitHello(other, 5000)...)))
		for _, s := range b.out() {
			if s.toServer {
				t.Error("a blocked hello has passed")
			}
		}
		if got := b.reasons(); !slices.Equal(got, []string{"quic listed blocked.test", "quic ambiguous"}) {
			t.Error(got)
		}
		b.end()
	})
}

// TestQUICSecondHello: the hello after HelloRetryRequest is judged, too, in one datagram or several.
func TestQUICSecondHello(t *testing.T) {
	v, id, src := &quicinitial.Versions[0], []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{9}
	first, blocked, other := quictest.Hello(t, "a.test"), quictest.Hello(t, "blocked.test"), quictest.Hello(t, "b.test")
	for name, row := range map[string]struct {
		second []byte
		size   int
		want   []string
	}{
		"blocked": {blocked, 5000, []string{"quic listed blocked.test"}}, "in pieces": {blocked, 300, []string{"quic listed blocked.test"}},
		"allowed": {other, 5000, nil}, "allowed, in pieces": {other, 300, nil},
		"no hello": {[]byte("\x02\x00\x00\x01x"), 5000, []string{"quic ambiguous"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := begin(t, Config{}, "blocked.test")
				b.datagram(1000, string(initialOf(t, v, id, src, 0, 1200, splitHello(first, 5000)...)))
				if all := b.out(); len(all) != 1 || !all[0].toServer {
					t.Fatalf("the first: %+v", all)
				}
				var want []string
				parts := shuffled(splitHello(row.second, row.size))
				for i, one := range parts {
					one.offset += len(first)
					want = append(want, string(initialOf(t, v, id, src, uint8(1+i), 1200, one)))
					b.datagram(1000, want[i])
					if i < len(parts)-1 {
						if all := b.out(); len(all) != 0 {
							t.Errorf("after %d of %d pieces: %d went on", i+1, len(parts), len(all))
						}
					}
				}
				var got []string
				for _, s := range b.out() {
					if s.toServer {
						got = append(got, s.data)
					}
				}
				if row.want != nil {
					want = nil
				}
				if !slices.Equal(got, want) || !slices.Equal(b.reasons(), row.want) {
					t.Errorf("%d datagrams went on, want %d; blocked %v, want %v", len(got), len(want), b.reasons(), row.want)
				}
				if s := b.Stats(); s.QUIC != 1 {
					t.Errorf("%d connections", s.QUIC)
				}
				b.end()
			})
		})
	}
}

// TestQUICLate: half a hello passes in the end, or is blocked.
func TestQUICLate(t *testing.T) {
	for _, closed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t, Config{FailClosed: closed}, "blocked.test")
			hello := quictest.Hello(t, "a.test")
			b.datagram(1000, string(initialOf(t, &quicinitial.Versions[0], []byte{1, 2, 3, 4, 5, 6, 7, 8}, nil, 0, 1200, part{0, hello[:200]})))
			if all := b.out(); len(all) != 0 {
				t.Errorf("at once: %+v", all)
			}
			time.Sleep(holdTime)
			if all := b.out(); (len(all) == 1) == closed {
				t.Errorf("closed %v: %+v", closed, all)
			}
			b.end()
		})
	}
}

// TestFragments: fragments of a client are dropped.
func TestFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{})
		p := b.connect(1000, 80)
		h := packet.Header{Src: p.client, Dst: p.server}
		d, err := h.AppendTCP(nil, packet.Segment{Seq: clientISN + 1, Flags: packet.TCPAck}, []byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		packet.IPv4(d).SetMF(true)
		b.network.Outbound(d, diverttest.Link)
		synctest.Wait()
		if all := b.out(); len(all) != 0 || b.Stats().Fragments != 1 {
			t.Errorf("%+v", all)
		}
		b.end()
	})
}

func TestOpenErrors(t *testing.T) {
	hosts := NewHosts()
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "no list of hosts"},
		{Config{Hosts: hosts, Layer: divert.LayerFlow}, "has no packets"},
		{Config{Hosts: hosts, MaxFlows: -1}, "must be positive"},
		{Config{Hosts: hosts, Page: make([]byte, MaxPage+1)}, "the page has 8193 bytes"},
		{Config{Hosts: hosts, Ports: []uint16{0}}, "port 0"},
	} {
		c.config.Open = diverttest.New().OpenProgram
		if _, err := Open(c.config); !errors.Is(err, divert.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if _, err := Open(Config{Hosts: hosts, Where: "tcp.DstPort =="}); err == nil || errors.Is(err, divert.ErrInvalid) {
		t.Errorf("a wrong filter: %v", err)
	}
}

// TestForward: at the layer FORWARD there is neither local nor remote.
func TestForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Layer: divert.LayerForward}, "blocked.test")
		h := packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:1000"), Dst: netip.MustParseAddrPort("192.0.2.1:80")}
		for _, s := range []struct {
			packet.Segment
			data string
		}{{packet.Segment{Seq: clientISN, Flags: packet.TCPSyn}, ""}, {packet.Segment{Seq: clientISN + 1, Flags: packet.TCPAck}, "GET / HTTP/1.1\r\nHost: blo"}, {packet.Segment{Seq: clientISN + 26, Flags: packet.TCPAck}, "cked.test\r\n\r\n"}} {
			d, err := h.AppendTCP(nil, s.Segment, []byte(s.data))
			if err != nil {
				t.Fatal(err)
			}
			b.network.Forward(d, diverttest.Link)
			synctest.Wait()
		}
		if got := b.reasons(); !slices.Equal(got, []string{"http listed blocked.test"}) {
			t.Error(got)
		}
		for _, s := range b.out() {
			if strings.Contains(s.data, "GET") {
				t.Errorf("went on: %+v", s)
			}
		}
		b.end()
	})
}

func BenchmarkKeepAlive(b *testing.B) {
	f := &Filter{config: Config{Hosts: NewHosts()}}
	c := &connection{key: key{}, begun: true}
	request := []byte("GET /index.html HTTP/1.1\r\nHost: www.example.org\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n")
	b.SetBytes(int64(len(request)))
	for b.Loop() {
		s := segment{seq: c.sent.end(), data: request}
		if v := f.read(c, &s, 0); v.kind != goOn {
			b.Fatal(v)
		}
		c.sent.forget(c.sent.end())
	}
}

// FuzzSegments: whatever segments a client sends, of an allowed request and of a blocked one in the same place, the
// server never gets all the bytes that distinguish the blocked one, whether it keeps the first or the last version of a
// byte.
func FuzzSegments(f *testing.F) {
	f.Add([]byte{0, 0, 0, 39, 1, 1, 0, 39, 3, 0, 0, 0, 1, 1, 20, 39})
	f.Add([]byte{1, 1, 20, 39, 0, 0, 0, 25, 1, 1, 0, 39, 2, 1, 5, 9, 3, 0, 0, 0, 2, 1, 0, 60})
	const allowed = "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
	const blocked = "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n"
	f.Fuzz(func(t *testing.T, ops []byte) {
		hosts := NewHosts()
		if err := hosts.Replace("blocked.test"); err != nil {
			t.Fatal(err)
		}
		network := diverttest.New()
		filter, err := Open(Config{Hosts: hosts, Open: network.OpenProgram, Report: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		defer filter.Close()
		client, server := netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("192.0.2.1:80")
		got := map[int]map[byte]bool{} // versions of each differing byte that the server was sent
		known := map[int]bool{}        // all bytes that the server was sent
		acked := 0                     // end of the bytes that the server has acknowledged, and takes no more
		judge := func(inbound bool, s packet.Segment, payload string) {
			h := packet.Header{Src: client, Dst: server}
			if inbound {
				h.Src, h.Dst = server, client
			}
			b, err := h.AppendTCP(nil, s, []byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			if inbound {
				network.Inbound(b, diverttest.Link)
			} else {
				network.Outbound(b, diverttest.Link)
			}
			ps := make([]divert.Packet, 1)
			if s, err := filter.handle.Stats(); err != nil || s.Waiting != 1 {
				t.Fatalf("%+v, %v", s, err)
			}
			if _, err := filter.handle.RecvBatch(ps); err != nil {
				t.Fatal(err)
			}
			filter.take(ps)
			for _, p := range network.Delivered() {
				var h packet.Parsed
				if !h.ParseExact(p.Data) || !p.Addr.Outbound || h.TCP(p.Data).Flags()&packet.TCPRst != 0 {
					continue
				}
				for i, c := range h.Payload(p.Data) {
					at := int(h.TCP(p.Data).Seq() + uint32(i) - (clientISN + 1))
					known[at] = true
					if at >= acked && at < len(blocked) && blocked[at] != allowed[at] {
						if got[at] == nil {
							got[at] = map[byte]bool{}
						}
						got[at][c] = true
					}
				}
			}
		}
		judge(false, packet.Segment{Seq: clientISN, Flags: packet.TCPSyn}, "")
		judge(true, packet.Segment{Seq: serverISN, Ack: clientISN + 1, Flags: packet.TCPSyn | packet.TCPAck}, "")
		for ; len(ops) >= 4; ops = ops[4:] {
			if ops[0]%4 == 3 {
				n := uint32(0)
				for known[int(n)] {
					n++
				}
				acked = int(n)
				judge(true, packet.Segment{Seq: serverISN + 1, Ack: clientISN + 1 + n, Flags: packet.TCPAck}, "")
				continue
			}
			text := allowed + allowed
			if ops[1]%2 == 1 {
				text = blocked + blocked
			}
			from := int(ops[2]) % len(text)
			end := min(from+int(ops[3])%80, len(text))
			judge(false, packet.Segment{Seq: clientISN + 1 + uint32(from), Ack: serverISN + 1, Flags: packet.TCPAck}, text[from:end])
		}
		for at := range len(blocked) {
			if blocked[at] != allowed[at] && !got[at][blocked[at]] {
				return
			}
		}
		t.Error("the server has been sent all of the blocked name")
	})
}
