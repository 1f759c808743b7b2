//go:build linux

package rights

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Refusal names the right that a program in the kernel most often lacks when the kernel refuses it. Other errors it returns
// as they are.
func Refusal(err error) error {
	for _, no := range []error{unix.EPERM, unix.EACCES} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w (needs CAP_BPF in the initial user namespace)", no)
		}
	}
	return err
}
