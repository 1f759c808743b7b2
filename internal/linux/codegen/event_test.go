//go:build linux

package codegen

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// eventRecord writes an address as the record that programs keep.
func eventRecord(a *packet.Address) []byte {
	ne := binary.NativeEndian
	b := make([]byte, EventSize)
	d := a.Flow()
	ne.PutUint64(b[EventTime:], uint64(a.Timestamp))
	ne.PutUint64(b[EventEndpoint:], d.EndpointID)
	ne.PutUint64(b[EventParent:], d.ParentEndpointID)
	for at, addr := range map[int16]netip.Addr{EventLocal: d.LocalAddr, EventRemote: d.RemoteAddr} {
		ip := addr.As16()
		ne.PutUint64(b[at:], binary.BigEndian.Uint64(ip[0:]))
		ne.PutUint64(b[at+8:], binary.BigEndian.Uint64(ip[8:]))
	}
	ne.PutUint32(b[EventProcess:], d.ProcessID)
	ne.PutUint16(b[EventLocalPort:], d.LocalPort)
	ne.PutUint16(b[EventRemotePort:], d.RemotePort)
	b[EventProtocol] = d.Protocol
	if a.IPv6 {
		b[EventIPv6] = 1
	}
	if a.Loopback {
		b[EventLoopback] = 1
	}
	return b
}

// loadDecision loads a program that decides about the record that is its packet.
func loadDecision(p *prog.Program, h EventHook) (_ *ebpf.Program, outcome Outcome, err error) {
	var d EventDecider
	decision, outcome, err := d.Decide(p, h)
	if err != nil || outcome != Depends {
		return nil, outcome, err
	}
	code := asm.Instructions{
		asm.Mov.Reg(regContext, asm.R1),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, regFrame),
		asm.Add.Imm(asm.R3, int32(EventFrame)),
		asm.Mov.Imm(asm.R4, EventSize),
		asm.FnSkbLoadBytes.Call(),
		asm.JEq.Imm(asm.R0, 0, "loaded"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}
	decision[0] = decision[0].WithSymbol("loaded")
	code = append(append(code, decision...), asm.Return())
	for _, spec := range d.Maps() {
		m, err := newMap(spec)
		if err != nil {
			return nil, outcome, err
		}
		defer m.Close()
		for i := range code {
			if code[i].Reference() == spec.Name {
				if err := code[i].AssociateMap(m); err != nil {
					return nil, outcome, err
				}
			}
		}
	}
	kernel.LiftMemlock()
	loaded, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, Instructions: code, License: "GPL"})
	return loaded, outcome, err
}

// decideEvent answers as the kernel does.
func decideEvent(p *prog.Program, a *packet.Address, h EventHook) (bool, error) {
	loaded, outcome, err := loadDecision(p, h)
	if err != nil || outcome != Depends {
		return outcome == Always, err
	}
	defer loaded.Close()
	r, err := loaded.Run(&ebpf.RunOptions{Data: frame(eventRecord(a))})
	return r != 0, err
}

// anyEvent returns an event of a layer.
func anyEvent(r *rand.Rand, layer packet.Layer) packet.Address {
	a := packet.Address{
		Timestamp: [...]int64{0, 1, -5, 123456789, int64(r.Uint64())}[r.IntN(5)], Layer: layer,
		Event: packet.EventFlowEstablished + packet.Event(r.IntN(2)), Outbound: r.IntN(2) == 0, Loopback: r.IntN(2) == 0,
	}
	if layer == packet.LayerSocket {
		a.Event = packet.EventSocketBind + packet.Event(r.IntN(5))
	}
	addr := func() netip.Addr {
		return netip.MustParseAddr([...]string{"10.0.0.1", "10.0.0.2", "0.0.0.0", "::", "2001:db8::1", "2001:db8::1:2", "ffff::1"}[r.IntN(7)])
	}
	d := packet.FlowData{
		EndpointID: r.Uint64() >> r.IntN(64), ParentEndpointID: uint64(r.IntN(3)), ProcessID: r.Uint32() >> r.IntN(32),
		LocalAddr: addr(), RemoteAddr: addr(), LocalPort: uint16(r.IntN(100)), RemotePort: uint16(r.Uint32()),
		Protocol: [...]uint8{1, 6, 17, 58, 255}[r.IntN(5)],
	}
	a.IPv6 = d.LocalAddr.Is6()
	a.SetFlow(d)
	return a
}

