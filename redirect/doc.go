// Package redirect leads connections of TCP and exchanges of UDP that match a filter to the program: to a Listener that
// accepts them and knows where each wanted to go, from which process.
//
// There are two roads. That of packets rewrites them, with a table of the connections, so it works wherever package divert opens
// handles. That of sockets, on Linux, rewrites the addresses that sockets connect and send to, and the kernel carries the bytes. See Road.
//
// The application keeps its socket: getpeername says where it wanted to go, and a reset or the end of one direction stays
// one. Only connections that begin after Listen are redirected; those of the program itself and of its children are not.
package redirect
