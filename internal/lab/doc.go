// Package lab builds networks of network namespaces (hosts, routers and the links between them)
// inside one process, for tests, for `divert demo` and for `divert lab`.
//
// A namespace of the lab has no name: a descriptor of this process holds it, so labs of several
// processes and of parallel tests never meet, and whatever happens to the process, nothing stays
// behind. No child process is started and nothing in the machine's own namespace is touched.
//
// As root the lab works directly; an ordinary user's program first calls Rootless, which starts it
// again inside a user namespace of its own. DIVERT_LAB_TRACE=1 prints each step of the building.
//
// On systems other than Linux every function fails with ErrUnavailable.
package lab
