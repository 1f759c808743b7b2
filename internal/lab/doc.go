// Package lab builds networks of network namespaces (hosts, routers and the links between them) inside one process, for
// tests, for `divert demo` and for `divert lab`.
//
// A namespace of the lab has no name: only a descriptor of this process holds it. So the labs of several processes and
// of parallel tests never interfere, and nothing is left behind however the process ends. The lab starts no child
// process and touches nothing in the machine's own namespace.
//
// As root the lab works directly; an ordinary user's program first calls Rootless, which starts it again inside a new
// user namespace. DIVERT_LAB_TRACE=1 prints each step of the building.
//
// On systems other than Linux every function fails with ErrUnavailable.
package lab
