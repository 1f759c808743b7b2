//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/rules"
)

// nobody is the user of strangers, and of processes that have a handle without being root.
const nobody = 65534

// asNobody returns the attributes of a process of an ordinary user with the given rights and no others.
func asNobody(rights ...uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: rights}
}

// asOwnRoot returns the attributes of a process of an ordinary user who is root of a new user namespace.
func asOwnRoot() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: nobody, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: nobody, Size: 1}},
		Credential:  &syscall.Credential{NoSetGroups: true},
	}
}

// needUsers skips where a process cannot be started as another user.
func needUsers(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(b)); err != nil || os.Getuid() != 0 || len(f) != 3 || f[2] != "4294967295" {
		t.Skip("only root outside user namespaces can start processes of other users")
	}
}

// target is the object of a stranger's attack: a process, the token of its handle, and the destination of its packets.
type target struct {
	Container   bool // attack from a new network namespace
	PID         int
	Port        uint32
	Token       uint16
	Destination string
}

// attempts are the attacks of a stranger. Each returns nil if it succeeded.
var attempts = map[string]func(g target) error{
	"open a handle for eBPF":       func(target) error { return openAndClose(divert.WithEngine(divert.EngineKernel)) },
	"open one for the interpreter": func(target) error { return openAndClose(divert.WithEngine(divert.EngineInterpreter)) },
	"watch handles":                func(target) error { return openAndClose(reflects...) },
	"refuse what sockets do": func(target) error {
		return openAndClose(divert.WithLayer(divert.LayerSocket), divert.WithFlags(divert.RecvOnly))
	},
	"read its rules":               func(target) error { return readRules() },
	"remove its rules":             func(target) error { return removeRules() },
	"take its queue":               func(g target) error { return bindQueue(g.Token) },
	"take its socket's port":       func(g target) error { return bindPort(g.Port) },
	"stop its process":             func(g target) error { return unix.Kill(g.PID, unix.SIGSTOP) },
	"end its process":              func(g target) error { return unix.Kill(g.PID, unix.SIGKILL) },
	"have divert kill its process": func(g target) error { return killHolder(g.PID) },
	"see its descriptors":          func(g target) error { _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.PID)); return err },
	"take its descriptors":         func(g target) error { return takeDescriptor(g.PID) },
	"read who has bound which queue": func(target) error {
		_, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	},
	"give its packets a priority": func(g target) error { return sendForged(g.Destination) },
}

var reflects = []divert.Option{divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff | divert.RecvOnly)}

func openAndClose(opts ...divert.Option) error {
	d, err := divert.Open("true", opts...)
	if err == nil {
		err = d.Close()
	}
	return err
}

var handlesTable = &nftables.Table{Name: "divert", Family: nftables.TableFamilyINet}

func readRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	found, err := c.GetRules(handlesTable, &nftables.Chain{Name: "handles", Table: handlesTable})
	if err == nil && len(found) == 0 {
		err = unix.ENOENT // in a network namespace without handles
	}
	return err
}

func removeRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(handlesTable)
	return c.Flush()
}

// bindQueue binds a packet queue (linux/netfilter/nfnetlink_queue.h: NFQNL_MSG_CONFIG, NFQA_CFG_CMD,
// NFQNL_CFG_CMD_BIND).
func bindQueue(num uint16) error {
	c, err := nfnl.Dial(4096)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Request(nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_QUEUE, 2), num).Attr(1, 1, 0, 0, 0))
}

// bindPort leaves the socket open, so that nobody else gets the port until the process ends.
func bindPort(port uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port})
}

func killHolder(pid int) error {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	return rules.Kill(ns, pid)
}

func takeDescriptor(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range 64 {
		if _, err = unix.PidfdGetfd(fd, i, 0); err == nil {
			break
		}
	}
	return err
}

// sendForged sends a datagram with each of the priorities that handles give packets.
func sendForged(to string) error {
	for _, priority := range forgedPriorities {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		err = raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, int(int32(priority)))
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if _, err := c.Write([]byte("forged")); err != nil {
			return err
		}
	}
	return nil
}

func init() {
	children["stranger"] = func() error {
		var g target
		if err := json.Unmarshal([]byte(os.Getenv("DIVERT_TEST_TARGET")), &g); err != nil {
			return err
		}
		if g.Container {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		results := map[string]string{}
		for name, try := range attempts {
			if err := try(g); err != nil {
				results[name] = err.Error()
			} else {
				results[name] = ""
			}
		}
		return json.NewEncoder(os.Stdout).Encode(results)
	}
	children["crowd"] = func() error {
		c, err := net.Dial("udp", os.Getenv("DIVERT_TEST_TARGET"))
		for range 200 {
			if err == nil {
				_, err = c.Write([]byte("crowd"))
			}
		}
		return err
	}
	children["heir"] = func() error {
		f := os.NewFile(3, "socket")
		_, err := f.Write([]byte("heir"))
		return err
	}
	children["bequeather"] = func() error {
		c, err := net.Dial("udp", os.Getenv("DIVERT_TEST_TARGET"))
		if err != nil {
			return err
		}
		f, err := c.(*net.UDPConn).File()
		if err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"=heir")
		cmd.ExtraFiles = []*os.File{f}
		return cmd.Run()
	}
}

// asStranger runs a child with rights in a host, and returns its output and its process's id.
func asStranger(t testing.TB, h *lab.Host, rights *syscall.SysProcAttr, job, what string) (string, int) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+job, "DIVERT_TEST_TARGET="+what)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &out, os.Stderr, rights
	if err := h.Exec(cmd); err != nil {
		if rights.Cloneflags != 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC)) {
			t.Skipf("no user namespaces: %v", err)
		}
		t.Fatal(err)
	}
	return out.String(), cmd.Process.Pid
}

