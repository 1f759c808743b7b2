package firewall

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/internal/quicinitial"
	"github.com/opendivert/divert/internal/quicinitial/quictest"
	"github.com/opendivert/divert/packet"
)

// bench is a firewall on a fake network and a fake clock. It is its own Asker.
type bench struct {
	*Firewall
	t       *testing.T
	network *diverttest.Network
	cancel  context.CancelFunc
	done    chan error

	mu        sync.Mutex
	events    []Event
	asked     []Question
	withdrawn []string
	nobody    bool
}

func (b *bench) Ask(q Question) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.nobody {
		b.asked = append(b.asked, q)
	}
	return !b.nobody
}

func (b *bench) Withdraw(id uint64, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.withdrawn = append(b.withdrawn, why)
}

// run runs a test with a firewall, in a bubble.
func run(t *testing.T, rules string, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, network: diverttest.New(), done: make(chan error, 1)}
		var err error
		b.Firewall, err = Open(mustParse(t, rules), Config{
			Open: b.network.OpenProgram, Asker: b, Learner: &Learner{},
			Log: func(e Event) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.events = append(b.events, e)
			},
			Warn: func(err error) { t.Error(err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		var ctx context.Context
		ctx, b.cancel = context.WithCancel(context.Background())
		go func() { b.done <- b.Run(ctx) }()
		synctest.Wait()
		f(t, b)
		b.cancel()
		if err := <-b.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if n := b.network.Handles(); n != 0 {
			t.Errorf("%d handles are open still", n)
		}
	})
}

const (
	host4, peer4 = "10.0.0.1:40000", "192.0.2.7:443"
	host6, peer6 = "[fd00::1]:40000", "[2001:db8::7]:443"
)

