// Package capture has the sources that a handle's packets come from: a queue of packets that programs have chosen (queued), a
// queue of all packets, on which the interpreter decides (pump), the buffers and the log that copies of packets come through
// (copies, logged), and one without packets, because the kernel drops those that match (drop). A source says what it
// needs from rules and programs, and delivers the packets.
package capture
