// Package diverttest is a fake network for the tests of programs that use package divert. Its handles are those of
// package divert, with the same code above the engine; below there is only memory, so tests need no privileges and run on
// any system. A test puts packets on the network and raises events. The program under test receives, changes, drops and
// injects through handles that Network.Open has opened for it, and the packets that leave the last handle come back to
// the test. The fake follows the specification of WinDivert 2.2; one table of tests checks both it and the Linux engine.
//
// A testable program takes the function that opens its handles: divert.Open in production, the method Open of a Network
// in a test:
//
//	type Opener func(filter string, opts ...divert.Option) (*divert.Handle, error)
//
// Nothing waits for the real clock or the system. When a call that puts a packet returns, the packet has reached a queue
// or the test. Inside a bubble of testing/synctest, in which the Network must be made too, queue times and deadlines take
// no real time.
//
// The fake has no addresses, routes and MTUs, so ErrTooLarge comes only from FailSends. It does not reassemble, so a
// handle without the flag Fragments sees no inbound fragments; a test puts the whole datagram instead. A handle has one
// queue.
package diverttest
