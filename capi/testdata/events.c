/*
 * events.c checks the layers with events: "reflect", or "sockets" for SOCKET and FLOW, which need eBPF. It must run in
 * a network namespace made for it.
 */
#include "traffic.h"

enum { MAX_OBJECT = 12288 };

static HANDLE must_open(const char *filter, WINDIVERT_LAYER layer, INT16 priority, UINT64 flags)
{
    HANDLE h = WinDivertOpen(filter, layer, priority, flags);

    if (h == INVALID_HANDLE_VALUE) {
        printf("open \"%s\" at layer %d: error %u\n", filter, layer, GetLastError());
        exit(2);
    }
    return h;
}

/* own opens a handle for events of this process. */
static HANDLE own(const char *event, WINDIVERT_LAYER layer, UINT64 flags)
{
    char filter[100];

    sprintf(filter, "processId == %u and %s", (unsigned)getpid(), event);
    return must_open(filter, layer, 0, flags | WINDIVERT_FLAG_RECV_ONLY);
}

/* The flags that a layer accepts (specification: api.md 4). */
static void check_flags(WINDIVERT_LAYER layer)
{
    enum { SNIFF = 1, DROP = 2, RECV_ONLY = 4, SEND_ONLY = 8, ALL = 0x40 };
    UINT64 flags;

    for (flags = 0; flags <= ALL; flags++) {
        UINT64 kind = flags & (SNIFF | DROP | RECV_ONLY | SEND_ONLY); /* the two others change nothing */
        BOOL legal = kind == (SNIFF | RECV_ONLY) ||
                     (layer == WINDIVERT_LAYER_SOCKET && (kind == RECV_ONLY || kind == (DROP | RECV_ONLY)));
        HANDLE h;

        legal = legal && flags < ALL;
        SetLastError(0);
        h = WinDivertOpen("false", layer, 0, flags);
        if ((h != INVALID_HANDLE_VALUE) != legal || GetLastError() != (legal ? 0 : ERROR_INVALID_PARAMETER)) {
            printf("layer %d, flags %u: error %u\n", layer, (unsigned)flags, GetLastError());
            check_failures++;
        }
        if (h != INVALID_HANDLE_VALUE)
            SUCCEEDS(WinDivertClose(h));
    }
}

/* drained checks that nothing more can be received (specification: api.md 9). */
static void drained(HANDLE h)
{
    WINDIVERT_ADDRESS addr;
    UINT8 byte;
    UINT size = sizeof(addr), length = 777;

    FAILS(WinDivertRecv(h, &byte, 1, &length, &addr), ERROR_NO_DATA, EPIPE);
    FAILS(WinDivertRecvEx(h, &byte, 1, &length, 0, &addr, &size, NULL), ERROR_NO_DATA, EPIPE);
    EQUAL(length, 777);
    SUCCEEDS(WinDivertClose(h));
}

/* These layers cannot send. */
static void check_send(HANDLE h)
{
    static UINT8 packet[20] = {0x45, 0, 0, 20};
    WINDIVERT_ADDRESS addr;

    memset(&addr, 0, sizeof(addr));
    FAILS(WinDivertSend(h, packet, sizeof(packet), NULL, &addr), ERROR_INVALID_PARAMETER, EINVAL);
}

/* ---- SOCKET and FLOW ----------------------------------------------------------------------------------- */

/* try_bind binds a UDP socket of loopback and returns it, or the negative errno. */
static int try_bind(UINT16 port)
{
    struct sockaddr_in addr;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    memset(&addr, 0, sizeof(addr));
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    addr.sin_port = htons(port);
    if (bind(s, (struct sockaddr *)&addr, sizeof(addr)) == 0)
        return s;
    close(s);
    return -errno;
}

static UINT64 cookie(int s)
{
    UINT64 value = 0;
    socklen_t n = sizeof(value);

    CHECK(getsockopt(s, SOL_SOCKET, SO_COOKIE, &value, &n) == 0);
    return value;
}

/* is_bind checks the address of the event of try_bind. */
static void is_bind(const WINDIVERT_ADDRESS *a, UINT16 port, BOOL sniffed)
{
    static const UINT32 none[4] = {0, 0, 0, 0}, local[4] = {INADDR_LOOPBACK, 0xFFFF, 0, 0};

    EQUAL(a->Layer, WINDIVERT_LAYER_SOCKET);
    EQUAL(a->Event, WINDIVERT_EVENT_SOCKET_BIND);
    EQUAL(a->Sniffed, sniffed);
    EQUAL(a->Outbound, 1);
    EQUAL(a->Loopback, 1);
    EQUAL(a->IPv6, 0);
    EQUAL(a->Socket.ProcessId, getpid());
    EQUAL(a->Socket.Protocol, 17);
    EQUAL(a->Socket.LocalPort, port);
    EQUAL(a->Socket.RemotePort, 0);
    EQUAL(a->Socket.ParentEndpointId, 0);
    CHECK(memcmp(a->Socket.LocalAddr, local, sizeof(local)) == 0);
    CHECK(memcmp(a->Socket.RemoteAddr, none, sizeof(none)) == 0);
}

/* untouched reports whether a buffer is unchanged: events have no bytes. */
static BOOL untouched(const UINT8 *buffer, size_t n)
{
    while (n > 0 && buffer[n - 1] == 0xEE)
        n--;
    return n == 0;
}

static void check_socket_batches(void)
{
    enum { FIRST = 5000, SOCKETS = 7 };
    HANDLE h = own("event == BIND", WINDIVERT_LAYER_SOCKET, WINDIVERT_FLAG_SNIFF);
    WINDIVERT_ADDRESS addrs[10];
    UINT8 buffer[64];
    UINT length = 777, size = 3 * sizeof(addrs[0]) + 79;
    int sockets[SOCKETS], i;

    check_send(h);
    for (i = 0; i < SOCKETS; i++)
        CHECK((sockets[i] = try_bind((UINT16)(FIRST + i))) >= 0);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_BOTH)); /* earlier events still come */
    i = try_bind(FIRST + SOCKETS);
    CHECK(i >= 0);
    close(i);

    memset(buffer, 0xEE, sizeof(buffer));
    SUCCEEDS(WinDivertRecvEx(h, buffer, sizeof(buffer), &length, 0, addrs, &size, NULL));
    EQUAL(length, 0);
    EQUAL(size, 3 * sizeof(addrs[0])); /* only the addresses limit a batch */
    length = 777;
    SUCCEEDS(WinDivertRecv(h, buffer, sizeof(buffer), &length, &addrs[3]));
    EQUAL(length, 0);
    CHECK(untouched(buffer, sizeof(buffer)));
    SUCCEEDS(WinDivertRecv(h, NULL, 0, NULL, NULL)); /* the fifth */
    length = 777;
    size = 5 * sizeof(addrs[0]);
    SUCCEEDS(WinDivertRecvEx(h, NULL, 0, &length, 0, &addrs[5], &size, NULL));
    EQUAL(length, 0);
    EQUAL(size, 2 * sizeof(addrs[0]));
    for (i = 0; i < SOCKETS; i++) {
        if (i != 4) {
            is_bind(&addrs[i], (UINT16)(FIRST + i), TRUE);
            CHECK(addrs[i].Socket.EndpointId == cookie(sockets[i]));
        }
        close(sockets[i]);
    }
    drained(h);
}

static void check_socket_refusal(void)
{
    HANDLE h = own("event == BIND and localPort == 5000", WINDIVERT_LAYER_SOCKET, 0);
    WINDIVERT_ADDRESS addr;
    UINT length = 777;
    int s;

    EQUAL(try_bind(5000), -EACCES);
    SUCCEEDS(WinDivertRecv(h, NULL, 0, &length, &addr));
    EQUAL(length, 0);
    is_bind(&addr, 5000, FALSE);
    CHECK((s = try_bind(5001)) >= 0);
    close(s);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    CHECK((s = try_bind(5000)) >= 0);
    close(s);
    drained(h);

    h = own("event == BIND and localPort == 5000", WINDIVERT_LAYER_SOCKET, WINDIVERT_FLAG_DROP); /* silently */
    EQUAL(try_bind(5000), -EACCES);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    CHECK((s = try_bind(5000)) >= 0);
    close(s);
    drained(h);
}

/* Both ends of a flow are reported; the data of its end is that of its beginning. */
static void check_flow(void)
{
    HANDLE h = own("udp", WINDIVERT_LAYER_FLOW, WINDIVERT_FLAG_SNIFF);
    struct pair p = open_pair(AF_INET6);
    WINDIVERT_ADDRESS addrs[5];
    UINT8 buffer[64];
    UINT length, size = sizeof(addrs), i;

    check_send(h);
    memset(buffer, 0xEE, sizeof(buffer));
    say(&p, "hello");
    HEARS(&p, "hello");
    for (i = 0; i < 2; i++) {
        length = 777;
        SUCCEEDS(WinDivertRecv(h, buffer, sizeof(buffer), &length, &addrs[i]));
        EQUAL(length, 0);
        EQUAL(addrs[i].Event, WINDIVERT_EVENT_FLOW_ESTABLISHED);
        EQUAL(addrs[i].Flow.ProcessId, getpid());
        EQUAL(addrs[i].Flow.Protocol, 17);
        EQUAL(addrs[i].IPv6, 1);
        EQUAL(addrs[i].Outbound ? addrs[i].Flow.RemotePort : addrs[i].Flow.LocalPort, p.port);
    }
    EQUAL(addrs[0].Outbound + addrs[1].Outbound, 1);
    close_pair(&p);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_BOTH));
    size = 3 * sizeof(addrs[0]);
    SUCCEEDS(WinDivertRecvEx(h, buffer, sizeof(buffer), &length, 0, &addrs[2], &size, NULL));
    EQUAL(length, 0);
    EQUAL(size, 2 * sizeof(addrs[0]));
    CHECK(untouched(buffer, sizeof(buffer)));
    for (i = 2; i < 4; i++) {
        const WINDIVERT_ADDRESS *begin = &addrs[addrs[i].Outbound == addrs[0].Outbound ? 0 : 1];

        EQUAL(addrs[i].Event, WINDIVERT_EVENT_FLOW_DELETED);
        CHECK(memcmp(&addrs[i].Flow, &begin->Flow, sizeof(begin->Flow)) == 0);
    }
    drained(h);
}

/* ---- REFLECT ------------------------------------------------------------------------------------------- */

/* Handles to report. */
static const struct {
    const char *filter;
    WINDIVERT_LAYER layer;
    INT16 priority;
    UINT64 flags;
} handles[] = {
    {"tcp.DstPort == 80 or udp.DstPort == 53", WINDIVERT_LAYER_NETWORK, 7, WINDIVERT_FLAG_SNIFF},
    {"ip.SrcAddr == 10.0.0.1", WINDIVERT_LAYER_NETWORK_FORWARD, -30000, WINDIVERT_FLAG_DROP | WINDIVERT_FLAG_NO_INSTALL},
    {"false", WINDIVERT_LAYER_NETWORK, 30000, WINDIVERT_FLAG_RECV_ONLY | WINDIVERT_FLAG_FRAGMENTS},
};

enum { HANDLES = sizeof(handles) / sizeof(handles[0]) };

static HANDLE open_nth(int i)
{
    return must_open(handles[i].filter, handles[i].layer, handles[i].priority, handles[i].flags);
}

/* object_of returns the object string of a handle's filter. */
static const char *object_of(int i)
{
    static char object[MAX_OBJECT];

    CHECK(WinDivertHelperCompileFilter(handles[i].filter, handles[i].layer, object, sizeof(object), NULL, NULL));
    return object;
}

/* is_handle checks an event of REFLECT, without its data. */
static void is_handle(const WINDIVERT_ADDRESS *a, int i, WINDIVERT_EVENT event)
{
    EQUAL(a->Layer, WINDIVERT_LAYER_REFLECT);
    EQUAL(a->Event, event);
    EQUAL(a->Sniffed, 1);
    EQUAL(a->Reflect.ProcessId, getpid());
    EQUAL(a->Reflect.Layer, handles[i].layer);
    EQUAL(a->Reflect.Flags, handles[i].flags);
    EQUAL(a->Reflect.Priority, handles[i].priority);
    CHECK(a->Reflect.Timestamp > 0 && a->Reflect.Timestamp <= a->Timestamp);
}

/* next_is receives one event and checks it with its data: the object string and a NUL. */
static void next_is(HANDLE h, int i, WINDIVERT_EVENT event)
{
    static char object[MAX_OBJECT];
    WINDIVERT_ADDRESS addr;
    UINT length = 0;

    memset(object, 'x', sizeof(object));
    SUCCEEDS(WinDivertRecv(h, object, sizeof(object), &length, &addr));
    is_handle(&addr, i, event);
    CHECK(strcmp(object, object_of(i)) == 0);
    EQUAL(length, strlen(object_of(i)) + 1);
}

/* A handle shut down at once lists the open handles, in batches of strings, and ends (specification: api.md 9). */
static void check_list(void)
{
    HANDLE open[HANDLES], h, late;
    static char objects[3 * MAX_OBJECT];
    WINDIVERT_ADDRESS addrs[HANDLES + 1];
    const char *at = objects;
    UINT length, size = sizeof(addrs);
    int i;

    for (i = 0; i < HANDLES; i++)
        open[i] = open_nth(i);
    h = own("true", WINDIVERT_LAYER_REFLECT, WINDIVERT_FLAG_SNIFF);
    check_send(h);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_BOTH));
    late = open_nth(0);
    SUCCEEDS(WinDivertRecvEx(h, objects, sizeof(objects), &length, 0, addrs, &size, NULL));
    EQUAL(size, HANDLES * sizeof(addrs[0]));
    for (i = 0; i < HANDLES; i++) {
        is_handle(&addrs[i], i, WINDIVERT_EVENT_REFLECT_OPEN);
        CHECK(strcmp(at, object_of(i)) == 0);
        at += strlen(at) + 1;
    }
    EQUAL(length, at - objects);
    SUCCEEDS(WinDivertClose(late));
    for (i = 0; i < HANDLES; i++)
        SUCCEEDS(WinDivertClose(open[i]));
    drained(h);
}

/* A string that does not fit is cut, or lost without a trace (specification: api.md 6, 7). */
static void check_cut(void)
{
    HANDLE open[HANDLES], h;
    char object[MAX_OBJECT];
    WINDIVERT_ADDRESS addrs[HANDLES];
    UINT length = 777, size = sizeof(addrs), whole = (UINT)strlen(object_of(1)) + 1;
    int i;

    for (i = 0; i < HANDLES; i++)
        open[i] = open_nth(i);
    h = own("true", WINDIVERT_LAYER_REFLECT, WINDIVERT_FLAG_SNIFF);
    memset(object, 'x', sizeof(object));
    FAILS(WinDivertRecv(h, object, 5, &length, &addrs[0]), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    is_handle(&addrs[0], 0, WINDIVERT_EVENT_REFLECT_OPEN);
    CHECK(memcmp(object, object_of(0), 5) == 0 && object[5] == 'x');
    EQUAL(length, 777);
    /* the next string fills the buffer to the last byte; the one behind it waits */
    SUCCEEDS(WinDivertRecvEx(h, object, whole, &length, 0, addrs, &size, NULL));
    EQUAL(size, sizeof(addrs[0]));
    EQUAL(length, whole);
    is_handle(&addrs[0], 1, WINDIVERT_EVENT_REFLECT_OPEN);
    next_is(h, 2, WINDIVERT_EVENT_REFLECT_OPEN);
    SUCCEEDS(WinDivertClose(open[2]));
    addrs[0].Event = 77;
    FAILS(WinDivertRecv(h, NULL, 0, NULL, &addrs[0]), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    EQUAL(addrs[0].Event, 77);
    SUCCEEDS(WinDivertClose(open[1]));
    next_is(h, 1, WINDIVERT_EVENT_REFLECT_CLOSE);
    SUCCEEDS(WinDivertClose(open[0]));
    next_is(h, 0, WINDIVERT_EVENT_REFLECT_CLOSE);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    drained(h);
}

/* A request waits for the event, or for the end. */
static void check_overlapped(void)
{
    HANDLE h = own("event == OPEN", WINDIVERT_LAYER_REFLECT, WINDIVERT_FLAG_SNIFF), event, open;
    char object[MAX_OBJECT];
    WINDIVERT_ADDRESS addr;
    OVERLAPPED o;
    DWORD got = 0;

    event = CreateEvent(NULL, FALSE, FALSE, NULL);
    memset(&o, 0, sizeof(o));
    o.hEvent = event;
    FAILS(WinDivertRecvEx(h, object, sizeof(object), NULL, 0, &addr, NULL, &o), ERROR_IO_PENDING, EINPROGRESS);
    open = open_nth(0);
    CHECK(WaitForSingleObject(event, 10000) == WAIT_OBJECT_0);
    SUCCEEDS(GetOverlappedResult(h, &o, &got, FALSE));
    EQUAL(got, strlen(object_of(0)) + 1);
    CHECK(strcmp(object, object_of(0)) == 0);
    is_handle(&addr, 0, WINDIVERT_EVENT_REFLECT_OPEN);

    FAILS(WinDivertRecvEx(h, object, sizeof(object), NULL, 0, &addr, NULL, &o), ERROR_IO_PENDING, EINPROGRESS);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    CHECK(WaitForSingleObject(event, 10000) == WAIT_OBJECT_0);
    EQUAL(GetOverlappedResult(h, &o, &got, FALSE), FALSE);
    EQUAL(GetLastError(), ERROR_NO_DATA);
    CloseHandle(event);
    SUCCEEDS(WinDivertClose(open));
    drained(h);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2 && strcmp(argv[1], "sockets") == 0) {
        check_flags(WINDIVERT_LAYER_SOCKET);
        check_flags(WINDIVERT_LAYER_FLOW);
        check_socket_batches();
        check_socket_refusal();
        check_flow();
    } else {
        check_flags(WINDIVERT_LAYER_REFLECT);
        check_list();
        check_cut();
        check_overlapped();
    }
    return failures();
}
