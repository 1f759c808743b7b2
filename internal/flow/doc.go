// Package flow defines the flows that handles decide on as a whole: which packets belong to one, how long a verdict lasts,
// and a table of them for engines that decide in user space. The programs of package internal/linux/codegen do the same in
// the kernel, on maps with the same keys and records.
package flow
