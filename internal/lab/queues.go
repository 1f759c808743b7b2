//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
)

// PacketQueue is a packet queue (NFQUEUE) that a program has bound.
type PacketQueue struct {
	Number  uint16
	Waiting int // packets without a verdict
	Copied  int // bytes of each packet that the program gets at most
	Last    int // number of the last packet; the kernel numbers the packets of each queue from 1
}

// PacketQueues returns the packet queues that are bound in the host's namespace.
func (h *Host) PacketQueues() (queues []PacketQueue, err error) {
	err = h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			var q PacketQueue
			var port, mode, dropped, refused int
			// The columns are those of net/netfilter/nfnetlink_queue.c, seq_show.
			if _, err := fmt.Sscan(line, &q.Number, &port, &q.Waiting, &mode, &q.Copied, &dropped, &refused, &q.Last); err != nil {
				return fmt.Errorf("line %q of nfnetlink_queue: %w", line, err)
			}
			queues = append(queues, q)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: %w", h, err)
	}
	return queues, nil
}
