//go:build linux

package rights

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Refusal explains why the kernel refused a program with EPERM or EACCES: most often a right is missing; in containers a seccomp
// profile may forbid the call. It examines the calling thread. It returns other errors unchanged.
func Refusal(err error) error {
	for _, no := range []error{unix.EPERM, unix.EACCES} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w (%s)", no, cause())
		}
	}
	return err
}

// cause says what forbids bpf(2) to the calling thread.
func cause() string {
	have, err := Effective()
	switch {
	case err != nil, have&(1<<unix.CAP_BPF|1<<unix.CAP_SYS_ADMIN) == 0, !initialUsers():
		return "needs CAP_BPF in the initial user namespace"
	case filtered():
		return "a seccomp filter forbids bpf(2), although the process has CAP_BPF; a container needs a profile that allows it (docs/install.md)"
	}
	return "although the process has CAP_BPF: a security module or a lockdown of the kernel forbids bpf(2)"
}

// initialUsers reports whether the user namespace of the process is the initial one: the one that maps every user to itself
// (user_namespaces(7)).
func initialUsers() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || string(bytes.Join(bytes.Fields(b), []byte(" "))) == "0 0 4294967295"
}

// filtered reports whether seccomp filters the calls of the calling thread (PR_GET_SECCOMP in prctl(2)). A filter may also
// forbid that call.
func filtered() bool {
	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	return err != nil || mode == unix.SECCOMP_MODE_FILTER
}
