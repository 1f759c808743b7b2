// Package radix is a set of 128-bit values that changes while others look values up in it: goroutines without a lock, and
// eBPF programs, which read the same memory.
//
// It is a radix tree that branches 64 ways. A node of level t, 1 to 21, stands for the values that agree in their first
// 6t-4 bits, and has one bit for each of the 64 parts into which the next six bits divide them. The nodes are in a hash
// table by their level and prefix, see Table. A value is in the set if its bit in its deepest existing node is set;
// without any node it is not. So a node decides about its values wherever no deeper node does.
//
// The search for the deepest node bisects the levels: at most five look-ups instead of 21. For that there are markers,
// nodes at each level from which the search must go deeper: at the sums of the leading powers of two of the node's level
// (20 = 16 + 4 has a marker at 16). IPv4 addresses, ::ffff:0:0/96, are a tree of their own, of the levels 17 to 21, with
// three look-ups. (Waldvogel et al., Scalable High Speed IP Routing Lookups, 1997.)
//
// # Changes and readers
//
// In a table nodes are added and bits flip, but nodes are never removed or moved. A new node starts with the answers of
// the nodes above it. Hence a look-up during one change is right about each value: its answer is that before or after the
// change, and values outside the change are unaffected. Two changes may mislead it: it misses a node made by the first,
// and meets a bit higher up that the second flips. So each change increments a counter before it flips bits, and a
// look-up during which the counter rose by two is repeated. Useless nodes disappear when another table replaces this one:
// when it is full, and by Replace.
package radix
