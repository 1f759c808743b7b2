// Package processes tracks which process has each socket of a network namespace, for filters of packets (processId) and for the
// process in addresses.
//
// Programs on cgroups watch sockets and maintain the maps of internal/linux/processmap: programs.go has one for each hook, entry.go
// their changes to the maps. User space enters sockets older than the programs, once: adopt.go.
package processes
