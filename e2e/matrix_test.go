//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// observer is a handle that records the numbers of the packets it sees, in this process or another.
type observer struct {
	Filter   string
	Layer    divert.Layer
	Priority int16
	Flags    divert.Flag
	Engine   divert.Engine

	rights    *syscall.SysProcAttr // of another process; nil: like this process
	complaint io.Writer            // gets that process's standard error; nil: inherited
	finish    func() (seen, error) // ends it and returns its record
}

// seen is the record of an observer.
type seen struct {
	Numbers []uint64
	Matched uint64
}

// run opens the handle and works until stop is closed: diverted packets go on.
func (o *observer) run(opened func(), stop <-chan struct{}) (s seen, err error) {
	d, err := divert.Open(o.Filter, divert.WithLayer(o.Layer), divert.WithPriority(o.Priority),
		divert.WithFlags(o.Flags), divert.WithEngine(o.Engine))
	if err != nil {
		return s, err
	}
	defer d.Close()
	opened()
	down := make(chan struct{})
	go func() {
		defer close(down)
		<-stop
		d.Shutdown(divert.ShutdownRecv)
	}()
	if o.Flags&divert.Drop != 0 {
		<-down // there is nothing to receive; and the interpreter has judged all packets then
	}
	for p, err := range d.Packets(context.Background()) {
		switch {
		case errors.Is(err, divert.ErrDropOnly):
			continue
		case err != nil:
			return s, err
		}
		s.Numbers = append(s.Numbers, number(p.Data))
		if o.Flags&divert.Sniff == 0 {
			if err := d.Accept(p); err != nil {
				return s, err
			}
		}
	}
	st, err := d.Stats()
	s.Matched = st.Matched
	return s, err
}

// number returns the number in a test's datagram.
func number(b []byte) uint64 {
	var p packet.Parsed
	if payload := p.Payload; p.ParseExact(b) && len(payload(b)) >= 8 {
		return binary.BigEndian.Uint64(payload(b))
	}
	return 1<<64 - 1
}

// here starts the observer in this process.
func (o *observer) here(h *lab.Host) error {
	stop, opened := make(chan struct{}), make(chan struct{})
	var s seen
	done := h.Go(func() (err error) {
		s, err = o.run(func() { close(opened) }, stop)
		return err
	})
	select {
	case <-opened:
	case err := <-done:
		return err
	}
	o.finish = func() (seen, error) {
		close(stop)
		return s, <-done
	}
	return nil
}

// elsewhere starts the observer in its own process.
func (o *observer) elsewhere(h *lab.Host) error {
	spec, err := json.Marshal(o)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=observe", "DIVERT_TEST_OBSERVER="+string(spec))
	if cmd.Stderr = o.complaint; o.complaint == nil {
		cmd.Stderr = os.Stderr
	}
	cmd.SysProcAttr = o.rights
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.Start(cmd); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil {
		cmd.Process.Kill()
		return errors.Join(fmt.Errorf("the observer printed %q: %w", line, err), cmd.Wait())
	}
	o.finish = func() (s seen, err error) {
		in.Close()
		err = json.NewDecoder(lines).Decode(&s)
		return s, errors.Join(err, cmd.Wait())
	}
	return nil
}

func init() {
	children["observe"] = func() error {
		var o observer
		if err := json.Unmarshal([]byte(os.Getenv("DIVERT_TEST_OBSERVER")), &o); err != nil {
			return err
		}
		stop := make(chan struct{})
		s, err := o.run(func() {
			fmt.Println("open")
			go func() {
				io.Copy(io.Discard, os.Stdin)
				close(stop)
			}()
		}, stop)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(s)
	}
}

// MarshalJSON leaves out the fields without a JSON form.
func (o *observer) MarshalJSON() ([]byte, error) {
	type plain observer
	p := plain(*o)
	p.finish, p.rights, p.complaint = nil, nil, nil
	return json.Marshal(p)
}

// way is a path of packets: their source, their destination, and the host of the handles.
type way struct {
	name  string
	layer divert.Layer
	match string // the direction
	hosts func(t *testing.T) (from, to, at *lab.Host)
}

