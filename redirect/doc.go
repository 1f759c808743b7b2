// Package redirect leads TCP connections and UDP exchanges that match a filter to the program: to a Listener that accepts
// them and knows the destination and the process of each.
//
// There are two roads. The road of packets rewrites packets, with a table of the connections, so it works wherever
// package divert opens handles. The road of sockets, on Linux, rewrites the addresses that sockets connect and send to,
// and the kernel carries the bytes. See Road.
//
// The application keeps its socket: getpeername returns its destination, and a reset, or the end of one direction,
// reaches it as such. Only connections that begin after Listen are redirected; those of the program itself and of its
// children are not.
package redirect
