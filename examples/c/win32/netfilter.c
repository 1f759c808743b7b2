/* netfilter.c is a firewall: packets that match a filter are dropped; a TCP connection over IPv4 is reset. */
#include "program.h"

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS address;
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_TCPHDR tcp;
    TCP_PACKET reset;
    HANDLE handle;
    UINT length, payload;
    char src[46], dst[46];

    if (argc != 2)
        usage("netfilter FILTER");
    handle = open_handle(argv[1], WINDIVERT_LAYER_NETWORK, 0, 0);
    for (;;) {
        if (!WinDivertRecv(handle, packet, sizeof(packet), &length, &address)) {
            warning("read a packet");
            continue;
        }
        if (!WinDivertHelperParsePacket(packet, length, &ip, NULL, NULL, NULL, NULL, &tcp, NULL, NULL, &payload, NULL, NULL))
            continue;
        coloured(FOREGROUND_RED, "BLOCK");
        if (ip != NULL)
            printf(" ip.SrcAddr=%s ip.DstAddr=%s", ipv4_text(ip->SrcAddr, src), ipv4_text(ip->DstAddr, dst));
        printf("\n");
        fflush(stdout);
        if (ip == NULL || tcp == NULL || tcp->Rst || tcp->Fin)
            continue;
        tcp_packet(&reset, ip, tcp, TRUE, 0);
        reset.tcp.Rst = 1;
        reset.tcp.SeqNum = tcp->Ack ? tcp->AckNum : 0;
        reset.tcp.AckNum = htonl(ntohl(tcp->SeqNum) + (tcp->Syn ? 1 : payload));
        address.Outbound = !address.Outbound;
        send_packet(handle, &reset, sizeof(reset), &address);
    }
}
