//go:build linux

package verdict

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/queue/queuetest"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/packet"
)

func TestWhole(t *testing.T) {
	four, six := unhex(t, udp4), unhex(t, udp6)
	with := func(b []byte, at int, values ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], values)
		return b
	}
	rows := []struct {
		name string
		b    []byte
		want int // bytes
		err  error
	}{
		{"nothing", nil, 0, engine.ErrShortBuffer},
		{"19 bytes", four[:19], 0, engine.ErrShortBuffer},
		{"19 bytes of no version", make([]byte, 19), 0, engine.ErrShortBuffer},
		{"no version", make([]byte, 60), 0, engine.ErrInvalid},
		{"version 5", with(four, 0, 0x50), 0, engine.ErrInvalid},
		{"version 15", with(four, 0, 0xf0), 0, engine.ErrInvalid},
		{"IPv4", four, len(four), nil},
		{"IPv4, more behind it", append(bytes.Clone(four), 1, 2, 3), len(four), nil},
		{"IPv4, cut", four[:len(four)-1], 0, engine.ErrShortBuffer},
		{"IPv4, a total length of 19", with(four, 2, 0, 19), 0, engine.ErrInvalid},
		{"IPv4, a total length of 20", with(four, 2, 0, 20), 20, nil},
		{"IPv4, a total length of 0", with(four, 2, 0, 0), 0, engine.ErrInvalid},
		{"IPv4, a header length of 0 is not looked at", with(four, 0, 0x40), len(four), nil},
		{"IPv6", six, len(six), nil},
		{"IPv6, more behind it", append(bytes.Clone(six), 1, 2, 3), len(six), nil},
		{"IPv6, cut", six[:len(six)-1], 0, engine.ErrShortBuffer},
		{"IPv6, 39 bytes", six[:39], 0, engine.ErrShortBuffer},
		{"IPv6, no payload", with(six, 4, 0, 0), 40, nil},
		{"IPv6, the longest", with(make([]byte, 65535+40), 0, 0x60, 0, 0, 0, 0xff, 0xff), 65535 + 40, nil},
		{"IPv6, the longest, cut", with(make([]byte, 65535+39), 0, 0x60, 0, 0, 0, 0xff, 0xff), 0, engine.ErrShortBuffer},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, err := engine.Whole(row.b)
			if !errors.Is(err, row.err) || (err == nil) != (row.err == nil) || len(got) != row.want {
				t.Errorf("%d bytes, %v, want %d, %v", len(got), err, row.want, row.err)
			}
		})
	}
}

func FuzzWhole(f *testing.F) {
	for _, text := range []string{tcp4, udp4, icmp4, tcp6, udp6, fragment} {
		f.Add(unhex(f, text), uint8(0))
		f.Add(unhex(f, text), uint8(0xff))
	}
	f.Fuzz(func(t *testing.T, b []byte, flags uint8) {
		data, err := engine.Whole(b)
		if err != nil {
			if !errors.Is(err, engine.ErrShortBuffer) && !errors.Is(err, engine.ErrInvalid) {
				t.Errorf("%v", err)
			}
			return
		}
		if len(data) < packet.IPv4HeaderLen || !bytes.HasPrefix(b, data) {
			t.Fatalf("%d bytes of %d", len(data), len(b))
		}
		rest := bytes.Clone(b[len(data):])
		a := packet.Address{IPChecksum: flags&1 != 0, TCPChecksum: flags&2 != 0, UDPChecksum: flags&4 != 0, Impostor: flags&8 != 0}
		before := bytes.Clone(data)
		if err := engine.Finish(data, &a, flags&16 != 0); err != nil && !(a.Impostor && errors.Is(err, engine.ErrHopLimit)) {
			t.Errorf("%v", err)
		}
		if !bytes.Equal(rest, b[len(data):]) {
			t.Error("wrote behind the packet")
		}
		if flags&15 == 7 && !bytes.Equal(before, data) {
			t.Error("nothing was to be done, and the packet changed")
		}
		engine.Unfinished(data)
		engine.Unfinish(data)
		destination(data)
		if !bytes.Equal(rest, b[len(data):]) {
			t.Error("wrote behind the packet")
		}
	})
}

