//go:build linux

package rules

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/netns"
)

// kill ends a child that holds handles without giving it a chance to close them.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}

// squatEnv holds the port that this test binary takes as a child process of a test.
const squatEnv = "DIVERT_TEST_SQUAT"

// squat takes names by which a handle might be known, and the port of its token's socket. It says so on the standard output, and
// keeps them until its standard input ends.
func squat(port string) error {
	number, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	return lab.WithoutRights(func() error {
		for _, name := range []string{"@divert/lock", "@divert/handle/dead", "@divert/handle/1"} {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
			if err != nil {
				return err
			}
			defer c.Close()
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: uint32(number)}); err != nil {
			return err
		}
		if _, err := Open(ns, Owner{ID: 2}); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("a handle without rights: %w, want os.ErrPermission", err)
		}
		fmt.Println("squatted")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	})
}

// TestAnOrdinaryUserDecidesNothing: whatever a neighbour without rights binds in the network namespace, handles open,
// change and close at once, and the rules of dead ones go. The neighbour is another user if the test may start one.
func TestAnOrdinaryUserDecidesNothing(t *testing.T) {
	h, ns := newHost(t)
	cmd := startChild(t, h, 0xdead)
	owners, err := List(ns)
	if err != nil || len(owners) != 1 {
		t.Fatalf("List: %v, %v", owners, err)
	}
	dead := owners[0]
	kill(t, cmd)
	start(t, h, anotherUser(), fmt.Sprintf("%s=%d", squatEnv, dead.Port))
	if owners, err := Dead(ns); err != nil || len(owners) != 1 || owners[0].ID != 0xdead {
		t.Errorf("Dead: %v, %v", owners, err)
	}
	e := open(t, ns, 1, 0)
	checkOrder(t, h, []*Entry{e})
	if err := e.Replace(plain()); err != nil {
		t.Error(err)
	}
	if err := e.SetFilter("another"); err != nil {
		t.Error(err)
	}
	closeAll(t, e)
	noTable(t, h)
}

// TestAHandleThatIsOpening: an opening handle is not listed, keeps its key, and leaves nothing when its process dies.
func TestAHandleThatIsOpening(t *testing.T) {
	h, ns := newHost(t)
	first, err := Open(ns, Owner{ID: 1, PID: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	second := open(t, ns, 2, 0)
	if second.Key <= first.Key {
		t.Errorf("the second has the key %d, the first %d", second.Key, first.Key)
	}
	if owners, err := List(ns); err != nil || len(owners) != 1 || owners[0].ID != 2 {
		t.Errorf("List: %v, %v", owners, err)
	}
	if err := first.Install(plain()); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, h, []*Entry{first, second})
	if err := first.Replace([]Rule{{Chain: Outbound, Program: 1 << 20, Action: ToQueue{}}}); err == nil || first.rules.Load() != second.rules.Load() {
		t.Errorf("refused rules: %v, and %d rules are taken to be there, not %d", err, first.rules.Load(), second.rules.Load())
	}
	third, err := Open(ns, Owner{ID: 3})
	if err != nil {
		t.Fatal(err)
	}
	third.token.Close() // as the end of its process does
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, h, []*Entry{first, second})
	if err := third.Install(plain()); !errors.Is(err, ErrGone) {
		t.Errorf("installed without a place: %v", err)
	}
	third.token = nil
	closeAll(t, first, second, third)
	noTable(t, h)
}

// TestChangesOfOthersMeanwhile: a change that others' changes overtake is made again, on the rules as they are then.
func TestChangesOfOthersMeanwhile(t *testing.T) {
	defer func(d time.Duration) { busyTimeout = d }(busyTimeout)
	h, ns := newHost(t)
	theirs := &nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	interfere := func() error {
		conn.AddTable(theirs)
		if err := conn.Flush(); err != nil {
			return err
		}
		conn.DelTable(theirs)
		return conn.Flush()
	}
	e := open(t, ns, 1, 0)
	tries := 0
	do(t, h, func() error {
		return change(ns, (*tx).load, func(tx *tx) error {
			if tries++; tries < 4 {
				return interfere()
			}
			return nil
		}, func(tx *tx) error {
			tx.remove(e.is)
			tx.enter(e.Owner, plain())
			return nil
		})
	})
	if tries != 4 {
		t.Errorf("%d tries, want 4", tries)
	}
	checkOrder(t, h, []*Entry{e})
	busyTimeout = 0
	do(t, h, func() error {
		err := change(ns, func(tx *tx) error { tx.remove(e.is); return interfere() })
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "nft monitor") {
			t.Errorf("always overtaken: %v, want ErrBusy", err)
		}
		return nil
	})
	checkOrder(t, h, []*Entry{e})
	closeAll(t, e)
	noTable(t, h)
}

