/*
 * header.c includes windivert.h behind the system's headers on the same subjects, and uses the macros of both on one
 * packet. It is only compiled.
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include "windivert.h"
#include "windivert.h" /* a second time is harmless */

UINT fields(WINDIVERT_IPHDR *v4, WINDIVERT_IPV6HDR *v6);

UINT fields(WINDIVERT_IPHDR *v4, WINDIVERT_IPV6HDR *v6)
{
    WINDIVERT_IPHDR_SET_FRAGOFF(v4, htons(185));
    WINDIVERT_IPHDR_SET_MF(v4, 1);
    WINDIVERT_IPHDR_SET_DF(v4, 0);
    WINDIVERT_IPHDR_SET_RESERVED(v4, 0);
    WINDIVERT_IPV6HDR_SET_TRAFFICCLASS(v6, 0xB8);
    WINDIVERT_IPV6HDR_SET_FLOWLABEL(v6, 0x12345);
    return WINDIVERT_IPHDR_GET_FRAGOFF(v4) + WINDIVERT_IPHDR_GET_MF(v4) + WINDIVERT_IPHDR_GET_DF(v4) +
           WINDIVERT_IPHDR_GET_RESERVED(v4) + WINDIVERT_IPV6HDR_GET_TRAFFICCLASS(v6) +
           WINDIVERT_IPV6HDR_GET_FLOWLABEL(v6) + (UINT)sizeof(struct iphdr) + (UINT)sizeof(struct ip6_hdr);
}
