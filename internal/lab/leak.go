//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settle is how long a leak check waits for resources that are about to end: returning goroutines, ending threads,
// children not yet reaped.
const settle = 3 * time.Second

// Snapshot lists the resources of the process at one time: descriptors, goroutines, threads in foreign namespaces and
// child processes; and the interfaces and nftables tables of some hosts.
type Snapshot struct {
	hosts  []*Host
	held   map[string]string // key → name in a report
	err    error
	settle time.Duration
}

// TakeSnapshot lists the present resources of the process and the hosts.
func TakeSnapshot(hosts ...*Host) *Snapshot {
	startPoller()
	s := &Snapshot{hosts: hosts, settle: settle}
	s.held, s.err = holdings(hosts)
	return s
}

// Leaks returns the resources held now but not at the time of the snapshot, one line each, sorted. It waits up to three
// seconds for them to disappear. It compares the whole process, so it is useful only while nothing else in the process
// opens anything.
func (s *Snapshot) Leaks() []string {
	if s.err != nil {
		return []string{"the first snapshot failed: " + s.err.Error()}
	}
	for deadline := time.Now().Add(s.settle); ; time.Sleep(5 * time.Millisecond) {
		now, err := holdings(s.hosts)
		var leaks []string
		if err != nil {
			leaks = append(leaks, "the second snapshot failed: "+err.Error())
		}
		for key, text := range now {
			if _, had := s.held[key]; !had {
				leaks = append(leaks, text)
			}
		}
		if len(leaks) == 0 || time.Now().After(deadline) {
			slices.Sort(leaks)
			return leaks
		}
	}
}

// CheckLeaks fails the test at its end if the process then holds a new resource, or if one of the hosts has a new
// interface or nftables table. Called before the test makes its network it checks the network too; called later, with
// its hosts, it checks the test's use of them. It does not work in parallel tests.
func CheckLeaks(t TB, hosts ...*Host) {
	t.Helper()
	TakeSnapshot(hosts...).check(t)
}

func (s *Snapshot) check(t TB) {
	t.Cleanup(func() {
		for _, l := range s.Leaks() {
			t.Errorf("left behind: %s", l)
		}
	})
}

// startPoller makes the runtime open the descriptors of its network poller, which it keeps open.
func startPoller() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// holdings lists everything that a snapshot compares.
func holdings(hosts []*Host) (map[string]string, error) {
	held := make(map[string]string)
	errs := []error{descriptors(held), threads(held), children(held)}
	goroutines(held)
	for _, h := range hosts {
		errs = append(errs, h.holdings(held))
	}
	return held, errors.Join(errs...)
}

// descriptors adds the process's file descriptors; namespaces, sockets and pipes show their inode.
func descriptors(held map[string]string) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the descriptor of ReadDir itself
		}
		held["fd "+e.Name()+" "+target] = "descriptor " + e.Name() + ": " + target
	}
	return nil
}

// threads adds each network namespace of a thread of the process.
func threads(held map[string]string) error {
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		return err
	}
	for _, path := range paths {
		ns, err := os.Readlink(path)
		if err != nil {
			continue // the thread has ended
		}
		held["thread in "+ns] = "a thread in namespace " + ns
	}
	return nil
}

// children adds the child processes, including ended ones that nobody waited for.
func children(held map[string]string) error {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	self := strconv.Itoa(os.Getpid())
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended
		}
		// proc_pid_stat(5): pid (name) state ppid …, and the name may contain anything.
		end := bytes.LastIndexByte(text, ')')
		if end < 0 {
			continue
		}
		if rest := strings.Fields(string(text[end+1:])); len(rest) > 1 && rest[1] == self {
			held["child "+path] = fmt.Sprintf("child process %s) %s", text[:end], rest[0])
		}
	}
	return nil
}

// goroutines adds all goroutines except the caller and the standard library's permanent ones.
func goroutines(held map[string]string) {
	stack := make([]byte, 64<<10)
	for {
		n := runtime.Stack(stack, true)
		if n < len(stack) {
			stack = stack[:n]
			break
		}
		stack = make([]byte, 2*len(stack))
	}
	for i, g := range strings.Split(string(stack), "\n\n") {
		if i == 0 || permanent(g) {
			continue // the first is the caller
		}
		id, _, _ := strings.Cut(strings.TrimPrefix(g, "goroutine "), " ")
		held["goroutine "+id] = strings.ReplaceAll(strings.TrimSpace(g), "\n", "\n\t")
	}
}

// permanent reports whether the standard library starts the goroutine on first use and keeps it.
func permanent(stack string) bool {
	for _, mark := range []string{"os/signal.loop", "os/signal.signal_recv", "runtime.ensureSigM", "testing.(*M).startAlarm"} {
		if strings.Contains(stack, mark) {
			return true
		}
	}
	return false
}

// holdings adds the host's interfaces and nftables tables.
func (h *Host) holdings(held map[string]string) error {
	nl, err := h.Netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	links, err := nl.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		key := fmt.Sprintf("host %p link %d %s", h, a.Index, a.Name)
		held[key] = fmt.Sprintf("host %s: %s interface %s", h.name, l.Type(), a.Name)
	}
	tables, err := h.NFTables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		held[fmt.Sprintf("host %p table %s", h, table)] = fmt.Sprintf("host %s: nftables table %s", h.name, table)
	}
	return nil
}
