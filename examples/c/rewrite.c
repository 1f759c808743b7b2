/*
 * rewrite.c is a template: capture, change, compute the checksums, send on. It replaces a word in UDP datagrams with another
 * one of any length, so that lengths change too. Control-C ends it, from the signal handler.
 */
#include "console.h"

#include <signal.h>

static HANDLE handle;

/* A signal handler may shut the handle down at any point. The receive call then fails with ERROR_NO_DATA. */
static void stop(int number)
{
    (void)number;
    WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_RECV);
}

/* find returns the first occurrence of a word, NULL if there is none. */
static UINT8 *find(UINT8 *data, UINT length, const char *word, UINT n)
{
    UINT i;

    for (i = 0; n > 0 && i + n <= length; i++)
        if (memcmp(data + i, word, n) == 0)
            return data + i;
    return NULL;
}

/* grow makes a 16-bit field of a header larger, or smaller. */
static UINT16 grow(UINT16 field, int by)
{
    return WinDivertHelperHtons((UINT16)(WinDivertHelperNtohs(field) + by));
}

/* change replaces a word in a packet and returns the packet's new length. */
static UINT change(UINT8 *packet, UINT length, const char *word, const char *other)
{
    UINT n = (UINT)strlen(word), m = (UINT)strlen(other), size;
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_IPV6HDR ipv6;
    PWINDIVERT_UDPHDR udp;
    PVOID data;
    UINT8 *at;

    if (!WinDivertHelperParsePacket(packet, length, &ip, &ipv6, NULL, NULL, NULL, NULL, &udp, &data, &size, NULL, NULL) ||
        udp == NULL || data == NULL)
        return length;
    at = find((UINT8 *)data, size, word, n);
    if (at == NULL || length - n + m > WINDIVERT_MTU_MAX)
        return length;
    memmove(at + m, at + n, (size_t)(packet + length - (at + n)));
    memcpy(at, other, m);
    udp->Length = grow(udp->Length, (int)m - (int)n);
    if (ip != NULL)
        ip->Length = grow(ip->Length, (int)m - (int)n);
    else
        ipv6->Length = grow(ipv6->Length, (int)m - (int)n);
    return length - n + m;
}

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX]; /* a smaller buffer loses packets: see windivert(7) */
    struct sigaction action;
    WINDIVERT_ADDRESS addr;
    UINT length;

    if (argc != 4) {
        fprintf(stderr, "usage: %s FILTER WORD OTHER\n", argv[0]);
        return EXIT_FAILURE;
    }
    handle = open_or_explain(argv[1], WINDIVERT_LAYER_NETWORK, 0, 0);
    memset(&action, 0, sizeof(action));
    action.sa_handler = stop;
    sigaction(SIGINT, &action, NULL);
    printf("diverting\n");
    fflush(stdout);
    while (WinDivertRecv(handle, packet, sizeof(packet), &length, &addr)) {
        length = change(packet, length, argv[2], argv[3]);
        /* A packet that was received cut (65,531 bytes) is unchanged, and keeps its checksums. */
        WinDivertHelperCalcChecksums(packet, length, &addr, 0);
        if (!WinDivertSend(handle, packet, length, NULL, &addr))
            warning("failed to send (%u)", GetLastError());
    }
    if (GetLastError() != ERROR_NO_DATA)
        fatal("failed to receive (%u)", GetLastError());
    WinDivertClose(handle); /* packets not yet received go on */
    return 0;
}
