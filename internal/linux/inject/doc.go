// Package inject puts IP packets into the stack of one network namespace as if they had just been
// made there: outbound, as if a program of this host had sent them, and inbound, as if they had
// come in on an interface (specification: api.md 8).
//
// An injected packet carries a cursor in skb->priority when it reaches the netfilter hooks, so that
// only handles of lower priority than its injector look at it (specification: api.md 13). The
// rules give the cursor its meaning; here it is an opaque 32-bit value.
//
// Segmenting and fragmenting (Segmenter, Fragmenter) are pure functions that build on any system.
package inject
