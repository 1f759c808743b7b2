//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

func init() { children["holder"] = holder }

// holder is a child that opens a handle and waits: layer, flags and filter are in its environment.
func holder() error {
	var layer divert.Layer
	var flags divert.Flag
	var priority int16
	if _, err := fmt.Sscan(os.Getenv("DIVERT_TEST_HANDLE"), &layer, &flags, &priority); err != nil {
		return err
	}
	h, err := divert.Open(os.Getenv("DIVERT_TEST_FILTER"), divert.WithLayer(layer), divert.WithFlags(flags), divert.WithPriority(priority))
	if err != nil {
		return err
	}
	defer h.Close()
	fmt.Println("open")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// startHolder starts a holder on a host and waits until its handle is open.
func startHolder(t testing.TB, h *lab.Host, layer divert.Layer, flags divert.Flag, priority int16, text string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=holder",
		fmt.Sprintf("DIVERT_TEST_HANDLE=%d %d %d", uint8(layer), uint64(flags), priority), "DIVERT_TEST_FILTER="+text)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the holder did not open its handle: %q, %v", line, err)
	}
	return cmd, stdin
}

// reflected is an event of REFLECT without times.
type reflected struct {
	event    divert.Event
	pid      int
	layer    divert.Layer
	flags    divert.Flag
	priority int16
	filter   string // normal form
}

// reflection converts an event.
func reflection(t testing.TB, p *divert.Packet) reflected {
	t.Helper()
	d := p.Addr.Reflect()
	object, found := strings.CutSuffix(string(p.Data), "\x00")
	if !found {
		t.Errorf("no zero at the end of %.100q", p.Data)
	}
	program, err := filter.Compile(object, d.Layer, filter.Extended)
	if err != nil {
		program, err = filter.Compile(object, d.Layer, filter.Extended)
	}
	text := ""
	if err == nil {
		text, err = program.Format()
	}
	if err != nil {
		t.Errorf("filter %q: %v", object, err)
	}
	if !p.Addr.Sniffed || p.Addr.Outbound || p.Addr.Layer != packet.LayerReflect || d.Timestamp > p.Addr.Timestamp {
		t.Errorf("address %+v", p.Addr)
	}
	return reflected{p.Addr.Event, int(d.ProcessID), d.Layer, divert.Flag(d.Flags), d.Priority, text}
}

// next waits for an event.
func next(t testing.TB, d *divert.Handle) reflected {
	t.Helper()
	ps := make([]divert.Packet, 1)
	_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := d.RecvBatch(ps); err != nil {
		t.Fatalf("no event: %v", err)
	}
	return reflection(t, &ps[0])
}

func openReflect(t testing.TB, h *lab.Host, text string) *divert.Handle {
	t.Helper()
	return openAt(t, h, text, divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff|divert.RecvOnly),
		divert.WithQueueTime(16*time.Second))
}