func tcpPacket(t testing.TB, src, dst string, s packet.Segment, payload []byte) []byte {
	t.Helper()
	h := packet.Header{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	b, err := h.AppendTCP(nil, s, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func udpPacket(t testing.TB, src, dst string, payload []byte) []byte {
	t.Helper()
	h := packet.Header{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	b, err := h.AppendUDP(nil, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// out puts a packet of the host on the network, and describes the packets that have left the last handle.
func (b *bench) out(p []byte) string { b.network.Outbound(p, 0); return b.left() }

// in is out for a packet that comes in.
func (b *bench) in(p []byte) string { b.network.Inbound(p, diverttest.Link); return b.left() }

// left lists the packets that have left the last handle.
func (b *bench) left() string {
	synctest.Wait()
	var words []string
	for _, p := range b.network.Delivered() {
		var parsed packet.Parsed
		word := "in"
		if p.Addr.Outbound {
			word = "out"
		}
		if !parsed.Parse(p.Data) {
			b.t.Errorf("no packet left: %x", p.Data)
		}
		tcp := parsed.TCP(p.Data)
		switch {
		case tcp != nil && tcp.Flags()&packet.TCPRst != 0:
			word += " RST"
		case tcp != nil && tcp.Flags()&packet.TCPSyn != 0:
			word += " SYN"
		case parsed.ICMPOff >= 0 || parsed.ICMPv6Off >= 0:
			word += " ICMP"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func (b *bench) want(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// logged returns the events since its last call, in words.
func (b *bench) logged() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var words []string
	for _, e := range b.events {
		words = append(words, fmt.Sprintf("%v by %s at %s", e.Action, e.Rule, e.At))
	}
	b.events = nil
	return strings.Join(words, ", ")
}

// question returns the only open question.
func (b *bench) question() Question {
	b.t.Helper()
	list := b.Questions()
	if len(list) != 1 {
		b.t.Fatalf("%d questions", len(list))
	}
	return list[0]
}

var syn = packet.Segment{Seq: 100, Flags: packet.TCPSyn, Window: 1000}

func data(seq uint32) packet.Segment {
	return packet.Segment{Seq: seq, Ack: 500, Flags: packet.TCPAck | packet.TCPPsh, Window: 1000}
}

var synAck = packet.Segment{Seq: 499, Ack: 101, Flags: packet.TCPSyn | packet.TCPAck, Window: 1000}

func TestVerdicts(t *testing.T) {
	rules := "default: deny\nlog: all\nloopback: no\nrules:\n- {action: allow, direction: out, port: 443, name: web}\n- {action: reject, direction: out, port: 25}\n" +
		"- {action: allow, direction: in, port: 22}\n- {action: reject, direction: in, port: 23}\n- {action: log, name: seen}\n"
	run(t, rules, func(t *testing.T, b *bench) {
		for _, ends := range [][2]string{{host4, peer4}, {host6, peer6}} {
			host, peer := ends[0], ends[1]
			at := func(port int) string {
				return netip.AddrPortFrom(netip.MustParseAddrPort(peer).Addr(), uint16(port)).String()
			}
			here := func(port int) string {
				return netip.AddrPortFrom(netip.MustParseAddrPort(host).Addr(), uint16(port)).String()
			}
			b.want("allowed", b.out(tcpPacket(t, host, peer, syn, nil)), "out SYN")
			b.want("its answer", b.in(tcpPacket(t, peer, host, synAck, nil)), "in SYN")
			b.want("its data", b.out(tcpPacket(t, host, peer, data(101), []byte("x"))), "out")
			b.want("allowed, log", b.logged(), "allow by web at packet")
			b.want("allowed, UDP", b.out(udpPacket(t, host, peer, []byte("x"))), "out")
			b.want("its answer", b.in(udpPacket(t, peer, host, []byte("x"))), "in")
			b.logged()
			b.want("denied", b.out(tcpPacket(t, host, at(80), syn, nil)), "")
			b.want("denied again", b.out(tcpPacket(t, host, at(80), syn, nil)), "")
			b.want("denied, log", b.logged(), "log by seen at packet, deny by default at packet")
			b.want("rejected", b.out(tcpPacket(t, host, at(25), syn, nil)), "in RST")
			b.want("rejected, UDP", b.out(udpPacket(t, host, at(25), []byte("x"))), "in ICMP")
			b.want("rejected, log", b.logged(), "reject by rule 2 at packet, reject by rule 2 at packet")
			b.want("allowed in", b.in(tcpPacket(t, at(1000), here(22), syn, nil)), "in SYN")
			b.want("its answer", b.out(tcpPacket(t, here(22), at(1000), synAck, nil)), "out SYN")
			b.want("rejected in", b.in(tcpPacket(t, at(1000), here(23), syn, nil)), "out RST")
			b.want("denied in", b.in(udpPacket(t, at(1000), here(24), []byte("x"))), "")
			b.logged()
		}
		b.network.Outbound(udpPacket(t, "127.0.0.1:5", "127.0.0.1:6", []byte("x")), diverttest.Loopback)
		b.want("loopback", b.left(), "out")
		if s := b.Stats(); s.Allowed != 6 || s.Denied != 4 || s.Rejected != 6 {
			t.Errorf("%+v", s)
		}
	})
}

func TestLoopback(t *testing.T) {
	run(t, "default: deny\nloopback: yes\nrules: [{action: allow, port: 6}]", func(t *testing.T, b *bench) {
		for _, tt := range []struct{ src, dst, want string }{
			{"127.0.0.1:5", "127.0.0.1:6", "out"}, {"127.0.0.1:6", "127.0.0.1:5", "out"}, {"127.0.0.1:5", "127.0.0.1:7", ""},
		} {
			b.network.Outbound(udpPacket(t, tt.src, tt.dst, []byte("x")), diverttest.Loopback)
			b.want(tt.src+" to "+tt.dst, b.left(), tt.want)
		}
	})
}

// New rules decide connections anew that old ones have decided, in the direction in which they began.
func TestSetRules(t *testing.T) {
	run(t, "default: allow", func(t *testing.T, b *bench) {
		b.out(tcpPacket(t, host4, peer4, syn, nil))
		b.in(tcpPacket(t, peer4, "10.0.0.1:22", syn, nil))
		b.want("before", b.out(tcpPacket(t, host4, peer4, data(101), []byte("x"))), "out")
		if err := b.SetRules(mustParse(t, "default: deny\nrules: [{action: allow, direction: in}]")); err != nil {
			t.Fatal(err)
		}
		b.want("what began here, packet in", b.in(tcpPacket(t, peer4, host4, data(101), []byte("x"))), "")
		b.want("what began here, packet out", b.out(tcpPacket(t, host4, peer4, data(101), []byte("x"))), "")
		b.want("what began there, packet out", b.out(tcpPacket(t, "10.0.0.1:22", peer4, data(1), []byte("x"))), "out")
		if err := b.SetRules(mustParse(t, "default: reject\nloopback: yes")); err != nil {
			t.Fatal(err)
		}
		b.want("an established connection rejected", b.out(tcpPacket(t, host4, peer4, data(102), []byte("x"))), "out RST, in RST")
		b.network.Outbound(udpPacket(t, "127.0.0.1:5", "127.0.0.1:6", []byte("x")), diverttest.Loopback)
		b.want("loopback now", b.left(), "in ICMP")
		if s := b.Stats(); s.Reloads != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// At connect the firewall refuses only sure cases; it logs them, and new rules refuse other connections.
func TestConnect(t *testing.T) {
	run(t, "default: allow\nrules: [{action: reject, port: 25, name: mail}]", func(t *testing.T, b *bench) {
		connect := func(port uint16) bool {
			t.Helper()
			a := divert.Address{Layer: divert.LayerSocket, Event: divert.EventSocketConnect, Outbound: true}
			a.SetFlow(packet.FlowData{
				Protocol: protocolTCP, RemoteAddr: netip.MustParseAddr("192.0.2.7"), RemotePort: port,
				LocalAddr: netip.MustParseAddr("10.0.0.1"), LocalPort: 40000,
			})
			allowed, err := b.network.Raise(a)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return allowed
		}
		if connect(25) || !connect(26) {
			t.Error("not what the rules say")
		}
		b.want("log", b.logged(), "reject by mail at connect")
		if err := b.SetRules(mustParse(t, "default: allow\nrules: [{action: reject, port: 26}]")); err != nil {
			t.Fatal(err)
		}
		if !connect(25) || connect(26) {
			t.Error("not what the other rules say")
		}
		if err := b.SetRules(mustParse(t, "default: allow")); err != nil {
			t.Fatal(err)
		}
		if !connect(25) || !connect(26) {
			t.Error("something is refused still")
		}
		if s := b.Stats(); s.AtConnect != 2 || s.Rejected != 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAsk(t *testing.T) {
	run(t, "default: ask\nask: {timeout: 5s, default: reject}", func(t *testing.T, b *bench) {
		first := tcpPacket(t, host4, peer4, syn, nil)
		b.want("asked", b.out(first), "")
		b.want("asked, again", b.out(first), "")
		q := b.question()
		if q.Remote != netip.MustParseAddrPort(peer4) || q.Direction != "out" || !q.Until.Equal(q.Time.Add(5*time.Second)) {
			t.Errorf("%+v", q)
		}
		if err := b.Answer(q.ID, Allow, false); err != nil {
			t.Error(err)
		}
		b.want("answered", b.left(), "out SYN")
		b.want("log", b.logged(), "allow by default at answer")
		if err := b.Answer(q.ID, Allow, false); err != ErrNoQuestion {
			t.Errorf("answered twice: %v", err)
		}
		if err := b.Answer(q.ID, Ask, false); err == nil {
			t.Error("ask is an answer")
		}
		b.want("its data", b.out(tcpPacket(t, host4, peer4, data(101), []byte("x"))), "out")
		if err := b.SetRules(b.Rules()); err != nil {
			t.Fatal(err)
		}
		b.want("is not asked twice", b.out(tcpPacket(t, host4, peer4, data(102), []byte("x"))), "out")

		b.want("log", b.logged(), "allow by default at answer")

		// Nobody answers in time.
		second := syn
		second.Seq = 7000
		b.want("asked", b.out(tcpPacket(t, host4, peer4, second, nil)), "")
		time.Sleep(4900 * time.Millisecond)
		b.want("before its time", b.left(), "")
		time.Sleep(300 * time.Millisecond)
		b.want("timed out", b.left(), "in RST")
		b.want("timed out, log", b.logged(), "reject by default at timeout")
		b.want("the SYN again", b.out(tcpPacket(t, host4, peer4, second, nil)), "in RST")

		// Datagrams wait in order, up to a limit; the answer is remembered.
		for range 20 {
			b.want("asked", b.out(udpPacket(t, host6, peer6, []byte("x"))), "")
		}
		if err := b.Answer(b.question().ID, Allow, true); err != nil {
			t.Error(err)
		}
		b.want("answered", b.left(), strings.TrimSuffix(strings.Repeat("out, ", maxHeld), ", "))
		b.want("remembered", b.out(udpPacket(t, "[fd00::1]:40001", peer6, []byte("x"))), "out")
		b.want("of another port", b.out(udpPacket(t, "[fd00::1]:40001", "[2001:db8::7]:444", []byte("x"))), "")

		// Other rules decide meanwhile.
		if err := b.SetRules(mustParse(t, "default: reject")); err != nil {
			t.Fatal(err)
		}
		b.want("other rules", b.left(), "in ICMP")
		if n := len(b.Questions()); n != 0 {
			t.Errorf("%d questions", n)
		}
		if err := b.SetRules(mustParse(t, "default: ask\nask: {default: allow}")); err != nil {
			t.Fatal(err)
		}

		// The connection is closed meanwhile.
		third := syn
		third.Seq = 9000
		b.want("asked", b.out(tcpPacket(t, host4, peer4, third, nil)), "")
		id := b.question().ID
		a := divert.Address{Layer: divert.LayerSocket, Event: divert.EventSocketClose}
		a.SetFlow(packet.FlowData{
			Protocol: protocolTCP, LocalAddr: netip.MustParseAddr("10.0.0.1"), LocalPort: 40000,
			RemoteAddr: netip.MustParseAddr("192.0.2.7"), RemotePort: 443,
		})
		if _, err := b.network.Raise(a); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := b.Answer(id, Allow, false); err != ErrNoQuestion {
			t.Errorf("closed: %v", err)
		}
		b.want("closed", b.left(), "")
		third.Flags, third.Seq = packet.TCPRst, 9001
		fourth := syn
		fourth.Seq = 11000
		b.want("asked", b.out(tcpPacket(t, host4, peer4, fourth, nil)), "")
		b.want("reset", b.out(tcpPacket(t, host4, peer4, third, nil)), "")
		if n := len(b.Questions()); n != 0 {
			t.Errorf("%d questions after a reset", n)
		}

		b.mu.Lock()
		b.nobody = true
		want := []string{"answered: allow", "nobody answered in time: reject", "answered: allow", "other rules decide now: reject",
			"the connection was closed", "the connection was closed"}
		if !slices.Equal(b.withdrawn, want) {
			t.Errorf("withdrawn: %q", b.withdrawn)
		}
		b.mu.Unlock()
		b.logged()
		b.want("nobody", b.out(udpPacket(t, "10.0.0.1:3", peer4, []byte("x"))), "out")
		b.want("nobody, log", b.logged(), "allow by default at nobody")
	})
}

// clientHello returns the first bytes of a TLS client.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		tls.Client(client, &tls.Config{ServerName: name}).Handshake() // fails: nobody answers
		client.Close()
	}()
	var header [5]byte
	if _, err := io.ReadFull(server, header[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(server, b); err != nil {
		t.Fatal(err)
	}
	server.Close()
	return append(header[:], b...)
}

func TestHello(t *testing.T) {
	good, bad := clientHello(t, "www.good.example"), clientHello(t, "bad.example")
	rules := "default: reject\nlog: all\nrules: [{action: allow, host: .good.example, name: good}, {action: deny, server-name: quiet.example}]"
	run(t, rules, func(t *testing.T, b *bench) {
		b.out(udpPacket(t, host4, peer4, nil)) // rules out nothing
		b.logged()
		for _, ends := range [][2]string{{host4, peer4}, {host6, peer6}} {
			host, peer := ends[0], ends[1]
			seq := uint32(0)
			begin := func() {
				t.Helper()
				seq += 100000
				s, answer := syn, synAck
				s.Seq, answer.Ack = seq, seq+1
				b.want("SYN", b.out(tcpPacket(t, host, peer, s, nil)), "out SYN")
				b.want("its answer", b.in(tcpPacket(t, peer, host, answer, nil)), "in SYN")
				seq++
			}
			send := func(payload []byte) string {
				t.Helper()
				got := b.out(tcpPacket(t, host, peer, data(seq), payload))
				seq += uint32(len(payload))
				return got
			}
			begin()
			b.want("the first half", send(good[:1000]), "")
			b.want("the first half again", b.out(tcpPacket(t, host, peer, data(seq-1000), good[:1000])), "")
			b.want("with a gap", b.out(tcpPacket(t, host, peer, data(seq+7), good[1007:])), "")
			b.want("nothing was decided", b.logged(), "")
			b.want("the second half", send(good[1000:]), "out, out")
			b.want("decided", b.logged(), "allow by good at hello")
			b.want("more", send([]byte("more")), "out")
			if err := b.SetRules(b.Rules()); err != nil {
				t.Fatal(err)
			}
			b.want("decided anew by the same name", send([]byte("more")), "out")
			b.logged()
			begin()
			b.want("another server", send(bad), "out RST, in RST")
			b.want("another server, log", b.logged(), "reject by default at hello")
			begin()
			b.want("a quiet one", send(clientHello(t, "quiet.example")), "")
			b.logged()
			begin()
			b.want("no TLS", send([]byte("GET / HTTP/1.1\r\n\r\n")), "out RST, in RST")
			begin()
			b.want("the server first", b.in(tcpPacket(t, peer, host, packet.Segment{Seq: 500, Ack: seq, Flags: packet.TCPAck, Window: 9}, []byte("220"))), "in RST, out RST")
			begin()
			send(good[:10])
			time.Sleep(helloTime + time.Second)
			b.Firewall.mu.Lock()
			if f := b.Firewall; f.helloBytes != 0 || len(f.looks) != 0 {
				t.Errorf("%d bytes of %d hellos are held", f.helloBytes, len(f.looks))
			}
			b.Firewall.mu.Unlock()
			b.want("too slow", b.out(tcpPacket(t, host, peer, data(seq-10), good[:10])), "out RST, in RST")
			b.logged()
		}
	})
}

// TestHelloQUIC: the name in QUIC counts, in one datagram or several, which are held; other datagrams are decided at once.
func TestHelloQUIC(t *testing.T) {
	good, bad := quictest.Hello(t, "www.good.example"), quictest.Hello(t, "bad.example")
	id := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	rules := "default: reject\nlog: all\nrules: [{action: allow, host: .good.example, name: good}, {action: deny, server-name: quiet.example}]"
	run(t, rules, func(t *testing.T, b *bench) {
		for i := range quicinitial.Versions {
			v := &quicinitial.Versions[i]
			for k, ends := range [][2]string{{host4, peer4}, {host6, peer6}} {
				port := 1000 * (1 + k + 2*i)
				begin := func() { port++ }
				at := func(end string, port int) string {
					a := netip.MustParseAddrPort(end)
					return netip.AddrPortFrom(a.Addr(), uint16(port)).String()
				}
				send := func(payload []byte) string { return b.out(udpPacket(t, at(ends[0], port), ends[1], payload)) }
				initial := func(n uint8, parts ...quictest.Part) []byte {
					return quictest.Initial(t, v, id, nil, n, 1200, parts...)
				}
				whole := quictest.Part{Data: good}
				begin()
				b.want("one datagram", send(initial(0, whole)), "out")
				b.want("one datagram, log", b.logged(), "allow by good at hello")
				b.want("more", send([]byte{0x40, 1, 2, 3}), "out")
				b.want("the answer", b.in(udpPacket(t, ends[1], at(ends[0], port), []byte{0xC0})), "in")
				if err := b.SetRules(b.Rules()); err != nil {
					t.Fatal(err)
				}
				b.want("decided anew by the same name", send([]byte{0x40, 1, 2, 3}), "out")
				b.logged()
				begin()
				parts := quictest.Split(good, (len(good)+2)/3)
				b.want("the last part", send(initial(0, parts[2])), "")
				b.want("the first part", send(initial(1, parts[0])), "")
				b.want("nothing was decided", b.logged(), "")
				b.want("the second part", send(initial(2, parts[1])), "out, out, out")
				b.want("parts, log", b.logged(), "allow by good at hello")
				begin()
				b.want("another server", send(initial(0, quictest.Part{Data: bad})), "in ICMP")
				b.want("another server, log", b.logged(), "reject by default at hello")
				begin()
				b.want("a quiet one", send(initial(0, quictest.Part{Data: quictest.Hello(t, "quiet.example")})), "")
				b.want("a quiet one, log", b.logged(), "deny by rule 2 at hello")
				begin()
				b.want("no QUIC", send([]byte("hello")), "in ICMP")
				b.want("no QUIC, log", b.logged(), "reject by default at packet")
				begin()
				b.want("half", send(initial(0, parts[0])), "")
				b.want("the server first", b.in(udpPacket(t, ends[1], at(ends[0], port), []byte("hello"))), "in ICMP")
				b.logged()
				begin()
				b.want("far behind", send(initial(0, quictest.Part{Offset: 60000, Data: []byte("x")})), "")
				b.Firewall.mu.Lock()
				if n := b.Firewall.helloBytes; n < 2*60000 || n > 3*60000 {
					t.Errorf("%d bytes are counted", n)
				}
				b.Firewall.mu.Unlock()
				time.Sleep(helloTime + time.Second)
				b.Firewall.mu.Lock()
				if f := b.Firewall; f.helloBytes != 0 || len(f.looks) != 0 {
					t.Errorf("%d bytes of %d hellos are held", f.helloBytes, len(f.looks))
				}
				b.Firewall.mu.Unlock()
				b.want("too slow", send(initial(0, whole)), "in ICMP")
				b.logged()
			}
		}
	})
}

// dnsAnswer returns an answer: the name has the alias, unless that is empty, and that the addresses.
func dnsAnswer(t testing.TB, id uint16, name, alias string, addresses ...string) []byte {
	t.Helper()
	builder := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: true})
	builder.EnableCompression()
	q := dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	owner := q.Name
	err := builder.StartQuestions()
	check := func(e error) {
		if err == nil {
			err = e
		}
	}
	check(builder.Question(q))
	check(builder.StartAnswers())
	if alias != "" {
		h := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: 5}
		owner = dnsmessage.MustNewName(alias)
		check(builder.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: owner}))
	}
	for _, a := range addresses {
		h := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: 5}
		if a := netip.MustParseAddr(a); a.Is4() {
			check(builder.AResource(h, dnsmessage.AResource{A: a.As4()}))
		} else {
			check(builder.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()}))
		}
	}
	b, finish := builder.Finish()
	check(finish)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dnsQuestion(t testing.TB, id uint16, name string) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNames(t *testing.T) {
	rules := "default: reject\nserver-names: no\nresolvers: [192.0.2.53, \"::1\"]\nrules: [{action: allow, host: .good.example}, {action: allow, port: 53}]"
	const resolver, here = "192.0.2.53:53", "10.0.0.1:6000"
	run(t, rules, func(t *testing.T, b *bench) {
		reaches := func(address string) bool {
			t.Helper()
			return b.out(tcpPacket(t, host4, netip.AddrPortFrom(netip.MustParseAddr(address), 443).String(), syn, nil)) == "out SYN"
		}
		b.out(udpPacket(t, here, resolver, dnsQuestion(t, 1, "www.Good.example.")))
		b.want("answer", b.in(udpPacket(t, resolver, here, dnsAnswer(t, 1, "www.good.EXAMPLE.", "", "192.0.2.80", "192.0.2.81"))), "in")
		if !reaches("192.0.2.80") || !reaches("192.0.2.81") || reaches("192.0.2.82") {
			t.Error("the names are not those of the answer")
		}
		b.in(udpPacket(t, resolver, here, dnsAnswer(t, 1, "www.good.example.", "", "192.0.2.83")))
		b.in(udpPacket(t, resolver, here, dnsAnswer(t, 2, "www.good.example.", "", "192.0.2.83")))
		b.out(udpPacket(t, here, resolver, dnsQuestion(t, 3, "bad.example.")))
		b.in(udpPacket(t, resolver, here, dnsAnswer(t, 3, "www.good.example.", "", "192.0.2.83")))
		if reaches("192.0.2.83") {
			t.Error("an answer counts that nobody asked for")
		}
		const evil = "203.0.113.53:53"
		b.out(udpPacket(t, here, evil, dnsQuestion(t, 4, "www.good.example.")))
		b.in(udpPacket(t, evil, here, dnsAnswer(t, 4, "www.good.example.", "", "192.0.2.84")))
		if reaches("192.0.2.84") {
			t.Error("an answer counts that comes from elsewhere")
		}
		b.out(udpPacket(t, here, resolver, dnsQuestion(t, 5, "alias.good.example.")))
		b.in(udpPacket(t, resolver, here, dnsAnswer(t, 5, "alias.good.example.", "cdn.example.", "192.0.2.85")))
		b.out(udpPacket(t, here, resolver, dnsQuestion(t, 6, "other.example.")))
		b.in(udpPacket(t, resolver, here, dnsAnswer(t, 6, "other.example.", "www.good.example.", "192.0.2.86")))
		if !reaches("192.0.2.85") || !reaches("192.0.2.86") {
			t.Error("aliases have not the names of what they are")
		}
		// On this host, and over TCP in pieces.
		b.network.Outbound(udpPacket(t, "[::1]:6000", "[::1]:53", dnsQuestion(t, 7, "good.example.")), diverttest.Loopback)
		b.network.Outbound(udpPacket(t, "[::1]:53", "[::1]:6000", dnsAnswer(t, 7, "good.example.", "", "192.0.2.87")), diverttest.Loopback)
		synctest.Wait()
		b.network.Delivered()
		b.out(tcpPacket(t, here, resolver, syn, nil))
		b.in(tcpPacket(t, resolver, here, synAck, nil))
		message := dnsAnswer(t, 8, "good.example.", "", "192.0.2.88")
		message = append([]byte{byte(len(message) >> 8), byte(len(message))}, message...)
		for i := range message {
			b.in(tcpPacket(t, resolver, here, data(500+uint32(i)), message[i:min(len(message), i+3)])) // each but the first in part again
		}
		if !reaches("192.0.2.87") || !reaches("192.0.2.88") {
			t.Error("answers of this host, or over TCP, do not count")
		}
		time.Sleep(minNameTime + time.Minute)
		if reaches("192.0.2.80") {
			t.Error("names are kept for ever")
		}
	})
}

func TestICMP(t *testing.T) {
	run(t, "default: reject\nrules: [{action: allow, port: 443}, {action: allow, protocol: [icmp, icmpv6], direction: out}]", func(t *testing.T, b *bench) {
		for _, ends := range [][2]string{{host4, peer4}, {host6, peer6}} {
			host, peer := ends[0], ends[1]
			allowed := tcpPacket(t, host, peer, syn, nil)
			unreachable := func(b []byte, port uint16) []byte {
				var h packet.Parsed
				b = bytes.Clone(b)
				h.Parse(b)
				if h.TCPOff >= 0 {
					h.TCP(b).SetDstPort(port)
				}
				code := uint8(packet.ICMPPortUnreachable)
				if h.Family == 6 {
					code = packet.ICMPv6PortUnreachable
				}
				e, ok := packet.AppendUnreachable(nil, b, &h, code)
				if !ok {
					t.Fatal("no error")
				}
				return e
			}
			b.out(allowed)
			b.want("an error about what is allowed", b.in(unreachable(allowed, 443)), "in ICMP")
			b.want("one about nothing", b.in(unreachable(allowed, 80)), "")
		}
		// Neighbours are found whatever rules say.
		solicit := append(bytes.Clone(udpPacket(t, "[fe80::1]:1", "[fe80::2]:1", make([]byte, 16)))[:40], 135, 0, 0, 0)
		solicit = append(solicit, make([]byte, 20)...)
		solicit[6] = protocolICMPv6
		b.want("neighbour solicitation", b.in(solicit), "in ICMP")
	})
}

// Rules with a time come into force and lapse by themselves.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Truncate(time.Minute)
		rules := fmt.Sprintf("default: allow\nrules: [{action: deny, time: \"%s-%s\"}]", now.Add(2*time.Minute).Format("15:04"), now.Add(4*time.Minute).Format("15:04"))
		network := diverttest.New()
		f, err := Open(mustParse(t, rules), Config{Open: network.OpenProgram})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		for _, want := range []int{1, 0, 1} {
			network.Outbound(udpPacket(t, host4, peer4, []byte("x")), 0)
			synctest.Wait()
			if n := len(network.Delivered()); n != want {
				t.Errorf("%d passed at %v, want %d", n, time.Now(), want)
			}
			time.Sleep(2*time.Minute + time.Second)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLearner(t *testing.T) {
	run(t, "default: allow\nrules: [{action: allow, port: 22}]", func(t *testing.T, b *bench) {
		b.out(tcpPacket(t, host4, peer4, syn, nil))
		b.out(tcpPacket(t, host4, "192.0.2.7:22", syn, nil))
		b.out(udpPacket(t, host6, peer6, nil))
		b.in(udpPacket(t, peer6, "[fd00::1]:53", nil))
		l := b.config.Learner
		l.add(&Conn{Outbound: true, Protocol: 6, Local: netip.MustParseAddrPort(host4), Remote: netip.MustParseAddrPort(peer4), Names: []string{"bad name", "a.example", "cdn.example"}})
		l.add(&Conn{Outbound: true, Protocol: 99, Local: netip.MustParseAddrPort(host4), Remote: netip.MustParseAddrPort(peer4)})
		odd := Conn{Protocol: 17, Local: netip.MustParseAddrPort(host4), Remote: netip.MustParseAddrPort(peer4)}
		odd.Program.Process.Executable = "/opt/a: b #\n\"c'"
		l.add(&odd)
		path := folder(t) + "/learned.yaml"
		for range 2 {
			if err := l.Save(path); err != nil {
				t.Fatal(err)
			}
		}
		r, err := Load(path)
		if err != nil {
			var text strings.Builder
			l.WriteTo(&text)
			t.Fatalf("%v\n%s", err, text.String())
		}
		if r.Len() != 6 || l.Len() != 6 {
			t.Errorf("%d rules, %d lessons", r.Len(), l.Len())
		}
		for _, tt := range []struct {
			c    Conn
			want Action
		}{
			{conn(true, protocolTCP, host4, peer4), Allow},
			{conn(true, protocolTCP, host4, "192.0.2.7:444"), Deny},
			{conn(true, protocolTCP, host4, "192.0.2.9:443").with(func(c *Conn) { c.Names = []string{"a.example"} }), Allow},
			{conn(true, protocolUDP, host6, peer6), Allow},
			{conn(false, protocolUDP, "[fd00::1]:53", "[2001:db8::9]:1"), Allow},
			{conn(true, 99, host4, peer4), Allow},
		} {
			if d := r.Decide(&tt.c); d.Action != tt.want {
				t.Errorf("%+v: %v", tt.c, d.Action)
			}
		}
	})
}

func TestParseResolvers(t *testing.T) {
	got := parseResolvers([]byte("# comment\nnameserver 192.0.2.53\nsearch example\nnameserver fe80::1%eth0\nnameserver\nnameserver nine\n"))
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fe80::1")}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// Packets of resolvers are believed in part, and never trusted to be well-formed.
func FuzzNames(f *testing.F) {
	f.Add(dnsAnswer(f, 1, "www.good.example.", "cdn.example.", "192.0.2.80", "2001:db8::1"))
	f.Add(dnsQuestion(f, 1, "www.good.example."))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := parseAnswer(b); ok && (len(r.names) == 0 || len(r.names) > maxChain) {
			t.Fatalf("%+v", r)
		}
		if len(b) > 60000 {
			return
		}
		n := newNames(time.Now)
		n.trust([]netip.Addr{netip.MustParseAddr("192.0.2.53")})
		var parsed packet.Parsed
		client, resolver := "10.0.0.1:6000", "192.0.2.53:53"
		for _, p := range [][]byte{
			udpPacket(t, client, resolver, b), udpPacket(t, resolver, client, b), tcpPacket(t, resolver, client, synAck, nil),
			tcpPacket(t, resolver, client, data(500), b), tcpPacket(t, resolver, client, data(500+uint32(len(b)/2)), b), b,
		} {
			n.packet(&divert.Packet{Data: p}, &parsed)
		}
	})
}
