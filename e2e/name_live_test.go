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

// TestNamesOfProcessesThatHaveEnded: events and packets have the name of their process after it has ended, even if
// nobody looked it up before.
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
	pid := sendAs(t, pair.A, name, "10.77.0.2:7009")
	if _, err := known.Lookup(pid); !errors.Is(err, known.ErrEnded) {
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
		id := processOf(e)
		if id != pid || e.Addr.ProcessName() != name {
			t.Errorf("%s: process %d is %q, want %d and %q", h.name, id, e.Addr.ProcessName(), pid, name)
		}
		var names known.Cache
		if who, err := names.LookupNamed(id, e.Addr.ProcessName()); err != nil || who.Name != name {
			t.Errorf("%s: %+v, %v", h.name, who, err)
		}
	}
}

// TestFiltersByProcessName: process == "name" matches the actions of a process that ends at once, and not those of
// others.
func TestFiltersByProcessName(t *testing.T) {
	const name = "gone-at-once"
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	const mine, others = `udp and remotePort == 7009 and process == "` + name + `"`, `udp and remotePort == 7009 and process not in {"` + name + `", "x"}`
	sniff, long := divert.Sniff|divert.RecvOnly, divert.WithQueueTime(16*time.Second) // processes take a while to start
	handles := []struct {
		name string
		*divert.Handle
		want string // processes that must match
	}{
		{"NETWORK", openAt(t, pair.A, mine, divert.WithFlags(sniff), divert.WithProcessID(), long), name},
		{"NETWORK, held", openAt(t, pair.A, mine, divert.WithPriority(-1), long), name},
		{"NETWORK, others", openAt(t, pair.A, others, divert.WithFlags(sniff), divert.WithProcessID(), long), "another"},
		{"NETWORK, the size too", openAt(t, pair.A, mine+" and length < 100", divert.WithFlags(sniff), divert.WithProcessID(), long), name},
		{"SOCKET", openEvents(t, pair.A, divert.LayerSocket, mine, divert.Sniff), name},
		{"SOCKET, others", openEvents(t, pair.A, divert.LayerSocket, others, divert.Sniff), "another"},
		{"FLOW", openEvents(t, pair.A, divert.LayerFlow, mine, divert.Sniff), name},
		{"FLOW, others", openEvents(t, pair.A, divert.LayerFlow, others, divert.Sniff), "another"},
	}
	ids := map[uint32]string{}
	for _, called := range []string{"another", name, "another"} {
		ids[sendAs(t, pair.A, called, "10.77.0.2:7009")] = called
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, h := range handles {
		if h.want == "another" {
			continue
		}
		e, err := h.RecvContext(ctx)
		if err != nil {
			t.Fatalf("%s: %v", h.name, err)
		}
		if h.Flags()&divert.Sniff == 0 {
			if err := h.Accept(e); err != nil {
				t.Fatal(err)
			}
		}
		if got := ids[processOf(e)]; got != h.want {
			t.Errorf("%s: process %d is %q, want %q", h.name, processOf(e), got, h.want)
		}
	}
	for _, h := range handles { // all packets so far
		if err := h.Shutdown(divert.ShutdownRecv); err != nil {
			t.Fatal(err)
		}
		seen := 0
		for {
			e, err := h.RecvContext(ctx)
			if err != nil {
				break
			}
			if seen++; ids[processOf(e)] != h.want {
				t.Errorf("%s: process %d is %q, want %q", h.name, processOf(e), ids[processOf(e)], h.want)
			}
		}
		if h.want == "another" && seen == 0 {
			t.Errorf("%s saw nothing", h.name)
		}
	}
}

// processOf returns the process of a packet or event.
func processOf(e *divert.Packet) uint32 {
	if e.Addr.Layer == divert.LayerNetwork {
		return e.Addr.Network().ProcessID
	}
	return e.Addr.Flow().ProcessID
}

// TestDropsByProcessName: a handle that drops decides by the name, in the kernel.
func TestDropsByProcessName(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	seen := openAt(t, pair.B, "inbound and udp.DstPort == 7010", divert.WithFlags(divert.Sniff|divert.RecvOnly), divert.WithQueueTime(16*time.Second))
	dropping := openAt(t, pair.A, `outbound and process == "dropped"`, divert.WithFlags(divert.Drop))
	send := func(called string) { sendAs(t, pair.A, called, "10.77.0.2:7010") }
	send("dropped")
	send("passed")
	if err := dropping.SetFilter(`outbound and process == "passed"`); err != nil {
		t.Fatal(err)
	}
	send("passed")
	send("dropped")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 2 {
		if _, err := seen.RecvContext(ctx); err != nil {
			t.Fatal(err)
		}
	}
	s, err := dropping.Stats()
	if err != nil || s.Matched != 2 || s.Dropped != 2 {
		t.Errorf("%+v, %v; want 2 that matched and were dropped", s, err)
	}
}

// sendAs sends a UDP datagram from a process with a name, which ends at once, and returns its id.
func sendAs(t *testing.T, h *lab.Host, name, to string) uint32 {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	p := startPerformerAs(t, h, path)
	p.script("socket u udp4\nsend u " + to + "\nclose u")
	p.end()
	return p.pid
}
