// Package perfbuf reads the perf buffers into which sniffing programs copy packets (codegen.Record), one for each
// processor, in the order of the packets' times. A sample stays where the kernel wrote it until the reader takes it
// or lets it go: the buffers are the handle's queue, and nothing is copied twice.
//
// The kernel's side is kernel/events/ring_buffer.c.
package perfbuf