// TestEventsDecideLikeTheInterpreter compares the two for filters and events of all kinds.
func TestEventsDecideLikeTheInterpreter(t *testing.T) {
	requireBPF(t)
	r := rand.New(rand.NewPCG(4, 4))
	for range 1500 {
		layer := packet.LayerFlow + packet.Layer(r.IntN(2))
		a := anyEvent(r, layer)
		compareEvent(t, r, &a)
	}
}

func compareEvent(t *testing.T, r *rand.Rand, a *packet.Address) {
	t.Helper()
	d := a.Flow()
	p, text := anyEventFilter(r, a)
	if p == nil {
		return
	}
	h := EventHook{Event: a.Event, Inbound: !a.Outbound}
	switch r.IntN(3) {
	case 0:
		h.Protocol = d.Protocol
	case 1:
		h.NoTCP = d.Protocol != protoTCP
	}
	got, err := decideEvent(p, a, h)
	if err != nil {
		t.Fatalf("%q: %+v", text, err)
	}
	if want := p.Match(nil, a); got != want {
		t.Errorf("%q on %+v %+v: %v, the interpreter says %v", text, *a, d, got, want)
	}
	// A filter that matches without the local side matches with any.
	h.LocalUnknown = true
	if sure, err := decideEvent(p, a, h); err != nil || sure && !got {
		t.Errorf("%q without the local side: %v, %v", text, sure, err)
	}
}

// anyEventFilter returns a filter of the event's layer, nil if the text does not compile.
func anyEventFilter(r *rand.Rand, a *packet.Address) (*prog.Program, string) {
	fields := anyFields(a.Layer)
	for _, f := range filter.Fields() {
		if f.Name == prog.FieldProcessID.String() {
			fields = append(fields, f)
		}
	}
	record := eventRecord(a)
	dialect := [...]filter.Dialect{filter.Strict, filter.Extended}[r.IntN(2)]
	text := anyFilter(r, 3, func() string {
		d := a.Flow()
		switch r.IntN(8) {
		case 0:
			return fmt.Sprintf("processId == %d", d.ProcessID)
		case 1:
			return fmt.Sprintf("endpointId >= %d", d.EndpointID)
		case 2:
			return fmt.Sprintf("localAddr == %v", d.LocalAddr)
		}
		for range 20 { // one test at a time, so that few filters are refused for one of many
			text := anyTest(r, fields, record, dialect)
			if _, err := progtest.Compile(text, a.Layer, dialect); err == nil {
				return text
			}
		}
		return "true"
	})
	p, err := progtest.Compile(text, a.Layer, dialect)
	if err != nil {
		return nil, text
	}
	return p, text
}

// TestLongEventFilters load, and decide like the interpreter.
func TestLongEventFilters(t *testing.T) {
	requireBPF(t)
	var b strings.Builder
	for i := range 3400 {
		fmt.Fprintf(&b, "(remotePort == %d and localAddr == 10.0.%d.%d) or ", i, i>>8, i&255)
	}
	p, err := progtest.Compile(b.String()+"processId == 7", packet.LayerSocket, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	loaded, _, err := loadDecision(p, EventHook{Event: packet.EventSocketBind})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer loaded.Close()
	for _, tt := range []struct {
		data packet.FlowData
		want uint32
	}{
		{packet.FlowData{ProcessID: 7}, 1},
		{packet.FlowData{ProcessID: 8}, 0},
		{packet.FlowData{RemotePort: 3399, LocalAddr: netip.AddrFrom4([4]byte{10, 0, 13, 71})}, 1},
		{packet.FlowData{RemotePort: 3399, LocalAddr: netip.AddrFrom4([4]byte{10, 0, 13, 72})}, 0},
	} {
		a := packet.Address{Layer: packet.LayerSocket, Event: packet.EventSocketBind, Outbound: true}
		if !tt.data.LocalAddr.IsValid() {
			tt.data.LocalAddr = netip.IPv6Unspecified()
		}
		tt.data.RemoteAddr = netip.IPv6Unspecified()
		a.SetFlow(tt.data)
		if got, err := loaded.Run(&ebpf.RunOptions{Data: frame(eventRecord(&a))}); err != nil || got != tt.want || (tt.want != 0) != p.Match(nil, &a) {
			t.Errorf("%+v: %d, %v", tt.data, got, err)
		}
	}
}

func FuzzEventsDecideLikeTheInterpreter(f *testing.F) {
	requireBPF(f)
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed1, seed2 uint64) {
		r := rand.New(rand.NewPCG(seed1, seed2))
		a := anyEvent(r, packet.LayerFlow+packet.Layer(r.IntN(2)))
		compareEvent(t, r, &a)
	})
}
