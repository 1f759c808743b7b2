//go:build linux

package rules

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/netns"
)

// childEnv holds the ids of the handles that this test binary opens as a child process of a test.
const childEnv = "DIVERT_TEST_RULES"

func TestMain(m *testing.M) {
	for name, job := range map[string]func(string) error{childEnv: child, squatEnv: squat} {
		what := os.Getenv(name)
		if what == "" {
			continue
		}
		if err := job(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Main(m)
}

// child opens handles, says so on the standard output, and holds them until its standard input ends.
func child(ids string) error {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	for _, text := range strings.Fields(ids) {
		id, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return err
		}
		if _, err := enter(ns, Owner{ID: id, PID: os.Getpid()}, plain()); err != nil {
			return err
		}
	}
	fmt.Println("open")
	_, err = os.Stdin.Read(make([]byte, 1))
	if err != nil {
		return nil // the end of the input
	}
	return fmt.Errorf("unexpected input")
}

// startChild starts a child in a host and waits until its handles are open.
func startChild(t *testing.T, h *lab.Host, ids ...uint64) *exec.Cmd {
	t.Helper()
	return startChildWith(t, h, nil, ids...)
}

// startChildWith is startChild of a process with attributes.
func startChildWith(t *testing.T, h *lab.Host, attributes *syscall.SysProcAttr, ids ...uint64) *exec.Cmd {
	t.Helper()
	return start(t, h, attributes, childEnv+"="+strings.Trim(fmt.Sprint(ids), "[]"))
}

// start starts a child in a host, whose job the environment names, and waits until it says that it has begun.
func start(t *testing.T, h *lab.Host, attributes *syscall.SysProcAttr, env string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // which other users may run too
	cmd.Env = append(os.Environ(), env)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attributes
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // the test may have killed it
	})
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatalf("the child: %v", err)
	}
	return cmd
}

// plain are the rules of a handle for which the interpreter decides. Nobody has bound the queue: packets pass.
func plain() (rules []Rule) {
	for _, c := range []Chain{Inbound, InboundFragments, Redirected, Forward, Outbound} {
		rules = append(rules, Rule{Chain: c, Program: NoProgram, Action: ToQueue{Num: 0xfff0}})
	}
	return rules
}

// enter opens a handle with its rules.
func enter(ns *netns.Namespace, o Owner, rules []Rule) (*Entry, error) {
	e, err := Open(ns, o)
	if err != nil {
		return nil, err
	}
	if err := e.Install(rules); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// newHost returns a host on its own, and its namespace.
func newHost(t testing.TB) (*lab.Host, *netns.Namespace) {
	t.Helper()
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	return h, namespace(t, h)
}

func namespace(t testing.TB, h *lab.Host) *netns.Namespace {
	t.Helper()
	var ns *netns.Namespace
	do(t, h, func() (err error) { ns, err = netns.Current(); return err })
	t.Cleanup(func() { ns.Close() })
	return ns
}

// do runs f in a host's namespace and ends the test on an error.
func do(t testing.TB, h *lab.Host, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}

// nft runs a change of the nftables of a host that is not the package's.
func nft(t testing.TB, h *lab.Host, f func(*nftables.Conn) error) {
	t.Helper()
	do(t, h, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		if err := f(conn); err != nil {
			return err
		}
		return conn.Flush()
	})
}

// open opens a handle of a priority, which the test closes at its end at the latest.
func open(t testing.TB, ns *netns.Namespace, id uint64, priority int16) *Entry {
	t.Helper()
	e, err := enter(ns, Owner{ID: id, PID: os.Getpid(), Priority: priority}, plain())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// closeAll closes handles and reports errors.
func closeAll(t testing.TB, entries ...*Entry) {
	t.Helper()
	for _, e := range entries {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// comments returns the comments of the rules of each chain, in order, with the handles' rules as "handle ID".
func comments(t testing.TB, h *lab.Host) (chains [numChains][]string, counters []string) {
	t.Helper()
	do(t, h, func() error {
		now, err := snapshot()
		if err != nil {
			return err
		}
		for c, rules := range now.rules {
			for _, r := range rules {
				if r.demand != nil {
					continue // of a handle with rules
				}
				text, _ := comment(r.data)
				if o, ok := parseOwner(r.data); ok {
					text = fmt.Sprintf("handle %x", o.ID)
				}
				chains[c] = append(chains[c], text)
			}
		}
		if !now.table.there {
			return nil
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		objects, err := conn.GetNamedObjects(table)
		for _, o := range objects {
			counters = append(counters, o.(*nftables.NamedObj).Name)
		}
		return err
	})
	return chains, counters
}

// noTable reports an error if the host has the package's table still.
func noTable(t testing.TB, h *lab.Host) {
	t.Helper()
	tables, err := h.NFTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tables {
		if name == "inet "+tableName {
			t.Errorf("the table stays: %v", tables)
		}
	}
}
