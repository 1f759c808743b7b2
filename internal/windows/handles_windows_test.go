package windows_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/internal/windows"
	"github.com/opendivert/divert/packet"
)

// These tests treat handles as programs do. They repeat Linux's tests on real traffic with the model of the driver.

// openAt opens a handle that is closed with the test.
func openAt(t *testing.T, m *windows.Model, text string, opts ...divert.Option) *divert.Handle {
	t.Helper()
	h, err := divert.Open(text, append(opts, divert.WithDriver(m.Path()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// drained shuts receiving down and returns the packets captured until then.
func drained(t *testing.T, h *divert.Handle) (all []divert.Packet) {
	t.Helper()
	if err := h.Shutdown(divert.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	for {
		ps := make([]divert.Packet, 7)
		n, err := h.RecvBatch(ps)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ps[:n]...)
	}
}

// numbers returns the numbers of packets, which must be intact.
func numbers(t *testing.T, ps []packet.Packet) (all []int) {
	t.Helper()
	for i := range ps {
		n, err := windows.Number(&ps[i])
		if err != nil {
			t.Error(err)
		}
		all = append(all, n)
	}
	return all
}

// wantNumbers checks the numbers of packets.
func wantNumbers(t *testing.T, what string, ps []packet.Packet, want ...int) {
	t.Helper()
	if got := numbers(t, ps); !slices.Equal(got, want) {
		t.Errorf("%s: packets %v, want %v", what, got, want)
	}
}

// upTo returns the numbers from one to another, which is excluded.
func upTo(from, to int) (all []int) {
	for n := from; n < to; n++ {
		all = append(all, n)
	}
	return all
}

func engines(t *testing.T, test func(t *testing.T, e divert.Option)) {
	t.Run("driver", func(t *testing.T) { test(t, divert.WithEngine(divert.EngineAuto)) })
	t.Run("interpreter", func(t *testing.T) { test(t, divert.WithEngine(divert.EngineInterpreter)) })
}

// TestHandlesInOrder: handles see a packet from the highest priority to the lowest, of equal ones the newest first; a
// sent packet is seen only by handles below the sender.
func TestHandlesInOrder(t *testing.T) {
	m := windows.LoadModel(t)
	sniff := divert.WithFlags(divert.Sniff)
	top := openAt(t, m, "udp", divert.WithPriority(10), sniff)
	older := openAt(t, m, "udp")
	newer := openAt(t, m, "udp")
	low := openAt(t, m, "udp", divert.WithPriority(-10), sniff)
	other := openAt(t, m, "tcp", divert.WithPriority(20))

	m.Bring(windows.Numbered(1, 0))
	ps := make([]divert.Packet, 4)
	if n, err := newer.RecvBatch(ps); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := newer.Accept(&ps[0]); err != nil {
		t.Fatal(err)
	}
	if n, err := older.RecvBatch(ps); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if len(m.Left()) != 0 {
		t.Error("it left, although a handle has it")
	}
	if err := older.Accept(&ps[0]); err != nil {
		t.Fatal(err)
	}
	wantNumbers(t, "what left", m.Left(), 1)
	for name, h := range map[string]*divert.Handle{"top": top, "low": low} {
		all := drained(t, h)
		wantNumbers(t, name, all, 1)
		if !all[0].Addr.Sniffed {
			t.Errorf("%s: not marked as a copy", name)
		}
	}
	for name, h := range map[string]*divert.Handle{"older": older, "newer": newer, "other": other} {
		wantNumbers(t, name, drained(t, h))
	}
}

// TestActions: each kind of handle treats matching packets as it should, and lets others pass.
func TestActions(t *testing.T) {
	for _, row := range []struct {
		flags     divert.Flag
		got, left []int
	}{
		{0, []int{2}, []int{1}},
		{divert.Sniff, []int{2}, []int{1, 2}},
		{divert.Drop, nil, []int{1}},
		{divert.Sniff | divert.RecvOnly, []int{2}, []int{1, 2}},
	} {
		t.Run(row.flags.String(), func(t *testing.T) {
			m := windows.LoadModel(t)
			h := openAt(t, m, "ip and udp.DstPort == 53", divert.WithFlags(row.flags))
			m.Bring(windows.Numbered(1, 0), windows.Numbered(2, 0))
			wantNumbers(t, "received", drained(t, h), row.got...)
			wantNumbers(t, "what left", m.Left(), row.left...)
			m.Bring(windows.Numbered(4, 0))
			wantNumbers(t, "after the shutdown", m.Left(), 4)
		})
	}
}

// TestQueueLimits: packets beyond the queue's room or time are lost, the oldest first.
func TestQueueLimits(t *testing.T) {
	t.Run("length", func(t *testing.T) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp", divert.WithQueueLength(32))
		for n := range 40 {
			m.Bring(windows.Numbered(n, 0))
		}
		wantNumbers(t, "received", drained(t, h), upTo(8, 40)...)
	})
	t.Run("size", func(t *testing.T) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp", divert.WithQueueSize(65535))
		for n := range 100 {
			m.Bring(windows.Numbered(2*n, 1000-32-63)) // 1000 bytes with the overhead of an item
		}
		var want []int
		for n := range 65 {
			want = append(want, 2*(35+n))
		}
		wantNumbers(t, "received", drained(t, h), want...)
	})
	t.Run("time", func(t *testing.T) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp", divert.WithQueueTime(time.Second))
		m.Bring(windows.Numbered(0, 0))
		m.Pass(600 * time.Millisecond)
		m.Bring(windows.Numbered(1, 0))
		m.Pass(600 * time.Millisecond)
		m.Bring(windows.Numbered(2, 0))
		wantNumbers(t, "received", drained(t, h), 1, 2)
	})
	t.Run("parameters", func(t *testing.T) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp")
		if err := h.SetQueueLength(32); err != nil {
			t.Fatal(err)
		}
		for n := range 33 {
			m.Bring(windows.Numbered(n, 0))
		}
		wantNumbers(t, "received", drained(t, h), upTo(1, 33)...)
	})
}

