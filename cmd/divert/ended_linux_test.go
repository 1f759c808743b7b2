package main

import (
	"bytes"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// TestNamesOfEndedProcesses prints the events of processes that have ended: the event itself has their name.
func TestNamesOfEndedProcesses(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^$")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	event := func(layer divert.Layer, what packet.Event, name string) *divert.Packet {
		e := &divert.Packet{Addr: divert.Address{Layer: layer, Event: what, Sniffed: true}}
		e.Addr.SetFlow(packet.FlowData{ProcessID: uint32(cmd.Process.Pid), Protocol: 6, LocalAddr: netip.IPv6Loopback(), RemoteAddr: netip.IPv6Loopback()})
		var b [packet.ProcessNameSize]byte
		copy(b[:], name)
		e.Addr.SetProcessName(b)
		return e
	}
	for _, tt := range []struct {
		name string
		json bool
		e    *divert.Packet
		want string
	}{
		{"socket", false, event(divert.LayerSocket, packet.EventSocketConnect, "curl"), " program=curl "},
		{"socket, JSON", true, event(divert.LayerSocket, packet.EventSocketConnect, "curl"), `"name":"curl"`},
		{"flow", false, event(divert.LayerFlow, packet.EventFlowEstablished, "curl"), " curl "},
		{"no name", false, event(divert.LayerSocket, packet.EventSocketConnect, ""), " program=??? "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			p := newEventPrinter(&app{out: &out}, tt.json)
			if err := p.print(tt.e); err != nil {
				t.Fatal(err)
			}
			if err := p.flush(); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("%s has no %q", out.String(), tt.want)
			}
		})
	}
	var out bytes.Buffer
	top := topFlows{printer: newEventPrinter(&app{out: &out}, false), byProcess: map[uint32]*flowTotals{}}
	top.count(event(divert.LayerFlow, packet.EventFlowEstablished, "curl"))
	if err := top.table(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), " curl ") {
		t.Errorf("flows --top: %s", out.String())
	}
}
