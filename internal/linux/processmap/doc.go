// Package processmap has the maps in which programs find the process of a packet, and their layout.
//
// The programs of internal/linux/processes write them, as they watch sockets. Filter programs (internal/linux/codegen) read
// them. An outgoing packet carries its socket, and so its cookie. The kernel finds the socket of an incoming packet only later, so
// the maps find it by the two ends of the packet.
package processmap
