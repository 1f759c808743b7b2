// Package cgprog has the parts that programs on cgroups are made of: how they begin and end, and how they describe a socket's
// operation in the record of an event.
//
// The layout of the record is that of codegen (EventTime, EventLocal and so on), since filters are decided on it. It stands at the top
// of the stack frame. Each hook has another context; the constants say where those have the socket, its addresses, ports and
// protocol (linux/bpf.h), and the methods bring them into one form: IPv4 addresses mapped, numbers in host byte order.
//
// The programs run for every process of the machine. Traffic of other network namespaces passes first of all
// (Begin), and a program that reaches no decision allows.
//
// Registers: R6 has the context, R10 the frame. R1 to R5 are lost in calls. Methods leave R7 to R9 alone unless they say otherwise.
package cgprog
