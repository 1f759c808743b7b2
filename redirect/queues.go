package redirect

import "runtime"

// maxWorkers is how many queues share the packets at most; more of them gain little, since the kernel's side is the limit.
const maxWorkers = 4

// queues returns how many queues the handle has.
func queues() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }
