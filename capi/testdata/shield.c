/*
 * shield.c tries filters on live packets. It keeps a DROP handle above all others, which sends the packets and keeps
 * all other traffic out, and a DROP handle below all others, which lets nothing out. Between them are the filter under
 * test, as an object string, and "true" below it. A handle of the layer REFLECT watches how the filters appear. It
 * must run in a network namespace made for it.
 *
 * Each line of the standard input is a filter and a packet, both in hex. The answer names the one of the two handles
 * that got the packet, and reports any disagreement.
 */
#include "windivert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TIMEOUT = 2000, MAX_LINE = 1 << 20, MAX_OBJECT = 10255, MAX_TEXT = 1 << 17, TESTED = 8888 };

/* A handle with a receive request that is always pending. */
struct listener {
    HANDLE handle, event;
    OVERLAPPED overlapped;
    UINT8 packet[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS addr;
};

static char line[MAX_LINE];
static struct listener tested, rest, watcher;

static HANDLE must_open(const char *filter, WINDIVERT_LAYER layer, INT16 priority, UINT64 flags)
{
    HANDLE h = WinDivertOpen(filter, layer, priority, flags);

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

/* drain checks the end of a handle after its shutdown: an error, and nothing before it. */
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
 * as_expected reports whether a packet arrived as it was sent: with its checksums, except those that Send leaves
 * alone, and with an Id, which the kernel gives to IPv4 packets that are sent without one (raw(7)).
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

/* judge returns the fault of an arrival, "" if there is none. */
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

/* The last packets tried. */
static struct {
    UINT8 *bytes;
    UINT length;
} samples[64];

static void remember(const UINT8 *packet, UINT length)
{
    static unsigned next;
    unsigned i = next++ % (sizeof(samples) / sizeof(samples[0]));

    free(samples[i].bytes);
    samples[i].bytes = (UINT8 *)malloc(length);
    samples[i].length = length;
    if (samples[i].bytes == NULL)
        exit(2);
    memcpy(samples[i].bytes, packet, length);
}

/* equivalent reports whether two filters decide alike on the last packets, outbound and inbound. */
static BOOL equivalent(const char *one, const char *other)
{
    WINDIVERT_ADDRESS addr;
    size_t i;

    memset(&addr, 0, sizeof(addr));
    for (i = 0; i < 2 * sizeof(samples) / sizeof(samples[0]); i++) {
        const UINT8 *packet = samples[i / 2].bytes;

        if (packet == NULL)
            continue;
        addr.Outbound = i % 2;
        addr.IPv6 = packet[0] >> 4 == 6;
        if (WinDivertHelperEvalFilter(one, packet, samples[i / 2].length, &addr) !=
            WinDivertHelperEvalFilter(other, packet, samples[i / 2].length, &addr))
            return FALSE;
    }
    return TRUE;
}

/*
 * compiled_again returns the fault of a filter that was formatted and compiled again, "" if there is none. The objects
 * may differ: numbers that decide alike are one in the text.
 */
static const char *compiled_again(const char *object, BOOL random)
{
    static char text[MAX_TEXT], again[MAX_OBJECT];

    if (!WinDivertHelperFormatFilter(object, WINDIVERT_LAYER_NETWORK, text, sizeof(text)))
        return "the reported filter cannot be formatted";
    if (!WinDivertHelperCompileFilter(text, WINDIVERT_LAYER_NETWORK, again, sizeof(again), NULL, NULL))
        return "the formatted filter does not compile";
    return random || equivalent(object, again) ? "" : "the formatted filter decides differently";
}

/* reported returns the fault in a handle's filter as the layer REFLECT reports it, "" if there is none. */
static const char *reported(const char *object, BOOL random)
{
    const WINDIVERT_DATA_REFLECT *handle = &watcher.addr.Reflect;
    const char *wrong;
    DWORD got = 0;

    if (WaitForSingleObject(watcher.event, TIMEOUT) != WAIT_OBJECT_0)
        return "the handle is not reported";
    if (!GetOverlappedResult(watcher.handle, &watcher.overlapped, &got, FALSE))
        return "the report failed";
    if (handle->ProcessId != (UINT32)getpid() || handle->Layer != WINDIVERT_LAYER_NETWORK || handle->Flags != 0 ||
        handle->Priority != TESTED)
        return "another handle is reported";
    if (got != strlen(object) + 1 || memcmp(watcher.packet, object, got) != 0)
        return "another filter is reported";
    wrong = compiled_again((const char *)watcher.packet, random);
    return listen_on(&watcher) ? wrong : "no more reports";
}

static void try_filter(HANDLE injector, const char *filter, const UINT8 *packet, UINT length)
{
    static char object[MAX_OBJECT];
    BOOL random = strstr(filter, "random") != NULL || strstr(filter, "timestamp") != NULL;
    HANDLE events[2];
    WINDIVERT_ADDRESS addr;
    const char *report;
    UINT sent;
    DWORD first;

    if (!WinDivertHelperCompileFilter(filter, WINDIVERT_LAYER_NETWORK, object, sizeof(object), NULL, NULL)) {
        printf("no filter\n");
        return;
    }
    tested.handle = WinDivertOpen(object, WINDIVERT_LAYER_NETWORK, TESTED, 0);
    if (tested.handle == INVALID_HANDLE_VALUE) {
        printf("not opened %u\n", GetLastError());
        return;
    }
    if (!listen_on(&tested))
        printf("wrong: receive error %u ", GetLastError());
    memset(&addr, 0, sizeof(addr));
    addr.Outbound = 1;
    remember(packet, length);
    report = reported(object, random);
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
            printf("%s %s\n", first == WAIT_OBJECT_0 ? "match" : "none", *wrong != 0 ? wrong : report);
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
    HANDLE injector = must_open("true", WINDIVERT_LAYER_NETWORK, 9999, WINDIVERT_FLAG_DROP),
           sink = must_open("true", WINDIVERT_LAYER_NETWORK, -9999, WINDIVERT_FLAG_DROP);
    char opened[100];
    UINT64 value = 0;

    rest.handle = must_open("true", WINDIVERT_LAYER_NETWORK, 7777, 0);
    rest.event = CreateEvent(NULL, FALSE, FALSE, NULL);
    tested.event = CreateEvent(NULL, FALSE, FALSE, NULL);
    sprintf(opened, "event == OPEN and processId == %u and priority == %d", (unsigned)getpid(), TESTED);
    watcher.handle = must_open(opened, WINDIVERT_LAYER_REFLECT, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
    watcher.event = CreateEvent(NULL, FALSE, FALSE, NULL);
    listen_on(&watcher);
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
    drain(&watcher);
    WinDivertClose(watcher.handle);
    WinDivertClose(rest.handle);
    WinDivertClose(sink);
    WinDivertClose(injector);
    return 0;
}
