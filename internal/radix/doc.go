// Package radix is a set of 128-bit values that changes while others look values up in it: goroutines without a lock, and
// eBPF programs, which read the same memory.
//
// It is a radix tree that branches 64 ways. A node of level t, 1 to 21, stands for the values that agree in their first
// 6t-4 bits, and has one bit for each of the 64 parts that the next six bits divide them into. The nodes stand in a hash
// table by their level and prefix, see Table. A value is in the set if its bit in the deepest node there is for it is set;
// with no node at all it is not. So a node tells everything about its values, as far as no deeper node tells more.
//
// The deepest node is found by halving the levels: five looks at most, not 21. For that there is a node on the way, a
// marker, at each level where the search for a deeper node has to go on: at the sums of the leading powers of two of its
// level (20 = 16 + 4 has a marker at 16). IPv4 addresses, ::ffff:0:0/96, are a tree of their own, of the levels 17 to 21:
// three looks. (Waldvogel et al., Scalable High Speed IP Routing Lookups, 1997.)
//
// # Changes and readers
//
// In a table nodes come and bits flip, but no node goes and none is moved. A new node says at first what the nodes above
// it said of its values. Hence a look-up that meets one change in the making is right about each value: it answers as
// before the change or as after it, and for a value that the change is not about as ever. Two changes may mislead it: it
// misses a node that the first one makes, and meets a bit higher up that the second one flips. So each change counts
// before it flips bits, and a look-up in which the count has risen by two is made again. Nodes that have become useless are left
// behind when the table is exchanged for another: when it is full, and by Replace.
package radix
