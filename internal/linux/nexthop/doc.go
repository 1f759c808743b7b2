// Package nexthop tells whether the kernel sends packets to two destinations by the same next hop, so that one that was
// routed to the first may go to the second without being routed again.
//
// A packet behind the routing decision keeps its route. Where that has a gateway, the packet goes there whatever its
// destination says; where it has none, the kernel looks for the destination in the packet on the link
// (ip_finish_output2, net/ipv4/ip_output.c; rt6_nexthop, include/net/ip6_route.h).
package nexthop
