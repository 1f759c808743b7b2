//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// sniffing is a source of copies of the numbered datagrams that send sends.
type sniffing struct {
	Source
	host *lab.Host
	conn net.Conn
	sent uint64
	ps   []packet.Packet
}

// openSniffing opens a source in a namespace of its own, with a rule that leads packets to it. The rule's program, if it is to
// have one, is made of the source's wants.
func openSniffing(t *testing.T, mode engine.Mode, load func(*testing.T, cursor.Key, *prog.Program, *codegen.Outlet) *codegen.Entry) *sniffing {
	t.Helper()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	program, err := progtest.Compile("outbound and udp", packet.LayerNetwork, filter.Strict)
	if err != nil {
		t.Fatal(err)
	}
	e := Env{
		Config: engine.Config{Program: program, Flags: engine.FlagSniff, Queues: 1, Mode: mode, Limits: engine.Limits{Length: 4096, Time: 2 * time.Second, Size: 4 << 20}},
		Layer:  packet.LayerNetwork, Counts: &tally.Counts{}, Life: &life.Life{}, Review: &review.Review{}, Table: &engine.FlowTable{},
	}
	var s Source
	err = pair.A.Do(func() error {
		ns, err := netns.Current()
		if err != nil {
			return err
		}
		t.Cleanup(func() { ns.Close() })
		entry, err := rules.Open(ns, rules.Owner{ID: 1, PID: os.Getpid(), Flags: engine.FlagSniff})
		if err != nil {
			return err
		}
		t.Cleanup(func() { entry.Close() })
		e.Matched = entry.Matched
		if s, _, err = Open(e, mode, ""); err != nil {
			return err
		}
		t.Cleanup(func() { s.Close() })
		w := s.Wants()
		r := rules.Rule{Chain: rules.Outbound, Program: rules.NoProgram, Action: w.Ways[0].Action}
		if load != nil && w.Copies != nil {
			r.Program = load(t, entry.Key, program, w.Copies).FD(w.Ways[0].Take)
		}
		return entry.Install([]rules.Rule{r})
	})
	if err != nil {
		t.Skipf("no source: %v", err)
	}
	conn, err := pair.A.Dial(t.Context(), "udp", "10.77.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &sniffing{Source: s, host: pair.A, conn: conn, ps: make([]packet.Packet, 1024)}
}

// copying loads a program that copies what matches.
func copying(t *testing.T, key cursor.Key, p *prog.Program, outlet *codegen.Outlet) *codegen.Entry {
	t.Helper()
	e, err := codegen.NewEntry(key, codegen.LocalOnly, false, codegen.TakeAll)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { e.Close() })
	hook := codegen.Hook{
		Direction: codegen.Outbound, Index: codegen.IndexDevice, Loopback: codegen.LoopbackByInterface, Event: packet.EventPacket,
	}
	u, err := codegen.Build(p, hook, codegen.Options{Sniff: true, Count: true, Tag: uint32(hook.Direction)})
	if err != nil {
		t.Fatal(err)
	}
	program, err := u.LoadInto(outlet, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	var slots [codegen.NumSlots]*codegen.Program
	slots[codegen.SlotWhole], slots[codegen.SlotCut] = program, program
	if err := e.Set(slots); err != nil {
		t.Fatal(err)
	}
	return e
}

// send sends a datagram. Some sends fail because nobody listens.
func (s *sniffing) send(t *testing.T) {
	t.Helper()
	b := binary.BigEndian.AppendUint64(nil, s.sent)
	s.sent++
	for {
		_, err := s.conn.Write(b)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
	}
}

// numbers returns those of the first n packets.
func (s *sniffing) numbers(n int) (list []uint64) {
	for i := range s.ps[:n] {
		list = append(list, binary.BigEndian.Uint64(s.ps[i].Data[28:]))
	}
	return list
}

// waitFor waits until something holds.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for begin := time.Now(); !holds(); runtime.Gosched() {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// TestFirstCopyWakesReader: a reader that sleeps with empty buffers is woken by the first copy, on whatever processor it is
// made, and by nothing else; while the reader is awake the bell is silent.
func TestFirstCopyWakesReader(t *testing.T) {
	s := openSniffing(t, engine.ModeKernel, copying)
	r, ok := s.Source.(*copies)
	if !ok {
		t.Skip("copies come through the packet log here")
	}
	asleep := func() bool {
		var v uint64
		if err := r.outlet.Asleep.Lookup(uint32(0), &v); err != nil {
			t.Fatal(err)
		}
		return v != 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	take := func(want ...uint64) {
		t.Helper()
		n, err := r.take(s.ps)
		if err != nil || !slices.Equal(s.numbers(n), want) {
			t.Fatalf("copies of %v, %v, want %v", s.numbers(n), err, want)
		}
	}
	for i := range uint64(40) {
		waited := make(chan error, 1)
		go func() {
			for { // a ring that came late, for the copy before, may end a wait
				if err := errors.Join(r.wait(), r.look(clock.Now())); err != nil || r.buffers.Written() > 0 {
					waited <- err
					return
				}
			}
		}()
		waitFor(t, "the reader to sleep", asleep)
		if err := lab.OnProcessor(int(i)%runtime.NumCPU(), func() error { s.send(t); return nil }); err != nil {
			t.Skip(err)
		}
		if err := <-waited; err != nil {
			t.Fatal(err)
		}
		if asleep() {
			t.Fatal("the reader is still thought to sleep")
		}
		take(i)
	}
	if n := r.buffers.Rung(); n < 35 || n > 40 { // the one that finds a copy before it waits does without
		t.Errorf("the bell has rung %d times, want 40", n)
	}
	if r.rhythm.gather != 0 {
		t.Error("copies gather")
	}
	for range 2 * burst {
		s.send(t)
	}
	if _, err := r.take(s.ps); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err != nil || r.rhythm.gather == 0 || asleep() {
		t.Errorf("after a burst copies do not gather: %v, %v", r.rhythm.gather, err)
	}
}

// logged returns how many copies the kernel has gathered for a log group and not sent yet.
func (s *sniffing) logged(t *testing.T, group uint16) (gathered int) {
	t.Helper()
	err := s.host.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_log")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) { // group, port id, copies, and more
			var number uint16
			var port uint32
			if n, _ := fmt.Sscan(line, &number, &port, &gathered); n == 3 && number == group {
				return nil
			}
		}
		return errors.New("the group is not there")
	})
	if errors.Is(err, os.ErrNotExist) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return gathered
}

// TestLoggedCopiesComeAtOnce: the kernel keeps none back, unless they come faster than they are received.
func TestLoggedCopiesComeAtOnce(t *testing.T) {
	s := openSniffing(t, engine.ModeInterpret, nil)
	l := s.Source.(*logged)
	next := uint64(0)
	receive := func(want uint64) {
		t.Helper()
		for next < want {
			n := l.take(s.ps)
			for _, number := range s.numbers(n) {
				if number != next {
					t.Fatalf("a copy of %d, want %d", number, next)
				}
				next++
			}
			if n == 0 {
				if err := l.refill(engine.Wait{}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for range 20 {
		s.send(t)
		if n := s.logged(t, l.log.Group()); n != 0 {
			t.Fatalf("the kernel keeps %d copies back", n)
		}
		receive(s.sent)
	}
	for range 4 * logSlots {
		s.send(t)
	}
	receive(s.sent)
	if !l.gathers {
		t.Error("copies that come faster than they are received do not gather")
	}
	for range 3 { // the first may have been gathered
		s.send(t)
		receive(s.sent)
	}
	if l.gathers {
		t.Error("copies still gather when few come")
	}
	if n := l.missed.Load(); n != 0 {
		t.Errorf("%d copies were lost", n)
	}
}
