//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// patterned returns a payload in which every four bytes are the number.
func patterned(number uint32, size int) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint32(nil, number), size/4)
}

// pattern returns the number of a patterned payload, and whether the payload is intact.
func pattern(b []byte) (n uint32, ok bool) {
	var p packet.Parsed
	if !p.ParseExact(b) || len(p.Payload(b)) < 4 {
		return 0, false
	}
	payload := p.Payload(b)
	n = binary.BigEndian.Uint32(payload)
	return n, bytes.Equal(payload, patterned(n, len(payload)))
}

// patterns sends patterned datagrams of several sizes from A to B, until stop.
func patterns(t *testing.T, pair *lab.Pair, stop <-chan struct{}) *sync.WaitGroup {
	t.Helper()
	in, err := pair.B.ListenPacket("udp4", "10.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	out := dialUDP(t, pair.A, in.LocalAddr())
	var sending sync.WaitGroup
	sending.Go(func() {
		for n := uint32(0); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := out.Write(patterned(n, 4*(1+int(n*7919%350)))); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("send: %v", err)
				return
			}
		}
	})
	return &sending
}

// TestLoopsOverCopies: the copies that a loop sees stay unchanged during their round, while other loops and calls
// receive, and copies arrive faster than they can be taken. Copies that a loop leaves behind stay unchanged after it.
func TestLoopsOverCopies(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openAt(t, pair.A, "outbound and udp.DstPort > 1023", divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithCopiesInPlace(), divert.WithQueueSize(1<<20))
	stop := make(chan struct{})
	sending := patterns(t, pair, stop)
	check := func(p *divert.Packet) {
		n, ok := pattern(p.Data)
		if !ok {
			t.Errorf("packet %d is not as it was sent: %.60x", n, p.Data)
		}
		if n%64 == 0 {
			time.Sleep(2 * time.Millisecond) // the buffers fill up
		}
		if again, ok := pattern(p.Data); !ok || again != n {
			t.Errorf("packet %d became %d in its round, %t", n, again, ok)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var receiving sync.WaitGroup
	for range 2 {
		receiving.Go(func() {
			for rounds := 0; ctx.Err() == nil; rounds++ {
				left := 0
				for p, err := range d.Packets(ctx) {
					if err != nil {
						break // ctx has ended
					}
					check(p)
					if left++; left == 10+rounds%50 {
						break // others receive the rest
					}
				}
			}
		})
	}
	receiving.Go(func() {
		ps := make([]divert.Packet, 16)
		for ctx.Err() == nil {
			d.SetReadDeadline(time.Now().Add(time.Second))
			n, err := d.RecvBatch(ps)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
			for i := range ps[:n] {
				check(&ps[i])
			}
		}
	})
	receiving.Wait()
	close(stop)
	sending.Wait()
	s := stats(t, d)
	t.Logf("%+v", s)
	if s.Received == 0 {
		t.Error("nothing was received")
	}
}

// TestCloseInALoopOverCopies: the packet of the round stays valid when the handle is closed meanwhile.
func TestCloseInALoopOverCopies(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	stop := make(chan struct{})
	sending := patterns(t, pair, stop)
	defer sending.Wait()
	defer close(stop)
	for range 10 {
		d := openAt(t, pair.A, "outbound and udp.DstPort > 1023", divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithCopiesInPlace())
		rounds := 0
		for p, err := range d.Packets(t.Context()) {
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				break
			}
			before, ok := pattern(p.Data)
			if rounds++; rounds < 20 {
				continue
			}
			closed := make(chan error)
			go func() { closed <- d.Close() }()
			if err := <-closed; err != nil {
				t.Error(err)
			}
			if after, okAfter := pattern(p.Data); !ok || !okAfter || before != after {
				t.Errorf("packet %d, %t, became %d, %t", before, ok, after, okAfter)
			}
		}
		if rounds < 20 {
			t.Errorf("%d rounds", rounds)
		}
	}
}

// TestCopiesLeftBehind: packets that a loop fetched but did not return are unchanged when they are received later.
func TestCopiesLeftBehind(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openAt(t, pair.A, "outbound and udp.DstPort > 1023", divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithCopiesInPlace(), divert.WithQueueSize(1<<20))
	in, err := pair.B.ListenPacket("udp4", "10.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out := dialUDP(t, pair.A, in.LocalAddr())
	send := func(from, to uint32) {
		for n := from; n < to; n++ {
			if _, err := out.Write(patterned(n, 1000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(0, 40)
	for p, err := range d.Packets(t.Context()) {
		if n, ok := pattern(p.Data); err != nil || !ok || n != 0 {
			t.Fatal(n, ok, err)
		}
		break
	}
	send(40, 5000) // several times the buffer
	ps := make([]divert.Packet, 255)
	for want := uint32(1); want < 40; {
		d.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := d.RecvBatch(ps)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ps[:n] {
			got, ok := pattern(ps[i].Data)
			if !ok {
				t.Fatalf("packet %d is not as it was sent", got)
			}
			if want < 40 && got != want {
				t.Fatalf("got packet %d, want %d", got, want)
			}
			want++
		}
	}
}

func TestCopiesInPlaceAreForHandlesThatOnlySniff(t *testing.T) {
	for _, f := range []divert.Flag{0, divert.Sniff, divert.RecvOnly} {
		if d, err := divert.Open("true", divert.WithFlags(f), divert.WithCopiesInPlace()); !errors.Is(err, divert.ErrInvalid) {
			if err == nil {
				d.Close()
			}
			t.Errorf("%v: %v", f, err)
		}
	}
}