// TestTablesNamedLikeOurs: a table that another program has made or changed is named, with what to do about it.
func TestTablesNamedLikeOurs(t *testing.T) {
	accept, drop := nftables.ChainPolicyAccept, nftables.ChainPolicyDrop
	chain := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority, policy *nftables.ChainPolicy) func(*nftables.Conn) {
		return func(c *nftables.Conn) {
			c.AddTable(table)
			d := &nftables.Chain{Name: name, Table: table}
			if hook != nil {
				d.Type, d.Hooknum, d.Priority, d.Policy = nftables.ChainTypeFilter, hook, &priority, policy
			}
			c.AddChain(d)
		}
	}
	rows := []struct {
		name string
		make func(*nftables.Conn)
		want string
	}{
		{"at another hook", chain("inbound", nftables.ChainHookInput, -300, &accept), `chain "inbound"`},
		{"with another priority", chain("outbound", nftables.ChainHookPostrouting, 0, &accept), `chain "outbound"`},
		{"at no hook", chain("forward", nil, 0, nil), `chain "forward"`},
		{"at a hook", chain("handles", nftables.ChainHookOutput, 0, &accept), `chain "handles"`},
		{"with a policy", chain("inbound", nftables.ChainHookPrerouting, -300, &drop), "policy"},
		{"with a chain of its own", chain("ssh", nftables.ChainHookInput, 0, &accept), `chain "ssh"`},
		{"dormant", func(c *nftables.Conn) { c.AddTable(table) }, "dormant"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			h, ns := newHost(t)
			nft(t, h, func(c *nftables.Conn) error { row.make(c); return nil })
			if row.name == "dormant" {
				switchOff(t, h)
			}
			e, err := enter(ns, Owner{ID: 1}, plain())
			if err == nil {
				closeAll(t, e)
			}
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "nft delete table inet divert") {
				t.Errorf("%v, want %q and what to do", err, row.want)
			}
			if err := Sweep(ns); err != nil {
				t.Error(err)
			}
			if tables, err := h.NFTables(); err != nil || !slices.Contains(tables, "inet divert") {
				t.Errorf("the other program's table: %q, %v", tables, err)
			}
		})
	}
}

// switchOff makes the table dormant, which the library cannot.
func switchOff(t *testing.T, h *lab.Host) {
	t.Helper()
	do(t, h, func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.Close()
		var b batch
		b.add(unix.NFT_MSG_NEWTABLE, 0, func(e *netlink.AttributeEncoder) {
			e.String(unix.NFTA_TABLE_NAME, tableName)
			e.Uint32(unix.NFTA_TABLE_FLAGS, flagDormant)
		})
		return c.commit(&b, 0) // of whichever generation
	})
}

// TestADormantTableWithHandles: the error says that the table was switched off, not that modules are missing.
func TestADormantTableWithHandles(t *testing.T) {
	h, ns := newHost(t)
	e := open(t, ns, 1, 0)
	switchOff(t, h)
	if again, err := enter(ns, Owner{ID: 2}, plain()); !errors.Is(err, ErrForeign) {
		t.Errorf("%v, %v", again, err)
	}
	closeAll(t, e)
	noTable(t, h)
}

// TestManyHandles opens more handles with long filters than answers or filters fit into a small receive buffer.
func TestManyHandles(t *testing.T) {
	h, ns := newHost(t)
	filter := strings.Repeat("0123456789abcdef", 700)
	var entries []*Entry
	for i := range 120 {
		e, err := enter(ns, Owner{ID: uint64(i + 1), PID: os.Getpid(), Filter: filter}, plain())
		if err != nil {
			t.Fatalf("handle %d: %v", i+1, err)
		}
		entries = append(entries, e)
	}
	owners, err := List(ns)
	if err != nil || len(owners) != len(entries) || owners[77].Filter != filter {
		t.Errorf("%d handles, %v", len(owners), err)
	}
	var closing sync.WaitGroup
	for _, e := range entries {
		closing.Go(func() { closeAll(t, e) })
	}
	closing.Wait()
	noTable(t, h)
}

