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
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

func TestOpen(t *testing.T) {
	f := load(t)
	for layer := range packet.NumLayers {
		t.Run(layer.String(), func(t *testing.T) {
			cfg := config(t, "true", layer, mandatory[layer])
			cfg.Priority = -7
			h := open(t, cfg)
			log := f.log()
			if len(log) != 2 || log[0].code != codeInitialize || log[1].code != codeStartup {
				t.Fatalf("requests %+v", log)
			}
			var r record
			if r.initialize(layer, -7, mandatory[layer]); log[0].record != r {
				t.Errorf("INITIALIZE %x, want %x", log[0].record, r)
			}
			var v versionRecord
			if v.offer(64); !bytes.Equal(log[0].data, v[:]) {
				t.Errorf("version record %x", log[0].data)
			}
			if r.startup(uint64(cfg.Program.Hints())); log[1].record != r {
				t.Errorf("STARTUP %x, want %x", log[1].record, r)
			}
			want, err := cfg.Program.AppendInstructions(nil)
			if err != nil || !bytes.Equal(log[1].data, want) {
				t.Errorf("filter %x, want %x, %v", log[1].data, want, err)
			}
			if text := h.Description(); text != "WinDivert driver 2.2, 64-bit, which decides alone" {
				t.Error(text)
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			if err := h.Close(); err != net.ErrClosed {
				t.Errorf("second Close: %v", err)
			}
		})
	}
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 })
}

func TestForeignDriver(t *testing.T) {
	f := load(t)
	for _, row := range []struct {
		name         string
		magic        uint64
		major, minor uint32
		works        bool
	}{
		{"no magic", 0, 2, 2, false},
		{"the client's own magic", magicClient, 2, 2, false},
		{"version 1.4", magicDriver, 1, 4, false},
		{"version 2.0", magicDriver, 2, 0, true},
		{"version 3.0", magicDriver, 3, 0, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			in := binary.LittleEndian.AppendUint64(nil, row.magic)
			f.ioctl(testVersion, append(in, words(row.major, row.minor)...), nil)
			h, err := Open(config(t, "true", packet.LayerNetwork, 0))
			if row.works {
				if err != nil {
					t.Fatal(err)
				}
				h.Close()
				return
			}
			if numberOf(err) != errnoOldDriver || !errors.Is(err, engine.ErrNotSupported) {
				t.Errorf("error %v", err)
			}
		})
	}
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 })
}

// statuses pair the driver's status with the caller's error (specification: api.md 20).
var statuses = []struct {
	status uint32
	number uint32
	is     error
}{
	{statusInvalidParameter, errnoInvalidParameter, engine.ErrInvalid},
	{statusInvalidDeviceState, errnoBadCommand, net.ErrClosed},
	{statusBufferTooSmall, errnoShortBuffer, engine.ErrShortBuffer},
	{statusHopLimit, errnoHopLimit, engine.ErrHopLimit},
	{statusInsufficientResources, errnoNoResources, nil},
	{statusInvalidDeviceRequest, 1, nil},
	{statusAccessViolation, 998, nil},
}

func TestErrors(t *testing.T) {
	f := load(t)
	for _, row := range statuses {
		t.Run(fmt.Sprintf("%#x", row.status), func(t *testing.T) {
			check := func(what string, err error) {
				t.Helper()
				if number := numberOf(err); number != row.number || row.is != nil && !errors.Is(err, row.is) {
					t.Errorf("%s: %v (number %d), want %v, number %d", what, err, number, row.is, row.number)
				}
			}
			for _, code := range []uint32{codeInitialize, codeStartup} {
				f.fail(code, row.status, 0, 1)
				_, err := Open(config(t, "true", packet.LayerNetwork, 0))
				check("open", err)
			}
			h := network(t, "true")
			f.fail(codeSend, row.status, 0, 1)
			p := numbered(2, 10)
			n, err := h.Send([]packet.Packet{p})
			check("send", err)
			if n != 0 {
				t.Errorf("sent %d", n)
			}
			f.fail(codeShutdown, row.status, 0, 1)
			check("shutdown", h.Shutdown(engine.ShutdownBoth))
			f.fail(codeSetParam, row.status, 0, 1)
			check("set a parameter", h.SetLimits(engine.Limits{Length: 100, Time: time.Second, Size: 1 << 20}))
			if row.status != statusBufferTooSmall { // that one is a lost packet, not an error
				f.fail(codeRecv, row.status, 0, 1)
				_, err = h.Recv(make([]packet.Packet, 4))
				check("receive", err)
			}
			if _, err := h.Send([]packet.Packet{p}); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			h.Close()
		})
	}
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 })
}