// TestCloseLetsGo: packets that wait when a handle closes go on, past the handle, unless they are copies or too old.
func TestCloseLetsGo(t *testing.T) {
	engines(t, func(t *testing.T, e divert.Option) {
		m := windows.LoadModel(t)
		low := openAt(t, m, "udp", divert.WithPriority(-1))
		h := openAt(t, m, "udp", e)
		for n := range 5 {
			m.Bring(windows.Numbered(n, 0))
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		wantNumbers(t, "the handle below", drained(t, low), 0, 1, 2, 3, 4)
		if len(m.Left()) != 0 {
			t.Error("something left")
		}
	})
	t.Run("too old", func(t *testing.T) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp")
		m.Bring(windows.Numbered(0, 0))
		m.Pass(3 * time.Second)
		m.Bring(windows.Numbered(1, 0))
		h.Close()
		m.Closed()
		wantNumbers(t, "what left", m.Left(), 1)
	})
	t.Run("copies", func(t *testing.T) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp", divert.WithFlags(divert.Sniff))
		m.Bring(windows.Numbered(0, 0))
		h.Close()
		m.Closed()
		wantNumbers(t, "what left", m.Left(), 0)
	})
}

// TestSetFilterUnderTraffic changes a filter continuously, to others that also match: each packet comes once, and goes on
// once.
func TestSetFilterUnderTraffic(t *testing.T) {
	engines(t, func(t *testing.T, e divert.Option) {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp", e)
		const total = 500
		seen := make(chan int, total)
		go func() {
			defer close(seen)
			for p, err := range h.Packets(t.Context()) {
				if err != nil {
					return
				}
				if n, err := windows.Number(p); err == nil {
					seen <- n
				}
				if err := h.Accept(p); err != nil {
					t.Error(err)
				}
			}
		}()
		for n := range total {
			m.Bring(windows.Numbered(n, n))
			if n%10 == 5 {
				if err := h.SetFilter([]string{"udp", "udp.DstPort == 53"}[n/10%2]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := h.Shutdown(divert.ShutdownRecv); err != nil {
			t.Fatal(err)
		}
		var came []int
		for n := range seen {
			came = append(came, n)
		}
		if !slices.Equal(came, upTo(0, total)) {
			t.Errorf("came: %v", came)
		}
		wantNumbers(t, "what left", m.Left(), upTo(0, total)...)
	})
}

// TestSetFilterLeavesOneHandle: a handle without receive calls has one of the driver, however often its filter changes.
func TestSetFilterLeavesOneHandle(t *testing.T) {
	for _, flags := range []divert.Flag{divert.Drop, divert.SendOnly} {
		m := windows.LoadModel(t)
		h := openAt(t, m, "udp", divert.WithFlags(flags))
		for i := range 10 {
			if err := h.SetFilter([]string{"udp and ipv6", "udp and ip"}[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		r := openAt(t, m, "true", divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff|divert.RecvOnly))
		if n := len(drained(t, r)); n != 1 {
			t.Errorf("%v: %d handles", flags, n)
		}
		m.Bring(windows.Numbered(1, 0), windows.Numbered(2, 0))
		wantNumbers(t, "what left", m.Left(), 1)
		h.Close()
		r.Close()
		m.Closed()
	}
}

// TestSetFilterKeepsWhatNobodyReads changes the filter of a handle without receive calls: it has at most two handles of
// the driver, and its packets are received in order, or go on when it closes.
func TestSetFilterKeepsWhatNobodyReads(t *testing.T) {
	const total = 30
	for name, received := range map[string]bool{"received": true, "closed": false} {
		t.Run(name, func(t *testing.T) {
			m := windows.LoadModel(t)
			h := openAt(t, m, "udp")
			for n := range total {
				m.Bring(windows.Numbered(n, 0))
				if err := h.SetFilter([]string{"udp", "udp.DstPort == 53"}[n%2]); err != nil {
					t.Fatal(err)
				}
			}
			r := openAt(t, m, "true", divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff|divert.RecvOnly))
			if n := len(drained(t, r)); n > 2 {
				t.Errorf("%d handles", n)
			}
			r.Close()
			if received {
				wantNumbers(t, "received", drained(t, h), upTo(0, total)...)
				return
			}
			h.Close()
			wantNumbers(t, "what left", m.Left(), upTo(0, total)...)
		})
	}
}

// TestAcceptWhole: a packet may be cut for the program; Accept lets the whole packet go on.
func TestAcceptWhole(t *testing.T) {
	m := windows.LoadModel(t)
	h := openAt(t, m, "udp", divert.WithSnapLength(64))
	for n := range 10 {
		m.Bring(windows.Numbered(n, 1000))
	}
	ps := make([]divert.Packet, 4)
	for got := 0; got < 10; {
		n, err := h.RecvBatch(ps)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ps[:n] {
			if len(ps[i].Data) != 64 {
				t.Errorf("%d bytes", len(ps[i].Data))
			}
		}
		if accepted, err := h.AcceptBatch(ps[:n]); accepted != n || err != nil {
			t.Fatal(accepted, err)
		}
		got += n
	}
	wantNumbers(t, "what left", m.Left(), upTo(0, 10)...)

	short := openAt(t, m, "udp", divert.WithPriority(1))
	m.Bring(windows.Numbered(11, 1000))
	b := make([]byte, 100)
	n, a, err := short.Recv(b)
	if n != 100 || !errors.Is(err, divert.ErrShortBuffer) {
		t.Fatal(n, err)
	}
	if err := h.Close(); err != nil { // else it would get the packet
		t.Fatal(err)
	}
	if err := short.Accept(&divert.Packet{Data: b[:n], Addr: a}); err != nil {
		t.Fatal(err)
	}
	wantNumbers(t, "what left", m.Left(), 11)
}

// flowEvent returns an event of a flow to a port.
func flowEvent(layer divert.Layer, e divert.Event, port uint16) divert.Packet {
	a := packet.Address{Timestamp: 12345, Layer: layer, Event: e, Outbound: true}
	d := packet.FlowData{EndpointID: 7, ProcessID: 4711, Protocol: 6, LocalPort: 1234, RemotePort: port}
	d.LocalAddr, d.RemoteAddr = netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.1.2.3")
	a.SetFlow(d)
	return divert.Packet{Addr: a}
}

// TestFlows: a handle reports the flows that begin while it is open, and their ends, with the same data.
func TestFlows(t *testing.T) {
	established := func(port uint16) divert.Packet {
		return flowEvent(divert.LayerFlow, packet.EventFlowEstablished, port)
	}
	deleted := func(port uint16) divert.Packet {
		return flowEvent(divert.LayerFlow, packet.EventFlowDeleted, port)
	}
	engines(t, func(t *testing.T, e divert.Option) {
		m := windows.LoadModel(t)
		m.Bring(established(1))
		h := openAt(t, m, "remotePort < 1000 and processId == 4711", divert.WithLayer(divert.LayerFlow),
			divert.WithFlags(divert.Sniff|divert.RecvOnly), e)
		m.Bring(established(2), established(3), established(2000), deleted(1), deleted(3), deleted(2000), deleted(2))
		var got []string
		for _, p := range drained(t, h) {
			f := p.Addr.Flow()
			got = append(got, fmt.Sprint(p.Addr.Event, f.RemotePort, f.RemoteAddr, f.EndpointID, p.Addr.Sniffed))
		}
		var want []string
		for _, p := range []divert.Packet{established(2), established(3), deleted(3), deleted(2)} {
			f := p.Addr.Flow()
			want = append(want, fmt.Sprint(p.Addr.Event, f.RemotePort, f.RemoteAddr, f.EndpointID, true))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestSocketEvents: a call that a handle refuses is not seen below it; all handles learn of a socket's end.
func TestSocketEvents(t *testing.T) {
	m := windows.LoadModel(t)
	opened := func(flags divert.Flag, priority int16) *divert.Handle {
		return openAt(t, m, "remotePort == 80", divert.WithLayer(divert.LayerSocket), divert.WithPriority(priority), divert.WithFlags(flags|divert.RecvOnly))
	}
	top, block, low := opened(divert.Sniff, 1), opened(0, 0), opened(divert.Sniff, -1)
	for _, e := range []divert.Event{packet.EventSocketConnect, packet.EventSocketClose} {
		m.Bring(flowEvent(divert.LayerSocket, e, 80), flowEvent(divert.LayerSocket, e, 81))
	}
	for name, row := range map[string]struct {
		h    *divert.Handle
		want string
	}{
		"top": {top, "CONNECT true CLOSE true"}, "block": {block, "CONNECT false CLOSE true"}, "low": {low, "CLOSE true"},
	} {
		var got []string
		for _, p := range drained(t, row.h) {
			got = append(got, fmt.Sprint(p.Addr.Event, " ", p.Addr.Sniffed))
		}
		if strings.Join(got, " ") != row.want {
			t.Errorf("%s got %q, want %s", name, got, row.want)
		}
	}
}

// TestReflect: a handle at the layer REFLECT reports the open handles, and those that come and go, with their filters.
func TestReflect(t *testing.T) {
	m := windows.LoadModel(t)
	texts := []string{"true", "tcp.DstPort = 80", "outbound and (ip.DstAddr = 10.0.0.1 or ipv6.SrcAddr >= fe80::1)", "packet[-4b] = 0x1 and length > 100"}
	var handles []*divert.Handle
	for i, text := range texts[:2] {
		handles = append(handles, openAt(t, m, text, divert.WithPriority(int16(i-7))))
	}
	r := openAt(t, m, "true", divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff|divert.RecvOnly))
	for i, text := range texts[2:] {
		handles = append(handles, openAt(t, m, text, divert.WithPriority(int16(i-5)), divert.WithFlags(divert.Sniff)))
	}
	for _, h := range handles {
		h.Close()
	}
	ps := make([]divert.Packet, 8)
	opens, closes := 0, 0
	for opens+closes < 8 {
		n, err := r.RecvBatch(ps)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ps[:n] {
			d := ps[i].Addr.Reflect()
			which := int(d.Priority) + 7
			object, err := progtest.Compile(strings.TrimSuffix(string(ps[i].Data), "\x00"), d.Layer, filter.Strict)
			if err != nil || which < 0 || which > 3 || object.String() != texts[which] || d.ProcessID != uint32(os.Getpid()) {
				t.Errorf("%v: filter %q, %v, %+v", ps[i].Addr.Event, ps[i].Data, err, d)
			}
			if ps[i].Addr.Event == packet.EventReflectOpen {
				opens++
			} else {
				closes++
			}
		}
	}
	if opens != 4 || closes != 4 {
		t.Errorf("%d opened, %d closed", opens, closes)
	}
}

// TestImpostors: a packet of another driver loses a hop when it is sent on, and is refused at the end of its hops,
// without holding up others.
func TestImpostors(t *testing.T) {
	m := windows.LoadModel(t)
	h := openAt(t, m, "udp and impostor")
	for n, hops := range []byte{64, 1, 2} {
		p := windows.Numbered(2*n, 0)
		p.Addr.Impostor, p.Data[8] = true, hops
		m.Bring(p)
	}
	ps := drained(t, h)
	if n, err := h.SendBatch(ps); n != 2 || !errors.Is(err, divert.ErrHopLimit) {
		t.Errorf("sent %d, %v", n, err)
	}
	var hops []byte
	for _, p := range m.Left() {
		hops = append(hops, p.Data[8])
	}
	if !slices.Equal(hops, []byte{63, 1}) {
		t.Errorf("what left has %v hops", hops)
	}
}
