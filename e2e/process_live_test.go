//go:build linux

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// needProcesses skips where the process of packets is unavailable.
func needProcesses(t testing.TB, h *lab.Host) {
	t.Helper()
	needEngine(t, h, divert.EngineKernel)
	err := h.Do(func() error {
		d, err := divert.Open("false", divert.WithProcessID())
		if err == nil {
			err = d.Close()
		}
		return err
	})
	if errors.Is(err, divert.ErrNoProcess) && os.Getenv("DIVERT_NEED_KERNEL") == "" {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// processCases are exchanges of a process on host A with host B. Each line is an action of the process or, with "b:",
// of a process on B. The lines above the dashes make the sockets.
var processCases = []struct {
	name   string
	script string
}{
	{"TCP active", `
		socket c tcpF
		connect c ECHO
		----
		write c
		recv c
		close c`},
	{"TCP active, connected later", `
		socket c tcpF
		----
		connect c ECHO
		write c
		recv c
		close c`},
	{"TCP passive", `
		socket l tcpF
		bind l HERE:PORT
		listen l
		----
		b: socket c tcpF
		b: connect c HERE:PORT
		accept s l
		b: write c
		recv s
		write s
		b: recv c
		close s
		b: close c
		close l`},
	{"TCP passive, the peer closes first", `
		socket l tcpF
		bind l ANY:PORT
		listen l
		b: socket c tcpF
		b: connect c HERE:PORT
		accept s l
		----
		b: write c
		recv s
		b: close c
		close s
		close l`},
	{"MPTCP listener", `
		socket l mptcpF
		bind l ANY:PORT
		listen l
		----
		b: socket c tcpF
		b: connect c HERE:PORT
		accept s l
		b: write c
		recv s
		close s
		b: close c
		close l`},
	{"MPTCP active", `
		socket c mptcpF
		----
		connect c ECHO
		write c
		recv c
		close c`},
	{"TCP listener of both families", `
		socket l tcp6
		bind l [::]:PORT
		listen l
		----
		b: socket c tcpF
		b: connect c HERE:PORT
		accept s l
		b: write c
		recv s
		b: close c
		close s
		close l`},
	{"TCP refused", `
		socket c tcpF
		----
		connect c THERE:9 = ECONNREFUSED
		close c`},
	{"TCP reset", `
		socket c tcpF
		connect c ECHO
		----
		write c
		recv c
		reset c`},
	{"UDP bound", `
		socket u udpF
		bind u HERE:PORT
		----
		b: socket v udpF
		b: bind v THERE:PORT
		b: send v HERE:PORT
		recv u
		send u THERE:PORT
		b: recv v
		close u
		b: close v`},
	{"UDP bound to any address", `
		socket u udpF
		bind u ANY:PORT
		----
		b: socket v udpF
		b: send v HERE:PORT
		recv u
		send u ECHO
		recv u
		close u
		b: close v`},
	{"UDP of both families", `
		socket u udp6
		bind u [::]:PORT
		----
		b: socket v udpF
		b: send v HERE:PORT
		recv u
		close u
		socket u udpF
		send u ECHO
		recv u
		close u
		b: close v`},
	{"UDP connected", `
		socket u udpF
		connect u ECHO
		----
		write u
		recv u
		write u
		recv u
		close u`},
	{"UDP bound, then connected", `
		socket u udpF
		bind u ANY:PORT
		connect u ECHO
		----
		write u
		recv u
		close u`},
	{"UDP unbound", `
		socket u udpF
		----
		send u ECHO
		recv u
		send u ECHO
		recv u
		close u`},
	{"ping", `
		socket c icmpF
		----
		ping c THERE:0
		recv c
		ping c THERE:0
		recv c
		close c`},
	{"ping, connected", `
		socket c icmpF
		connect c THERE:0
		----
		ping c THERE:0
		recv c
		close c`},
}

// TestProcessID has two processes do the same, one after the other. A handle whose filter tests for the first process
// sees all of its packets, both ways, and no packet of the second; addresses have the process of each packet.
func TestProcessID(t *testing.T) {
	t.Parallel()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for _, c := range processCases {
				for _, flags := range []divert.Flag{0, divert.Sniff} {
					for _, older := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s/%v/older=%v", c.name, flags, older), func(t *testing.T) {
							if testing.Short() && (f.name == "IPv6" || older || flags != 0) {
								t.Skip("a part of the table is enough for -short")
							}
							testProcessID(t, f.addr, c.script, flags, older)
						})
					}
				}
			}
		})
	}
}

// actor is a process with its part in a script.
type actor struct {
	*performer
	peer          *performer
	before, after string
}

