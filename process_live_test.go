//go:build linux

package divert_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// needProcesses skips where the process of packets is not to be had.
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

// processCases are exchanges of a process on host A with host B. Each line is an act of the process, or, with "b:",
// of a process on B. What stands above the line of dashes makes the sockets.
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

// TestProcessID has two processes do the same, one after the other. A handle whose filter asks for the first sees all
// of its packets, both ways, and none of the second; and addresses tell whose each packet is.
func TestProcessID(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for _, c := range processCases {
				for _, flags := range []divert.Flag{0, divert.Sniff} {
					for _, older := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s/%v/older=%v", c.name, flags, older), func(t *testing.T) {
							testProcessID(t, f.addr, c.script, flags, older)
						})
					}
				}
			}
		})
	}
}

// actor is a process with its part of a script.
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

// startActor starts a process that plays a script, with a port of its own and an echo server of its own.
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

// anyTraffic matches what the processes of the tests send and receive, and nothing that the kernel does by itself.
const anyTraffic = "(tcp or udp or icmp.Type == 0 or icmp.Type == 8 or icmpv6.Type == 128 or icmpv6.Type == 129)"

// owned is a packet that a handle has received.
type owned struct {
	hash     uint64
	process  uint32
	outbound bool
}

// gather notes the packets of a handle, and lets them go on if they wait.
func gather(t *testing.T, d *divert.Handle, list *[]owned) *worker {
	return each(t, d, func(p *divert.Packet) {
		*list = append(*list, owned{packet.Hash(p.Data, 0), p.Addr.Network().ProcessID, p.Addr.Outbound})
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
		time.Sleep(50 * time.Millisecond) // for what softirqs do
		counts[i] = int(stats(t, watch).Matched)
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
