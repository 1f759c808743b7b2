//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnavailable is returned (wrapped, with the reason) where this process may not make network
// namespaces.
var ErrUnavailable = errors.New("lab: network namespaces are not available")

// guardVariable tells the second start of a program that it is the second, so it never makes a third.
const guardVariable = "DIVERT_LAB_ROOTLESS"

var rootless struct {
	sync.Mutex
	restarted bool // this process is the second start
}

// Rootless makes sure that the program may build labs. Call it first thing in TestMain or main,
// before there is anything that a second start would do twice.
//
// With CAP_NET_ADMIN and CAP_SYS_ADMIN it does nothing and returns nil. Otherwise it starts the
// program again in new user, network and mount namespaces, where the present user is root, with the
// same arguments, environment and standard descriptors; passes on signals; ends this process the way
// the second one ended, and so does not return. Where the kernel forbids that it returns an error
// that is ErrUnavailable.
func Rootless() error {
	rootless.Lock()
	defer rootless.Unlock()
	if os.Getenv(guardVariable) != "" {
		rootless.restarted = true
		os.Unsetenv(guardVariable) // children are first starts of their own
	}
	if capable() {
		return Available()
	}
	if rootless.restarted {
		return fmt.Errorf("%w: no CAP_NET_ADMIN and CAP_SYS_ADMIN even in an own user namespace", ErrUnavailable)
	}
	return restart()
}

// Available says whether this process, as it is, may build labs: nil, or an error that is
// ErrUnavailable with the reason. It tries once, with a namespace that is gone at once.
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
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	const need = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN
	return data[0].Effective&need == need
}

// restart runs the program again in namespaces of its own and ends this process with its status.
// It returns only if the second start could not be made.
func restart() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	cmd := &exec.Cmd{
		Path: self, Args: os.Args, Env: append(os.Environ(), guardVariable+"=1"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		},
	}
	// Pdeathsig counts from the end of the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	if err := cmd.Start(); err != nil {
		signal.Reset()
		return fmt.Errorf("%w: user namespaces are forbidden here: %w", ErrUnavailable, err)
	}
	go forward(signals, cmd.Process)
	err = cmd.Wait()
	endAs(cmd.ProcessState, err)
	return nil
}

// notForwarded are the signals that concern this process alone: its own child, its own timers, its
// own writes, and the Go runtime's own preemption.
var notForwarded = map[os.Signal]bool{
	unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGPIPE: true, unix.SIGPROF: true, unix.SIGWINCH: true,
	unix.SIGTTIN: true, unix.SIGTTOU: true,
}

// fromTerminal are the signals that a terminal sends to every process of the foreground group: there
// the second start has had its own.
var fromTerminal = map[os.Signal]bool{unix.SIGINT: true, unix.SIGQUIT: true, unix.SIGTSTP: true, unix.SIGHUP: true}

// forward passes signals on to p.
func forward(signals <-chan os.Signal, p *os.Process) {
	for s := range signals {
		if notForwarded[s] || fromTerminal[s] && inForeground() {
			continue
		}
		_ = p.Signal(s) // it may have ended
	}
}

// inForeground reports whether this process is of the foreground group of its terminal.
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// endAs ends this process as the other ended: with its exit status, or by the same signal.
func endAs(state *os.ProcessState, err error) {
	if state == nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		signal.Reset()
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // one core file is enough
		_ = unix.Kill(unix.Getpid(), status.Signal())
		os.Exit(128 + int(status.Signal())) // a signal that Go programs survive
	}
	os.Exit(state.ExitCode())
}
