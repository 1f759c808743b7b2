// Package sockets is the kernel half of the layers SOCKET and FLOW: small eBPF programs on the root of the
// cgroup hierarchy that see what the sockets of one network namespace do, ask the handle's filter about
// it, and either tell user space through a ring buffer or refuse it.
//
// The programs run for every process of the machine. What is none of their namespace they let
// pass before they do anything else, and every way through them that is no match allows. They are attached
// through links, which the kernel removes with the process that holds them.
//
// What the programs know of a socket lies in socket storage: a socket's last event, which its later events
// start from. Children of a listener begin with a copy of the listener's.
package sockets
