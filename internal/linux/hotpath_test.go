//go:build linux

package linux

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// Attributes of linux/netfilter/nfnetlink_queue.h.
const (
	nfqaPacketHdr  = 1
	nfqaVerdictHdr = 2
	nfqaOutDev     = 6
	nfqaPayload    = 10
	nfqaCapLen     = 13
	nfqaSKBInfo    = 14
	nfqaPriority   = 21
)

// datagram is what the kernel would send for a packet of POST_ROUTING.
func datagram(id uint32, payload []byte) []byte {
	var body []byte
	add := func(typ uint16, data []byte) {
		body = append(nfnl.AppendAttr(body, typ, len(data)), data...)
		body = append(body, make([]byte, nfnl.Align(len(body))-len(body))...)
	}
	add(nfqaPacketHdr, append(binary.BigEndian.AppendUint32(nil, id), 8, 0, byte(queue.HookPostrouting)))
	add(nfqaOutDev, []byte{0, 0, 0, 2})
	add(nfqaSKBInfo, []byte{0, 0, 0, 1})
	add(nfqaPayload, payload)
	return append(nfnl.AppendHeader(nil, nfnl.HeaderLen+len(body), nfnl.Type(unix.NFNL_SUBSYS_QUEUE, 0), 0, 0), body...)
}

// sorting is a queued source that has received n datagrams of a full-sized packet.
type sorting struct {
	*queued
	r     *reader
	ps    []packet.Packet
	there int // the other end
	sink  []byte
}

// flush sends verdicts and takes them away at the other end.
func (s *sorting) flush(t testing.TB, v *verdicts) {
	if _, err := v.flush(s.lanes); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(s.there, s.sink); err != nil {
		t.Fatal(err)
	}
	*v = verdicts{}
}

func newSorting(t testing.TB, n int) *sorting {
	t.Helper()
	s, there := newTestSender(t)
	q := &queued{h: s.h, lanes: s.lanes, ages: &ages{}}
	r, err := s.lanes[0].reader()
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 1500)
	copy(payload, unhex(t, tcp4))
	binary.BigEndian.PutUint16(payload[2:], uint16(len(payload)))
	for id := range n {
		if _, err := unix.Write(there, datagram(uint32(id), payload)); err != nil {
			t.Fatal(err)
		}
	}
	ps := make([]packet.Packet, n)
	if got, err := r.fill(engine.Wait{}, ps); got != n || err != nil {
		t.Fatalf("received %d, %v", got, err)
	}
	return &sorting{q, r, ps, there, make([]byte, 1<<20)}
}

// round sorts what was received, which can be done again, and forgets that the packets wait.
func (s *sorting) round(t testing.TB) {
	if n, err := s.sort(s.lanes[0], s.r, s.ps); n != len(s.ps) || err != nil {
		t.Fatalf("%d packets, %v", n, err)
	}
	for i := range s.ps {
		if !s.lanes[0].waiting.claim(uint32(i)) {
			t.Fatalf("packet %d does not wait", i)
		}
	}
}

