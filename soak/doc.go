// Command soak lives with Divert for as long as one likes: several processes open, change and close handles at random on a
// host of a lab network while numbered datagrams pass it both ways; some are killed, others stopped; foreign tables of
// nftables come and go; the link goes down and up. It counts every datagram by its number and watches memory, descriptors,
// goroutines, rules and programs.
//
//	go run ./soak -for 24h -o report.md
//
// A datagram may only be lost that waited in the queue of a process that was killed, or that met a link that was down. Any
// other loss, and any growth without an end, makes the exit status 1. Nothing outside the lab's own namespaces is touched.
package main
