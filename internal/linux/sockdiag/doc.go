// Package sockdiag asks the kernel for the sockets of a network namespace (sock_diag(7)), finds the processes that have them open,
// and destroys sockets.
//
// The kernel's list names each socket by its cookie, as programs do, and by its inode, which the descriptors of
// processes show in /proc. Unbound sockets, echo and raw sockets are not in the list: Describe asks such a socket itself.
package sockdiag
