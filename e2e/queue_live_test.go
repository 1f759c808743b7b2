//go:build linux

package e2e_test

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// TestQueueSeesWhatALoopLeft: packets that an iteration fetched but did not return come from their queues, in the order
// of their flows, before those that wait in the kernel.
func TestQueueSeesWhatALoopLeft(t *testing.T) {
	t.Parallel()
	const queues, flows, each = 4, 12, 10
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, _ := receiver(t, pair.B, pair.B.Addr4())
		d := openAt(t, pair.A, "outbound and udp", divert.WithQueues(queues), e)
		for flow := range flows {
			c := dialUDP(t, pair.A, conn.LocalAddr())
			for i := range each {
				fmt.Fprintf(c, "%d %d", flow, i)
			}
		}
		waitFor(t, d, flows*each)
		if err := d.Shutdown(divert.ShutdownRecv); err != nil {
			t.Fatal(err)
		}
		next := map[int]int{} // next number of each flow
		where := map[int]int{}
		see := func(p *divert.Packet, queue int) {
			var parsed packet.Parsed
			parsed.Parse(p.Data)
			flow, number := -1, -1
			fmt.Sscan(string(parsed.Payload(p.Data)), &flow, &number)
			if number != next[flow] {
				t.Errorf("got number %d of flow %d, want %d", number, flow, next[flow])
			}
			next[flow] = number + 1
			if before, ok := where[flow]; ok && queue >= 0 && before != queue {
				t.Errorf("flow %d came from the queues %d and %d", flow, before, queue)
			} else if queue >= 0 {
				where[flow] = queue
			}
		}
		for p, err := range d.Packets(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			see(p, -1)
			break
		}
		for queue := range d.Queues() {
			ps := make([]divert.Packet, 3)
			for {
				n, err := d.Queue(queue).RecvBatch(ps)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				for i := range ps[:n] {
					see(&ps[i], queue)
				}
			}
		}
		for flow := range flows {
			if next[flow] != each {
				t.Errorf("%d packets of flow %d came, want %d", next[flow], flow, each)
			}
		}
		if s := stats(t, d); s.Received != flows*each || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// waitFor waits until n packets have matched and are waiting.
func waitFor(t testing.TB, d *divert.Handle, n uint64) {
	t.Helper()
	for begin := time.Now(); stats(t, d).Waiting != n; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("%+v, want %d waiting", stats(t, d), n)
		}
	}
}