func (a *actor) play(text string) {
	a.t.Helper()
	for line := range strings.Lines(text) {
		if line, peer := strings.CutPrefix(strings.TrimSpace(line), "b: "); peer {
			a.peer.script(line)
		} else {
			a.script(line)
		}
	}
}

// startActor starts a process that plays a script, with its own port and echo server.
func startActor(t *testing.T, pair *lab.Pair, addr func(*lab.Host) netip.Addr, script string, port int) *actor {
	t.Helper()
	network := "udp"
	if strings.Contains(script, "tcp") {
		network = "tcp"
	}
	here, family, any := addr(pair.A), "4", "0.0.0.0"
	side := func(a netip.Addr) string { return a.String() }
	if here.Is6() {
		family, any = "6", "[::]"
		side = func(a netip.Addr) string { return "[" + a.String() + "]" }
	}
	echo := echoAt(t, pair.B, network, addr(pair.B))
	script = strings.NewReplacer(
		"HERE", side(here), "THERE", side(addr(pair.B)), "ANY", any, "ECHO", echo.Addr().String(), "PORT", fmt.Sprint(port),
		"mptcpF", "mptcp"+family, "tcpF", "tcp"+family, "udpF", "udp"+family, "icmpF", "icmp"+family,
	).Replace(script)
	a := &actor{performer: startPerformer(t, pair.A), peer: startPerformer(t, pair.B)}
	a.before, a.after, _ = strings.Cut(script, "----")
	return a
}

// anyTraffic matches the packets of the tests' processes, and no packet that the kernel sends by itself.
const anyTraffic = "(tcp or udp or icmp.Type == 0 or icmp.Type == 8 or icmpv6.Type == 128 or icmpv6.Type == 129)"

// owned is a packet that a handle has received.
type owned struct {
	hash     uint64
	process  uint32
	outbound bool
}

// gather records the packets of a handle, and accepts those that wait.
func gather(t *testing.T, d *divert.Handle, list *[]owned) *worker {
	return each(t, d, func(p *divert.Packet) {
		finished := bytes.Clone(p.Data) // a copy has a checksum that the kernel has yet to finish
		packet.CalcChecksums(finished, nil, 0)
		*list = append(*list, owned{packet.Hash(finished, 0), p.Addr.Network().ProcessID, p.Addr.Outbound})
		if d.Flags()&divert.Sniff == 0 {
			if err := d.Accept(p); err != nil {
				t.Errorf("accept: %v", err)
			}
		}
	})
}

func testProcessID(t *testing.T, addr func(*lab.Host) netip.Addr, script string, flags divert.Flag, older bool) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	if err := pair.A.Sysctl("net.ipv4.ping_group_range", "0 2147483647"); err != nil {
		t.Fatal(err)
	}
	p, q := startActor(t, pair, addr, script, 7001), startActor(t, pair, addr, script, 7002)
	if older {
		p.play(p.before)
		q.play(q.before)
	}
	var all, own []owned
	watch := openAt(t, pair.A, anyTraffic, divert.WithProcessID(), divert.WithFlags(divert.Sniff), divert.WithPriority(100))
	watched := gather(t, watch, &all)
	d := openAt(t, pair.A, fmt.Sprintf("%s and processId == %d", anyTraffic, p.pid), divert.WithFlags(flags))
	received := gather(t, d, &own)
	var counts [2]int
	for i, a := range []*actor{p, q} {
		if !older {
			a.play(a.before)
		}
		a.play(a.after)
		counts[i] = int(quiet(t, watch).Matched) // softirqs have finished
	}
	finish(t, watch, watched)
	finish(t, d, received)
	if len(all) != counts[1] {
		t.Fatalf("%d packets, %d matched", len(all), counts[1])
	}
	ways := map[bool]int{}
	for i, o := range all {
		want := p.pid
		if i >= counts[0] {
			want = q.pid
		}
		if o.process != want {
			t.Errorf("packet %d, outbound %v: process %d, want %d", i, o.outbound, o.process, want)
		}
		ways[o.outbound]++
	}
	if ways[true] < 2 || ways[false] < 2 {
		t.Errorf("%d packets out, %d in", ways[true], ways[false])
	}
	rest := map[owned]int{}
	for _, o := range all[:counts[0]] {
		rest[o]++
	}
	for _, o := range own {
		rest[o]--
	}
	for o, n := range rest {
		if n != 0 {
			t.Errorf("packet %+v: seen %d times too few", o, n)
		}
	}
}