func TestReceive(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	for _, batch := range []int{1, 2, 16, 255, 400} {
		t.Run(fmt.Sprintf("batches of %d", batch), func(t *testing.T) {
			const total = 300
			for i := range total {
				f.queue(numbered(i, i*3))
			}
			ps := make([]packet.Packet, batch)
			for next := 0; next < total; {
				n, err := h.Recv(ps)
				if err != nil {
					t.Fatal(err)
				}
				for i := range ps[:n] {
					if number, err := numberIn(&ps[i]); err != nil || number != next {
						t.Fatalf("got %d, want %d; %v", number, next, err)
					}
					if ps[i].Addr.Timestamp != 12345 || !ps[i].Addr.TCPChecksum {
						t.Fatalf("address %+v", ps[i].Addr)
					}
					next++
				}
			}
		})
	}
	s, err := h.Stats()
	if err != nil || s.Received != 1500 || s.Matched != 1500 {
		t.Errorf("counted %+v, %v", s, err)
	}
}

func TestReceiveLongest(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	longest := packet.Packet{Data: udp6(make([]byte, 65535-8)), Addr: outboundAddress(1)}
	longest.Addr.IPv6 = true
	f.queue(longest)
	f.queue(numbered(4, 4))
	ps := make([]packet.Packet, 3)
	for want := range 2 {
		n, err := h.Recv(ps)
		if err != nil {
			t.Fatal(err)
		}
		if want == 0 && !bytes.Equal(ps[0].Data, longest.Data) {
			t.Fatalf("%d bytes of %d", len(ps[0].Data), len(longest.Data))
		}
		if n == 2 {
			break
		}
	}
}

