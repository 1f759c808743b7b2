package diverttest_test

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// event is one with the data of a TCP connection from near to far.
func event(e divert.Event, localPort uint16) divert.Address {
	a := divert.Address{Event: e}
	a.SetFlow(packet.FlowData{
		LocalAddr: near4.Addr(), LocalPort: localPort, RemoteAddr: far4.Addr(), RemotePort: far4.Port(),
		Protocol: packet.ProtocolTCP, ProcessID: 42, EndpointID: uint64(localPort),
	})
	return a
}

// heard shuts a handle down and returns its events.
func heard(t testing.TB, h *divert.Handle) (events []divert.Event) {
	t.Helper()
	check(t, h.Shutdown(divert.ShutdownBoth))
	for {
		n, a, err := h.Recv(make([]byte, 1000))
		if err == io.EOF {
			return events
		}
		check(t, err)
		if a.Layer != h.Layer() || (n > 0) != (h.Layer() == divert.LayerReflect) {
			t.Errorf("received %d bytes with %+v", n, a)
		}
		events = append(events, a.Event)
	}
}

func hears(t testing.TB, what string, h *divert.Handle, want ...divert.Event) {
	t.Helper()
	if got := heard(t, h); !slices.Equal(got, want) {
		t.Errorf("%s heard %v, want %v", what, got, want)
	}
}

// TestFlows: handles that were open at a flow's beginning learn of its end, whether or not their filter matched the
// beginning.
func TestFlows(t *testing.T) {
	n := diverttest.New()
	flow, flags := divert.WithLayer(divert.LayerFlow), divert.WithFlags(divert.Sniff|divert.RecvOnly)
	all := open(t, n, "remotePort == 53", flow, flags)
	ends := open(t, n, "event == DELETED", flow, flags)
	others := open(t, n, "localPort == 9", flow, flags)
	first, second := event(packet.EventFlowEstablished, 1), event(packet.EventFlowEstablished, 2)
	raise := func(a divert.Address) {
		t.Helper()
		if allowed, err := n.Raise(a); !allowed || err != nil {
			t.Errorf("raise %v: %v, %v", a.Event, allowed, err)
		}
	}
	raise(first)
	late := open(t, n, "true", flow, flags)
	raise(second)
	first.Event, second.Event = packet.EventFlowDeleted, packet.EventFlowDeleted
	raise(first)
	raise(second)
	hears(t, "a handle for all", all, packet.EventFlowEstablished, packet.EventFlowEstablished, packet.EventFlowDeleted, packet.EventFlowDeleted)
	hears(t, "a handle for ends", ends, packet.EventFlowDeleted, packet.EventFlowDeleted)
	hears(t, "a handle for others", others)
	hears(t, "a handle opened late", late, packet.EventFlowEstablished, packet.EventFlowDeleted)
}

// TestSocketVerdicts: the verdict of each kind of handle on a call and on CLOSE, and the events that a sniffing one below
// gets.
func TestSocketVerdicts(t *testing.T) {
	for _, row := range []struct {
		name    string
		flags   divert.Flag
		event   divert.Event
		allowed bool
		told    bool // whether the handle gets the event
		sniffed bool
		below   bool
	}{
		{"sniff", divert.Sniff, packet.EventSocketConnect, true, true, true, true},
		{"block", 0, packet.EventSocketBind, false, true, false, false},
		{"block", 0, packet.EventSocketConnect, false, true, false, false},
		{"block", 0, packet.EventSocketListen, false, true, false, false},
		{"block", 0, packet.EventSocketAccept, false, true, false, false},
		{"block", 0, packet.EventSocketClose, true, true, true, true},
		{"drop", divert.Drop, packet.EventSocketConnect, false, false, false, false},
		{"drop", divert.Drop, packet.EventSocketClose, true, false, false, true},
	} {
		t.Run(row.name+"/"+row.event.String(), func(t *testing.T) {
			n := diverttest.New()
			socket := divert.WithLayer(divert.LayerSocket)
			h := open(t, n, "processId == 42", socket, divert.WithFlags(row.flags|divert.RecvOnly), divert.WithPriority(1))
			below := open(t, n, "true", socket, divert.WithFlags(divert.Sniff|divert.RecvOnly))
			if allowed, err := n.Raise(event(row.event, 1)); err != nil || allowed != row.allowed {
				t.Errorf("allowed: %v, %v", allowed, err)
			}
			want := []divert.Event{row.event}
			if !row.below {
				want = nil
			}
			hears(t, "the handle below", below, want...)
			if !row.told {
				stats(t, h, divert.Stats{Matched: 1, Dropped: 1})
				if _, _, err := h.Recv(nil); !errors.Is(err, divert.ErrDropOnly) {
					t.Errorf("receiving: %v, want ErrDropOnly", err)
				}
				return
			}
			_, a, err := h.Recv(nil)
			if err != nil || a.Sniffed != row.sniffed || a.Outbound != (row.event != packet.EventSocketAccept) || a.Flow().ProcessID != 42 {
				t.Errorf("told %+v of %+v (%v)", a, a.Flow(), err)
			}
		})
	}
}

