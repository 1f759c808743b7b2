//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// childVariable names the job of this test program when it is started as a child.
const childVariable = "DIVERT_LAB_TEST_CHILD"

// children4test are those jobs; each is started without capabilities and calls Rootless first.
var children4test = map[string]func() int{
	"copy": func() int { // prints its arguments and standard input
		if err := Rootless(); err != nil {
			fmt.Println(err)
			return 100
		}
		input, _ := io.ReadAll(os.Stdin)
		_, guarded := os.LookupEnv(guardVariable)
		fmt.Printf("uid %d args %q input %q guard %t", os.Getuid(), os.Args[1:], input, guarded)
		return 7
	},
	"signal": func() int { // waits for a signal
		if err := Rootless(); err != nil {
			fmt.Println(err)
			return 100
		}
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGUSR1, unix.SIGTERM)
		fmt.Println("ready")
		if <-c == unix.SIGUSR1 {
			return 9
		}
		return 10
	},
	"killed": func() int { // dies of a signal
		if err := Rootless(); err != nil {
			fmt.Println(err)
			return 100
		}
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {}
	},
}

// ordinary returns this test program as a child without any capability: an ordinary user of a user namespace. An
// ordinary user's process has no more rights than that.
func ordinary(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	Need(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), self, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}},
	}
	return cmd
}

func skipIfForbidden(t *testing.T, err error, out string) {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 100 || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("user namespaces are forbidden here: %v %s", err, out)
	}
}

func TestRootlessPassesArgumentsInputAndStatus(t *testing.T) {
	cmd := ordinary(t, []string{childVariable + "=copy"}, "one", "two words")
	cmd.Stdin = strings.NewReader("some input")
	out, err := cmd.CombinedOutput()
	skipIfForbidden(t, err, string(out))
	const want = `uid 0 args ["one" "two words"] input "some input" guard false`
	if cmd.ProcessState.ExitCode() != 7 || string(out) != want {
		t.Errorf("%v, %s\nwant status 7, %s", err, out, want)
	}
}

func TestRootlessPassesSignals(t *testing.T) {
	for sig, want := range map[os.Signal]int{unix.SIGUSR1: 9, unix.SIGTERM: 10} {
		cmd := ordinary(t, []string{childVariable + "=signal"})
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			skipIfForbidden(t, err, "")
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		if line == "ready\n" {
			err = cmd.Process.Signal(sig)
		}
		err = errors.Join(err, cmd.Wait())
		skipIfForbidden(t, err, line)
		if cmd.ProcessState.ExitCode() != want {
			t.Errorf("%v: %q, %v, want exit status %d", sig, line, err, want)
		}
	}
}

func TestRootlessDiesOfTheSameSignal(t *testing.T) {
	cmd := ordinary(t, []string{childVariable + "=killed"})
	out, err := cmd.CombinedOutput()
	skipIfForbidden(t, err, string(out))
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != unix.SIGKILL {
		t.Errorf("%v, %s, want killed", err, out)
	}
}

// Several test programs of ordinary users run at once, in networks with the same addresses.
func TestRootlessProcessesSideBySide(t *testing.T) {
	var all sync.WaitGroup
	for range 3 {
		cmd := ordinary(t, nil, "-test.run=^(TestTopologiesCarryUDPAndTCP|TestOffloads)$", "-test.v")
		all.Go(func() {
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestTopologies")) && !bytes.Contains(out, []byte("forbidden")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	all.Wait()
}

func TestWithoutNamespacesTestsSkip(t *testing.T) {
	cmd := ordinary(t, []string{guardVariable + "=1"}, "-test.run=^TestOffloads$", "-test.v")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- SKIP: TestOffloads")) || !bytes.Contains(out, []byte("not available")) {
		t.Errorf("%v\n%s", err, out)
	}
}
