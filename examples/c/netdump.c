/* netdump.c prints packets that match a filter: headers, bytes and text. The packets go on unchanged. */
#include "console.h"

static UINT8 packet[WINDIVERT_MTU_MAX];

static UINT16 host16(UINT16 x)
{
    return WinDivertHelperNtohs(x);
}

static UINT32 host32(UINT32 x)
{
    return WinDivertHelperNtohl(x);
}

static void print_ipv4(const WINDIVERT_IPHDR *h)
{
    char src[16], dst[16];

    WinDivertHelperFormatIPv4Address(host32(h->SrcAddr), src, sizeof(src));
    WinDivertHelperFormatIPv4Address(host32(h->DstAddr), dst, sizeof(dst));
    set_colour(YELLOW);
    printf("IPv4 [Version=%u HdrLength=%u TOS=%u Length=%u Id=0x%.4X Reserved=%u DF=%u MF=%u FragOff=%u TTL=%u "
           "Protocol=%u Checksum=0x%.4X SrcAddr=%s DstAddr=%s]\n",
           h->Version, h->HdrLength, h->TOS, host16(h->Length), host16(h->Id), WINDIVERT_IPHDR_GET_RESERVED(h),
           WINDIVERT_IPHDR_GET_DF(h), WINDIVERT_IPHDR_GET_MF(h), host16(WINDIVERT_IPHDR_GET_FRAGOFF(h)), h->TTL,
           h->Protocol, host16(h->Checksum), src, dst);
}

static void print_ipv6(const WINDIVERT_IPV6HDR *h)
{
    char src[46], dst[46];
    UINT32 addr[4];

    WinDivertHelperNtohIPv6Address(h->SrcAddr, addr);
    WinDivertHelperFormatIPv6Address(addr, src, sizeof(src));
    WinDivertHelperNtohIPv6Address(h->DstAddr, addr);
    WinDivertHelperFormatIPv6Address(addr, dst, sizeof(dst));
    set_colour(YELLOW);
    printf("IPv6 [Version=%u TrafficClass=%u FlowLabel=%u Length=%u NextHdr=%u HopLimit=%u SrcAddr=%s DstAddr=%s]\n",
           h->Version, WINDIVERT_IPV6HDR_GET_TRAFFICCLASS(h),
           (unsigned)h->FlowLabel0 << 16 | host16(h->FlowLabel1), host16(h->Length), h->NextHdr, h->HopLimit, src, dst);
}

static void print_icmp(const char *name, UINT8 type, UINT8 code, UINT16 checksum, UINT32 body)
{
    set_colour(RED);
    printf("%s [Type=%u Code=%u Checksum=0x%.4X Body=0x%.8X]\n", name, type, code, host16(checksum), host32(body));
}

static void print_tcp(const WINDIVERT_TCPHDR *h)
{
    set_colour(GREEN);
    printf("TCP [SrcPort=%u DstPort=%u SeqNum=%u AckNum=%u HdrLength=%u Reserved1=%u Reserved2=%u Urg=%u Ack=%u "
           "Psh=%u Rst=%u Syn=%u Fin=%u Window=%u Checksum=0x%.4X UrgPtr=%u]\n",
           host16(h->SrcPort), host16(h->DstPort), host32(h->SeqNum), host32(h->AckNum), h->HdrLength, h->Reserved1,
           h->Reserved2, h->Urg, h->Ack, h->Psh, h->Rst, h->Syn, h->Fin, host16(h->Window), host16(h->Checksum),
           host16(h->UrgPtr));
}

static void print_udp(const WINDIVERT_UDPHDR *h)
{
    set_colour(GREEN);
    printf("UDP [SrcPort=%u DstPort=%u Length=%u Checksum=0x%.4X]\n", host16(h->SrcPort), host16(h->DstPort),
           host16(h->Length), host16(h->Checksum));
}

static void print_headers(UINT length)
{
    PWINDIVERT_IPHDR ip = NULL;
    PWINDIVERT_IPV6HDR ipv6 = NULL;
    PWINDIVERT_ICMPHDR icmp = NULL;
    PWINDIVERT_ICMPV6HDR icmpv6 = NULL;
    PWINDIVERT_TCPHDR tcp = NULL;
    PWINDIVERT_UDPHDR udp = NULL;

    if (!WinDivertHelperParsePacket(packet, length, &ip, &ipv6, NULL, &icmp, &icmpv6, &tcp, &udp, NULL, NULL, NULL,
                                    NULL))
        warning("junk packet");
    if (ip != NULL)
        print_ipv4(ip);
    if (ipv6 != NULL)
        print_ipv6(ipv6);
    if (icmp != NULL)
        print_icmp("ICMP", icmp->Type, icmp->Code, icmp->Checksum, icmp->Body);
    if (icmpv6 != NULL)
        print_icmp("ICMPV6", icmpv6->Type, icmpv6->Code, icmpv6->Checksum, icmpv6->Body);
    if (tcp != NULL)
        print_tcp(tcp);
    if (udp != NULL)
        print_udp(udp);
}

static void print_bytes(UINT length)
{
    UINT i;

    set_colour(CYAN);
    for (i = 0; i < length; i++)
        printf("%s%.2X", i % 20 != 0 ? "" : i == 0 ? "\t" : "\n\t", packet[i]);
    set_colour(MAGENTA);
    for (i = 0; i < length; i++)
        printf("%s%c", i % 40 == 0 ? "\n\t" : "", isprint(packet[i]) ? packet[i] : '.');
    set_colour(PLAIN);
    printf("\n");
}

int main(int argc, char **argv)
{
    HANDLE handle;
    INT64 start;

    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: %s FILTER [PRIORITY]\n", argv[0]);
        return EXIT_FAILURE;
    }
    handle = open_or_explain(argv[1], WINDIVERT_LAYER_NETWORK, argc == 3 ? (INT16)atoi(argv[2]) : 0,
                             WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_FRAGMENTS);
    longest_queue(handle);
    start = ticks();
    for (;;) {
        WINDIVERT_ADDRESS addr;
        UINT length;

        if (!WinDivertRecv(handle, packet, sizeof(packet), &length, &addr)) {
            warning("failed to receive (%u)", GetLastError());
            continue;
        }
        set_colour(RED);
        printf("\nPacket [Timestamp=%.8g, Direction=%s IfIdx=%u SubIfIdx=%u Loopback=%u Hash=0x%.16llX]\n",
               (double)(addr.Timestamp - start) / 1e9, addr.Outbound ? "outbound" : "inbound", addr.Network.IfIdx,
               addr.Network.SubIfIdx, addr.Loopback,
               (unsigned long long)WinDivertHelperHashPacket(packet, length, 0));
        print_headers(length);
        print_bytes(length);
        fflush(stdout);
    }
}