func TestRaiseRefuses(t *testing.T) {
	n := diverttest.New()
	established := event(packet.EventFlowEstablished, 1)
	if _, err := n.Raise(established); err != nil {
		t.Error(err)
	}
	ofSocket := event(packet.EventFlowEstablished, 2)
	ofSocket.Layer = divert.LayerSocket
	for name, a := range map[string]divert.Address{
		"a packet": {}, "a handle that opens": {Event: packet.EventReflectOpen}, "no event": {Event: packet.NumEvents},
		"established twice": established, "deleted before": event(packet.EventFlowDeleted, 3), "of another layer": ofSocket,
	} {
		if allowed, err := n.Raise(a); allowed || !errors.Is(err, divert.ErrInvalid) {
			t.Errorf("%s: %v, %v", name, allowed, err)
		}
	}
}

// TestHandlesAreListed: a handle of REFLECT that is shut down at once lists the others, in the order of their opening.
func TestHandlesAreListed(t *testing.T) {
	n := diverttest.New()
	open(t, n, "tcp.DstPort == 80", divert.WithPriority(-5))
	open(t, n, "tcp.DstPort in {80, 443}", divert.WithFlags(divert.Sniff), divert.WithPriority(5))
	open(t, n, "localPort == 1", divert.WithLayer(divert.LayerFlow), divert.WithFlags(divert.Sniff|divert.RecvOnly))
	reflect, flags := divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff|divert.RecvOnly)
	silent := open(t, n, "event == CLOSE", reflect, flags)
	r := open(t, n, "layer == NETWORK", reflect, flags)
	check(t, r.Shutdown(divert.ShutdownBoth))
	open(t, n, "true") // opened too late to be listed by either
	var got []string
	for p, err := range r.Packets(t.Context()) {
		check(t, err)
		d := p.Addr.Reflect()
		text := string(p.Data[:len(p.Data)-1])
		program, err := filter.Compile(text, d.Layer, filter.Extended)
		if err != nil { // of the extended dialect
			program, err = filter.Compile(text, d.Layer, filter.Extended)
		}
		check(t, err)
		text, err = program.Format()
		check(t, err)
		got = append(got, text)
	}
	if want := []string{"tcp.DstPort = 80", "tcp.DstPort = 80 or tcp.DstPort = 443"}; !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	hears(t, "a handle for ends", silent)
}

// TestFamilyOfEvents: the address has the family of its local address.
func TestFamilyOfEvents(t *testing.T) {
	for _, local := range []netip.Addr{near4.Addr(), near6.Addr(), netip.AddrFrom16(near4.Addr().As16())} {
		n := diverttest.New()
		h := open(t, n, "true", divert.WithLayer(divert.LayerSocket), divert.WithFlags(divert.Sniff|divert.RecvOnly))
		a := divert.Address{Event: packet.EventSocketListen}
		a.SetFlow(packet.FlowData{LocalAddr: local, LocalPort: 80, Protocol: packet.ProtocolTCP})
		if _, err := n.Raise(a); err != nil {
			t.Fatal(err)
		}
		_, got, err := h.Recv(nil)
		if want := local.Unmap().Is6(); err != nil || got.IPv6 != want || got.Flow().LocalAddr != local.Unmap() {
			t.Errorf("%v: IPv6 is %v, of %v (%v)", local, got.IPv6, got.Flow().LocalAddr, err)
		}
	}
}
