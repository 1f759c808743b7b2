package windows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// labelled returns an IPv6 packet with a number in its payload and a flow label.
func labelled(n int, label uint32) packet.Packet {
	b := ipv6(60)
	binary.BigEndian.PutUint32(b, 0x60000000|label)
	binary.BigEndian.PutUint32(b[40:], uint32(n))
	return packet.Packet{Data: b, Addr: packet.Address{IPv6: true, Outbound: true}}
}

func numberAt(p *packet.Packet) int { return int(binary.BigEndian.Uint32(p.Data[40:])) }

// TestJudgedMatchesProgram runs packets through handles whose filter the driver cannot execute: the packets received are
// those that match, and all others are back in the stack, once.
func TestJudgedMatchesProgram(t *testing.T) {
	ports := make([]string, 400)
	for i := range ports {
		ports[i] = fmt.Sprint(i * 3)
	}
	set := "{" + strings.Join(ports, ",") + "}"
	for _, text := range []string{
		"ipv6.FlowLabel == 3",
		"ipv6.FlowLabel in {1, 3-5} or length > 1000",
		"packet16[21] in " + set, // the number in the payload
		"packet16[21] not in " + set,
		"(ipv6.FlowLabel > 4? packet[43] > 100: packet16[21] in " + set + ")",
		"not (ipv6.FlowLabel == 2 and packet[43] < 128)",
	} {
		for _, flags := range []uint64{0, engine.FlagRecvOnly, engine.FlagSniff} {
			t.Run(fmt.Sprintf("%.40s flags %d", text, flags), func(t *testing.T) {
				s := newStack(t)
				h := s.handle(text, packet.LayerNetwork, engine.Config{Flags: flags})
				if h.pump == nil {
					t.Fatal("the driver can decide this: the test is void")
				}
				want := make(map[int]bool)
				const total = 1000
				for n := range total {
					p := labelled(n, uint32(n%7))
					want[n] = h.cfg.Program.Match(p.Data, &p.Addr)
					s.capture(p)
				}
				got := make(map[int]bool)
				matched := 0
				for _, p := range recvAll(t, h) {
					n := numberAt(&p)
					if got[n] || !want[n] {
						t.Errorf("packet %d came; again: %v", n, got[n])
					}
					got[n] = true
				}
				for n, match := range want {
					if match {
						matched++
					}
					if match != got[n] {
						t.Errorf("packet %d: matches %v, came %v", n, match, got[n])
					}
				}
				stays := total - matched
				if flags == engine.FlagSniff {
					stays = total
				}
				if back := s.numPassed(); back != stays {
					t.Errorf("%d packets went on, want %d", back, stays)
				}
				if matched == 0 || matched == total {
					t.Errorf("%d of %d match: the test is void", matched, total)
				}
			})
		}
	}
}

