//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// sendEverywhere sends n numbered datagrams of a size, each from another processor than the one before.
func sendEverywhere(t *testing.T, c net.Conn, n, size int) {
	t.Helper()
	for i := range n {
		cpu := i % runtime.NumCPU()
		var failed error
		err := lab.OnProcessor(cpu, func() error {
			_, failed = c.Write(append(binary.BigEndian.AppendUint64(nil, uint64(i)), make([]byte, size-8)...))
			return nil
		})
		if err != nil {
			t.Skipf("processor %d: %v", cpu, err)
		}
		if failed != nil {
			t.Fatal(failed)
		}
	}
}

// TestFewRights has handles in a process of an ordinary user with the rights that the manual names, but without the
// right to watch processors (CAP_PERFMON), which perf buffers need, and without the right to read the counters of
// queues.
func TestFewRights(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	few := []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF}
	for _, tt := range []struct {
		name   string
		filter string
		flags  divert.Flag
		rights []uintptr // additional rights
		want   string    // the error of Open
	}{
		{"divert", "", 0, []uintptr{unix.CAP_DAC_READ_SEARCH}, ""},
		{"divert without counters", "", 0, nil, "needs to be root, or CAP_DAC_READ_SEARCH"},
		{"sniff", "", divert.Sniff, []uintptr{unix.CAP_PERFMON}, ""},
		{"sniff through the log", "", divert.Sniff, nil, ""},
		{"processes", "processId != 1", divert.Sniff, []uintptr{unix.CAP_PERFMON}, ""},
		{"processes without the right", "processId != 1", divert.Sniff, nil, "without CAP_PERFMON they may not ask"},
		{"drop", "", divert.Drop, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.filter != "" {
				needProcesses(t, pair.A)
			}
			o := &observer{Filter: strings.TrimSuffix("outbound and udp and "+tt.filter, " and "), Flags: tt.flags, rights: &syscall.SysProcAttr{
				Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
				AmbientCaps: slices.Concat(few, tt.rights),
			}}
			var complaint bytes.Buffer
			o.complaint = &complaint
			if err := o.elsewhere(pair.A); err != nil {
				if tt.want == "" || !strings.Contains(complaint.String(), tt.want) {
					t.Errorf("%v, %s", err, &complaint)
				}
				return
			}
			if tt.want != "" {
				t.Errorf("it opens, want %q", tt.want)
			}
			conn, err := pair.B.ListenPacket("udp", "10.77.0.2:0")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			sendNumbered(t, pair.A, conn.LocalAddr().String())
			want := perRun
			if tt.flags&divert.Drop != 0 {
				want = 0
			}
			if got := receiveNumbered(conn, want); !slices.Equal(got, inOrder(want)) {
				t.Errorf("arrived %v, want %d in order", got, want)
			}
			s, err := o.finish()
			if err != nil {
				t.Fatal(err)
			}
			if s.Matched != perRun || tt.flags&divert.Drop == 0 && !slices.Equal(s.Numbers, inOrder(perRun)) {
				t.Errorf("%+v", s)
			}
		})
	}
	// Without the right to see whether packets wait in queues, nobody removes the table; a process with that right does.
	if tables, err := pair.A.NFTables(); err != nil || len(tables) != 1 {
		t.Errorf("the tables are %v (%v), want an empty one of ours", tables, err)
	}
	if len(handlesOf(t, pair.A)) != 0 {
		t.Error("handles are left")
	}
	if err := openAt(t, pair.A, "false").Close(); err != nil {
		t.Error(err)
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
		t.Errorf("after a handle of root's: tables %v (%v)", tables, err)
	}
}

