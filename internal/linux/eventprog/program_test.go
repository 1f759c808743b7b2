//go:build linux

package eventprog

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// TestProgramsLoad asks the verifier about the programs of every hook, for filters that leave them different things to do. A
// hook whose events a filter cannot match has no program.
func TestProgramsLoad(t *testing.T) {
	maps, err := eventmap.Open(1, 1)
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	const sniff, refuse, drop = engine.FlagSniff, 0, engine.FlagDrop
	for _, tt := range []struct {
		layer packet.Layer
		flags uint64
		text  string
		want  string // the hooks that have a program, of those that depend on the filter alone; "": not compared
	}{
		{packet.LayerSocket, sniff, "true", ""},
		{packet.LayerSocket, refuse, "true", ""},
		{packet.LayerSocket, drop, "true", ""},
		{packet.LayerSocket, sniff, "false", "[]"},
		{packet.LayerSocket, refuse, "event == CONNECT and localPort == 5 and remoteAddr == fd77::1", ""},
		{packet.LayerSocket, drop, "event == ACCEPT and processId in {1, 5, 77}", ""},
		{packet.LayerSocket, refuse, "event == LISTEN and timestamp > 5", ""},
		{packet.LayerSocket, sniff, "event == CLOSE and endpointId != 0", ""},
		{packet.LayerFlow, sniff, "true", "[create owner4 owner6 tcp release in out]"},
		{packet.LayerFlow, sniff, "event == ESTABLISHED and remotePort == 80", "[create owner4 owner6 tcp in out]"},
		{packet.LayerFlow, sniff, "event == DELETED and timestamp > 5 and udp", ""},
		{packet.LayerFlow, sniff, "false", "[create owner4 owner6 tcp]"},
	} {
		t.Run(fmt.Sprintf("%v, flags %d, %s", tt.layer, tt.flags, tt.text), func(t *testing.T) {
			p, err := progtest.Compile(tt.text, tt.layer, filter.Extended)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			all := Programs(tt.layer)
			for _, generation := range []uint16{0, 7} {
				names = []string{}
				for i := range all {
					loaded, err := all[i].Load("divert_test", &Config{Filter: p, Flags: tt.flags, Cookie: 1, Inode: 1, Generation: generation}, maps)
					if err != nil {
						t.Fatalf("%s: %+v", all[i].Name, err)
					}
					if loaded != nil {
						names = append(names, all[i].Name)
						loaded.Close()
					}
				}
			}
			if got := fmt.Sprint(names); tt.want != "" && got != tt.want {
				t.Errorf("programs at %s, want %s", got, tt.want)
			}
		})
	}
}

// frameParts are the parts of the stack frame.
var frameParts = []struct {
	name     string
	at, size int16
}{
	{"the record", codegen.EventFrame, codegen.EventSize},
	{"the scratch of decisions", codegen.EventScratch, codegen.EventScratchEnd - codegen.EventScratch},
	{"the key", frameKey, eventmap.FlowKeySize},
	{"the value", frameValue, eventmap.FlowValueSize},
	{"the packet", framePacket, 40},
}

// TestFrame: the parts of the programs' frames do not overlap each other, nor the part that decisions use, and stay within the
// 512 bytes of a frame.
func TestFrame(t *testing.T) {
	for i, b := range frameParts {
		if b.at < -512 || b.at+b.size > 0 || b.at%8 != 0 {
			t.Errorf("%s is at %d to %d", b.name, b.at, b.at+b.size)
		}
		for _, a := range frameParts[:i] {
			if a.at < b.at+b.size && b.at < a.at+a.size {
				t.Errorf("%s at %d overlaps %s at %d", b.name, b.at, a.name, a.at)
			}
		}
	}
}