// TestSetFilterKinds exchanges filters that the driver and the interpreter decide.
func TestSetFilterKinds(t *testing.T) {
	compile := func(text string, layer packet.Layer) *prog.Program {
		p, err := progtest.Compile(text, layer, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, row := range []struct {
		name        string
		layer       packet.Layer
		flags       uint64
		mode        engine.Mode
		first, next string
		err         error
		opened      int // handles of the driver in the end
	}{
		{"the driver decides both", packet.LayerNetwork, 0, engine.ModeAuto, "udp", "ipv6", nil, 2},
		{"the interpreter decides both", packet.LayerNetwork, 0, engine.ModeAuto, "ipv6.FlowLabel == 1", "ipv6.FlowLabel == 2", nil, 2},
		{"one that the driver could decide", packet.LayerNetwork, 0, engine.ModeAuto, "ipv6.FlowLabel == 1", "ipv6", nil, 2},
		{"one that the driver cannot decide", packet.LayerNetwork, 0, engine.ModeAuto, "ipv6", "ipv6.FlowLabel == 1", engine.ErrNotSupported, 1},
		{"all comes to the interpreter anyway", packet.LayerNetwork, 0, engine.ModeInterpret, "udp", "ipv6", nil, 1},
		{"flows", packet.LayerFlow, 5, engine.ModeAuto, "udp", "tcp", engine.ErrNotSupported, 1},
		{"flows, by the interpreter", packet.LayerFlow, 5, engine.ModeInterpret, "udp", "tcp", nil, 1},
		{"handles", packet.LayerReflect, 5, engine.ModeAuto, "processId == 1", "true", engine.ErrNotSupported, 1},
		{"socket calls", packet.LayerSocket, 4, engine.ModeAuto, "udp", "tcp", nil, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStack(t)
			h := s.handle(row.first, row.layer, engine.Config{Flags: row.flags, Mode: row.mode})
			if err := h.SetFilter(compile(row.next, row.layer)); !errors.Is(err, row.err) {
				t.Fatalf("error %v, want %v", err, row.err)
			}
			if s.opened != row.opened {
				t.Errorf("%d handles of the driver, want %d", s.opened, row.opened)
			}
			if row.layer != packet.LayerNetwork || row.err != nil {
				return
			}
			p := compile(row.next, row.layer)
			want := 0
			for n := range 50 {
				item := labelled(n, uint32(n%3))
				if p.Match(item.Data, &item.Addr) {
					want++
				}
				s.capture(item)
			}
			if got := len(recvAll(t, h)); got != want {
				t.Errorf("%d packets came, want %d", got, want)
			}
		})
	}
}

// TestInboxLimits fills the queue in user space beyond its limits (api.md 12).
func TestInboxLimits(t *testing.T) {
	s := newStack(t)
	limits := engine.Limits{Length: 32, Time: 100 * time.Millisecond, Size: 65535}
	h := s.handle("ipv6.FlowLabel == 1", packet.LayerNetwork, engine.Config{Limits: limits})
	matched := func(n uint64) {
		t.Helper()
		for range 2000 {
			if st, _ := h.Stats(); st.Matched == n {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatal("the pump stands still")
	}
	for n := range 40 {
		s.capture(labelled(n, 1))
	}
	matched(40)
	if st, _ := h.Stats(); st.DroppedFull != 8 || st.Waiting != 32 {
		t.Errorf("counted %+v", st)
	}
	ps := make([]packet.Packet, 1)
	if n, err := h.Recv(ps); n != 1 || err != nil || numberAt(&ps[0]) != 8 {
		t.Errorf("%d packets, %v: the oldest must have gone", n, err)
	}
	long := labelled(0, 1)
	long.Data = append(long.Data, make([]byte, 65535-60+40)...)
	binary.BigEndian.PutUint16(long.Data[4:], 65535)
	s.capture(long)
	matched(41)
	time.Sleep(2 * limits.Time)
	s.capture(labelled(77, 1))
	matched(42)
	if n, err := h.Recv(ps); n != 1 || err != nil || numberAt(&ps[0]) != 77 {
		t.Errorf("%d packets, %v, number %d: those that are too old must have gone", n, err, numberAt(&ps[0]))
	}
	st, _ := h.Stats()
	if st.DroppedOld != 31 || st.DroppedLong != 1 || st.Received != 2 || st.Waiting != 0 {
		t.Errorf("counted %+v", st)
	}
	if sum := st.Received + st.Waiting + st.Dropped + st.DroppedFull + st.DroppedOld + st.DroppedLong + st.Passed + st.Lost; sum != st.Matched {
		t.Errorf("%d are accounted for of %+v", sum, st)
	}
}

// TestHandleConcurrent reads and writes one handle from 16 goroutines while deadlines pass and filters are
// exchanged, with the driver deciding and with the interpreter: every packet comes once.
func TestHandleConcurrent(t *testing.T) {
	for _, row := range []struct{ name, filter, other string }{
		{"driver", "true", "ipv6"},
		{"interpreter", "ipv6.FlowLabel == 1 or ip", "ipv6.FlowLabel in {1,2}"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStack(t)
			s.loop = true
			h := s.handle(row.filter, packet.LayerNetwork, engine.Config{Limits: engine.Limits{Length: 16384, Time: 16 * time.Second, Size: 32 << 20}})
			const writers, readers, each = 8, 8, 400
			var seen [writers * each]atomic.Int32
			var writing, reading, meddling sync.WaitGroup
			var done atomic.Bool
			for i := range readers {
				reading.Go(func() {
					ps := make([]packet.Packet, 1+i*3)
					for {
						n, err := h.Recv(ps)
						switch {
						case errors.Is(err, os.ErrDeadlineExceeded):
							time.Sleep(time.Microsecond)
						case err != nil:
							if err != io.EOF {
								t.Error(err)
							}
							return
						}
						for k := range ps[:n] {
							seen[numberAt(&ps[k])].Add(1)
						}
					}
				})
			}
			for i := range writers {
				writing.Go(func() {
					for n := range each {
						if _, err := h.Send([]packet.Packet{labelled(i*each+n, 1)}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			meddling.Go(func() {
				for round := 0; !done.Load(); round++ {
					h.SetReadDeadline(time.Now())
					h.SetReadDeadline(time.Time{})
					text := row.filter
					if round%2 == 0 {
						text = row.other
					}
					p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
					if err == nil {
						err = h.SetFilter(p)
					}
					if err != nil {
						t.Error(err)
					}
					time.Sleep(time.Millisecond)
				}
			})
			writing.Wait()
			done.Store(true)
			meddling.Wait()
			if err := h.Shutdown(engine.ShutdownRecv); err != nil {
				t.Error(err)
			}
			reading.Wait()
			for n := range seen {
				if count := seen[n].Load(); count != 1 {
					t.Errorf("packet %d came %d times", n, count)
				}
			}
			if st, _ := h.Stats(); st.Received != writers*each || st.Injected != writers*each {
				t.Errorf("counted %+v", st)
			}
		})
	}
}

func TestCloseWhileWaiting(t *testing.T) {
	for _, text := range []string{"true", "ipv6.FlowLabel == 1"} {
		s := newStack(t)
		h := s.handle(text, packet.LayerNetwork, engine.Config{})
		errs := make(chan error)
		for range 4 {
			go func() {
				_, err := h.Recv(make([]packet.Packet, 2))
				errs <- err
			}()
		}
		time.Sleep(10 * time.Millisecond)
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		for range 4 {
			if err := <-errs; err != net.ErrClosed {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
}

// TestCloseLetsGo leaves packets in the queue in user space: they go on when the handle closes.
func TestCloseLetsGo(t *testing.T) {
	s := newStack(t)
	h := s.handle("ipv6.FlowLabel == 1", packet.LayerNetwork, engine.Config{})
	for n := range 10 {
		s.capture(labelled(n, 1))
	}
	ps := make([]packet.Packet, 3)
	if n, err := h.Recv(ps); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	st, _ := h.Stats()
	h.Close()
	if got := s.numPassed(); got != 10-int(st.Received) {
		t.Errorf("%d went on", got)
	}
	end, _ := h.Stats()
	if end.Waiting != 0 || end.Matched != end.Received+end.Passed {
		t.Errorf("counted %+v", end)
	}
}

func TestOutstanding(t *testing.T) {
	o := &outstanding{tag: 5}
	var as [remembered + 1]packet.Address
	for i := range as {
		o.put(&as[i])
	}
	other := &outstanding{tag: 7}
	for _, row := range []struct {
		name string
		o    *outstanding
		a    packet.Address
		want bool
	}{
		{"one that was received", o, as[1], true},
		{"the same again", o, as[1], false},
		{"one of long ago", o, as[0], false},
		{"the latest", o, as[remembered], true},
		{"one of another handle", other, as[2], false},
		{"one of nobody", o, packet.Address{}, false},
	} {
		if got := row.o.claim(&row.a); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

// TestSetFilterLeavesNoDriver: a handle without receive calls has one handle of the driver, however often its filter
// changes.
func TestSetFilterLeavesNoDriver(t *testing.T) {
	for name, flags := range map[string]uint64{"drop": engine.FlagDrop, "send only": engine.FlagSendOnly} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			h := s.handle("udp", packet.LayerNetwork, engine.Config{Flags: flags})
			for range 5 {
				for _, text := range []string{"udp and ip", "udp"} {
					if err := h.SetFilter(compile(t, text)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n := s.numOpen(); n != 1 {
				t.Errorf("%d handles of the driver are open", n)
			}
			if _, err := h.Send([]packet.Packet{{Data: udp4(nil), Addr: outboundAddress(1)}}); err != nil {
				t.Error(err)
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAcceptWhatWasCut accepts packets that the program has only in part: they go on whole, once.
func TestAcceptWhatWasCut(t *testing.T) {
	s := newStack(t)
	h := s.handle("udp", packet.LayerNetwork, engine.Config{Limits: engine.Limits{Length: 32, Time: defaults.Time, Size: defaults.Size}})
	const total = 40 // of which 8 are too many to be kept
	for i := range total {
		s.capture(packet.Packet{Data: udp4(bytes.Repeat([]byte{byte(i)}, 100+i)), Addr: outboundAddress(1)})
	}
	ps := make([]packet.Packet, total)
	for got := 0; got < total; {
		n, err := h.Recv(ps[got:])
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	for i := range ps {
		h.Keep(&ps[i])
		ps[i].Data = ps[i].Data[:64]
		h.Keep(&ps[i]) // keeping a packet twice changes nothing
	}
	n, err := h.Accept(ps)
	if n != 32 || !errors.Is(err, engine.ErrShortBuffer) {
		t.Errorf("accepted %d, %v", n, err)
	}
	for i, p := range s.passed {
		if want := udp4(bytes.Repeat([]byte{byte(8 + i)}, 108+i)); !bytes.Equal(p.Data, want) {
			t.Errorf("packet %d went on as %x", 8+i, p.Data)
		}
	}
	h.received.put(&ps[0].Addr)
	h.Keep(&ps[0])
	if err := h.Drop(ps[:1]); err != nil || h.kept.length() != 0 {
		t.Errorf("%d packets are kept after one was dropped; %v", h.kept.length(), err)
	}
	for i := range ps {
		if len(ps[i].Data) != 64 {
			t.Errorf("packet %d of the program has %d bytes", i, len(ps[i].Data))
		}
	}
	stats, _ := h.Stats()
	if stats.Reinjected != 32 || stats.Abandoned != 8+1 || stats.Failed != 8 {
		t.Errorf("counted %+v", stats)
	}
	if n, err := h.Accept(ps[20:21]); n != 0 || !errors.Is(err, engine.ErrShortBuffer) {
		t.Errorf("the second time: %d, %v", n, err)
	}
}

// TestKeepAllocatesNothing: kept packets reuse the memory of earlier ones.
func TestKeepAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	s := newStack(t)
	h := s.handle("udp", packet.LayerNetwork, engine.Config{})
	ps := []packet.Packet{{Data: udp4(make([]byte, 500)), Addr: outboundAddress(1)}, {Data: udp4(make([]byte, 500)), Addr: outboundAddress(1)}}
	if per := testing.AllocsPerRun(100, func() {
		for i := range ps {
			h.received.put(&ps[i].Addr)
			h.Keep(&ps[i])
		}
		h.kept.release(h.kept.restore(&h.received, ps))
	}); per > 0 {
		t.Errorf("%v allocations", per)
	}
}

// compile compiles a filter of the layer NETWORK.
func compile(t testing.TB, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSetFilterBoundsDrivers: a handle without receive calls keeps at most two handles of the driver open, however often
// its filter changes, and loses nothing: its packets are received in order, or go on when it closes.
func TestSetFilterBoundsDrivers(t *testing.T) {
	const total = 100
	change := func(t *testing.T, flags uint64, l engine.Limits) (*fakeStack, *client) {
		s := newStack(t)
		h := s.handle("ipv6", packet.LayerNetwork, engine.Config{Flags: flags, Limits: l})
		for n := range total {
			s.capture(labelled(n, 1))
			if n%3 > 0 {
				continue
			}
			if err := h.SetFilter(compile(t, []string{"ipv6 and true", "ipv6"}[n%2])); err != nil {
				t.Fatal(err)
			}
			if open := s.numOpen(); open > 2 {
				t.Fatalf("%d handles of the driver are open", open)
			}
		}
		return s, h
	}
	t.Run("received", func(t *testing.T) {
		s, h := change(t, 0, engine.Limits{})
		for i, p := range recvAll(t, h) {
			if numberAt(&p) != i {
				t.Fatalf("packet %d came as number %d", numberAt(&p), i)
			}
		}
		if st, _ := h.Stats(); st.Matched != total || st.Received != total || st.Waiting != 0 || s.numPassed() != 0 {
			t.Errorf("counted %+v; %d went on", st, s.numPassed())
		}
	})
	t.Run("within the limits", func(t *testing.T) {
		const length = 32
		_, h := change(t, 0, engine.Limits{Length: length, Time: defaults.Time, Size: defaults.Size})
		all := recvAll(t, h)
		st, _ := h.Stats()
		if st.DroppedFull == 0 || int(st.DroppedFull)+len(all) != total || numberAt(&all[len(all)-1]) != total-1 {
			t.Errorf("%d came, counted %+v", len(all), st)
		}
	})
	for name, flags := range map[string]uint64{"closed": 0, "closed, receive only": engine.FlagRecvOnly} {
		t.Run(name, func(t *testing.T) {
			s, h := change(t, flags, engine.Limits{})
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			if n, open := s.numPassed(), s.numOpen(); n != total || open != 0 {
				t.Errorf("%d of %d packets went on; %d handles of the driver are open", n, total, open)
			}
		})
	}
}

// TestSetFilterKeepsOrder changes the filter continuously while one goroutine receives: packets come in the order of
// their capture.
func TestSetFilterKeepsOrder(t *testing.T) {
	const total = 3000
	s := newStack(t)
	h := s.handle("ipv6", packet.LayerNetwork, engine.Config{Limits: engine.Limits{Length: 16384, Time: 16 * time.Second, Size: 32 << 20}})
	var reading, others sync.WaitGroup
	reading.Go(func() {
		next := 0
		for ps := make([]packet.Packet, 5); ; {
			n, err := h.Recv(ps)
			if err != nil {
				if err != io.EOF || next != total {
					t.Errorf("%v after %d packets", err, next)
				}
				return
			}
			for i := range ps[:n] {
				if got := numberAt(&ps[i]); got != next {
					t.Errorf("packet %d came as number %d", got, next)
					next = got
				}
				next++
			}
		}
	})
	var captured atomic.Bool
	others.Go(func() {
		for n := range total {
			s.capture(labelled(n, 1))
		}
		captured.Store(true)
	})
	others.Go(func() {
		programs := []*prog.Program{compile(t, "ipv6"), compile(t, "ipv6 and true")}
		for n := 0; n < 50 || !captured.Load(); n++ {
			if err := h.SetFilter(programs[n%2]); err != nil {
				t.Error(err)
			}
		}
	})
	others.Wait()
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Error(err)
	}
	reading.Wait()
}