// collectOwned shuts a handle down and returns what it received.
func collectOwned(t *testing.T, d *divert.Handle, list *[]owned, w *worker) []owned {
	t.Helper()
	quiet(t, d) // softirqs have finished
	finish(t, d, w)
	return *list
}

// wantOwners compares the processes of packets with the expected ones.
func wantOwners(t *testing.T, got []owned, want ...uint32) {
	t.Helper()
	var processes []uint32
	for _, o := range got {
		processes = append(processes, o.process)
	}
	if !slices.Equal(processes, want) {
		t.Errorf("processes %v, want %v", processes, want)
	}
}

// TestProcessIDLoopback has two processes talk to each other: each packet belongs to its sender.
func TestProcessIDLoopback(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needProcesses(t, pair.A)
			p, q := startPerformer(t, pair.A), startPerformer(t, pair.A)
			network, side := "udp4", "127.0.0.1"
			if f.name == "IPv6" {
				network, side = "udp6", "[::1]"
			}
			var list []owned
			d := openAt(t, pair.A, fmt.Sprintf("udp and processId in {%d, %d}", p.pid, q.pid))
			w := gather(t, d, &list)
			p.script("socket u " + network + "\nbind u " + side + ":7001")
			q.script("socket u " + network + "\nbind u " + side + ":7002\nsend u " + side + ":7001")
			p.script("recv u\nsend u " + side + ":7002")
			q.script("recv u\nsend u " + side + ":7001")
			wantOwners(t, collectOwned(t, d, &list, w), q.pid, p.pid, q.pid)
		})
	}
}

// TestProcessIDOfNobody has packets without a process: the kernel's own answers.
func TestProcessIDOfNobody(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	if err := pair.B.Sysctl("net.ipv4.ping_group_range", "0 2147483647"); err != nil {
		t.Fatal(err)
	}
	var list []owned
	d := openAt(t, pair.A, "processId == 0 and (tcp or udp or icmp)", divert.WithFlags(divert.Sniff))
	w := gather(t, d, &list)
	b := startPerformer(t, pair.B)
	b.script(`socket c tcp4
		connect c 10.77.0.1:9 = ECONNREFUSED
		socket u udp4
		connect u 10.77.0.1:9
		write u
		recv u = ECONNREFUSED
		socket p icmp4
		ping p 10.77.0.1:0
		recv p`)
	wantOwners(t, collectOwned(t, d, &list, w), 0, 0, 0, 0, 0, 0)
}

// TestProcessIDSharedPort has two processes on one port. The first, older than the handle, closes; from then on the
// port belongs to the second.
func TestProcessIDSharedPort(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	p, q, b := startPerformer(t, pair.A), startPerformer(t, pair.A), startPerformer(t, pair.B)
	p.script("socket u udp4\nshare u\nbind u 0.0.0.0:7001")
	var list []owned
	d := openAt(t, pair.A, "udp and inbound", divert.WithProcessID(), divert.WithFlags(divert.Sniff))
	w := gather(t, d, &list)
	seen := 0
	send := func() {
		b.script("send v 10.77.0.1:7001")
		seen++
		for start := time.Now(); int(stats(t, d).Matched) < seen && time.Since(start) < 5*time.Second; {
			time.Sleep(time.Millisecond)
		}
	}
	b.script("socket v udp4")
	q.script("socket u udp4\nshare u\nbind u 0.0.0.0:7001")
	send()
	p.script("close u")
	send()
	p.script("socket u udp4\nshare u\nbind u 0.0.0.0:7001")
	send()
	q.script("close u")
	send()
	p.script("close u")
	send()
	wantOwners(t, collectOwned(t, d, &list, w), p.pid, q.pid, p.pid, p.pid, 0)
}

// TestProcessIDForked has children use sockets that their parent made: a connection belongs to the process of its
// listener, a datagram to the process that last bound or connected the socket.
func TestProcessIDForked(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	var file *os.File
	if err := pair.A.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "socket")
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{10, 77, 0, 1}}); err != nil {
			return err
		}
		return unix.Listen(fd, 16)
	}); err != nil {
		t.Fatal(err)
	}
	var list []owned
	d := openAt(t, pair.A, "tcp", divert.WithProcessID(), divert.WithFlags(divert.Sniff))
	w := gather(t, d, &list)
	p := startPerformerWith(t, pair.A, file)
	file.Close() // the child still holds it
	b := startPerformer(t, pair.B)
	b.script("socket c tcp4\nconnect c 10.77.0.1:8080")
	p.script("inherit l\naccept s l\nwrite s")
	b.script("recv c\nclose c")
	p.script("close s\nclose l")
	got := collectOwned(t, d, &list, w)
	for i, o := range got {
		if o.process != uint32(os.Getpid()) {
			t.Errorf("packet %d: process %d, want that of the parent, %d", i, o.process, os.Getpid())
		}
	}
	if len(got) < 8 {
		t.Errorf("%d packets", len(got))
	}

	var datagrams []owned
	d = openAt(t, pair.A, "udp", divert.WithProcessID(), divert.WithFlags(divert.Sniff))
	w = gather(t, d, &datagrams)
	if err := pair.A.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "socket")
		return unix.Sendto(fd, []byte{1}, 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 77, 0, 2}})
	}); err != nil {
		t.Fatal(err)
	}
	q := startPerformerWith(t, pair.A, file)
	file.Close()
	q.script("inherit u\nsend u 10.77.0.2:9\nconnect u 10.77.0.2:9\nwrite u")
	me := uint32(os.Getpid())
	wantOwners(t, collectOwned(t, d, &datagrams, w), me, me, q.pid)
}

