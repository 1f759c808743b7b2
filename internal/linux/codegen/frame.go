//go:build linux

package codegen

import "github.com/cilium/ebpf/asm"

// The stack frame of a program: offsets from R10.
//
// The verifier goes through code again for every different state it arrives with, and it keeps
// what it knows of aligned stores. Variables that differ between the ways through the parser
// therefore lie at odd multiples of four, where it forgets the value; a test loads what it needs
// into scratch registers that are dead at its end. So all ways through the parser, and all ways to
// a test, look the same to it, and verification takes time linear in the number of tests.
const (
	frameIP        int16 = -40            // the IP header, 40 bytes
	frameTransport int16 = frameIP - 24   // the transport header, 20 bytes
	varZero        int16 = -64 - 8        // a zero of which the verifier does not know that it is one
	varFlags       int16 = varZero - 4    // see flagSet
	varProtocol    int16 = varFlags - 8   // protocol after extension headers
	varPayload     int16 = varFlags - 16  // offset of the payload in the packet
	varLocalPort   int16 = varFlags - 24  // host byte order
	varRemotePort  int16 = varFlags - 32  // host byte order
	varLocalAddr   int16 = varFlags - 52  // upper half, then lower half, host byte order
	varRemoteAddr  int16 = varFlags - 68  // the same
	varTime        int16 = varFlags - 76  // timestamp, biased
	varRandom      int16 = varFlags - 84  // hash with the timestamp as seed
	varElement     int16 = varFlags - 92  // an element of the packet; an extension header
	varKey         int16 = varFlags - 100 // key of a map
	varProcess     int16 = varFlags - 96  // process id
	frameSearch    int16 = varFlags - 116 // a value of 128 bits while it is searched
	frameWords     int16 = varFlags - 180 // the eight words of the hash
	frameRecord    int16 = varFlags - 324 // a record for user space, 144 bytes
	frameProcess   int16 = varFlags - 372 // a key of the maps of processes, 48 bytes
	varName        int16 = frameProcess   // when the process is known: its name, as prog.NameValue has it: upper half, then lower half, host byte order
	varCounts      int16 = varFlags - 388 // the counts of the flow: four numbers of 32 bits, as the fields stand
	varFlowBack    int16 = varFlags - 392 // regBack and, below, regRecord of a flow that is dropped
	varFlowRecord  int16 = varFlags - 404
)

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
const (
	skbLen            int16 = 0
	skbPriority       int16 = 32
	skbIngressIfindex int16 = 36
	skbIfindex        int16 = 40
)

// Registers. R0 to R5 are lost in calls.
const (
	regContext = asm.R6  // struct __sk_buff
	regFrame   = asm.R10 // the stack frame
)
