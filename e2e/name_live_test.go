//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	known "github.com/opendivert/divert/process"
)

// TestNamesOfProcessesThatHaveEnded: what a process did still has its name when the process is gone. Nobody has looked
// at it meanwhile.
func TestNamesOfProcessesThatHaveEnded(t *testing.T) {
	const name = "gone-at-once"
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	const filter = "udp and remotePort == 7009"
	handles := []struct {
		name string
		*divert.Handle
	}{
		// The packet is held before FLOW sees it.
		{"NETWORK, held", openAt(t, pair.A, "outbound and udp.DstPort == 7009", divert.WithProcessID(), divert.WithPriority(-1))},
		{"NETWORK", openAt(t, pair.A, "outbound and udp.DstPort == 7009",
			divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithProcessID())},
		{"SOCKET", openEvents(t, pair.A, divert.LayerSocket, filter, divert.Sniff)},
		{"FLOW", openEvents(t, pair.A, divert.LayerFlow, filter, divert.Sniff)},
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self(t), path); err != nil {
		t.Fatal(err)
	}
	p := startPerformerAs(t, pair.A, path)
	p.script("socket u udp4\nsend u 10.77.0.2:7009\nclose u")
	p.end()
	if _, err := known.Lookup(p.pid); !errors.Is(err, known.ErrEnded) {
		t.Fatalf("the process is still there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, h := range handles {
		e, err := h.RecvContext(ctx)
		if err != nil {
			t.Fatalf("%s: %v", h.name, err)
		}
		if h.Flags()&divert.Sniff == 0 {
			if err := h.Accept(e); err != nil {
				t.Fatal(err)
			}
		}
		id := e.Addr.Network().ProcessID
		if e.Addr.Layer != divert.LayerNetwork {
			id = e.Addr.Flow().ProcessID
		}
		if id != p.pid || e.Addr.ProcessName() != name {
			t.Errorf("%s: process %d is %q, want %d and %q", h.name, id, e.Addr.ProcessName(), p.pid, name)
		}
		var names known.Cache
		if who, err := names.LookupNamed(id, e.Addr.ProcessName()); err != nil || who.Name != name {
			t.Errorf("%s: %+v, %v", h.name, who, err)
		}
	}
}

// self returns the path of this program.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
