//go:build linux

package queue

import (
	"sync"

	"github.com/opendivert/divert/internal/linux/kernel"
)

// Cursors reports whether verdicts can set the priority of a packet (NFQA_PRIORITY, kernel 5.18).
var Cursors = sync.OnceValue(func() bool { return kernel.AtLeast(5, 18) })

// FinishesSCTP reports whether the kernel finishes the CRC32c of an SCTP packet that it queues (6.11). Before, it writes
// another sum there, so SCTP must be queued as it is. Tests say so where it does.
var FinishesSCTP = sync.OnceValue(func() bool { return kernel.AtLeast(6, 11) })