// TestSniffedQueue: packets that exceed the queue of a sniffing handle in number or time are dropped from its old end,
// whichever processors they came from, and the rest arrives in order.
func TestSniffedQueue(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	conn, err := pair.B.ListenPacket("udp", "10.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := dialUDP(t, pair.A, conn.LocalAddr())
	open := func(t *testing.T, opts ...divert.Option) *divert.Handle {
		return openAt(t, pair.A, "outbound and udp", append(opts, divert.WithFlags(divert.Sniff), divert.WithEngine(divert.EngineKernel))...)
	}
	set := func(t *testing.T, d *divert.Handle, l limit) {
		t.Helper()
		if err := l.set(d); err != nil {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T, d *divert.Handle, batch int, want []uint64) divert.Stats {
		t.Helper()
		var got []uint64
		drain(t, d, batch, func(p *divert.Packet) { got = append(got, number(p.Data)) })
		if !slices.Equal(got, want) {
			t.Errorf("%d received: %v, want %d", len(got), got, len(want))
		}
		s := stats(t, d)
		balanced(t, s)
		return s
	}
	for _, batch := range []int{1, 7, 64} {
		t.Run("in order/"+strconv.Itoa(batch), func(t *testing.T) {
			d := open(t)
			sendEverywhere(t, c, 500, 40)
			check(t, d, batch, inOrder(500))
		})
		t.Run("length/"+strconv.Itoa(batch), func(t *testing.T) {
			d := open(t, divert.WithQueueLength(32))
			sendEverywhere(t, c, 500, 40)
			if s := check(t, d, batch, inOrder(500)[468:]); s.DroppedFull != 468 || s.DroppedOld != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("size", func(t *testing.T) {
		d := open(t, divert.WithQueueSize(65535))
		sendEverywhere(t, c, 200, 1000)
		const most = 65535 / (1028 + 63) // the address counts (specification: api.md 12)
		if s := check(t, d, 64, inOrder(200)[200-most:]); s.DroppedFull != 200-most || s.DroppedOld != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("time", func(t *testing.T) {
		d := open(t, divert.WithQueueTime(2*time.Second)) // even a slow machine receives the young ones in that time
		sendEverywhere(t, c, 20, 40)
		time.Sleep(2500 * time.Millisecond) // they are too old now, even with the tolerance of one eighth
		sendEverywhere(t, c, 5, 40)
		if s := check(t, d, 64, inOrder(5)); s.DroppedFull != 0 || s.DroppedOld != 20 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("grown", func(t *testing.T) {
		d := open(t)
		send(t, c, 100, 1000) // these fit in the old limits
		set(t, d, lengthOf(16384))
		set(t, d, sizeOf(32<<20))
		set(t, d, timeOf(16*time.Second))
		send(t, c, 12000, 1400)
		if n := drained(t, d); n != 12100 {
			t.Errorf("%d received: %+v", n, stats(t, d))
		}
		balanced(t, stats(t, d))
	})
	t.Run("grown while somebody waits", func(t *testing.T) {
		d := open(t)
		done := make(chan error, 2)
		for range cap(done) {
			go func() {
				_, err := d.RecvBatch(make([]divert.Packet, 64))
				done <- err
			}()
		}
		time.Sleep(20 * time.Millisecond) // most likely they wait; the test holds even if not
		for size := 8 << 20; size <= 32<<20; size *= 2 {
			set(t, d, sizeOf(size))
		}
		send(t, c, 1, 40)
		if err := <-done; err != nil {
			t.Error(err)
		}
		send(t, c, 1, 40)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSniffedQueueGrowsUnderReceivers enlarges the queue while receivers wait, who must release it for that.
func TestSniffedQueueGrowsUnderReceivers(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	d := openAt(t, pair.A, "outbound and udp", divert.WithFlags(divert.Sniff), divert.WithQueueSize(1<<16))
	got := make(chan int, 3)
	for range cap(got) {
		go func() {
			sum, ps := 0, make([]divert.Packet, 8)
			for {
				n, err := d.RecvBatch(ps)
				if sum += n; err != nil {
					got <- sum
					return
				}
			}
		}()
	}
	conn, err := pair.B.ListenPacket("udp", "10.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := dialUDP(t, pair.A, conn.LocalAddr())
	const rounds = 6
	for i := range rounds {
		if err := d.SetQueueSize(1 << 20 << i); err != nil {
			t.Fatal(err)
		}
		sendEverywhere(t, c, 10, 40)
	}
	if err := d.Shutdown(divert.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	sum := 0
	for range cap(got) {
		sum += <-got
	}
	if sum != 10*rounds {
		t.Errorf("%d copies were received, want %d", sum, 10*rounds)
	}
}
