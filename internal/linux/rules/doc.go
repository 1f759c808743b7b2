// Package rules is the nftables table "divert" of a network namespace: the rules that lead packets to
// the handles, and so at the same time the registry of all handles of all processes.
//
// The table's base chains are made once and stay as long as any handle is open, because taking a base
// chain away makes the kernel drop every packet that waits in any queue of the namespace
// (net/netfilter/nf_queue.c). Handles come and go as rules, in descending order of their keys.
//
// Each rule names its owner. An owner is alive as long as it holds the abstract unix socket of its handle,
// which the kernel takes away with the process; whoever has a handle open, or opens or closes one next,
// removes the rules of the dead. Changes are serialised by one more such socket.
package rules
