// Package detour leads connections of TCP, and datagrams of UDP, that match a filter to listeners on this host, with programs on
// cgroups. The kernel carries the bytes from there on; no packet is looked at.
//
// For a connection, one program rewrites the address before the socket connects, one makes getpeername return the address that
// the application wanted, and one notes that the socket is closed. A map holds the aim of each connect by the cookie of its
// socket. The listener's side finds the socket by its two ends (sock_diag(7)), and by it the aim.
//
// For datagrams, programs at connect and sendmsg give each pair of socket and destination an alias, an address of this host, and
// make that the destination; programs at recvmsg and getpeername put the true one in its place. The listener answers from the
// alias.
//
// The programs run for every process of the host, and pass the sockets of other network namespaces at once. They are held by
// links, which the kernel removes with the process that holds them.
package detour