// startSleep starts a process that has nothing to do with handles. It inherits the files, which are closed here.
func startSleep(t *testing.T, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the test may have waited for it
		_ = cmd.Wait()
	})
	return cmd
}

// runs reports whether a child has not ended.
func runs(cmd *exec.Cmd) bool { return cmd.Process.Signal(syscall.Signal(0)) == nil }

// TestKillEndsNoStranger: a rule that names the process of somebody else, whatever else it claims, is no reason to
// end it.
func TestKillEndsNoStranger(t *testing.T) {
	h, ns := newHost(t)
	cmd := startChild(t, h, 5)
	victim := startSleep(t)
	owners, err := List(ns)
	if err != nil || len(owners) != 1 || owners[0].Process != cmd.Process.Pid {
		t.Fatalf("List: %+v, %v", owners, err)
	}
	claims := []Owner{owners[0], owners[0], owners[0]}
	for i := range claims {
		claims[i].PID = victim.Process.Pid
	}
	claims[1].ID, claims[2].ID = 6, 7 // of which the queue says nothing
	claims[2].Queue, claims[2].Port = 0x8000, uint32(victim.Process.Pid)
	nft(t, h, func(c *nftables.Conn) error {
		for _, o := range claims {
			c.InsertRule(&nftables.Rule{Table: table, Chain: Handles.ref(), UserData: o.userData()})
		}
		return nil
	})
	owners, err = List(ns)
	for _, o := range owners {
		if o.Process == victim.Process.Pid || o.ID != 5 {
			t.Errorf("List believes %+v", o)
		}
	}
	if err != nil || len(owners) != 1 || owners[0].Process != cmd.Process.Pid {
		t.Errorf("List: %+v, %v", owners, err)
	}
	if err := Kill(ns, victim.Process.Pid); !errors.Is(err, ErrNotCertain) {
		t.Errorf("Kill says %v, want ErrNotCertain", err)
	}
	if !runs(victim) {
		t.Fatal("a stranger was killed")
	}
	if err := Kill(ns, cmd.Process.Pid); err != nil {
		t.Errorf("Kill of the handle's process: %v", err)
	}
	if state, err := cmd.Process.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the handle's process: %v, %v", state, err)
	}
	if err := Kill(ns, cmd.Process.Pid); err != nil {
		t.Errorf("Kill of one that is gone: %v", err)
	}
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	noTable(t, h)
}

// TestKillEndsNobodyWhoWasGivenAToken: another user with CAP_NET_ADMIN passes its handle's token to a process, which is not
// taken for the one that has the handle.
func TestKillEndsNobodyWhoWasGivenAToken(t *testing.T) {
	another := anotherUser(unix.CAP_NET_ADMIN)
	if another.Credential == nil {
		t.Skip("only root outside user namespaces can start processes of other users")
	}
	h, ns := newHost(t)
	cmd := startChildWith(t, h, another, 5)
	owners, err := List(ns)
	if err != nil || len(owners) != 1 || owners[0].Process != cmd.Process.Pid {
		t.Fatalf("List: %+v, %v", owners, err)
	}
	victim := startSleep(t, socketOf(t, h, owners[0]))
	kill(t, cmd)
	if owners, err := List(ns); err != nil || len(owners) != 1 || owners[0].Process != 0 {
		t.Errorf("List: %+v, %v, want a handle of nobody", owners, err)
	}
	if err := Kill(ns, victim.Process.Pid); !errors.Is(err, ErrNotCertain) {
		t.Errorf("Kill says %v, want ErrNotCertain", err)
	}
	if !runs(victim) {
		t.Error("a stranger was killed")
	}
	kill(t, victim)
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	noTable(t, h)
}

