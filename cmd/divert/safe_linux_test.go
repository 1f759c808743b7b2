package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/opendivert/divert/internal/lab"
	"golang.org/x/sys/unix"
)

// sendVariable makes the test binary send a datagram to the address in the variable, and end.
const sendVariable = "DIVERT_TEST_SEND"

// sendOne does so, as a thread whose name must not reach a terminal.
func sendOne(to string) {
	comm := append([]byte("\x1b[2J\x9b2J\u202ex\n"), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&comm[0])), 0, 0, 0) // cannot fail
	c, err := net.Dial("udp", to)
	if err == nil {
		_, err = c.Write([]byte("x"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// nastyProgram returns a copy of the test binary whose name must not reach a terminal.
func nastyProgram(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // other users run it too
		t.Fatal(err)
	}
	path := filepath.Join(dir, strings.ReplaceAll(nasty, "/", ""))
	if err := os.Link(exe, path); err == nil {
		return path
	}
	data, err := os.ReadFile(exe) // the directory may be on another file system
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// nastyInterface renames an interface; the kernel accepts all bytes except white space, slash and colon.
func nastyInterface(t *testing.T, l *lab.Link) {
	t.Helper()
	if err := l.SetUp(false); err != nil {
		t.Fatal(err)
	}
	link, err := l.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	nl, err := l.Host().Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := nl.LinkSetName(link, "e\x1b[2J\x9b\xff\u202e\x7f"); err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// TestLiveNamesCannotCommandTerminals runs every command that prints names while a program, its thread and an interface
// have names with escape sequences. The program runs as an ordinary user, if the test may start it as one.
func TestLiveNamesCannotCommandTerminals(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	program := nastyProgram(t)
	nastyInterface(t, pair.A.Links()[0])
	to := netip.AddrPortFrom(pair.B.Addr4(), 9).String()
	send := func() {
		t.Helper()
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), sendVariable+"="+to)
		cmd.Dir = "/"
		if initialUserNamespace() && os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		if err := pair.A.Exec(cmd); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args   []string
		events bool
	}{
		{[]string{"dump", "-c", "1", "-v", "udp.DstPort == 9"}, false},
		{[]string{"dump", "-c", "1", "--json", "udp.DstPort == 9"}, false},
		{[]string{"dump", "-c", "1", "-q", "--engine", "interpreter", "udp.DstPort == 9"}, false},
		{[]string{"dump", "-c", "1", "--layer", "socket", "remotePort == 9"}, true},
		{[]string{"dump", "-c", "1", "--layer", "flow", "remotePort == 9"}, true},
		{[]string{"dump", "-c", "1", "--layer", "flow", "--json", "remotePort == 9"}, true},
	} {
		t.Run(strings.Join(test.args[:len(test.args)-1], " "), func(t *testing.T) {
			run := start
			if test.events {
				run = startEvents
			}
			p := run(t, pair.A, test.args...)
			send()
			out, status := p.end(t, nil)
			if status != exitOK || out == "" {
				t.Errorf("status %d, output %q, errors %s", status, out, p.errout)
			}
			asJSON := strings.Contains(strings.Join(test.args, " "), "--json")
			clean(t, out, asJSON)
			clean(t, p.errout.String(), asJSON)
		})
	}
	diverts := startProgram(t, pair.A, program, "drop", "udp.DstPort == 10")
	for _, args := range [][]string{{"list"}, {"list", "--json"}} {
		_ = pair.A.Do(func() error {
			r := runCommand(t, "", args...)
			if r.status != exitOK || !strings.Contains(r.out, "owned") {
				t.Errorf("%q: status %d, %q, %s", args, r.status, r.out, r.errout)
			}
			clean(t, r.out, len(args) > 1)
			return nil
		})
	}
	diverts.end(t, syscall.SIGTERM)
}
