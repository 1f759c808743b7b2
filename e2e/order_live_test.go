//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/order"
	"github.com/opendivert/divert/internal/linux/rules"
)

// TestHandlesFollowTheModel makes the calls of random sequences of the model of internal/linux/order on real handles.
// After each call, exactly the handles that the model predicts have received a packet, and exactly the predicted
// packets have arrived.
func TestHandlesFollowTheModel(t *testing.T) {
	t.Parallel()
	count := 6
	switch {
	case long():
		count = 200
	case testing.Short():
		count = 2
	}
	for _, direction := range []string{"outbound", "inbound"} {
		t.Run(direction, func(t *testing.T) {
			eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, _ divert.Option) {
				seed := rand.Uint64()
				for range count {
					if seed++; !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { followModel(t, pair, direction, engineOf(t), seed) }) {
						return
					}
				}
			})
		})
	}
}

// ruled holds the handles and packets of a scenario, and the receivers of the packets.
type ruled struct {
	t         *testing.T
	at        *lab.Host
	direction string
	engine    divert.Engine
	sc        order.Scenario
	src, dst  netip.Addr
	senders   [2]net.Conn // by class
	receivers [2]net.PacketConn
	handles   [order.MaxHandles]*subject // nil: not open
}

// scenario chooses the actions of handles and packets. Inbound packets are never injected here: TestInject covers that.
func scenario(r *rand.Rand, inject bool) (sc order.Scenario) {
	filters := [][]order.Classes{{3}, {1}, {2}, {3, 1}, {1, 3}, {1, 2}}
	for range order.MaxHandles {
		sc.Handles = append(sc.Handles, order.Handle{
			Kind: order.Kind(r.IntN(3)), Priority: int8(r.IntN(2)), Filters: filters[r.IntN(len(filters))], End: order.End(r.IntN(2)),
		})
	}
	for range order.MaxPackets {
		p := order.Packet{Class: uint8(r.IntN(2)), From: order.Host}
		if h := r.IntN(3 * order.MaxHandles); inject && h < order.MaxHandles && sc.Handles[h].Kind == order.Divert {
			p.From = int8(h)
		}
		sc.Packets = append(sc.Packets, p)
	}
	return sc
}

// followModel makes the calls of one sequence.
func followModel(t *testing.T, pair *lab.Pair, direction string, e divert.Engine, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	followScenario(t, pair, direction, e, scenario(r, direction == "outbound"), r)
}

// followScenario makes the calls of a sequence of a scenario.
func followScenario(t *testing.T, pair *lab.Pair, direction string, e divert.Engine, sc order.Scenario, r *rand.Rand) {
	x := &ruled{t: t, at: pair.A, direction: direction, engine: e, src: pair.A.Addr4(), dst: pair.B.Addr4()}
	if direction == "inbound" {
		x.at = pair.B
	}
	x.sc = sc
	calls, err := order.Walk(x.sc, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range x.handles {
			if h != nil {
				_ = h.kill() // the test has failed
			}
		}
	})
	for i := range x.receivers {
		c, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(x.dst, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		x.receivers[i], x.senders[i] = c, dialUDP(t, pair.A, c.LocalAddr())
	}
	for i, c := range calls {
		if err := x.make(c); err != nil {
			t.Fatalf("%+v:\ncall %d, %v of handle %d and packet %d: %v\nall calls: %+v", x.sc, i, c.Action, c.Handle, c.Packet, err, calls)
		}
	}
	if err := x.nothingMore(); err != nil {
		t.Errorf("%+v: %v", x.sc, err)
	}
}

// filter returns the text of a filter.
func (x *ruled) filter(c order.Classes) string {
	first, second := addrPort(x.receivers[0]).Port(), addrPort(x.receivers[1]).Port()
	switch c {
	case 1:
		return fmt.Sprintf("%s and udp.DstPort == %d", x.direction, first)
	case 2:
		return fmt.Sprintf("%s and udp.DstPort == %d", x.direction, second)
	}
	return fmt.Sprintf("%s and (udp.DstPort == %d or udp.DstPort == %d)", x.direction, first, second)
}

