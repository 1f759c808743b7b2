// Package nflog is the netfilter packet log (NFLOG): copies of packets on their way to the program, while
// the packets themselves go on undelayed. The kernel's side is net/netfilter/nfnetlink_log.c.
package nflog
