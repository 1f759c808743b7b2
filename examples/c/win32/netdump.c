/* netdump.c prints the packets that match a filter, with their times. */
#include "program.h"

static void print_packet(const UINT8 *packet, UINT length, const WINDIVERT_ADDRESS *address, double seconds)
{
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_IPV6HDR ipv6;
    PWINDIVERT_TCPHDR tcp;
    PWINDIVERT_UDPHDR udp;
    UINT32 words[4];
    UINT payload;
    char src[46], dst[46];

    coloured(FOREGROUND_RED, "Packet");
    printf(" [Timestamp=%.8g, Direction=%s IfIdx=%u]\n", seconds, address->Outbound ? "outbound" : "inbound",
           (unsigned)address->Network.IfIdx);
    if (!WinDivertHelperParsePacket(packet, length, &ip, &ipv6, NULL, NULL, NULL, &tcp, &udp, NULL, &payload, NULL, NULL)) {
        printf("junk\n");
        return;
    }
    if (ip != NULL) {
        coloured(FOREGROUND_RED | FOREGROUND_GREEN, "IPv4");
        printf(" [SrcAddr=%s DstAddr=%s]\n", ipv4_text(ip->SrcAddr, src), ipv4_text(ip->DstAddr, dst));
    } else {
        coloured(FOREGROUND_RED | FOREGROUND_GREEN, "IPv6");
        WinDivertHelperNtohIPv6Address((const UINT *)ipv6->SrcAddr, (UINT *)words);
        printf(" [SrcAddr=%s", address_text(words, src));
        WinDivertHelperNtohIPv6Address((const UINT *)ipv6->DstAddr, (UINT *)words);
        printf(" DstAddr=%s]\n", address_text(words, dst));
    }
    if (tcp != NULL)
        printf("TCP [SrcPort=%u DstPort=%u]", ntohs(tcp->SrcPort), ntohs(tcp->DstPort));
    if (udp != NULL)
        printf("UDP [SrcPort=%u DstPort=%u]", ntohs(udp->SrcPort), ntohs(udp->DstPort));
    printf(" payload=%u\n", (unsigned)payload);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    LARGE_INTEGER base, frequency;
    WINDIVERT_ADDRESS address;
    HANDLE handle;
    UINT length;

    if (argc != 2)
        usage("netdump FILTER");
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&base);
    handle = open_handle(argv[1], WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_FRAGMENTS);
    if (!WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, WINDIVERT_PARAM_QUEUE_LENGTH_MAX) ||
        !WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_TIME, WINDIVERT_PARAM_QUEUE_TIME_MAX) ||
        !WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_SIZE, WINDIVERT_PARAM_QUEUE_SIZE_MAX))
        fatal("failed to set the queue's limits (%u)", (unsigned)GetLastError());
    for (;;) {
        if (!WinDivertRecv(handle, packet, sizeof(packet), &length, &address)) {
            warning("read a packet");
            continue;
        }
        print_packet(packet, length, &address,
                     (double)(address.Timestamp - base.QuadPart) / (double)frequency.QuadPart);
    }
}