// make makes a call and waits for its effects.
func (x *ruled) make(c order.Call) (err error) {
	var accepted uint64
	var h *subject
	if c.Handle >= 0 {
		h = x.handles[c.Handle]
	}
	spec := max(c.Handle, 0)
	switch c.Action {
	case order.Open:
		h, err = startSubject(x.at, subjectSpec{
			Filter: x.filter(x.sc.Handles[spec].Filters[0]), Engine: x.engine, Priority: int16(x.sc.Handles[spec].Priority),
			Flags: [...]divert.Flag{0, divert.Sniff, divert.Drop}[x.sc.Handles[spec].Kind],
		}, x.sc.Handles[spec].End == order.Kill)
		x.handles[spec] = h
	case order.SetFilter:
		_, err = h.ask(subjectCall{Do: "filter", Filter: x.filter(x.sc.Handles[spec].Filters[1])})
	case order.Accept:
		var all []uint64
		if all, err = h.ask(subjectCall{Do: "accept"}); len(all) == 1 {
			accepted = all[0]
		}
		if h.waiting--; err == nil && accepted != uint64(c.Packet) {
			err = fmt.Errorf("the handle has received packet %d", accepted)
		}
	case order.CloseIt:
		x.handles[spec] = nil
		var copies []uint64
		copies, err = h.ask(subjectCall{Do: "close"})
		slices.Sort(copies)
		slices.Sort(h.copies)
		if err == nil && !slices.Equal(copies, h.copies) {
			err = fmt.Errorf("the handle has received copies of %v, want %v", copies, h.copies)
		}
	case order.KillIt:
		x.handles[spec] = nil
		err = errors.Join(h.kill(), x.burial())
	case order.Send:
		class := x.sc.Packets[c.Packet].Class
		payload := binary.BigEndian.AppendUint64(nil, uint64(c.Packet))
		if h == nil {
			_, err = x.senders[class].Write(payload)
			break
		}
		to := addrPort(x.receivers[class])
		_, err = h.ask(subjectCall{Do: "send", Data: craft(x.t, x.src.String(), x.dst.String(), to.Port(), payload)})
	}
	if err != nil {
		return err
	}
	return x.await(c.Comes)
}

// await waits for events, and checks that no handle has received anything else.
func (x *ruled) await(events []order.Event) error {
	var want [2][]uint64 // expected arrivals, by class
	for _, e := range events {
		switch e.Fate {
		case order.Arrives:
			class := x.sc.Packets[e.Packet].Class
			want[class] = append(want[class], uint64(e.Packet))
		case order.Meets:
			h := x.handles[e.Handle]
			if h == nil {
				return fmt.Errorf("packet %d ought to meet a handle that is closed", e.Packet)
			}
			h.matched++
			switch x.sc.Handles[e.Handle].Kind {
			case order.Divert:
				h.waiting++
			case order.Sniff:
				h.copies = append(h.copies, uint64(e.Packet))
			}
		}
	}
	for class, numbers := range want {
		var came []uint64
		for range numbers {
			n, err := x.arrival(class, 10*time.Second)
			if err != nil {
				return fmt.Errorf("packets %v should arrive, but only %v did: %w", numbers, came, err)
			}
			came = append(came, n)
		}
		slices.Sort(came)
		slices.Sort(numbers)
		if !slices.Equal(came, numbers) {
			return fmt.Errorf("packets %v arrive, want %v", came, numbers)
		}
	}
	for i, h := range x.handles {
		if h == nil {
			continue
		}
		if _, err := h.ask(subjectCall{Do: "await", Matched: h.matched, Waiting: h.waiting}); err != nil {
			return fmt.Errorf("handle %d: %w", i, err)
		}
	}
	return nil
}

// arrival receives a packet of a class.
func (x *ruled) arrival(class int, most time.Duration) (uint64, error) {
	b := make([]byte, 100)
	x.receivers[class].SetReadDeadline(time.Now().Add(most))
	n, _, err := x.receivers[class].ReadFrom(b)
	if err != nil {
		return 0, err
	}
	if n != 8 {
		return 0, fmt.Errorf("a datagram of %d bytes", n)
	}
	return binary.BigEndian.Uint64(b), nil
}

// nothingMore checks that no other packet has arrived: a packet sent now must be the next.
func (x *ruled) nothingMore() error {
	const last = 1 << 32
	for class, c := range x.senders {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, last)); err != nil {
			return err
		}
		if n, err := x.arrival(class, 10*time.Second); err != nil || n != last {
			return fmt.Errorf("behind all others packet %d arrives (%v)", n, err)
		}
	}
	return nil
}

// burial waits until the processes with open handles have removed the rules of the dead. If there are none, it opens a
// handle for that.
func (x *ruled) burial() error {
	return x.at.Do(func() error {
		if x.handles == [order.MaxHandles]*subject{} {
			d, err := divert.Open("false", divert.WithEngine(x.engine))
			if err == nil {
				err = d.Close()
			}
			if err != nil {
				return err
			}
		}
		ns, err := netns.Current()
		if err != nil {
			return err
		}
		defer ns.Close()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			dead, err := rules.Dead(ns)
			switch {
			case err != nil || len(dead) == 0:
				return err
			case time.Now().After(end):
				return fmt.Errorf("after 20 s there still are rules of dead handles: %+v", dead)
			}
		}
	})
}

// subjectSpec is a handle of a sequence.
type subjectSpec struct {
	Filter   string
	Engine   divert.Engine
	Priority int16
	Flags    divert.Flag
}

// subject is an open handle, in this process or in its own.
type subject struct {
	matched, waiting uint64   // expected
	copies           []uint64 // expected numbers of sniffed packets

	ask  func(subjectCall) (numbers []uint64, err error)
	kill func() error // in this process: close
}

