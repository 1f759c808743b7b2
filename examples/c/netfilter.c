/*
 * netfilter.c is a firewall: it drops packets that match a filter, and answers their senders with a reset for TCP and
 * "port unreachable" for UDP.
 */
#include "console.h"

enum { QUOTED = 60, HOP_LIMIT = 64 };

static HANDLE handle;
static UINT8 packet[WINDIVERT_MTU_MAX];

/* The headers found in the packet. */
static struct {
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_IPV6HDR ipv6;
    PWINDIVERT_ICMPHDR icmp;
    PWINDIVERT_ICMPV6HDR icmpv6;
    PWINDIVERT_TCPHDR tcp;
    PWINDIVERT_UDPHDR udp;
    UINT payload, length;
} found;

/* An answer: an IP header, followed by the bytes of the function that builds it. */
static union {
    WINDIVERT_IPHDR ip;
    WINDIVERT_IPV6HDR ipv6;
    UINT8 bytes[sizeof(WINDIVERT_IPV6HDR) + sizeof(WINDIVERT_ICMPV6HDR) + sizeof(WINDIVERT_IPV6HDR) + QUOTED + 40];
} answer;

/* begin writes the IP header of an answer for n bytes of payload, and returns the place for them. */
static UINT8 *begin(UINT8 protocol, UINT n)
{
    memset(&answer, 0, sizeof(answer));
    if (found.ip != NULL) {
        answer.ip.Version = 4;
        answer.ip.HdrLength = sizeof(answer.ip) / 4;
        answer.ip.Length = WinDivertHelperHtons((UINT16)(sizeof(answer.ip) + n));
        answer.ip.Id = WinDivertHelperHtons(0xDEAD);
        answer.ip.TTL = HOP_LIMIT;
        answer.ip.Protocol = protocol;
        answer.ip.SrcAddr = found.ip->DstAddr;
        answer.ip.DstAddr = found.ip->SrcAddr;
        return answer.bytes + sizeof(answer.ip);
    }
    answer.ipv6.Version = 6;
    answer.ipv6.Length = WinDivertHelperHtons((UINT16)n);
    answer.ipv6.NextHdr = protocol;
    answer.ipv6.HopLimit = HOP_LIMIT;
    memcpy(answer.ipv6.SrcAddr, found.ipv6->DstAddr, sizeof(answer.ipv6.SrcAddr));
    memcpy(answer.ipv6.DstAddr, found.ipv6->SrcAddr, sizeof(answer.ipv6.DstAddr));
    return answer.bytes + sizeof(answer.ipv6);
}

/* finish sends an answer to where the packet came from. */
static void finish(const UINT8 *end, const WINDIVERT_ADDRESS *received)
{
    WINDIVERT_ADDRESS addr = *received;
    UINT n = (UINT)(end - answer.bytes);

    addr.Outbound = !addr.Outbound;
    if (!WinDivertHelperCalcChecksums(answer.bytes, n, &addr, 0) || !WinDivertSend(handle, answer.bytes, n, NULL, &addr))
        warning("failed to send an answer (%u)", GetLastError());
}

static void reset(const WINDIVERT_ADDRESS *addr)
{
    PWINDIVERT_TCPHDR tcp = (PWINDIVERT_TCPHDR)begin(6, sizeof(*tcp));
    UINT32 next = WinDivertHelperNtohl(found.tcp->SeqNum) + (found.tcp->Syn ? 1 : found.payload);

    tcp->SrcPort = found.tcp->DstPort;
    tcp->DstPort = found.tcp->SrcPort;
    tcp->SeqNum = found.tcp->Ack ? found.tcp->AckNum : 0;
    tcp->AckNum = WinDivertHelperHtonl(next);
    tcp->HdrLength = sizeof(*tcp) / 4;
    tcp->Rst = tcp->Ack = 1;
    finish((UINT8 *)(tcp + 1), addr);
}

static void unreachable(const WINDIVERT_ADDRESS *addr)
{
    UINT quoted = found.ip != NULL ? found.ip->HdrLength * 4u + 8u : (UINT)QUOTED;
    PWINDIVERT_ICMPHDR icmp;

    if (quoted > found.length)
        quoted = found.length;
    icmp = (PWINDIVERT_ICMPHDR)begin(found.ip != NULL ? 1 : 58, sizeof(*icmp) + quoted);
    icmp->Type = found.ip != NULL ? 3 : 1;
    icmp->Code = found.ip != NULL ? 3 : 4;
    memcpy(icmp + 1, packet, quoted);
    finish((UINT8 *)(icmp + 1) + quoted, addr);
}

static void print_addresses(void)
{
    char src[46], dst[46];
    UINT32 addr[4];

    if (found.ip != NULL) {
        WinDivertHelperFormatIPv4Address(WinDivertHelperNtohl(found.ip->SrcAddr), src, sizeof(src));
        WinDivertHelperFormatIPv4Address(WinDivertHelperNtohl(found.ip->DstAddr), dst, sizeof(dst));
    } else {
        WinDivertHelperNtohIPv6Address(found.ipv6->SrcAddr, addr);
        WinDivertHelperFormatIPv6Address(addr, src, sizeof(src));
        WinDivertHelperNtohIPv6Address(found.ipv6->DstAddr, addr);
        WinDivertHelperFormatIPv6Address(addr, dst, sizeof(dst));
    }
    printf("ip.SrcAddr=%s ip.DstAddr=%s ", src, dst);
}

static void print_blocked(void)
{
    set_colour(RED);
    printf("BLOCK ");
    set_colour(PLAIN);
    print_addresses();
    if (found.icmp != NULL)
        printf("icmp.Type=%u icmp.Code=%u ", found.icmp->Type, found.icmp->Code);
    if (found.icmpv6 != NULL)
        printf("icmpv6.Type=%u icmpv6.Code=%u ", found.icmpv6->Type, found.icmpv6->Code);
    if (found.tcp != NULL)
        printf("tcp.SrcPort=%u tcp.DstPort=%u tcp.Flags=%s%s%s%s%s%s ", WinDivertHelperNtohs(found.tcp->SrcPort),
               WinDivertHelperNtohs(found.tcp->DstPort), found.tcp->Fin ? "[FIN]" : "", found.tcp->Rst ? "[RST]" : "",
               found.tcp->Urg ? "[URG]" : "", found.tcp->Syn ? "[SYN]" : "", found.tcp->Psh ? "[PSH]" : "",
               found.tcp->Ack ? "[ACK]" : "");
    if (found.udp != NULL)
        printf("udp.SrcPort=%u udp.DstPort=%u ", WinDivertHelperNtohs(found.udp->SrcPort),
               WinDivertHelperNtohs(found.udp->DstPort));
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: %s FILTER [PRIORITY]\n", argv[0]);
        return EXIT_FAILURE;
    }
    handle = open_or_explain(argv[1], WINDIVERT_LAYER_NETWORK, argc == 3 ? (INT16)atoi(argv[2]) : 0, 0);
    for (;;) {
        WINDIVERT_ADDRESS addr;

        if (!WinDivertRecv(handle, packet, sizeof(packet), &found.length, &addr)) {
            warning("failed to receive (%u)", GetLastError());
            continue;
        }
        if (!WinDivertHelperParsePacket(packet, found.length, &found.ip, &found.ipv6, NULL, &found.icmp, &found.icmpv6,
                                        &found.tcp, &found.udp, NULL, &found.payload, NULL, NULL))
            continue;
        print_blocked();
        if (found.tcp != NULL && !found.tcp->Rst && !found.tcp->Fin)
            reset(&addr);
        if (found.udp != NULL)
            unreachable(&addr);
    }
}
