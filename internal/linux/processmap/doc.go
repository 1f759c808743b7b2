// Package processmap has the maps in which programs find the process of a packet, and their layout.
//
// The programs of internal/linux/processes keep them: they see what sockets do. Filter programs (internal/linux/codegen) read
// them. A packet on its way out has its socket with it, and so its cookie; the socket of one that comes in is known only later, so it
// is found by the two ends of the packet.
package processmap
