// Package detour leads connects of TCP that match a filter to listeners on the loopback interface, with programs on cgroups:
// one rewrites the address before the socket connects, one tells the application's getpeername where it wanted to go, and one
// notes that the socket is closed. The kernel carries the bytes from there on; no packet is looked at.
//
// A map holds the aim of each connect by the cookie of its socket. The listener's side finds the socket by its two ends
// (sock_diag(7)), and by it the aim.
//
// The programs run for every process of the host, and pass the sockets of other network namespaces at once. They are held by
// links, which the kernel removes with the process that holds them.
package detour
