//go:build linux

package verdict

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// sending is a sender with captured packets of full size.
type sending struct {
	*Sender
	ps    []packet.Packet
	there int // the other end
	sink  []byte
}

func newSending(t testing.TB, n int, gso bool) *sending {
	t.Helper()
	s, there := newTestSender(t)
	payload := make([]byte, 1500)
	copy(payload, unhex(t, tcp4))
	binary.BigEndian.PutUint16(payload[2:], uint16(len(payload)))
	ps := make([]packet.Packet, n)
	for id := range ps {
		m := queue.Message{
			ID: uint32(id), Hook: queue.HookPostrouting, Out: 2, ChecksumNotReady: true, GSO: gso, Length: uint32(len(payload)),
			Payload: append([]byte(nil), payload...),
		}
		s.Deliver(s.lanes[0], &ps[id], &m, 1)
	}
	return &sending{s, ps, there, make([]byte, 1<<20)}
}

// flush sends verdicts and takes them away at the other end.
func (s *sending) flush(t testing.TB, v *verdicts) {
	if _, err := v.flush(s.lanes); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(s.there, s.sink); err != nil {
		t.Fatal(err)
	}
	*v = verdicts{}
}

func TestSendingAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	s := newSending(t, 16, false)
	for _, unchanged := range []bool{true, false} {
		send := func() {
			var v verdicts
			for i := range s.ps {
				s.lanes[0].waiting.put(uint32(i))
				if again, err := s.one(&s.ps[i], &v, unchanged); !again || err != nil {
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

// BenchmarkSendOne measures a packet's way to the verdict, without the kernel: a batch of 16 goes through a
// pair of sockets.
func BenchmarkSendOne(b *testing.B) {
	for _, row := range []struct {
		name      string
		unchanged bool
		checksums bool // are right already
		large     bool // the kernel computes them
	}{{"unchanged", true, true, false}, {"changed", false, true, false}, {"changed, checksums missing", false, false, false},
		{"changed, checksums missing, superpackets", false, false, true}} {
		b.Run(row.name, func(b *testing.B) {
			s := newSending(b, 16, row.large)
			var v verdicts
			for i := range s.ps {
				s.ps[i].Addr.TCPChecksum = row.checksums
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.lanes[0].waiting.put(uint32(i))
				if again, err := s.one(&s.ps[i], &v, row.unchanged); !again || err != nil {
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