func TestFinish(t *testing.T) {
	const right, wrong, none = lab.ChecksumRight, lab.ChecksumWrong, lab.ChecksumNone
	all := packet.Address{IPChecksum: true, TCPChecksum: true, UDPChecksum: true}
	but := func(change func(*packet.Address)) packet.Address {
		a := all
		change(&a)
		return a
	}
	ip := but(func(a *packet.Address) { a.IPChecksum = false })
	tcp := but(func(a *packet.Address) { a.TCPChecksum = false })
	udp := but(func(a *packet.Address) { a.UDPChecksum = false })
	impostor := but(func(a *packet.Address) { a.Impostor = true })
	rows := []struct {
		name              string
		hex               string
		damage            []int // bytes of checksums that are made wrong first
		addr              packet.Address
		header, transport lab.ChecksumState
		hops              int // by which the hop limit changed
		err               error
	}{
		{"all are said to be right", tcp4, []int{10, 36}, all, wrong, wrong, 0, nil},
		{"none is", tcp4, []int{10, 36}, packet.Address{}, right, right, 0, nil},
		{"the header's is missing", tcp4, []int{10, 36}, ip, right, wrong, 0, nil},
		{"TCP's is missing", tcp4, []int{10, 36}, tcp, wrong, right, 0, nil},
		{"UDP's is missing in a TCP packet", tcp4, []int{10, 36}, udp, wrong, wrong, 0, nil},
		{"UDP's is missing", udp4, []int{10, 26}, udp, wrong, right, 0, nil},
		{"TCP's is missing in a UDP packet", udp4, []int{10, 26}, tcp, wrong, wrong, 0, nil},
		{"ICMP's is the sender's own", icmp4, []int{22}, packet.Address{}, right, wrong, 0, nil},
		{"TCP over IPv6", tcp6, []int{56}, tcp, none, right, 0, nil},
		{"UDP over IPv6", udp6, []int{46}, udp, none, right, 0, nil},
		{"another program's", tcp4, nil, impostor, right, right, 1, nil},
		{"another program's with a wrong header checksum", tcp4, []int{10}, impostor, wrong, right, 1, nil},
		{"another program's over IPv6", tcp6, nil, impostor, none, right, 1, nil},
		{"another program's at its end", udp4, nil, impostor, right, right, 0, engine.ErrHopLimit},
		{"the checksums come first", udp4, []int{10, 26}, packet.Address{Impostor: true}, right, right, 0, engine.ErrHopLimit},
		{"a fragment", fragment, []int{10}, packet.Address{}, right, none, 0, nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			b := unhex(t, row.hex)
			hops := 8
			if b[0]>>4 == 6 {
				hops = 7
			}
			limit := b[hops]
			for _, at := range row.damage {
				b[at] ^= 0x55
			}
			a := row.addr
			if err := engine.Finish(b, &a, false); !errors.Is(err, row.err) || (err == nil) != (row.err == nil) {
				t.Errorf("%v, want %v", err, row.err)
			}
			if a != row.addr {
				t.Errorf("the address changed: %+v", a)
			}
			if header, transport := lab.PacketChecksums(b); header != row.header || transport != row.transport {
				t.Errorf("%v, %v, want %v, %v", header, transport, row.header, row.transport)
			}
			if int(limit-b[hops]) != row.hops {
				t.Errorf("the hop limit was %d and is %d", limit, b[hops])
			}
		})
	}
}

// testTag marks the packets of the sender under test.
const testTag = 0x2a

// newTestSender returns a sender with a queue of a pair. It has no namespace, so an injection is a panic.
func newTestSender(t testing.TB) (*Sender, int) {
	t.Helper()
	s := NewSender(Config{Layer: packet.LayerNetwork, Counts: &tally.Counts{}, Key: cursor.NewKey(0, 0), Tag: testTag})
	q, there := queuetest.Pair(t)
	s.Answer([]*Lane{NewLane(queue.Pair{Whole: q, Single: &queue.Queue{Conn: q.Conn}}, 0, 1, 64)})
	return s, there
}

// capture returns a packet as it comes out of the queue, and notes that it waits.
func (s *Sender) capture(t testing.TB, hex string, m queue.Message) *packet.Packet {
	t.Helper()
	p := &packet.Packet{}
	m.Payload = unhex(t, hex)
	if m.Length == 0 {
		m.Length = uint32(len(m.Payload))
	}
	s.Deliver(s.lanes[0], p, &m, clock.Now())
	s.lanes[0].waiting.put(m.ID)
	return p
}

