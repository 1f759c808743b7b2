//go:build linux

package verdict

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/queue/queuetest"
	"github.com/opendivert/divert/packet"
)

// TestDigest changes packets in every way that a program may, a bit at a time, and looks for the change.
func TestDigest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 15, 16, 17, 20, 31, 32, 33, 92, 1000, blockSize - 1, blockSize, blockSize + 1, 3*blockSize + 40, 65535} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		want := digest(b)
		if want == 0 || digest(bytes.Clone(b)) != want {
			t.Fatalf("%d bytes: %#x, then %#x", n, want, digest(bytes.Clone(b)))
		}
		step := max(8*n/4096, 1)
		for bit := 0; bit < 8*n; bit += step {
			b[bit/8] ^= 1 << (bit % 8)
			if digest(b) == want {
				t.Errorf("%d bytes: bit %d makes no difference", n, bit)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		if digest(append(b, 0)) == want {
			t.Errorf("%d bytes: a zero behind them makes no difference", n)
		}
		for _, size := range []int{8, 16, 32, blockSize} { // units that change places
			if 2*size > n {
				break
			}
			c := bytes.Clone(b)
			copy(c, b[size:2*size])
			copy(c[size:], b[:size])
			if digest(c) == want {
				t.Errorf("%d bytes: the order of the first %d bytes makes no difference", n, 2*size)
			}
		}
	}
	zeros := map[uint64]int{}
	for n := range 5000 {
		d := digest(make([]byte, n))
		if other, taken := zeros[d]; taken {
			t.Errorf("%d and %d zeros have one digest", other, n)
		}
		zeros[d] = n
	}
}

func BenchmarkDigest(b *testing.B) {
	for _, n := range []int{92, 1500, 65000} {
		p := make([]byte, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(n))
			for b.Loop() {
				digest(p)
			}
		})
	}
}

func TestHabit(t *testing.T) {
	var h habit
	wants := func() (n int) {
		for id := range uint32(probeEvery) {
			if h.wants(id) {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		name                   string
		same, changed, unknown int32
		want                   int // of probeEvery packets
	}{
		{"nothing was sent", 0, 0, 0, 0},
		{"something was sent", 0, 0, 1, probeEvery},
		{"nearly all was changed", 0, fullCredit - 1, 1, probeEvery},
		{"all was changed", 0, 1, 0, 1},
		{"what had no digest is no sign", 0, 0, 10, 1},
		{"one was not", 1, 63, 0, probeEvery},
		{"a long batch was changed", 0, 10 * fullCredit, 0, 1},
		{"and one more", 0, 1, 0, 1},
	} {
		h.learn(step.same, step.changed, step.unknown)
		if got := wants(); got != step.want {
			t.Errorf("%s: %d of %d packets have a digest, want %d", step.name, got, probeEvery, step.want)
		}
	}
}

// TestSendAsCaptured sends packets as they were captured, and others that are not.
func TestSendAsCaptured(t *testing.T) {
	post := queue.Message{ID: 7, Hook: queue.HookPostrouting, Out: 2}
	ready := queue.Message{ID: 7, Hook: queue.HookPrerouting, In: 3, ChecksumNotVerified: true}
	partial := queue.Message{ID: 7, Hook: queue.HookPostrouting, Out: 2, ChecksumNotReady: true}
	rows := []struct {
		name   string
		m      queue.Message
		change func(*packet.Packet)
		whole  bool // the bytes go back into the kernel
	}{
		{"outbound", post, nil, false},
		{"outbound, its checksum left to the device", partial, nil, false},
		{"inbound", ready, nil, false},
		{"the time and the event are no part of it", post, func(p *packet.Packet) { p.Addr.Timestamp, p.Addr.Sniffed = 5, true }, false},
		{"outbound, the interface is not looked at", post, func(p *packet.Packet) { p.Addr.SetNetwork(packet.NetworkData{IfIdx: 9}) }, false},
		{"a byte of the header", post, func(p *packet.Packet) { p.Data[8]++ }, true},
		{"the last byte", post, func(p *packet.Packet) { p.Data[len(p.Data)-1]++ }, true},
		{"more behind it", post, func(p *packet.Packet) { p.Data = append(p.Data, 0) }, true},
		{"its checksum is wanted", ready, func(p *packet.Packet) { p.Addr.TCPChecksum = false }, true},
		{"its checksum is called right", partial, func(p *packet.Packet) { p.Addr.TCPChecksum = true }, true},
		{"another program's", post, func(p *packet.Packet) { p.Addr.Impostor = true }, true},
	}
	for _, row := range rows {
		for _, batch := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", row.name, batch), func(t *testing.T) {
				s, there := newTestSender(t)
				s.habit.learn(0, 0, 1)
				s.lanes[0].runs.enter()
				s.lanes[0].runs.begin(row.m.ID)
				var ps []packet.Packet
				for range batch {
					ps = append(ps, *s.capture(t, tcp4, row.m))
					row.m.ID++
				}
				s.lanes[0].runs.received(batch)
				if last := &ps[batch-1]; row.change != nil {
					row.change(last)
				}
				if n, err := s.Send(ps, false); n != batch || err != nil {
					t.Fatal(n, err)
				}
				got := queuetest.Verdicts(t, there)
				if len(got) == 0 || got[len(got)-1].ID != row.m.ID-1 || (got[len(got)-1].Payload != "") != row.whole {
					t.Errorf("the last of %v is not for packet %d, or its bytes (%t) are wrong", got, row.m.ID-1, row.whole)
				}
				if alone := batch == 1 || row.whole; (len(got) == 1) != (batch == 1 || !alone) {
					t.Errorf("%d verdicts", len(got))
				}
				for i := range ps {
					if s.lanes[0].waiting.claim(row.m.ID - 1 - uint32(i)) {
						t.Errorf("packet %d from the end still waits", i)
					}
				}
			})
		}
	}
}

// TestDigestOfWhole: a packet that was cut short must not go on as if the program had seen all of it.
func TestDigestOfWhole(t *testing.T) {
	s, _ := newTestSender(t)
	s.habit.learn(0, 0, 1)
	p := s.capture(t, tcp4, queue.Message{ID: 1, Hook: queue.HookPostrouting, Length: 5000})
	if d := tokenOf(&p.Addr).digest; d != 0 {
		t.Errorf("a part of a packet has the digest %#x", d)
	}
}