// TestReflectReplaysAndFollows opens handles of all layers before and after a REFLECT handle.
func TestReflectReplaysAndFollows(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	openEvents(t, pair.A, packet.LayerSocket, "false", divert.Sniff) // or skip
	long := "tcp.DstPort == 1" + strings.Repeat(" or (tcp.DstPort == 443 and ip.TTL > 3)", 100)
	var odd []string // the filter has too many tests for an object
	for i := 1; i < 800; i += 2 {
		odd = append(odd, fmt.Sprint(i))
	}
	handles := []struct {
		layer    divert.Layer
		flags    divert.Flag
		priority int16
		filter   string
	}{
		{divert.LayerNetwork, divert.Sniff, 7, "tcp.DstPort == 80"},
		{divert.LayerForward, divert.Drop, -30000, "ip.SrcAddr == 10.0.0.1"},
		{divert.LayerFlow, divert.Sniff | divert.RecvOnly, 30000, "event == DELETED"},
		{divert.LayerSocket, divert.RecvOnly | divert.NoInstall, 0, "processId == 4"},
		{divert.LayerNetwork, divert.Sniff | divert.Fragments, 1, long},
		{divert.LayerNetwork, divert.Sniff, 2, "tcp.DstPort in {" + strings.Join(odd, ", ") + "}"},
	}
	open := func(i int) *divert.Handle {
		h := handles[i]
		return openAt(t, pair.A, h.filter, divert.WithLayer(h.layer), divert.WithFlags(h.flags), divert.WithPriority(h.priority))
	}
	want := func(i int, e divert.Event) reflected {
		p, err := filter.Compile(handles[i].filter, handles[i].layer, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		text, err := p.Format()
		if err != nil {
			t.Fatal(err)
		}
		return reflected{e, os.Getpid(), handles[i].layer, handles[i].flags, handles[i].priority, text}
	}
	other := openReflect(t, pair.A, "true") // invisible to the other REFLECT handle
	defer other.Close()
	var opened []*divert.Handle
	for i := range 3 {
		opened = append(opened, open(i))
	}
	d := openReflect(t, pair.A, "not (layer == SOCKET and processId != 0 and priority == 0 and event == OPEN and timestamp < 0)")
	if got := next(t, d); got.layer != divert.LayerSocket || got.filter != "false" {
		t.Errorf("first %+v", got)
	}
	for i := range 3 {
		if got, want := next(t, d), want(i, packet.EventReflectOpen); got != want {
			t.Errorf("replayed\n%+v, want\n%+v", got, want)
		}
	}
	for i := 3; i < len(handles); i++ {
		opened = append(opened, open(i))
		if got, want := next(t, d), want(i, packet.EventReflectOpen); got != want {
			t.Errorf("opened\n%+v, want\n%+v", got, want)
		}
	}
	for i, h := range opened {
		if i == 0 {
			if err := h.Shutdown(divert.ShutdownBoth); err != nil { // raises no event
				t.Fatal(err)
			}
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if got, want := next(t, d), want(i, packet.EventReflectClose); got != want {
			t.Errorf("closed\n%+v, want\n%+v", got, want)
		}
	}
	_ = d.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := d.RecvBatch(make([]divert.Packet, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more event, or %v", err)
	}
}

// TestReflectLists shuts down at once: exactly the open handles are reported (specification: api.md 9).
func TestReflectLists(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	var want []string
	for i := range 20 {
		openAt(t, pair.A, fmt.Sprintf("tcp.DstPort == %d", i), divert.WithFlags(divert.Sniff))
		want = append(want, fmt.Sprintf("tcp.DstPort = %d", i))
	}
	openAt(t, pair.B, "true", divert.WithFlags(divert.Sniff)) // in another namespace
	d := openReflect(t, pair.A, "true")
	if err := d.Shutdown(divert.ShutdownBoth); err != nil {
		t.Fatal(err)
	}
	openAt(t, pair.A, "udp", divert.WithFlags(divert.Sniff)) // too late
	var got []string
	for p, err := range d.Packets(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, reflection(t, p).filter)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestReflectTellsOfTheKilled kills the owner of a handle: CLOSE is reported, and nothing is left of the handle.
func TestReflectTellsOfTheKilled(t *testing.T) {
	for _, layer := range []divert.Layer{divert.LayerNetwork, divert.LayerSocket} {
		t.Run(layer.String(), func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			if layer == divert.LayerSocket {
				openEvents(t, pair.A, layer, "false", divert.Sniff).Close()
			}
			d := openReflect(t, pair.A, "true")
			cmd, _ := startHolder(t, pair.A, layer, divert.Sniff|divert.RecvOnly, 0, "true")
			if got := next(t, d); got.event != packet.EventReflectOpen || got.pid != cmd.Process.Pid {
				t.Errorf("%+v", got)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := next(t, d); got.event != packet.EventReflectClose || got.pid != cmd.Process.Pid {
				t.Errorf("%+v", got)
			}
			for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				tables, err := pair.A.NFTables()
				if err != nil {
					t.Fatal(err)
				}
				if len(tables) == 0 {
					break
				}
				if time.Since(start) > 5*time.Second {
					t.Fatalf("tables %q are left", tables)
				}
			}
		})
	}
}

// TestReflectFollowsManyThatComeAndGo: no event is missed.
func TestReflectFollowsManyThatComeAndGo(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openReflect(t, pair.A, "true")
	const rounds = 50
	for i := range rounds {
		h := openAt(t, pair.A, "false", divert.WithPriority(int16(i)), divert.WithFlags(divert.Sniff))
		if err := h.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	for i := range rounds {
		for _, e := range []divert.Event{packet.EventReflectOpen, packet.EventReflectClose} {
			if got := next(t, d); got.event != e || got.priority != int16(i) {
				t.Fatalf("round %d: %+v", i, got)
			}
		}
	}
}

// TestReflectTellsOfHandlesThatWork: once OPEN is reported for a handle, the handle captures every later packet.
func TestReflectTellsOfHandlesThatWork(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		r := openAt(t, pair.A, "event == OPEN and layer == NETWORK", divert.WithLayer(divert.LayerReflect),
			divert.WithFlags(divert.Sniff|divert.RecvOnly))
		c := dialUDP(t, pair.A, net.UDPAddrFromAddrPort(netip.AddrPortFrom(pair.B.Addr4(), 9)))
		sent := make(chan error, 1)
		go func() {
			_, _, err := r.Recv(make([]byte, 4096))
			if err == nil {
				_, err = c.Write([]byte("now"))
			}
			sent <- err
		}()
		d := openAt(t, pair.A, "outbound and udp.DstPort == 9", e)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if s := quiet(t, d); s.Matched != 1 {
			t.Errorf("%+v", s)
		}
	})
}
