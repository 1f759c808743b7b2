// Package queue is the netfilter queue (NFQUEUE), which brings packets from the kernel to the program
// and verdicts back.
//
// One system call receives many packets, straight into the caller's memory, and one call sends many
// verdicts. A packet that goes on unchanged is not copied back.
// The kernel's side is net/netfilter/nfnetlink_queue.c.
package queue