// socketOf takes a handle's token from its process.
func socketOf(t *testing.T, h *lab.Host, o Owner) *os.File {
	t.Helper()
	var ports map[uint32]uint64
	do(t, h, func() (err error) { ports, err = inodes(); return err })
	process, err := unix.PidfdOpen(o.Process, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	got := -1
	if err := eachSocket(strconv.Itoa(o.Process), func(inode uint64, path string) bool {
		if inode != ports[o.Port] {
			return true
		}
		var fd int
		if fd, err = strconv.Atoi(path[strings.LastIndexByte(path, '/')+1:]); err == nil {
			got, err = unix.PidfdGetfd(process, fd, 0)
		}
		return false
	}); err != nil || got < 0 {
		t.Fatal(err, got)
	}
	return os.NewFile(uintptr(got), "token")
}

// anotherUser returns the attributes of a process of another user that has the rights and no others, or none where
// such a process cannot be started.
func anotherUser(rights ...uintptr) *syscall.SysProcAttr {
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || os.Getuid() != 0 || !strings.Contains(string(m), "4294967295") {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: rights}
}

// TestProcessesOfOtherPIDNamespaces: a handle's process is known by the caller's numbers, not by the number that it has itself.
func TestProcessesOfOtherPIDNamespaces(t *testing.T) {
	h, ns := newHost(t)
	cmd := startChildWith(t, h, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}, 5)
	owners, err := List(ns)
	if err != nil || len(owners) != 1 || owners[0].PID == cmd.Process.Pid || owners[0].Process != cmd.Process.Pid {
		t.Fatalf("List: %+v, %v, want the process %d", owners, err, cmd.Process.Pid)
	}
	if err := Kill(ns, owners[0].PID); !errors.Is(err, ErrNotCertain) {
		t.Errorf("Kill of its own number: %v", err)
	}
	if err := Kill(ns, cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	noTable(t, h)
}

// TestWithoutTheListOfQueues: a process that may not read the kernel's list of queues still sees which handles are alive, and
// kills none.
func TestWithoutTheListOfQueues(t *testing.T) {
	h, ns := newHost(t)
	cmd := startChild(t, h, 5, 6)
	owners, err := List(ns)
	if err != nil || len(owners) != 2 {
		t.Fatalf("List: %+v, %v", owners, err)
	}
	check := func(want bool) {
		t.Helper()
		do(t, h, func() error {
			l := &living{}
			defer l.close()
			for _, o := range owners {
				if l.alive(o) != want || l.certain(o) {
					t.Errorf("alive %t, certain %t, want %t and never certain", l.alive(o), l.certain(o), want)
				}
			}
			return nil
		})
	}
	check(true)
	kill(t, cmd)
	check(false)
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	noTable(t, h)
}

func TestParseSocket(t *testing.T) {
	// The lines are those of net/netlink/af_netlink.c, netlink_native_seq_show.
	rows := []struct {
		name, line string
		port       uint32
		inode      uint64
		ok         bool
	}{
		{"nfnetlink", "0000000027664e13 12  2260434214 00000000 0        0        0     2        0        223850  ", 2260434214, 223850, true},
		{"of the kernel", "0000000027664e13 12  0          00000000 0        0        0     2        0        7", 0, 7, true},
		{"another protocol", "0000000027664e13 0   24754      00000000 0        0        0     2        0        224045", 0, 0, false},
		{"the header", "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode", 0, 0, false},
		{"cut", "0000000027664e13 12  24754      00000000 0        0", 0, 0, false},
		{"nothing", "", 0, 0, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if port, inode, ok := parseSocket(row.line); port != row.port || ok != row.ok || ok && inode != row.inode {
				t.Errorf("port %d, inode %d, %t", port, inode, ok)
			}
		})
	}
}

func FuzzParseSocket(f *testing.F) {
	f.Add("0000000027664e13 12  2260434214 00000000 0        0        0     2        0        223850")
	f.Fuzz(func(t *testing.T, line string) {
		if _, inode, ok := parseSocket(line); ok && inode == 0 {
			t.Errorf("%q has no inode", line)
		}
	})
}

// BenchmarkOpen measures how long a handle takes into the table and out of it, beside others.
func BenchmarkOpen(b *testing.B) {
	for _, others := range []int{0, 100, 255} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			_, ns := newHost(b)
			var entries []*Entry
			for i := range others {
				entries = append(entries, open(b, ns, uint64(i+1), 0))
			}
			for b.Loop() {
				closeAll(b, open(b, ns, 1000, 1))
			}
			closeAll(b, entries...)
		})
	}
}

func TestUsers(t *testing.T) {
	// The lines are those of fs/proc/array.c, task_state.
	for status, want := range map[string]string{
		"Name:\tsleep\nUid:\t0\t1\t2\t3\nGid:\t9\t9\t9\t9\n": "0 1 2 3",
		"Name:\tUid:\n": "", "Uid:": "", "": "",
	} {
		if got := strings.Join(users(status), " "); got != want {
			t.Errorf("%q: %q, want %q", status, got, want)
		}
	}
}
