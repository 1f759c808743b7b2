//go:build linux

package rights

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestRefusal checks the explanation with the right, without it, and under a seccomp filter like a container's that forbids the
// call.
func TestRefusal(t *testing.T) {
	if err := Refusal(os.ErrNotExist); err != os.ErrNotExist {
		t.Errorf("another error became %v", err)
	}
	rows := []struct {
		name    string
		prepare func() error
		want    string
		root    bool
	}{
		{"no right", withoutRights, "needs CAP_BPF in the initial user namespace", false},
		{"a seccomp filter", forbidBPF, "a seccomp filter forbids bpf(2)", true},
		{"a seccomp filter, and no right", func() error { return errors.Join(forbidBPF(), withoutRights()) }, "needs CAP_BPF in the initial user namespace", false},
		{"something else", func() error { return nil }, "a security module or a lockdown", true},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if have, err := Effective(); row.root && (err != nil || have&(1<<unix.CAP_BPF|1<<unix.CAP_SYS_ADMIN) == 0 || !initialUsers()) {
				t.Skip("needs CAP_BPF in the initial user namespace")
			}
			if row.name == "something else" && filtered() {
				t.Skip("a seccomp filter is here already")
			}
			var prepared, err error
			done := make(chan struct{})
			go func() { // the thread ends with it, and so do its changed rights
				runtime.LockOSThread()
				defer close(done)
				prepared = row.prepare()
				err = Refusal(os.NewSyscallError("bpf", unix.EPERM))
			}()
			<-done
			if prepared != nil {
				t.Fatal(prepared)
			}
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// withoutRights takes all capabilities from the calling thread.
func withoutRights() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// forbidBPF makes bpf(2) fail with EPERM on the calling thread.
func forbidBPF() error {
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BPF, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}
