// Package processes keeps the processes of the sockets of a network namespace known, for filters of packets (processId) and for what
// addresses tell.
//
// Programs on cgroups see what sockets do and keep the maps of internal/linux/processmap: programs.go has one for each hook, entry.go
// what they do to the maps. Sockets that are older than the programs are entered by user space, once: adopt.go.
package processes
