// Package queue is the netfilter queue (NFQUEUE): the way of packets from the kernel to the program
// and of verdicts back.
//
// Packets are received many with one system call, straight into the caller's memory; verdicts are
// gathered and sent with one call, and a packet that goes on unchanged is not copied back.
// The kernel's side is net/netfilter/nfnetlink_queue.c.
package queue
