// Package verdict decides what becomes of the packets in a handle's queues.
//
// A Lane is one queue with what is known of its packets: which were handed out and wait for their verdict, up to which
// number all have one, and which verdicts the kernel had no memory for. The address of each packet carries a token that
// names its place there. The Sender turns packets that the program sends into verdicts on the queued ones where they still
// are those, and else injects them; it gives up packets of this host that the program holds for too long.
package verdict