// TestProcessIDSetFilter sets a filter with a process on a handle opened without one, and then removes it again.
func TestProcessIDSetFilter(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	p, q := startPerformer(t, pair.A), startPerformer(t, pair.A)
	var list []owned
	d := openAt(t, pair.A, "udp and outbound")
	w := gather(t, d, &list)
	p.script("socket u udp4\nsend u 10.77.0.2:9")
	for _, text := range []string{fmt.Sprintf("udp and outbound and processId == %d", q.pid), "udp and outbound"} {
		counted(t, d, func(s divert.Stats) bool { return s.Received > 0 && s.Waiting == 0 })
		if err := d.SetFilter(text); err != nil {
			t.Fatal(err)
		}
		p.script("send u 10.77.0.2:9")
		q.script("socket u udp4\nsend u 10.77.0.2:9")
	}
	wantOwners(t, collectOwned(t, d, &list, w), 0, q.pid, 0, 0)
	if err := d.SetFilter("processId == 1"); err != nil {
		t.Errorf("after receiving was shut down: %v", err)
	}
}

// TestProcessIDNotToBeKnown: a filter with processId is refused where processes cannot be known, and the old filter stays in force.
func TestProcessIDNotToBeKnown(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	refused := func(err error, words ...string) {
		t.Helper()
		if !errors.Is(err, divert.ErrNoProcess) || !errors.Is(err, divert.ErrNotSupported) {
			t.Fatalf("error %v", err)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
	}
	open := func(text string, opts ...divert.Option) error {
		return pair.A.Do(func() error {
			d, err := divert.Open(text, opts...)
			if err == nil {
				d.Close()
			}
			return err
		})
	}
	interpreter := divert.WithEngine(divert.EngineInterpreter)
	refused(open("processId == 1", interpreter), "eBPF", "cgroup", "interpreter, as asked for")
	refused(open("true", interpreter, divert.WithProcessID()), "eBPF")
	refused(open("tcp and not processId == 1", interpreter, divert.WithFlags(divert.Sniff)), "eBPF")
	d := openAt(t, pair.A, "udp", interpreter)
	refused(d.SetFilter("processId == 1"), "eBPF")
	if err := open("true", divert.WithLayer(divert.LayerForward), divert.WithProcessID()); !errors.Is(err, divert.ErrInvalid) {
		t.Errorf("forwarded packets: %v", err)
	}
	var e *filter.Error
	for _, opts := range [][]divert.Option{{divert.WithLayer(divert.LayerForward)}, {divert.WithStrict()}} {
		if err := open("processId == 1", opts...); !errors.As(err, &e) || e.Kind != filter.ErrBadTokenForLayer {
			t.Errorf("%v", err)
		}
	}
}

// programsOfLinks returns the ids of the programs for which a process holds links.
func programsOfLinks(t *testing.T, pid int) (ids []ebpf.ProgramID) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var id ebpf.ProgramID
		if _, text, ok := strings.Cut(string(b), "\nprog_id:"); ok && strings.Contains(string(b), "link_type:") {
			if _, err := fmt.Sscan(text, &id); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// TestKilledOwnersLeaveNoProcesses kills the owner of a handle whose filter tests processes.
func TestKilledOwnersLeaveNoProcesses(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	cmd, _ := startHolder(t, pair.A, divert.LayerNetwork, 0, 5, "processId == 1 and udp")
	ids := programsOfLinks(t, cmd.Process.Pid)
	if len(ids) != 8 {
		t.Fatalf("the handle has the programs %v", ids)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, id := range ids {
			if p, err := ebpf.NewProgramFromID(id); err == nil {
				p.Close()
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Fatalf("%d programs are left", left)
		}
	}
}