func TestSort(t *testing.T) {
	s, there := newTestSender(t)
	q := &queued{h: s.h, lanes: s.lanes, ages: &ages{}}
	q.ages.expired[0].Store(1<<32 | 3)
	r, err := s.lanes[0].reader()
	if err != nil {
		t.Fatal(err)
	}
	refused := binary.NativeEndian.AppendUint32(nfnl.AppendHeader(nil, 36, unix.NLMSG_ERROR, 0, 0)[:16], 0xfffffffe)
	refused = append(refused, nfnl.AppendHeader(nil, 32, 0, 0, 0)[:16]...)
	binary.NativeEndian.PutUint32(refused[16+4+8:], reinjectedTag(3))
	s.h.counts.reinjected.Store(5)
	cut := datagram(6, unhex(t, tcp4)) // says that the packet had 100 bytes
	cut = nfnl.AppendAttr32(cut, nfqaCapLen, 100)
	binary.NativeEndian.PutUint32(cut, uint32(len(cut)))
	for _, d := range [][]byte{
		refused, datagram(3, unhex(t, tcp4)), datagram(4, unhex(t, tcp4)), {1, 2, 3}, datagram(5, unhex(t, udp6)), cut,
		datagram(4+64, unhex(t, udp4)),
	} {
		if _, err := unix.Write(there, d); err != nil {
			t.Fatal(err)
		}
	}
	ps := make([]packet.Packet, 10)
	got, err := r.poll(ps)
	if got != 7 || err != nil {
		t.Fatal(got, err)
	}
	if n, err := q.sort(s.lanes[0], r, ps[:got]); n != 4 || err != nil {
		t.Fatalf("%d packets, %v", n, err)
	}
	for i, want := range []struct {
		id   uint32
		hex  string
		ipv6 bool
	}{{4, tcp4, false}, {5, udp6, true}, {6, tcp4, false}, {4 + 64, udp4, false}} {
		p := &ps[i]
		if string(p.Data) != string(unhex(t, want.hex)) {
			t.Errorf("packet %d is %x", i, p.Data)
		}
		a := &p.Addr
		if !a.Outbound || a.IPv6 != want.ipv6 || a.Loopback || a.TCPChecksum || a.UDPChecksum || !a.IPChecksum || a.Network().IfIdx != 2 {
			t.Errorf("packet %d: %+v", i, a)
		}
		k := tokenOf(a)
		if k.tag != testTag || k.id != want.id || !k.holds(p.Data, a) {
			t.Errorf("packet %d: %+v", i, k)
		}
	}
	// Too old, and the one whose place was needed. The one that is cut may go on whole.
	want := []verdict{{id: 3}, {id: 4}}
	dropped := sentVerdicts(t, there)
	if len(dropped) != len(want) {
		t.Fatalf("%v, want %v", dropped, want)
	}
	for i := range want {
		if dropped[i] != want[i] {
			t.Errorf("%v, want %v", dropped[i], want[i])
		}
	}
	c := &s.h.counts
	if c.failed.Load() != 3 || c.reinjected.Load() != 2 || c.old.Load() != 1 || c.long.Load() != 0 || c.abandoned.Load() != 1 {
		t.Errorf("counted failed %d, reinjected %d, old %d, long %d, abandoned %d", c.failed.Load(), c.reinjected.Load(), c.old.Load(), c.long.Load(), c.abandoned.Load())
	}
}

func TestHotPathsAllocateNothing(t *testing.T) {
	race.CannotCount(t)
	s := newSorting(t, 16)
	s.round(t)
	if n := testing.AllocsPerRun(100, func() { s.round(t) }); n != 0 {
		t.Errorf("sort: %v allocations", n)
	}
	for _, unchanged := range []bool{true, false} {
		send := func() {
			var v verdicts
			for i := range s.ps {
				s.lanes[0].waiting.put(uint32(i))
				if again, err := s.h.sender.one(&s.ps[i], &v, unchanged); !again || err != nil {
					t.Fatal(again, err)
				}
			}
			s.flush(t, &v)
		}
		send()
		if n := testing.AllocsPerRun(100, send); n != 0 {
			t.Errorf("one, unchanged %t: %v allocations", unchanged, n)
		}
	}
}

// BenchmarkSort measures a packet's way from the datagram's bytes to the caller, without the kernel.
func BenchmarkSort(b *testing.B) {
	s := newSorting(b, 16)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%len(s.ps) == 0 {
			s.round(b)
		}
	}
}

// BenchmarkSendOne measures a packet's way to the verdict, without the kernel: a batch of 16 goes through a
// pair of sockets.
func BenchmarkSendOne(b *testing.B) {
	for _, row := range []struct {
		name      string
		unchanged bool
		checksums bool // are right already
	}{{"unchanged", true, true}, {"changed", false, true}, {"changed, checksums missing", false, false}} {
		b.Run(row.name, func(b *testing.B) {
			s := newSorting(b, 16)
			s.round(b)
			var v verdicts
			for i := range s.ps {
				s.ps[i].Addr.TCPChecksum = row.checksums
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.lanes[0].waiting.put(uint32(i))
				if again, err := s.h.sender.one(&s.ps[i], &v, row.unchanged); !again || err != nil {
					b.Fatal(again, err)
				}
				if i++; i == len(s.ps) {
					i = 0
					s.flush(b, &v)
				}
			}
		})
	}
}
