package wincode

import "syscall"

// systemCodes are the numbers of the kernel's own errors: memory, buffers or descriptors have run out
// (ERROR_NO_SYSTEM_RESOURCES; specification: api.md 8 and 20).
var systemCodes = []errorCode{{syscall.ENOMEM, 1450}, {syscall.ENOBUFS, 1450}, {syscall.EMFILE, 1450}, {syscall.ENFILE, 1450}}
