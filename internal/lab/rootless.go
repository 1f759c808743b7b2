//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/rights"
)

// guardVariable tells the second start of a program that it is the second, so it never makes a third. Its value is the
// network namespace of the first.
const guardVariable = "DIVERT_LAB_ROOTLESS"

var rootless struct {
	sync.Mutex
	restarted bool   // this process is the second start
	first     string // the network namespace of the first
}

// Rootless makes sure that the program may build labs. Call it first in TestMain or main, before any action that must
// not happen twice.
//
// With CAP_NET_ADMIN and CAP_SYS_ADMIN it does nothing and returns nil. Otherwise it starts the program again in new
// user, network and mount namespaces, where the present user is root and the only addresses are 127.0.0.1 and ::1.
// Arguments, environment and standard descriptors are the same; other descriptors are not inherited. It passes on
// signals, ends this process in the same way as the second one ended, and so does not return. Where the kernel forbids
// the second start, it returns an error that wraps ErrUnavailable.
func Rootless() error {
	rootless.Lock()
	defer rootless.Unlock()
	if first := os.Getenv(guardVariable); first != "" {
		rootless.restarted, rootless.first = true, first
		os.Unsetenv(guardVariable) // so that children count as first starts
	}
	if capable() {
		return errors.Join(Available(), ownLoopbackUp())
	}
	if rootless.restarted {
		return fmt.Errorf("%w: no CAP_NET_ADMIN and CAP_SYS_ADMIN even in an own user namespace", ErrUnavailable)
	}
	return restart()
}

// Available reports whether this process, as it is, may build labs: nil, or an error that wraps ErrUnavailable, with
// the reason. It tries once, with a temporary namespace.
func Available() error { return available() }

var available = sync.OnceValue(func() error {
	if !capable() {
		return fmt.Errorf("%w: this process has no CAP_NET_ADMIN and CAP_SYS_ADMIN (run it as root, or call Rootless first)",
			ErrUnavailable)
	}
	f, err := newNetNS()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return f.Close()
})

// capable reports whether the process has the two capabilities that labs need, effective.
func capable() bool {
	const need = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN
	have, err := rights.Effective()
	return err == nil && have&need == need
}

// restart runs the program again in new namespaces and ends this process with its status. It returns only if the second
// start failed.
func restart() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	ns, err := os.Readlink(threadNetNS)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	cmd := &exec.Cmd{
		Path: self, Args: os.Args, Env: append(os.Environ(), guardVariable+"="+ns),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		},
	}
	// The kernel sends Pdeathsig when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	if err := cmd.Start(); err != nil {
		signal.Reset()
		return fmt.Errorf("%w: user namespaces are forbidden here: %w", ErrUnavailable, err)
	}
	go forward(signals, cmd.Process)
	err = cmd.Wait()
	endAs(cmd.ProcessState, err)
	return nil
}

// ownLoopbackUp brings up the loopback interface of the second start's own, new namespace, so that 127.0.0.1 works as
// usual. It touches no other namespace, whatever the environment contains.
func ownLoopbackUp() error {
	if !strings.HasPrefix(rootless.first, "net:[") {
		return nil
	}
	if ns, err := os.Readlink(threadNetNS); err != nil || ns == rootless.first {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("%w: loopback: %w", ErrUnavailable, err)
	}
	return nil
}

// forwarded are the signals to pass on. Signals that stop and continue a process act on this one, so that a shell's job
// control sees it; a terminal sends them to both.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM,
}

// fromTerminal are the signals that a terminal sends to every process of the foreground group: the second start has
// then received its own, and a second SIGINT has another meaning to many programs.
var fromTerminal = map[os.Signal]bool{unix.SIGINT: true, unix.SIGQUIT: true, unix.SIGHUP: true}

// forward passes signals on to p.
func forward(signals <-chan os.Signal, p *os.Process) {
	for s := range signals {
		if fromTerminal[s] && inForeground() {
			continue
		}
		_ = p.Signal(s) // it may have ended
	}
}

// inForeground reports whether this process is in the foreground group of its terminal.
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// endAs ends this process like the other one: with its exit status, or by the same signal.
func endAs(state *os.ProcessState, err error) {
	if state == nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		signal.Reset()
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // one core file is enough
		_ = unix.Kill(unix.Getpid(), status.Signal())
		os.Exit(128 + int(status.Signal())) // Go programs survive this signal
	}
	os.Exit(state.ExitCode())
}
