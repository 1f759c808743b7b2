// Package rules is the nftables table "divert" of a network namespace: the rules that lead packets to
// the handles, and so at the same time the registry of all handles of all processes.
//
// The table's base chains are made once and stay as long as any handle is open, because taking a base
// chain away makes the kernel drop every packet that waits in any queue of the namespace
// (net/netfilter/nf_queue.c). Handles come and go as rules, in descending order of their keys.
//
// Nothing that an unprivileged process can create, hold or stop has any influence. Changes are transactions: the kernel refuses
// one if the rules have changed since they were read, and it is made again (nft.go). A handle first reserves its key, then loads
// its programs while no packet waits, and then installs its rules. It is alive as long as its token, a packet queue, is bound
// (token.go). Any process that has a handle open, or opens or closes one next, removes the rules of the dead. The kernel tells
// which process holds the token's socket, and so the handle (process.go).
package rules
