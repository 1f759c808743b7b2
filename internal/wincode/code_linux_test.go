package wincode

import (
	"os"
	"syscall"
)

func init() {
	systemRows = []errorCode{
		{os.NewSyscallError("sendto", syscall.ENOBUFS), 1450}, {&os.PathError{Op: "open", Err: syscall.EMFILE}, 1450},
		{syscall.ENOMEM, 1450}, {syscall.ENFILE, 1450}, {syscall.EPERM, 5}, {syscall.EIO, 31},
	}
}
