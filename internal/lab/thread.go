//go:build linux

package lab

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// threadNetNS names the network namespace of the calling thread.
const threadNetNS = "/proc/thread-self/ns/net"

// newNetNS makes a network namespace held only by the returned file.
func newNetNS() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		ns, err = os.Open(threadNetNS)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	return ns, nil
}

// outcome records how a function on another goroutine ended.
type outcome struct {
	err      error
	panicked any    // the value of its panic
	stack    []byte // and its stack
	exited   bool   // it called runtime.Goexit, as testing's FailNow does
}

// onThread moves a new operating-system thread to another network namespace with enter, runs f on it, and waits. Then
// the thread returns to its namespace and to the runtime's pool. If it cannot return it ends, so no other goroutine
// ever runs in a foreign namespace. A panic or Goexit in f continues in the caller.
//
// The Go runtime starts no thread from a locked one, so no other thread inherits the namespace.
func onThread(enter, f func() error) error {
	done := make(chan outcome, 1)
	go offMain(func() {
		var end outcome
		defer func() { done <- end }()
		home, err := os.Open(threadNetNS)
		if err != nil {
			end.err = err
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		if end.err = enter(); end.err != nil {
			runtime.UnlockOSThread() // unshare and setns do nothing when they fail
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		returned := false
		defer func() {
			if returned {
				return
			}
			if end.panicked = recover(); end.panicked != nil {
				end.stack = debug.Stack()
			} else {
				end.exited = true
			}
		}()
		end.err = f()
		returned = true
	})
	end := <-done
	switch {
	case end.panicked != nil:
		panic(fmt.Sprintf("%v\n\n%s", end.panicked, end.stack))
	case end.exited:
		runtime.Goexit()
	}
	return end.err
}

// offMain runs f on a goroutine locked to a thread other than the process's first; f unlocks it to release the thread.
// A goroutine that ends locked ends its thread too, except the first one: that would stay in its namespace until the
// process ends.
func offMain(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() { // on another thread, since this one is locked
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}