// subjectCall is its next action: "filter", "accept", "send", "await" or "close".
type subjectCall struct {
	Do               string
	Filter           string
	Data             []byte // of a new packet
	Matched, Waiting uint64
}

// subjectAnswer is the result of a call.
type subjectAnswer struct {
	Numbers []uint64
	Error   string
}

// startSubject opens a handle.
func startSubject(h *lab.Host, spec subjectSpec, process bool) (*subject, error) {
	if !process {
		var o *opened
		err := h.Do(func() (err error) {
			o, err = spec.open()
			return err
		})
		if err != nil {
			return nil, err
		}
		return &subject{ask: o.do, kill: o.Close}, nil
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=subject", "DIVERT_TEST_SUBJECT="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	answers := json.NewDecoder(out)
	answer := func() ([]uint64, error) {
		var a subjectAnswer
		if err := answers.Decode(&a); err != nil || a.Error != "" {
			return nil, errors.Join(err, errors.New("its process says: "+a.Error))
		}
		return a.Numbers, nil
	}
	calls := json.NewEncoder(in)
	s := &subject{
		ask: func(c subjectCall) ([]uint64, error) {
			if err := calls.Encode(c); err != nil {
				return nil, err
			}
			return answer()
		},
		kill: func() error {
			err := cmd.Process.Kill()
			cmd.Wait() // its error only says that it was killed
			return err
		},
	}
	if _, err := answer(); err != nil {
		return nil, errors.Join(err, s.kill())
	}
	return s, nil
}

func init() {
	children["subject"] = func() error {
		var spec subjectSpec
		if err := json.Unmarshal([]byte(os.Getenv("DIVERT_TEST_SUBJECT")), &spec); err != nil {
			return err
		}
		answers := json.NewEncoder(os.Stdout)
		o, err := spec.open()
		if err != nil {
			return answers.Encode(subjectAnswer{Error: err.Error()})
		}
		defer o.Close()
		if err := answers.Encode(subjectAnswer{}); err != nil {
			return err
		}
		for calls := json.NewDecoder(bufio.NewReader(os.Stdin)); ; {
			var c subjectCall
			if err := calls.Decode(&c); err != nil {
				return nil // the test has ended
			}
			var a subjectAnswer
			if a.Numbers, err = o.do(c); err != nil {
				a.Error = err.Error()
			}
			if err := answers.Encode(a); err != nil {
				return err
			}
		}
	}
}

// opened is the handle of a subject.
type opened struct {
	*divert.Handle
	flags   divert.Flag
	copies  []uint64 // numbers of the sniffed packets, when the reader is done
	reading chan error
}

// open opens the handle, which keeps packets for longer than any sequence lasts.
func (s subjectSpec) open() (*opened, error) {
	d, err := divert.Open(s.Filter, divert.WithEngine(s.Engine), divert.WithPriority(s.Priority), divert.WithFlags(s.Flags),
		divert.WithQueueTime(16*time.Second))
	if err != nil {
		return nil, err
	}
	o := &opened{Handle: d, flags: s.Flags, reading: make(chan error, 1)}
	if s.Flags&divert.Sniff != 0 {
		go func() { o.reading <- o.read() }() // with the interpreter a packet has not matched until it is received
	}
	return o, nil
}

// read receives copies until the handle is shut down.
func (o *opened) read() error {
	for p, err := range o.Packets(context.Background()) {
		if err != nil {
			return err
		}
		o.copies = append(o.copies, number(p.Data))
	}
	return nil
}

// do makes a call on the handle.
func (o *opened) do(c subjectCall) (numbers []uint64, err error) {
	switch c.Do {
	case "filter":
		return nil, o.SetFilter(c.Filter)
	case "accept":
		if err := o.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return nil, err
		}
		var ps [1]divert.Packet
		if _, err := o.RecvBatch(ps[:]); err != nil {
			return nil, err
		}
		return []uint64{number(ps[0].Data)}, o.Accept(&ps[0])
	case "send":
		return nil, o.Send(&divert.Packet{Data: c.Data, Addr: divert.Address{Outbound: true}})
	case "await":
		return nil, o.await(c.Matched, c.Waiting)
	}
	if o.flags&divert.Sniff != 0 {
		err = errors.Join(o.Shutdown(divert.ShutdownRecv), <-o.reading)
	}
	return o.copies, errors.Join(err, o.Close())
}

// await waits until so many packets have matched, and so many of those wait.
func (o *opened) await(matched, waiting uint64) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := o.Stats()
		switch {
		case err != nil:
			return err
		case s.Matched == matched && (o.flags != 0 || s.Waiting == waiting):
			return nil
		case s.Matched > matched || time.Now().After(end):
			return fmt.Errorf("%d packets have to have matched and %d to wait: %+v", matched, waiting, s)
		}
	}
}
