// Package eventmap has the maps that the programs of the layers SOCKET and FLOW share with the process, and the records that they
// send: their layout, and the reading and writing in user space. The programs themselves are in internal/linux/eventprog.
//
// The programs know a socket by what they have written into its storage at its earlier events. Sockets that are older than the
// handle have no storage: user space lists them once (Adopt), and a program that meets one starts from there. The handle gets no events
// from before (specification: api.md 3).
package eventmap
