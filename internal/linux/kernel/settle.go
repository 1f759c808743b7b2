//go:build linux

package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

// Settle waits until no processor is in the middle of a chain or a program that was changed before the call. The system call
// waits for an RCU grace period.
func Settle() {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno != 0 {
		time.Sleep(10 * time.Millisecond) // no such call in this kernel: much longer than a chain takes
	}
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1