func TestSendIsAVerdict(t *testing.T) {
	if !kernel.VerdictPriority.Has() {
		t.Skip("the kernel sets no priority with a verdict")
	}
	served := cursor.NewKey(0, 0).Pack(0)
	post := queue.Message{ID: 7, Hook: queue.HookPostrouting, Out: 2}
	pre := queue.Message{ID: 8, Hook: queue.HookPrerouting, In: 3, Priority: 6}
	decremented := unhex(t, tcp6)
	decremented[7]--
	marked := queue.Message{ID: 9, Hook: queue.HookPostrouting, Out: 2, Priority: 0x10} // no room for a cursor
	rows := []struct {
		name      string
		hex       string
		m         queue.Message
		change    func(*packet.Packet)
		unchanged bool
		want      []queuetest.Verdict
		err       error
	}{
		{"accepted", tcp4, post, nil, true, []queuetest.Verdict{{ID: 7, Verdict: queue.Repeat, Priority: served, Payload: ""}}, nil},
		{"accepted, inbound, its priority kept", tcp6, pre, nil, true, []queuetest.Verdict{{ID: 8, Verdict: queue.Repeat, Priority: served | 6, Payload: ""}}, nil},
		{"accepted, no place for all of its priority", tcp4, marked, nil, true, []queuetest.Verdict{{ID: 9, Verdict: queue.Repeat, Priority: served, Payload: ""}}, nil},
		{"accepted, changed all the same", tcp4, post, func(p *packet.Packet) { p.Data[30]++ }, true, []queuetest.Verdict{{ID: 7, Verdict: queue.Repeat, Priority: served, Payload: ""}}, nil},
		{"sent", tcp4, post, nil, false, []queuetest.Verdict{{ID: 7, Verdict: queue.Repeat, Priority: served, Payload: string(unhex(t, tcp4))}}, nil},
		{"sent, more behind it", tcp4, post, func(p *packet.Packet) { p.Data = append(p.Data, 1, 2) }, false,
			[]queuetest.Verdict{{ID: 7, Verdict: queue.Repeat, Priority: served, Payload: string(unhex(t, tcp4))}}, nil},
		{"sent, no place for all of its priority", tcp4, marked, nil, false, []queuetest.Verdict{{ID: 9, Verdict: queue.Repeat, Priority: served, Payload: string(unhex(t, tcp4))}}, nil},
		{"another program's", tcp6, post, func(p *packet.Packet) { p.Addr.Impostor, p.Addr.TCPChecksum = true, true }, true,
			[]queuetest.Verdict{{ID: 7, Verdict: queue.Repeat, Priority: served, Payload: string(decremented)}}, nil},
		{"another program's, at its end: it goes on waiting", udp4, post, func(p *packet.Packet) { p.Addr.Impostor = true }, false,
			nil, engine.ErrHopLimit},
		{"another program's, accepted at its end: it goes on waiting", udp4, post, func(p *packet.Packet) { p.Addr.Impostor = true }, true,
			nil, engine.ErrHopLimit},
		{"accepted, and no packet any more", tcp4, post, func(p *packet.Packet) { p.Data = nil }, true,
			[]queuetest.Verdict{{ID: 7, Verdict: queue.Repeat, Priority: served, Payload: ""}}, nil},
		{"cut: it goes on waiting", tcp4, post, func(p *packet.Packet) { p.Data = p.Data[:30] }, false, nil, engine.ErrShortBuffer},
		{"no packet: it goes on waiting", tcp4, post, func(p *packet.Packet) { p.Data[0] = 0 }, false, nil, engine.ErrInvalid},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s, there := newTestSender(t)
			p := s.capture(t, row.hex, row.m)
			if row.change != nil {
				row.change(p)
			}
			n, err := s.Send([]packet.Packet{*p}, row.unchanged)
			if !errors.Is(err, row.err) || (err == nil) != (row.err == nil) || (n == 1) != (row.err == nil) {
				t.Errorf("%d, %v, want %v", n, err, row.err)
			}
			got := queuetest.Verdicts(t, there)
			if len(got) != len(row.want) {
				t.Fatalf("%v, want %v", got, row.want)
			}
			for i := range got {
				if got[i] != row.want[i] {
					t.Errorf("%v, want %v", got[i], row.want[i])
				}
			}
			if waits := s.lanes[0].waiting.claim(row.m.ID); waits != (row.want == nil) {
				t.Errorf("it waits: %t", waits)
			}
			sent, failed := s.Counts.Reinjected.Load(), s.Counts.Failed.Load()
			if sent != uint64(n) || failed != uint64(1-n) || s.Counts.Injected.Load() != 0 {
				t.Errorf("counted %d sent, %d failed", sent, failed)
			}
		})
	}
}

// A packet that fails does not hold up the others.
func TestSendGoesOn(t *testing.T) {
	s, there := newTestSender(t)
	var ps []packet.Packet
	for id := range uint32(5) {
		p := s.capture(t, tcp4, queue.Message{ID: id, Hook: queue.HookPostrouting, Out: 2})
		if id%2 == 1 {
			p.Data = p.Data[:10]
		}
		ps = append(ps, *p)
	}
	if n, err := s.Send(ps, false); n != 3 || !errors.Is(err, engine.ErrShortBuffer) {
		t.Errorf("%d, %v", n, err)
	}
	got := queuetest.Verdicts(t, there)
	if len(got) != 3 || got[0].ID != 0 || got[1].ID != 2 || got[2].ID != 4 {
		t.Errorf("%v", got)
	}
}