var ways = []way{
	{"outbound", divert.LayerNetwork, "outbound", func(t *testing.T) (from, to, at *lab.Host) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		return pair.A, pair.B, pair.A
	}},
	{"inbound", divert.LayerNetwork, "inbound", func(t *testing.T) (from, to, at *lab.Host) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		return pair.A, pair.B, pair.B
	}},
	{"loopback", divert.LayerNetwork, "loopback", func(t *testing.T) (from, to, at *lab.Host) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		return pair.A, pair.A, pair.A
	}},
	{"forward", divert.LayerForward, "udp", func(t *testing.T) (from, to, at *lab.Host) {
		routed := lab.HostRouterPeerT(t, lab.LinkOptions{})
		return routed.A, routed.B, routed.R
	}},
}

// perRun is the number of datagrams in a run of the matrix.
const perRun = 40

// sendNumbered sends numbered datagrams.
func sendNumbered(t *testing.T, from *lab.Host, to string) {
	t.Helper()
	c, err := from.Dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range uint64(perRun) {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, i)); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// receiveNumbered returns the numbers of the datagrams received.
func receiveNumbered(c net.PacketConn, want int) (numbers []uint64) {
	buf := make([]byte, 100)
	for {
		wait := time.Second
		if len(numbers) >= want {
			wait = 10 * time.Millisecond
		}
		c.SetReadDeadline(time.Now().Add(wait))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return numbers
		}
		if n == 8 {
			numbers = append(numbers, binary.BigEndian.Uint64(buf))
		}
	}
}

// inOrder returns 0 to n-1.
func inOrder(n int) (numbers []uint64) {
	for i := range uint64(n) {
		numbers = append(numbers, i)
	}
	return numbers
}

// TestHandlesInOrder is the matrix: one, two and five handles that divert, sniff or drop, in one process or each in its
// own, on every path, for both families. Each sees exactly the packets it should, once, in order.
func TestHandlesInOrder(t *testing.T) {
	t.Parallel()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) {
					t.Parallel()
					from, to, at := w.hosts(t)
					needEngine(t, at, e.engine)
					for _, f := range families {
						for _, count := range []int{1, 2, 5} {
							for _, last := range []divert.Flag{0, divert.Sniff, divert.Drop} {
								for _, process := range []string{"same process", "other processes"} {
									name := fmt.Sprintf("%s/%d/%v/%s", f.name, count, last, process)
									t.Run(name, func(t *testing.T) {
										if testing.Short() && (count != 5 || f.name == "IPv6" || last == divert.Sniff) {
											t.Skip("a part of the matrix is enough for -short")
										}
										if race.Enabled && process != "same process" {
											t.Skip("the race detector sees one process, and makes the others slow")
										}
										os := stack(w, e.engine, count, last)
										start := (*observer).here
										if process != "same process" {
											start = (*observer).elsewhere
										}
										runMatrix(t, from, to, at, f.addr(to), os, start)
									})
								}
							}
						}
					}
				})
			}
		})
	}
}

// stack returns count handles of descending priority: those above the last one divert and sniff in turn, and two have
// equal priority.
func stack(w way, e divert.Engine, count int, last divert.Flag) (os []*observer) {
	for i := range count {
		o := &observer{Filter: w.match + " and udp", Layer: w.layer, Priority: int16(1000 - 100*i), Engine: e}
		switch {
		case i == count-1:
			o.Flags = last
		case i%2 == 1:
			o.Flags = divert.Sniff
		}
		if i == 3 {
			o.Priority = os[2].Priority
		}
		os = append(os, o)
	}
	return os
}

