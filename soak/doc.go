// Command soak runs Divert for as long as you like: several processes open, change and close handles at random on a
// host of a lab network while numbered datagrams pass it both ways. Some processes are killed, others stopped; foreign
// nftables tables come and go; the link goes down and up. It counts every datagram by number and watches memory,
// descriptors, goroutines, rules and programs.
//
//	go run ./soak -for 24h -o report.md
//
// Only datagrams that waited in the queue of a killed process, or that met a dead link, may be lost. Any other loss,
// and any unbounded growth, makes the exit status 1. Nothing outside the lab's namespaces is touched.
package main
