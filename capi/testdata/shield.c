/*
 * shield.c tries filters on live packets. It keeps a DROP handle above all others, by which it sends and which lets
 * nothing else come near, and one below all others, which lets nothing go out; and between them the filter
 * under test, as an object string, above "true". It must run in a network namespace made for it.
 *
 * Each line of the standard input is a layer's filter and a packet, both in hex. The answer says which of the
 * two handles got the packet, and whether all agrees.
 */
#include "windivert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT = 2000, MAX_LINE = 1 << 20, MAX_OBJECT = 10255 };

/* A handle with a receive request that is always pending. */
struct listener {
    HANDLE handle, event;
    OVERLAPPED overlapped;
    UINT8 packet[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS addr;
};

static char line[MAX_LINE];
static struct listener tested, rest;

static HANDLE must_open(const char *filter, INT16 priority, UINT64 flags)
{
    HANDLE h = WinDivertOpen(filter, WINDIVERT_LAYER_NETWORK, priority, flags);

    if (h == INVALID_HANDLE_VALUE) {
        printf("open at %d: error %u\n", priority, GetLastError());
        exit(2);
    }
    return h;
}

static BOOL listen_on(struct listener *l)
{
    memset(&l->overlapped, 0, sizeof(l->overlapped));
    l->overlapped.hEvent = l->event;
    return WinDivertRecvEx(l->handle, l->packet, sizeof(l->packet), NULL, 0, &l->addr, NULL, &l->overlapped) ||
           GetLastError() == ERROR_IO_PENDING;
}

/* drain holds a handle to the way it should end once it is shut down: with an error, and nothing before. */
static void drain(struct listener *l)
{
    DWORD got = 0, i;

    if (!WinDivertShutdown(l->handle, WINDIVERT_SHUTDOWN_BOTH))
        printf("wrong: shutdown error %u\n", GetLastError());
    if (GetOverlappedResult(l->handle, &l->overlapped, &got, TRUE)) {
        printf("wrong: one more packet, %s: ", l->addr.Outbound ? "outbound" : "inbound");
        for (i = 0; i < got; i++)
            printf("%02x", l->packet[i]);
        printf("\n");
    } else if (GetLastError() != ERROR_NO_DATA)
        printf("wrong: the last request ends with error %u\n", GetLastError());
    if (WinDivertRecv(l->handle, NULL, 0, NULL, NULL) || GetLastError() != ERROR_NO_DATA)
        printf("wrong: a later receive ends with error %u\n", GetLastError());
}

/*
 * as_expected tells whether a packet arrived as it was sent: with its checksums, except those that Send leaves alone,
 * and with an Id, which the kernel gives to IPv4 packets that are sent without one (raw(7)).
 */
static BOOL as_expected(const UINT8 *got, const UINT8 *sent, UINT length)
{
    static UINT8 want[WINDIVERT_MTU_MAX];

    memcpy(want, sent, length);
    if (want[0] >> 4 == 4 && want[4] == 0 && want[5] == 0)
        memcpy(want + 4, got + 4, 2);
    WinDivertHelperCalcChecksums(want, length, NULL,
                                 WINDIVERT_HELPER_NO_ICMP_CHECKSUM | WINDIVERT_HELPER_NO_ICMPV6_CHECKSUM);
    return memcmp(got, want, length) == 0;
}

/* judge says what is wrong with an arrival, "" if nothing is. */
static const char *judge(struct listener *l, BOOL match, const char *object, BOOL random, const UINT8 *packet,
                         UINT length)
{
    DWORD got = 0;

    if (!GetOverlappedResult(l->handle, &l->overlapped, &got, FALSE))
        return "receive failed";
    if (got != length)
        return "length differs";
    if (!as_expected(l->packet, packet, length))
        return "bytes differ";
    if (!l->addr.Outbound || l->addr.Impostor || l->addr.Sniffed || l->addr.IPv6 != (packet[0] >> 4 == 6))
        return "address is wrong";
    if ((match || !random) && WinDivertHelperEvalFilter(object, l->packet, got, &l->addr) != match)
        return "EvalFilter disagrees";
    return "";
}

static void try_filter(HANDLE injector, const char *filter, const UINT8 *packet, UINT length)
{
    static char object[MAX_OBJECT];
    BOOL random = strstr(filter, "random") != NULL || strstr(filter, "timestamp") != NULL;
    HANDLE events[2];
    WINDIVERT_ADDRESS addr;
    UINT sent;
    DWORD first;

    if (!WinDivertHelperCompileFilter(filter, WINDIVERT_LAYER_NETWORK, object, sizeof(object), NULL, NULL)) {
        printf("no filter\n");
        return;
    }
    tested.handle = WinDivertOpen(object, WINDIVERT_LAYER_NETWORK, 8888, 0);
    if (tested.handle == INVALID_HANDLE_VALUE) {
        printf("not opened %u\n", GetLastError());
        return;
    }
    if (!listen_on(&tested))
        printf("wrong: receive error %u ", GetLastError());
    memset(&addr, 0, sizeof(addr));
    addr.Outbound = 1;
    if (!WinDivertSend(injector, packet, length, &sent, &addr))
        printf("refused %u\n", GetLastError());
    else {
        events[0] = tested.event, events[1] = rest.event;
        first = WaitForMultipleObjects(2, events, FALSE, TIMEOUT);
        if (first == WAIT_TIMEOUT)
            printf("lost\n");
        else {
            const char *wrong = judge(first == WAIT_OBJECT_0 ? &tested : &rest, first == WAIT_OBJECT_0, object,
                                      random, packet, length);
            printf("%s %s\n", first == WAIT_OBJECT_0 ? "match" : "none", wrong);
        }
        if (first == WAIT_OBJECT_0 + 1)
            listen_on(&rest);
        if (first == WAIT_OBJECT_0)
            listen_on(&tested);
    }
    drain(&tested);
    WinDivertClose(tested.handle);
}

/* decode turns hex in place into bytes and a NUL. */
static UINT decode(char *hex)
{
    UINT n = 0;
    unsigned byte;

    while (sscanf(hex + 2 * n, "%2x", &byte) == 1)
        hex[n++] = (char)byte;
    hex[n] = 0;
    return n;
}

int main(void)
{
    HANDLE injector = must_open("true", 9999, WINDIVERT_FLAG_DROP), sink = must_open("true", -9999, WINDIVERT_FLAG_DROP);
    UINT64 value = 0;

    rest.handle = must_open("true", 7777, 0);
    rest.event = CreateEvent(NULL, FALSE, FALSE, NULL);
    tested.event = CreateEvent(NULL, FALSE, FALSE, NULL);
    if (!WinDivertSetParam(rest.handle, WINDIVERT_PARAM_QUEUE_LENGTH, 1234) ||
        !WinDivertGetParam(rest.handle, WINDIVERT_PARAM_QUEUE_LENGTH, &value) || value != 1234)
        printf("wrong: the parameter is %u\n", (unsigned)value);
    listen_on(&rest);
    while (fgets(line, sizeof(line), stdin) != NULL) {
        char *filter = strtok(line, " \n"), *packet = strtok(NULL, " \n");

        if (filter == NULL || packet == NULL)
            return 2;
        decode(filter);
        try_filter(injector, filter, (const UINT8 *)packet, decode(packet));
        fflush(stdout);
    }
    drain(&rest);
    WinDivertClose(rest.handle);
    WinDivertClose(sink);
    WinDivertClose(injector);
    return 0;
}
