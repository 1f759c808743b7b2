package redirect

import "runtime"

// maxWorkers is the most queues that share the packets; more gain little, since the kernel's side is the limit.
const maxWorkers = 4

// queues returns the number of the handle's queues.
func queues() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }
