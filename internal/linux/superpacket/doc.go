// Package superpacket tells how superpackets of UDP that come in are to be cut, where nothing else does: copies from the
// packet log do not say that a packet is one (net/netfilter/nfnetlink_log.c). A packet socket does, in the header that it has for
// virtual machines (PACKET_VNET_HDR), and the kernel hands each packet to it before netfilter sees the packet.
package superpacket
