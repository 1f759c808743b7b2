// Package eventprog generates the programs of the layers SOCKET and FLOW. They watch the sockets of one network namespace,
// apply the handle's filter to each operation, and either send a record to user space or refuse the operation.
//
// A handle has a program for each hook at which its filter leaves something to do (Programs). Each is built from the same steps:
//
//	Begin      other network namespaces pass
//	start      the record begins, with the facts in the socket's storage
//	...Sides   addresses and ports from the context of the hook
//	decide     the filter, which codegen has translated; records that it does not match pass
//	conclude   tell user space, refuse, or both
//
// socket.go has the hooks of SOCKET, skb.go those of its parts that see packets, listen.go the one that refuses LISTEN, and flow.go
// those of FLOW. Package eventmap describes what else they read and write besides the record.
package eventprog
