/*
 * dpi.c changes the parts of HTTP that packet inspectors look for: it sends the beginning of a request in two packets,
 * and changes the case of the header name Host. Its buffers hold packets of up to 9,016 bytes. Control-C
 * shuts its handle down from the handler.
 */
#include "program.h"

#include <signal.h>

enum { LONGEST = 9016, FIRST = 2 };

static HANDLE handle;
static volatile LONG changed;

static BOOL WINAPI on_control(DWORD event)
{
    (void)event;
    fprintf(stderr, "interrupted\n");
    if (!WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH))
        warning("shut the handle down");
    return TRUE;
}

/* The handler of a program that uses only the C library: Windows runs it on its own thread, Linux on any. */
static void on_terminate(int number)
{
    (void)number;
    (void)WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH);
    (void)WinDivertClose(handle);
}

/* part sends the bytes between two offsets of a packet's payload as a packet. */
static void part(const UINT8 *packet, UINT headers, const UINT8 *payload, UINT from, UINT to, WINDIVERT_ADDRESS address)
{
    UINT8 piece[LONGEST];
    PWINDIVERT_IPHDR ip = (PWINDIVERT_IPHDR)(void *)piece;
    PWINDIVERT_TCPHDR tcp;

    memcpy(piece, packet, headers);
    memcpy(piece + headers, payload + from, to - from);
    tcp = (PWINDIVERT_TCPHDR)(void *)(piece + ip->HdrLength * 4);
    ip->Length = htons((u_short)(headers + to - from));
    tcp->SeqNum = htonl(ntohl(tcp->SeqNum) + from);
    send_packet(handle, piece, headers + to - from, &address);
}

int main(int argc, char **argv)
{
    static UINT8 packet[LONGEST];
    WINDIVERT_ADDRESS address;
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_TCPHDR tcp;
    UINT length, n, i;
    PVOID data;
    char filter[100];

    if (argc != 2)
        usage("dpi PORT");
    _snprintf(filter, sizeof(filter), "outbound and ip and tcp.DstPort == %d and tcp.PayloadLength > 0", atoi(argv[1]));
    handle = open_handle(filter, WINDIVERT_LAYER_NETWORK, 0, 0);
    if (!SetConsoleCtrlHandler(on_control, TRUE))
        fatal("failed to set the handler (%u)", (unsigned)GetLastError());
    signal(SIGTERM, on_terminate);
    while (WinDivertRecv(handle, packet, sizeof(packet), &length, &address)) {
        if (!WinDivertHelperParsePacket(packet, length, &ip, NULL, NULL, NULL, NULL, &tcp, NULL, &data, &n, NULL, NULL) ||
            ip == NULL || tcp == NULL || n < 16 || (memcmp(data, "GET ", 4) != 0 && memcmp(data, "POST", 4) != 0)) {
            if (!WinDivertSend(handle, packet, length, NULL, &address))
                warning("send a packet");
            continue;
        }
        for (i = 0; i + 8 < n; i++)
            if (memcmp((UINT8 *)data + i, "\r\nHost: ", 8) == 0)
                memcpy((UINT8 *)data + i + 2, "hoSt", 4);
        part(packet, length - n, (UINT8 *)data, 0, FIRST, address);
        part(packet, length - n, (UINT8 *)data, FIRST, n, address);
        InterlockedIncrement(&changed);
    }
    printf("%d requests changed; the last error is %u\n", (int)changed, (unsigned)GetLastError());
    WinDivertClose(handle);
    return 0;
}
