// Package divert intercepts network packets in user mode: a program opens a handle with a filter, and
// packets that match leave the network stack and come to the program, which drops, changes, delays
// or re-injects them. Packets that do not match never leave the kernel.
//
//	h, err := divert.Open("outbound and udp.DstPort == 53")
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer h.Close()
//	for p, err := range h.Packets(ctx) {
//		if err != nil {
//			log.Fatal(err)
//		}
//		fmt.Println(len(p.Data), "bytes")
//		h.Accept(p) // without this the packet is gone
//	}
//
// The filter language and the behaviour of handles are those of WinDivert 2.2, with the additions that
// package filter describes. Package packet reads and changes the contents of packets.
package divert