func TestPending(t *testing.T) {
	// sum adds up words of a pseudo-header, as RFC 1071 does it, without the complement at the end.
	sum := func(words ...[]byte) uint16 {
		var n uint32
		for _, w := range words {
			for i := 0; i < len(w); i += 2 {
				n += uint32(binary.BigEndian.Uint16(w[i:]))
			}
		}
		for n > 0xffff {
			n = n&0xffff + n>>16
		}
		return uint16(n)
	}
	rows := []struct {
		name     string
		hex      string
		at       int // where the checksum stands
		addrs    [2]int
		protocol byte
		header   int // bytes of IP header
	}{
		{"TCP", tcp4, 36, [2]int{12, 20}, unix.IPPROTO_TCP, 20},
		{"UDP", udp4, 26, [2]int{12, 20}, unix.IPPROTO_UDP, 20},
		{"TCP over IPv6", tcp6, 56, [2]int{8, 40}, unix.IPPROTO_TCP, 40},
		{"UDP over IPv6", udp6, 46, [2]int{8, 40}, unix.IPPROTO_UDP, 40},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			b := unhex(t, row.hex)
			if engine.Unfinished(b) {
				t.Error("a finished checksum is pending")
			}
			length := len(b) - row.header
			binary.BigEndian.PutUint16(b[row.at:], sum(b[row.addrs[0]:row.addrs[1]], []byte{0, row.protocol}, []byte{byte(length >> 8), byte(length)}))
			if !engine.Unfinished(b) {
				t.Error("the sum of the pseudo-header is not pending")
			}
			if !engine.Unfinished(b[:len(b)-1]) || engine.Unfinished(append(b, 0)) {
				t.Error("it is to be seen in the headers, of one packet")
			}
			b[row.at] ^= 1
			if engine.Unfinished(b) {
				t.Error("any other value is pending")
			}
			before := bytes.Clone(b)
			engine.Unfinish(b)
			if tcp := row.protocol == unix.IPPROTO_TCP; engine.Unfinished(b) != tcp || bytes.Equal(b, before) == tcp {
				t.Errorf("%x was made %x", before, b)
			}
		})
	}
	for name, text := range map[string]string{"ICMP": icmp4, "a fragment": fragment, "nothing": ""} {
		if engine.Unfinished(unhex(t, text)) {
			t.Errorf("pending in %s", name)
		}
	}
}

// TestSuperpacketIsSummedLater: the checksum of a changed superpacket that goes out is left to the kernel, and no other
// checksum.
func TestSuperpacketIsSummedLater(t *testing.T) {
	post := queue.Message{ID: 7, Hook: queue.HookPostrouting, Out: 2, GSO: true}
	single, forward, in := post, post, post
	single.GSO = false
	forward.Hook = queue.HookForward
	in.Hook = queue.HookPrerouting
	rows := []struct {
		name  string
		hex   string
		m     queue.Message
		right bool // the address says that the checksum is right
		later bool
	}{
		{"a superpacket", tcp4, post, false, true},
		{"a superpacket of IPv6", tcp6, post, false, true},
		{"its checksum is said to be right", tcp4, post, true, false},
		{"no superpacket", tcp4, single, false, false},
		{"forwarded", tcp4, forward, false, false},
		{"inbound", tcp6, in, false, false},
		{"another protocol", udp4, post, false, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s, there := newTestSender(t)
			s.Layer = packet.LayerNetwork
			p := s.capture(t, row.hex, row.m)
			if row.m.GSO && row.m.Hook == queue.HookPostrouting && p.Addr.TCPChecksum {
				t.Error("the checksum of a superpacket that goes out is said to be right")
			}
			p.Data[len(p.Data)-1]++
			p.Changed()
			p.Addr.TCPChecksum = row.right
			before := bytes.Clone(p.Data)
			if n, err := s.Send([]packet.Packet{*p}, false); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			got := queuetest.Verdicts(t, there)
			if len(got) != 1 {
				t.Fatalf("%v", got)
			}
			_, transport := lab.PacketChecksums([]byte(got[0].Payload))
			switch {
			case engine.Unfinished([]byte(got[0].Payload)) != row.later:
				t.Errorf("unfinished: %t", !row.later)
			case row.right && string(before) != got[0].Payload:
				t.Errorf("%x, want %x", got[0].Payload, before)
			case !row.right && !row.later && transport != lab.ChecksumRight:
				t.Errorf("the checksum is %v", transport)
			}
		})
	}
}
