// Package nfnl is the nfnetlink socket under the packet queues and the packet log: it sends
// configuration, receives many datagrams with one system call straight into the caller's memory,
// and sends many messages with one call without copying payloads.
//
// It allocates nothing per datagram, which is why it exists beside a general netlink library.
package nfnl