// TestStrangersChangeNothing: the power of an ordinary user over somebody else's handles, with and without CAP_NET_RAW,
// as root of its own user namespace, and as root of a container.
func TestStrangersChangeNothing(t *testing.T) {
	needUsers(t)
	t.Parallel()
	const container = "root of a container"
	for _, who := range []struct {
		name   string
		rights *syscall.SysProcAttr
		may    []string // attempts that succeed: they concern its own network namespace, or handles see them
		sends  bool     // datagrams reach the namespace of the handle
	}{
		{"ordinary user", asNobody(), nil, false},
		{"ordinary user with CAP_NET_RAW", asNobody(unix.CAP_NET_RAW), []string{"give its packets a priority"}, true},
		{"root of a user namespace", asOwnRoot(), nil, false},
		{container, asOwnRoot(), []string{"open one for the interpreter", "read who has bound which queue",
			"take its queue", "take its socket's port", "watch handles"}, false},
	} {
		t.Run(who.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			conn, expect := receiver(t, pair.B, pair.B.Addr4())
			holder, _ := startHolder(t, pair.A, divert.LayerNetwork, 0, 5, "udp.DstPort == 9")
			watched := collectPayloads(t, pair.A, fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port()))
			g := target{Container: who.name == container, PID: holder.Process.Pid, Destination: conn.LocalAddr().String()}
			owners := handlesOf(t, pair.A)
			for _, o := range owners {
				if o.Process == g.PID {
					g.Port, g.Token = o.Port, o.Queue
				}
			}
			if len(owners) != 2 || g.Port == 0 {
				t.Fatalf("the handles are %+v", owners)
			}
			what, err := json.Marshal(g)
			if err != nil {
				t.Fatal(err)
			}
			out, _ := asStranger(t, pair.A, who.rights, "stranger", string(what))
			var results map[string]string
			if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != len(attempts) {
				t.Fatalf("%q: %v", out, err)
			}
			for name, result := range results {
				if allowed := result == ""; allowed && !slices.Contains(who.may, name) {
					t.Errorf("may %s", name)
				} else if !allowed && slices.Contains(who.may, name) {
					t.Errorf("may not %s: %s", name, result)
				}
			}
			if now := handlesOf(t, pair.A); len(now) != len(owners) || !slices.Equal(ids(now), ids(owners)) {
				t.Errorf("the handles are %v, want %v", now, owners)
			}
			fmt.Fprint(dialUDP(t, pair.A, conn.LocalAddr()), "mine")
			want := []string{"mine"}
			if who.sends {
				want = append(slices.Repeat([]string{"forged"}, len(forgedPriorities)), want...)
			}
			expect(want...)
			watched.expect(t, "handle", want...)
		})
	}
}

// handlesOf returns the handles of a host.
func handlesOf(t testing.TB, h *lab.Host) (owners []rules.Owner) {
	t.Helper()
	if err := h.Do(func() error {
		ns, err := netns.Current()
		if err != nil {
			return err
		}
		defer ns.Close()
		owners, err = rules.List(ns)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return owners
}

func ids(owners []rules.Owner) (all []uint64) {
	for _, o := range owners {
		all = append(all, o.ID)
	}
	return all
}

// TestAnOrdinaryUserFillsAQueue: any sender of matching packets can fill a handle's queue. Matching packets of others
// are then dropped, or pass unseen if the handle fails open; packets that do not match always go on.
func TestAnOrdinaryUserFillsAQueue(t *testing.T) {
	needUsers(t)
	t.Parallel()
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("fail open %t", open), func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.A, divert.EngineKernel)
			crowd, _ := receiver(t, pair.B, pair.B.Addr4())
			matches, expectMatch := receiver(t, pair.B, pair.B.Addr4())
			other, expectOther := receiver(t, pair.B, pair.B.Addr4())
			opts := []divert.Option{divert.WithQueueLength(32), divert.WithEngine(divert.EngineKernel)}
			if open {
				opts = append(opts, divert.WithFailOpen())
			}
			d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort != %d", addrPort(other).Port()), opts...)
			asStranger(t, pair.A, asNobody(), "crowd", crowd.LocalAddr().String())
			fmt.Fprint(dialUDP(t, pair.A, matches.LocalAddr()), "mine")
			fmt.Fprint(dialUDP(t, pair.A, other.LocalAddr()), "other")
			expectOther("other")
			if open {
				expectMatch("mine")
			} else {
				expectMatch()
			}
			if s := quiet(t, d); open != (s.Passed > 0) || open == (s.DroppedFull > 0) {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestAProcessSendsInTheNameOfAnother: a packet belongs to the process that made or connected its socket, and that
// process can pass the socket to another.
func TestAProcessSendsInTheNameOfAnother(t *testing.T) {
	needUsers(t)
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needProcesses(t, pair.A)
	conn, expect := receiver(t, pair.B, pair.B.Addr4())
	d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", addrPort(conn).Port()), divert.WithProcessID(), divert.WithFlags(divert.Sniff),
		divert.WithQueueTime(16*time.Second)) // the processes may take long to end
	_, pid := asStranger(t, pair.A, asNobody(), "bequeather", conn.LocalAddr().String())
	expect("heir")
	p := make([]divert.Packet, 1)
	if err := d.Shutdown(divert.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RecvBatch(p); err != nil && err != io.EOF || p[0].Addr.Network().ProcessID != uint32(pid) {
		t.Errorf("%v, the process is %d, want the one that made the socket, %d", err, p[0].Addr.Network().ProcessID, pid)
	}
}
