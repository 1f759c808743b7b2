// Package verdict gives the packets in a handle's queues their verdicts.
//
// A Lane is one queue and the state of its packets: which were handed out and wait for their verdict, the number below
// which all have one, and the verdicts that the kernel had no memory for. The address of each packet carries a token that
// names its place there. The Sender turns a packet that the program sends into a verdict on the queued packet, or injects it if
// that one is gone; it drops packets of this host that the program holds for too long.
package verdict
