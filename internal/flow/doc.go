// Package flow defines the flows that handles decide on as a whole: the packets of a flow, the lifetime of its verdict,
// and a table of flows for engines that decide in user space. The programs of package internal/linux/codegen do the same
// in the kernel, on maps with the same keys and records.
package flow
