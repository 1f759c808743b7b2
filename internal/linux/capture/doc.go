// Package capture has the sources that a handle's packets come from: a queue of packets that programs have chosen (queued), a
// queue of all packets, on which the interpreter decides (pump), the buffers and the log that copies of packets come through
// (copies, logged), and one that has nothing to receive because the kernel drops what matches (drop). A source says what it
// wants of rules and programs, and gives the packets that come.
package capture
