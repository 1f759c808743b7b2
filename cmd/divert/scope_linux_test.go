package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// TestScopeLive ends runs by time and by number of packets, and narrows them to an interface and to processes.
func TestScopeLive(t *testing.T) {
	t.Run("time", func(t *testing.T) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		for _, args := range [][]string{
			{"drop", "--for", "50ms", "udp"}, {"reject", "--for", "50ms", "udp"}, {"passthru", "--for", "50ms", "udp"},
			{"delay", "--for", "50ms", "1ms", "udp"}, {"dump", "--for", "50ms", "udp"},
		} {
			p := start(t, pair.A, args...)
			if _, status := p.end(t, nil); status != exitOK || strings.Contains(p.errout.String(), "deadline") {
				t.Errorf("%v: status %d: %s", args, status, p.errout)
			}
		}
	})
	t.Run("number", func(t *testing.T) {
		for _, test := range []struct {
			args []string
			back int
			want string
		}{
			{[]string{"drop", "-c", "3", "udp.DstPort == 7"}, 0, "3 packets matched, 3 dropped"},
			{[]string{"reject", "-c", "3", "udp.DstPort == 7"}, 0, "3 received, "},
			{[]string{"passthru", "-c", "3", "--queues", "2", "udp.DstPort == 7"}, 3, "3 received, 3 sent"},
			{[]string{"delay", "-c", "3", "1ms", "udp.DstPort == 7"}, 3, "3 received, 3 sent"},
		} {
			pair, echo := hosts(t)
			p := start(t, pair.A, test.args...)
			if n := exchange(t, pair.A, echo, 3, answersIn(test.back)); n != test.back {
				t.Errorf("%v: %d datagrams came back, want %d", test.args, n, test.back)
			}
			if _, status := p.end(t, nil); status != exitOK || !strings.Contains(p.errout.String(), test.want) {
				t.Errorf("%v: status %d: %s", test.args, status, p.errout)
			}
		}
	})
	t.Run("interface", func(t *testing.T) {
		pair, echo := hosts(t)
		p := start(t, pair.A, "drop", "-i", "lo", "udp")
		if n := exchange(t, pair.A, echo, 1, 5*time.Second); n != 1 {
			t.Errorf("%d datagrams came back past another interface", n)
		}
		p.end(t, os.Interrupt)
		const long = "a-name-of-more-than-fifteen-bytes"
		alternativeName(t, pair.A.Links()[0], long)
		p = start(t, pair.A, "drop", "-i", "lo,"+long, "-c", "1", "udp")
		if n := exchange(t, pair.A, echo, 1, 100*time.Millisecond); n != 0 {
			t.Errorf("%d datagrams came back past an alternative name", n)
		}
		p.end(t, nil)
		p = start(t, pair.A, "drop", "-i", "lo,eth0", "-c", "1", "udp")
		if n := exchange(t, pair.A, echo, 1, 100*time.Millisecond); n != 0 {
			t.Errorf("%d datagrams came back", n)
		}
		p.end(t, nil)
	})
}

// alternativeName gives an interface another name.
func alternativeName(t *testing.T, l *lab.Link, name string) {
	t.Helper()
	link, err := l.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	nl, err := l.Host().Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := nl.LinkAddAltName(link, name); err != nil {
		t.Fatal(err)
	}
}

// answersIn is how long to wait for answers when back of them are expected.
func answersIn(back int) time.Duration {
	if back == 0 {
		return 100 * time.Millisecond
	}
	return 10 * time.Second
}

// TestScopeProcess drops the packets of a process, by id and by name, and none of another process.
func TestScopeProcess(t *testing.T) {
	if err := needProcesses(); err != nil {
		t.Skipf("the processes of packets are not known here: %v", err)
	}
	pair, echo := hosts(t)
	for _, test := range []struct {
		name, process string
		back          int
	}{
		{"id", strconv.Itoa(os.Getpid()), 0},
		{"name", filepath.Base(os.Args[0]), 0},
		{"another name", "no such process", 1},
	} {
		for _, args := range [][]string{{"drop", "--process", test.process, "udp"}, {"impair", "--loss", "1", "--process", test.process, "udp"}} {
			p := start(t, pair.A, args...)
			if n := exchange(t, pair.A, echo, 1, answersIn(test.back)); n != test.back {
				t.Errorf("%s, %v: %d datagrams came back, want %d\n%s", test.name, args, n, test.back, p.errout)
			}
			p.end(t, os.Interrupt)
		}
	}
}

func TestProcessesNamed(t *testing.T) {
	self := uint32(os.Getpid())
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Skip(err)
	}
	for _, name := range []string{filepath.Base(os.Args[0]), strings.TrimSpace(string(comm))} {
		if ids, err := processesNamed([]string{"no such process", name}); err != nil || !slices.Contains(ids, self) {
			t.Errorf("%s: %v, %v; want %d", name, ids, err, self)
		}
	}
	if ids, err := processesNamed([]string{"no such process"}); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
}
