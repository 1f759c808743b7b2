// Package linux serves handles on Linux: the kernel half that is made when a handle opens, and the user
// half that moves its packets.
//
// A handle of a NETWORK layer is a rule in each chain of its path (package rules), a filter program that
// the rule asks (package codegen), and the queue, buffers or log that matching packets come through
// (packages queue, perfbuf and nflog). A sent packet goes back as a verdict on the queued packet (package verdict), or as an
// injection of its own (packages injector and inject). Where there is no eBPF, the rules queue every packet
// of the path and the interpreter decides here.
package linux