func TestReceiveWaits(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	got := make(chan error, 1)
	go func() {
		ps := make([]packet.Packet, 8)
		n, err := h.Recv(ps)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d packets", n)
		}
		if err == nil {
			_, err = numberIn(&ps[0])
		}
		got <- err
	}()
	f.eventually("a receive waits", func(c census) bool { return c.pending == 1 })
	f.queue(numbered(7, 100))
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestEvents(t *testing.T) {
	f := load(t)
	for _, row := range []struct {
		layer packet.Layer
		event packet.Event
		data  string
	}{
		{packet.LayerFlow, packet.EventFlowEstablished, ""},
		{packet.LayerSocket, packet.EventSocketBind, ""},
		{packet.LayerReflect, packet.EventReflectOpen, "@WinDiv_WX_WWWWAA\x00"},
	} {
		t.Run(row.layer.String(), func(t *testing.T) {
			h := open(t, config(t, "true", row.layer, mandatory[row.layer]))
			want := packet.Address{Layer: row.layer, Event: row.event, Sniffed: mandatory[row.layer]&engine.FlagSniff != 0}
			for i := range want.Union()[:unionUsed[row.layer]] {
				want.Union()[i] = byte(i + 1)
			}
			for range 5 {
				f.queue(packet.Packet{Data: []byte(row.data), Addr: want})
			}
			ps := make([]packet.Packet, 8)
			for left := 5; left > 0; {
				n, err := h.Recv(ps)
				if err != nil {
					t.Fatal(err)
				}
				for i := range ps[:n] {
					if string(ps[i].Data) != row.data || ps[i].Addr != want {
						t.Errorf("got %q %+v", ps[i].Data, ps[i].Addr)
					}
				}
				left -= n
			}
			if _, err := h.Send(ps[:1]); err != engine.ErrReceiveOnly {
				t.Errorf("send: %v", err)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	ps := make([]packet.Packet, 2)
	wait := func() chan error {
		done := make(chan error, 1)
		go func() {
			_, err := h.Recv(ps)
			done <- err
		}()
		return done
	}

	h.SetReadDeadline(time.Now().Add(-time.Second))
	if err := <-wait(); err != os.ErrDeadlineExceeded {
		t.Errorf("a deadline that has passed: %v", err)
	}
	h.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if err := <-wait(); err != os.ErrDeadlineExceeded {
		t.Errorf("a deadline that passes: %v", err)
	}
	h.SetReadDeadline(time.Time{})
	done := wait()
	f.eventually("a receive waits", func(c census) bool { return c.pending == 1 })
	h.SetReadDeadline(time.Unix(1, 0))
	if err := <-done; err != os.ErrDeadlineExceeded {
		t.Errorf("a deadline set while a receive waits: %v", err)
	}
	h.SetReadDeadline(time.Now().Add(time.Hour))
	done = wait()
	f.queue(numbered(3, 3))
	if err := <-done; err != nil {
		t.Errorf("a deadline far away: %v", err)
	}
	f.eventually("nothing waits", func(c census) bool { return c.pending == 0 })
}

func TestCloseWakes(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	done := make(chan error)
	for range 5 {
		go func() {
			_, err := h.Recv(make([]packet.Packet, 2))
			done <- err
		}()
	}
	f.eventually("five receives wait", func(c census) bool { return c.pending == 5 })
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	for range 5 {
		if err := <-done; err != net.ErrClosed {
			t.Errorf("receive: %v", err)
		}
	}
	_, send := h.Send(make([]packet.Packet, 1))
	_, receive := h.Recv(make([]packet.Packet, 1))
	for _, err := range []error{send, receive, h.Shutdown(engine.ShutdownBoth), h.SetLimits(defaults), h.SetReadDeadline(time.Time{})} {
		if err != net.ErrClosed {
			t.Errorf("afterwards: %v", err)
		}
	}
	f.eventually("it is closed", func(c census) bool { return c.contexts == 0 && c.pending == 0 })
}

func TestShutdown(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	for i := range 3 {
		f.queue(numbered(i, 0))
	}
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	ps := make([]packet.Packet, 2)
	for left := 3; left > 0; {
		n, err := h.Recv(ps)
		if err != nil {
			t.Fatal(err)
		}
		left -= n
	}
	for range 2 {
		if _, err := h.Recv(ps); err != io.EOF {
			t.Errorf("the queue is empty: %v", err)
		}
	}
	if n, err := h.Send([]packet.Packet{numbered(1, 1)}); n != 1 || err != nil {
		t.Errorf("sending still works: %d, %v", n, err)
	}
	if err := h.Shutdown(engine.ShutdownSend); err != nil {
		t.Error(err)
	}
	if _, err := h.Send([]packet.Packet{numbered(1, 1)}); !errors.Is(err, engine.ErrShutdown) {
		t.Errorf("send: %v", err)
	}
}

func TestShutdownWakes(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	done := make(chan error, 1)
	go func() {
		_, err := h.Recv(make([]packet.Packet, 1))
		done <- err
	}()
	f.eventually("a receive waits", func(c census) bool { return c.pending == 1 })
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != io.EOF {
		t.Error(err)
	}
}

func TestSend(t *testing.T) {
	f := load(t)
	h := network(t, "false")
	f.log()
	excess := numbered(2, 5)
	excess.Data = append(excess.Data, 1, 2, 3)
	token := numbered(4, 0)
	copy(token.Addr.Union()[8:], "what an engine notes here is no business of the driver's")
	impostor := numbered(6, 0)
	impostor.Addr.Impostor, impostor.Data[8] = true, 1
	ps := []packet.Packet{
		numbered(1, 0), {Data: numbered(2, 9).Data[:30]}, excess, {Data: make([]byte, 40)}, token, impostor, {},
	}
	n, err := h.Send(ps)
	if n != 3 || !errors.Is(err, engine.ErrShortBuffer) {
		t.Errorf("sent %d, %v", n, err)
	}
	log := f.log()
	if len(log) != 1 || log[0].code != codeSend {
		t.Fatalf("requests %+v", log)
	}
	if size := binary.LittleEndian.Uint64(log[0].record[8:]); size != 3*packet.AddressSize {
		t.Errorf("%d bytes of addresses", size)
	}
	var want []byte
	for _, i := range []int{1, 2, 4} {
		a := outboundAddress(uint32(i))
		a.IPv6 = i == 1
		want, _ = a.AppendBinary(want)
	}
	want = append(want, ps[0].Data...)
	want = append(want, ps[2].Data[:len(ps[2].Data)-3]...)
	want = append(want, ps[4].Data...)
	if !bytes.Equal(log[0].data, want) {
		t.Errorf("sent\n%x, want\n%x", log[0].data, want)
	}

	many := make([]packet.Packet, 600)
	for i := range many {
		many[i] = numbered(i, 1000)
	}
	if n, err := h.Send(many); n != 600 || err != nil {
		t.Errorf("sent %d, %v", n, err)
	}
	if c := f.census(); c.sends != 603 {
		t.Errorf("the driver got %d", c.sends)
	}
	f.failAt(after, 0, codeSend, statusHopLimit, 1, 1)
	if n, err := h.Send(many[:512]); n != 511 || !errors.Is(err, engine.ErrHopLimit) {
		t.Errorf("one of the second batch fails: sent %d, %v", n, err)
	}
	s, _ := h.Stats()
	if s.Injected != 3+600+511 || s.Failed != 4+1 || s.Reinjected != 0 {
		t.Errorf("counted %+v", s)
	}
}

func TestReinjected(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	for i := range 3 {
		f.queue(numbered(i, 0))
	}
	for range 3 {
		ps := make([]packet.Packet, 1)
		if _, err := h.Recv(ps); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it is another packet
			if _, err := h.Accept(ps); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, _ := h.Stats()
	if s.Reinjected != 3 || s.Injected != 3 || s.Received != 3 {
		t.Errorf("counted %+v", s)
	}
}

func TestLimits(t *testing.T) {
	load(t)
	cfg := config(t, "true", packet.LayerNetwork, 0)
	cfg.Limits = engine.Limits{Length: 100, Time: 3 * time.Second, Size: 1 << 20}
	h := open(t, cfg)
	check := func(length, ms, size uint64) {
		t.Helper()
		for param, want := range []uint64{length, ms, size, 2, 2} {
			if got, err := h.newest.Load().driver.getParam(uint32(param)); got != want || err != nil {
				t.Errorf("parameter %d is %d, %v; want %d", param, got, err, want)
			}
		}
	}
	check(100, 3000, 1<<20)
	if err := h.SetLimits(engine.Limits{Length: 200, Time: time.Second, Size: 1 << 19}); err != nil {
		t.Error(err)
	}
	check(200, 1000, 1<<19)
	if err := h.SetLimits(engine.Limits{Length: 300, Time: 2 * time.Second, Size: 1}); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("a size that the driver refuses: %v", err)
	}
	check(200, 1000, 1<<19)
}

func TestSetFilter(t *testing.T) {
	f := load(t)
	h := network(t, "udp")
	f.queue(numbered(0, 0))
	f.queue(numbered(1, 0))
	f.log()
	udp6 := config(t, "udp and ipv6", packet.LayerNetwork, 0).Program
	done := make(chan int)
	go func() {
		ps := make([]packet.Packet, 1)
		for want := 0; want < 4; want++ {
			if _, err := h.Recv(ps); err != nil {
				t.Error(err)
				break
			}
			number, err := numberIn(&ps[0])
			if err != nil {
				t.Error(err)
			}
			done <- number
		}
		close(done)
	}()
	if number := <-done; number != 0 {
		t.Errorf("got %d", number)
	}
	if err := h.SetFilter(udp6); err != nil {
		t.Fatal(err)
	}
	want, _ := udp6.AppendInstructions(nil)
	var codes []uint32
	for _, e := range f.log() {
		codes = append(codes, e.code)
		if e.code == codeStartup && !bytes.Equal(e.data, want) {
			t.Errorf("filter %x", e.data)
		}
	}
	if fmt.Sprint(codes) != fmt.Sprint([]uint32{codeInitialize, codeStartup, codeShutdown}) {
		t.Errorf("requests %#x: the new filter must be there before the old one goes", codes)
	}
	f.queue(numbered(3, 0))
	f.queue(numbered(5, 0))
	for _, want := range []int{1, 3, 5} {
		if number := <-done; number != want {
			t.Errorf("got %d, want %d", number, want)
		}
	}
	<-done
	f.eventually("the old one is closed", func(c census) bool { return c.contexts == 1 })
	if n, err := h.Send([]packet.Packet{numbered(1, 1)}); n != 1 || err != nil {
		t.Errorf("sending goes on: %d, %v", n, err)
	}
	if err := h.SetFilter(config(t, "ipv6.FlowLabel == 3", packet.LayerNetwork, 0).Program); !errors.Is(err, engine.ErrNotSupported) {
		t.Errorf("a filter for the interpreter: %v", err)
	}
	h.Close()
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 })
}

// flowLabelled returns a packet with a flow label, which the driver cannot compare.
func flowLabelled(n int, label byte) packet.Packet {
	p := numbered(n|1, 0)
	p.Data[3] = label
	return p
}

func TestJudged(t *testing.T) {
	f := load(t)
	for _, row := range []struct {
		name        string
		flags       uint64
		mode        engine.Mode
		wide        string
		driverFlags uint64
		back        int
	}{
		{"divert", 0, engine.ModeAuto, "ipv6", 0, 2},
		{"divert, receive only", engine.FlagRecvOnly, engine.ModeAuto, "ipv6", 0, 2},
		{"divert, all to the interpreter", 0, engine.ModeInterpret, "true", 0, 2},
		{"sniff", engine.FlagSniff, engine.ModeAuto, "ipv6", engine.FlagSniff, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			f.log()
			cfg := config(t, "ipv6.FlowLabel == 7", packet.LayerNetwork, row.flags)
			cfg.Mode = row.mode
			h := open(t, cfg)
			log := f.log()
			if flags := binary.LittleEndian.Uint64(log[0].record[8:]); flags != row.driverFlags {
				t.Errorf("flags %#x", flags)
			}
			wide, err := config(t, row.wide, packet.LayerNetwork, 0).Program.AppendInstructions(nil)
			if err != nil || !bytes.Equal(log[1].data, wide) {
				t.Errorf("uploaded %x, want %x", log[1].data, wide)
			}
			var missed []byte
			for i, label := range []byte{7, 8, 7, 9, 7} {
				p := flowLabelled(2*i, label)
				f.queue(p)
				if label != 7 {
					missed = append(missed, p.Data...)
				}
			}
			ps := make([]packet.Packet, 2)
			for left := 3; left > 0; {
				n, err := h.Recv(ps)
				if err != nil {
					t.Fatal(err)
				}
				for i := range ps[:n] {
					if ps[i].Data[3] != 7 || ps[i].Addr.Network().SubIfIdx != 3 {
						t.Errorf("got %x %+v", ps[i].Data, ps[i].Addr)
					}
				}
				left -= n
			}
			f.eventually("the others are back", func(c census) bool { return c.sends == uint32(row.back) })
			var back []byte
			for _, e := range f.log() {
				n := int(binary.LittleEndian.Uint64(e.record[8:]))
				back = append(back, e.data[n:]...)
			}
			if row.back > 0 && !bytes.Equal(back, missed) {
				t.Errorf("went back\n%x, want\n%x", back, missed)
			}
			s, _ := h.Stats()
			if s.Matched != 3 || s.Received != 3 || s.Injected != 0 || s.Reinjected != 0 {
				t.Errorf("counted %+v", s)
			}
			f.queue(flowLabelled(0, 7)) // never received
			if row.back > 0 {
				f.eventually("the pump has it", func(c census) bool { return c.queued == 0 })
				waitFor(t, func() bool { s, _ := h.Stats(); return s.Matched == 4 })
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			if c := f.census(); row.back > 0 && c.sends != 3 {
				t.Errorf("what waited at the close did not go on: %+v", c)
			}
			f.ioctl(testReset, nil, nil)
		})
	}
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it never came so")
}

func TestJudgedEnds(t *testing.T) {
	f := load(t)
	h := network(t, "ipv6.FlowLabel == 7")
	f.queue(flowLabelled(1, 7))
	f.queue(flowLabelled(1, 8))
	if err := h.Shutdown(engine.ShutdownBoth); err != nil {
		t.Fatal(err)
	}
	ps := make([]packet.Packet, 4)
	if n, err := h.Recv(ps); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := h.Recv(ps); err != io.EOF {
		t.Error(err)
	}
	if _, err := h.Send(ps[:1]); err != engine.ErrShutdown {
		t.Error(err)
	}
	f.eventually("the other went back, all the same", func(c census) bool { return c.sends == 1 })
	h.SetReadDeadline(time.Now())
	if _, err := h.Recv(ps); err != os.ErrDeadlineExceeded {
		t.Error(err)
	}
}

func TestRefusedFilters(t *testing.T) {
	load(t)
	for _, row := range []struct {
		name, filter string
		layer        packet.Layer
		flags        uint64
		mode         engine.Mode
		text         string
	}{
		{"a handle that drops", "ipv6.FlowLabel == 7", packet.LayerNetwork, engine.FlagDrop, engine.ModeAuto, "drops"},
		{"a handle that only sends", "ipv6.FlowLabel == 7", packet.LayerNetwork, engine.FlagSendOnly, engine.ModeAuto, "only sends"},
		{"the kernel must decide", "ipv6.FlowLabel == 7", packet.LayerNetwork, 0, engine.ModeKernel, "in the kernel"},
		{"socket calls that block", "localPort in {" + strings.Repeat("1,5,", 1) + manyPorts + "}", packet.LayerSocket, engine.FlagRecvOnly, engine.ModeAuto, "blocks"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := config(t, row.filter, row.layer, row.flags)
			cfg.Mode = row.mode
			_, err := Open(cfg)
			if !errors.Is(err, engine.ErrNotSupported) || !strings.Contains(err.Error(), row.text) {
				t.Error(err)
			}
		})
	}
}

// manyPorts is a set of more ports than a filter of the driver may have tests.
var manyPorts = func() string {
	var b strings.Builder
	for i := range 300 {
		fmt.Fprintf(&b, "%d,", 10+2*i)
	}
	return b.String()
}()