// runMatrix opens the handles in a mixed order, sends datagrams and compares the records of all observers.
func runMatrix(t *testing.T, from, to, at *lab.Host, addr netip.Addr, os []*observer, start func(*observer, *lab.Host) error) {
	c, err := to.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// From the middle outwards; among equal priorities the newest is the highest.
	order := []int{2, 0, 4, 1, 3}
	if len(os) == 5 {
		os[2], os[3] = os[3], os[2] // opened first, so it is the lower of the two
		order = []int{3, 0, 4, 1, 2}
	}
	for _, i := range order {
		if i >= len(os) {
			continue
		}
		if err := start(os[i], at); err != nil {
			t.Fatalf("handle %d: %v", i, err)
		}
	}
	sendNumbered(t, from, c.LocalAddr().String())
	want := perRun
	dropped := os[len(os)-1].Flags&divert.Drop != 0
	if dropped {
		want = 0
	}
	arrived := receiveNumbered(c, want)
	if !slices.Equal(arrived, inOrder(want)) {
		t.Errorf("arrived %v, want %d datagrams in order", arrived, want)
	}
	for i, o := range os {
		s, err := o.finish()
		if err != nil {
			t.Errorf("handle %d: %v", i, err)
			continue
		}
		wantSeen := inOrder(perRun)
		if o.Flags&divert.Drop != 0 {
			wantSeen = nil
		}
		if !slices.Equal(s.Numbers, wantSeen) {
			t.Errorf("handle %d (%v, priority %d) saw %v, want %d in order", i, o.Flags, o.Priority, s.Numbers, len(wantSeen))
		}
		if s.Matched != perRun {
			t.Errorf("handle %d (%v, priority %d) matched %d, want %d", i, o.Flags, o.Priority, s.Matched, perRun)
		}
	}
}

// TestQueuesKeepTheOrderOfFlows distributes several flows over several queues with a goroutine for each.
func TestQueuesKeepTheOrderOfFlows(t *testing.T) {
	t.Parallel()
	const queues, flows, each = 4, 16, 200
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		c, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		d := openAt(t, pair.A, "outbound and udp", divert.WithQueues(queues), e)
		used := make([]int, d.Queues())
		var workers sync.WaitGroup
		for q := range used {
			workers.Go(func() {
				ps := make([]divert.Packet, 8)
				for {
					n, err := d.Queue(q).RecvBatch(ps)
					if err != nil {
						if err != io.EOF {
							t.Errorf("queue %d: %v", q, err)
						}
						return
					}
					used[q] += n
					if _, err := d.AcceptBatch(ps[:n]); err != nil {
						t.Errorf("queue %d: %v", q, err)
					}
				}
			})
		}
		var senders sync.WaitGroup
		inFlight := make(chan struct{}, 100) // no more than fit in the receiver's buffer
		for range flows {
			from, err := pair.A.Dial(t.Context(), "udp", c.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			senders.Go(func() {
				for i := range uint64(each) {
					select {
					case inFlight <- struct{}{}:
					case <-t.Context().Done():
						return
					}
					if _, err := from.Write(binary.BigEndian.AppendUint64(nil, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		next := map[string]uint64{}
		buf := make([]byte, 100)
		for range flows * each {
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, from, err := c.ReadFrom(buf)
			<-inFlight
			if err != nil {
				t.Fatalf("after %v: %v; counters %+v", next, err, stats(t, d))
			}
			if got := binary.BigEndian.Uint64(buf[:n]); got != next[from.String()] {
				t.Fatalf("%v: datagram %d, want %d", from, got, next[from.String()])
			}
			next[from.String()]++
		}
		senders.Wait()
		if err := d.Shutdown(divert.ShutdownRecv); err != nil {
			t.Fatal(err)
		}
		workers.Wait()
		busy := 0
		for _, n := range used {
			if n > 0 {
				busy++
			}
		}
		if len(used) > 1 && busy < 2 {
			t.Errorf("packets of the queues: %v", used)
		}
		// A reader that does not choose a queue receives packets of every queue.
		d = openAt(t, pair.A, "outbound and udp", divert.WithQueues(queues), e)
		w := passthru(t, d)
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		for range 8 {
			if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 5}); r.Echoed != 5 {
				t.Errorf("%+v", r)
			}
		}
		if n := finish(t, d, w); n != 40 {
			t.Errorf("%d packets, want 40", n)
		}
	})
}
