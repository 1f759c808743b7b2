/*
 * live.c checks handles, on the loopback device of the network namespace it runs in. It needs the right to divert, and
 * must run only in a namespace made for it.
 */
#include "traffic.h"

#include <net/if.h>
#include <pthread.h>
#include <sys/eventfd.h>

static struct pair udp;

static INT64 nanoseconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (INT64)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A packet is received with all its data, changed, and sent on (specification: api.md 6, 8, 14.3). */
static void check_divert(struct pair *p)
{
    HANDLE h = open_on(p, 0, 0);
    UINT8 packet[WINDIVERT_MTU_MAX], before[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS addr;
    UINT length = 0, sent = 0;
    INT64 start = nanoseconds();
    UINT headers = header_length(p);

    say(p, "hello");
    memset(&addr, 0xFF, sizeof(addr));
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr));
    EQUAL(length, headers + 5);
    CHECK(memcmp(packet + headers, "hello", 5) == 0);
    EQUAL(addr.Layer, WINDIVERT_LAYER_NETWORK);
    EQUAL(addr.Event, WINDIVERT_EVENT_NETWORK_PACKET);
    EQUAL(addr.Sniffed, 0);
    EQUAL(addr.Outbound, 1);
    EQUAL(addr.Loopback, 1);
    EQUAL(addr.Impostor, 0);
    EQUAL(addr.IPv6, p->family == AF_INET6);
    EQUAL(addr.Reserved1, 0);
    EQUAL(addr.Reserved2, 0);
    EQUAL(addr.Network.IfIdx, if_nametoindex("lo"));
    EQUAL(addr.Network.SubIfIdx, 0);
    CHECK(addr.Timestamp >= start && addr.Timestamp <= nanoseconds());
    HEARS(p, ""); /* the packet is held */

    packet[headers] = 'j';
    addr.IPChecksum = addr.UDPChecksum = 0;
    memcpy(before, packet, length);
    SUCCEEDS(WinDivertSend(h, packet, length, &sent, &addr));
    EQUAL(sent, length);
    CHECK(memcmp(before, packet, length) == 0); /* the checksums were computed in a copy */
    HEARS(p, "jello");
    SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr)); /* again: a new packet */
    HEARS(p, "jello");

    say(p, "without outputs");
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), NULL, NULL));
    HEARS(p, "");
    SUCCEEDS(WinDivertClose(h));
    say(p, "undisturbed");
    HEARS(p, "undisturbed");
}

static void check_truncation(void)
{
    HANDLE h = open_on(&udp, 0, 0);
    UINT8 packet[100];
    WINDIVERT_ADDRESS addr;
    UINT length = 777, addrs = sizeof(addr);

    memset(&addr, 0, sizeof(addr));
    say(&udp, "hello");
    FAILS(WinDivertRecv(h, packet, 30, &length, &addr), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    EQUAL(length, 777);
    CHECK(memcmp(packet + 28, "he", 2) == 0);
    CHECK(addr.Outbound == 1 && addr.Timestamp != 0);

    memset(&addr, 0, sizeof(addr));
    say(&udp, "hello");
    FAILS(WinDivertRecvEx(h, packet, 30, &length, 0, &addr, &addrs, NULL), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    EQUAL(length, 777);
    EQUAL(addrs, 80);
    CHECK(addr.Outbound == 1);

    /* Without room for a single byte the packet is lost without a trace. */
    memset(&addr, 0, sizeof(addr));
    addrs = 160;
    say(&udp, "hello");
    FAILS(WinDivertRecv(h, packet, 0, &length, &addr), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    say(&udp, "hello");
    FAILS(WinDivertRecv(h, NULL, 100, &length, &addr), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    CHECK(addr.Outbound == 0 && addrs == 160 && length == 777);
    say(&udp, "hello");
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr));
    EQUAL(length, 33);
    SUCCEEDS(WinDivertClose(h));
    HEARS(&udp, "");
}

/* The longest datagram is received cut, ends a batch, and goes on whole if it is sent unchanged. */
static void check_longest(struct pair *p)
{
    static UINT8 packets[2 * WINDIVERT_MTU_MAX], payload[65535];
    HANDLE h = open_on(p, 0, 0);
    WINDIVERT_ADDRESS addrs[3];
    UINT headers = header_length(p), length = 0, sent = 0, size = sizeof(addrs);
    size_t longest = p->family == AF_INET ? 65535 - headers : 65575 - headers;

    memset(payload, 7, sizeof(payload));
    CHECK(send(p->out, payload, longest, 0) == (ssize_t)longest);
    say(p, "behind");
    pause_ms(50);
    SUCCEEDS(WinDivertRecvEx(h, packets, sizeof(packets), &length, 0, addrs, &size, NULL));
    EQUAL(length, 65531);
    EQUAL(size, sizeof(*addrs));
    packets[100]++;
    FAILS(WinDivertSend(h, packets, length, &sent, addrs), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    packets[100]--;
    SUCCEEDS(WinDivertSend(h, packets, length, &sent, addrs));
    EQUAL(sent, 65531);
    CHECK(recv(p->in, packets, sizeof(packets), 0) == (ssize_t)longest);
    CHECK(memcmp(packets, payload, longest) == 0);
    SUCCEEDS(WinDivertRecv(h, packets, sizeof(packets), &length, addrs));
    EQUAL(length, headers + 6);
    SUCCEEDS(WinDivertSend(h, packets, length, NULL, addrs));
    HEARS(p, "behind");
    SUCCEEDS(WinDivertClose(h));
}

/* fill sends datagrams of one digit each and waits until they are in the queue. */
static void fill(const char *digits)
{
    char text[2] = {0, 0};

    for (; *digits != 0; digits++) {
        text[0] = *digits;
        say(&udp, text);
    }
    pause_ms(50);
}

/* batch receives into a buffer and checks the digits in the packets. */
static UINT batch(HANDLE h, UINT8 *buffer, UINT room, WINDIVERT_ADDRESS *addrs, UINT slots, const char *want)
{
    UINT length = 0, size = slots * sizeof(*addrs), i, n = (UINT)strlen(want);

    SUCCEEDS(WinDivertRecvEx(h, buffer, room, &length, 0, addrs, &size, NULL));
    EQUAL(length, n * 29);
    EQUAL(size, n * sizeof(*addrs));
    for (i = 0; i < n && i * 29 < length; i++) {
        EQUAL(buffer[i * 29 + 28], want[i]);
        EQUAL(addrs[i].Outbound, 1);
    }
    return length;
}

static void check_batches(void)
{
    HANDLE h = open_on(&udp, 0, 0);
    UINT8 buffer[29 * 10];
    WINDIVERT_ADDRESS addrs[256];
    UINT length, size = 79, sent = 777;
    int i;

    FAILS(WinDivertRecvEx(h, buffer, 100, NULL, 0, addrs, &size, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    size = 20401;
    FAILS(WinDivertRecvEx(h, buffer, 100, NULL, 0, addrs, &size, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    size = 80;
    FAILS(WinDivertRecvEx(h, buffer, 100, NULL, 0, NULL, &size, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertRecvEx(h, buffer, 100, NULL, 1, addrs, &size, NULL), ERROR_INVALID_PARAMETER, EINVAL);

    fill("12345");
    length = batch(h, buffer, sizeof(buffer), addrs, 10, "12345");
    SUCCEEDS(WinDivertSendEx(h, buffer, length, &sent, 0, addrs, 5 * sizeof(*addrs), NULL));
    EQUAL(sent, length);
    HEARS(&udp, "1");
    HEARS(&udp, "2");
    HEARS(&udp, "3");
    HEARS(&udp, "4");
    HEARS(&udp, "5");

    fill("12345678");
    batch(h, buffer, 29 * 3 - 1, addrs, 10, "12"); /* the third does not fit: it waits */
    batch(h, buffer, 29 * 3, addrs, 10, "345");
    batch(h, buffer, sizeof(buffer), addrs, 1, "6");
    length = sizeof(buffer);
    SUCCEEDS(WinDivertRecvEx(h, buffer, sizeof(buffer), &length, 0, NULL, NULL, NULL)); /* one, without address */
    EQUAL(length, 29);
    EQUAL(buffer[28], '7');
    batch(h, buffer, sizeof(buffer), addrs, 255, "8");

    /* The longest array; and one whose size is no multiple of an address's. */
    fill("1234");
    size = 255 * 80;
    SUCCEEDS(WinDivertRecvEx(h, buffer, 29 * 2, &length, 0, addrs, &size, NULL));
    EQUAL(size, 160);
    size = 159;
    SUCCEEDS(WinDivertRecvEx(h, buffer, sizeof(buffer), &length, 0, addrs, &size, NULL));
    EQUAL(size, 80);
    batch(h, buffer, sizeof(buffer), addrs, 3, "4");

    /* Sending: packets before a hard error have gone, and the length stays unwritten. */
    fill("123");
    length = batch(h, buffer, sizeof(buffer), addrs, 3, "123");
    sent = 777;
    FAILS(WinDivertSendEx(h, buffer, 29 * 2, &sent, 0, addrs, 3 * sizeof(*addrs), NULL), ERROR_INSUFFICIENT_BUFFER,
          EMSGSIZE);
    EQUAL(sent, 777);
    HEARS(&udp, "1");
    HEARS(&udp, "2");
    SUCCEEDS(WinDivertSendEx(h, buffer, length, &sent, 0, addrs, 2 * sizeof(*addrs), NULL)); /* data left over */
    EQUAL(sent, 29 * 2);
    HEARS(&udp, "1");
    HEARS(&udp, "2");
    buffer[29] = 0x55;
    FAILS(WinDivertSendEx(h, buffer, length, &sent, 0, addrs, 3 * sizeof(*addrs), NULL), ERROR_INVALID_PARAMETER, EINVAL);
    HEARS(&udp, "1");
    HEARS(&udp, "");
    FAILS(WinDivertSendEx(h, buffer, length, &sent, 0, addrs, 79, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertSendEx(h, buffer, length, &sent, 0, addrs, 20401, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertSendEx(h, buffer, length, &sent, 0, NULL, 80, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertSendEx(h, buffer, length, &sent, 2, addrs, 80, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertSendEx(h, NULL, length, &sent, 0, addrs, 80, NULL), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertSend(h, buffer, 0, &sent, addrs), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertSend(h, buffer, 19, &sent, addrs), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertSend(h, buffer, 28, &sent, addrs), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertSend(h, buffer, 29, &sent, NULL), ERROR_INVALID_PARAMETER, EINVAL);

    /* A soft error does not hold up the others. */
    fill("123");
    length = batch(h, buffer, sizeof(buffer), addrs, 3, "123");
    for (i = 0; i < 3; i++)
        addrs[i].IPChecksum = 0;
    addrs[1].Impostor = 1;
    buffer[29 + 8] = 1;
    FAILS(WinDivertSendEx(h, buffer, length, &sent, 0, addrs, 3 * sizeof(*addrs), NULL), ERROR_HOST_UNREACHABLE,
          EHOSTUNREACH);
    HEARS(&udp, "1");
    HEARS(&udp, "3");
    HEARS(&udp, "");

    /* Packets received and not delivered go on when the handle closes. */
    fill("12345");
    batch(h, buffer, 29, addrs, 10, "1");
    SUCCEEDS(WinDivertClose(h));
    HEARS(&udp, "2");
    HEARS(&udp, "3");
    HEARS(&udp, "4");
    HEARS(&udp, "5");
    HEARS(&udp, "");
}

/* A packet that waited longer than the queue time is skipped, even behind one that was received with it. */
static void check_queue_time(void)
{
    HANDLE h = open_on(&udp, 0, 0);
    UINT8 buffer[29 * 10];
    WINDIVERT_ADDRESS addrs[10];

    SUCCEEDS(WinDivertSetParam(h, WINDIVERT_PARAM_QUEUE_TIME, 200));
    fill("123");
    batch(h, buffer, 29, addrs, 10, "1");
    pause_ms(1000);
    fill("4");
    batch(h, buffer, sizeof(buffer), addrs, 10, "4");
    fill("56");
    batch(h, buffer, 29, addrs, 10, "5");
    pause_ms(1000);
    SUCCEEDS(WinDivertClose(h));
    HEARS(&udp, "");
}

static void check_flags(void)
{
    UINT8 packet[100];
    WINDIVERT_ADDRESS addr;
    UINT length;
    HANDLE h = open_on(&udp, 0, WINDIVERT_FLAG_SNIFF);

    say(&udp, "sniffed");
    HEARS(&udp, "sniffed");
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr));
    EQUAL(addr.Sniffed, 1);
    EQUAL(length, 35);
    SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr)); /* one more */
    HEARS(&udp, "sniffed");
    SUCCEEDS(WinDivertClose(h));

    h = open_on(&udp, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
    FAILS(WinDivertSend(h, packet, length, NULL, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertClose(h));

    h = open_on(&udp, 0, WINDIVERT_FLAG_DROP);
    say(&udp, "dropped");
    HEARS(&udp, "");
    SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr));
    HEARS(&udp, "sniffed");
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    FAILS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr), ERROR_NO_DATA, EPIPE);
    say(&udp, "passes");
    HEARS(&udp, "passes");
    SUCCEEDS(WinDivertClose(h));

    h = open_on(&udp, 0, WINDIVERT_FLAG_RECV_ONLY | WINDIVERT_FLAG_NO_INSTALL | WINDIVERT_FLAG_FRAGMENTS);
    fill("12");
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr));
    FAILS(WinDivertSend(h, packet, length, NULL, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertClose(h));
    HEARS(&udp, "2"); /* nobody received it */

    h = WinDivertOpen("false", WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_SEND_ONLY);
    CHECK(h != INVALID_HANDLE_VALUE);
    FAILS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr));
    HEARS(&udp, "1");
    SUCCEEDS(WinDivertClose(h));
}

static void check_params(void)
{
    static const struct {
        WINDIVERT_PARAM param;
        UINT64 initial, min, max;
    } rows[] = {
        {WINDIVERT_PARAM_QUEUE_LENGTH, WINDIVERT_PARAM_QUEUE_LENGTH_DEFAULT, WINDIVERT_PARAM_QUEUE_LENGTH_MIN,
         WINDIVERT_PARAM_QUEUE_LENGTH_MAX},
        {WINDIVERT_PARAM_QUEUE_TIME, WINDIVERT_PARAM_QUEUE_TIME_DEFAULT, WINDIVERT_PARAM_QUEUE_TIME_MIN,
         WINDIVERT_PARAM_QUEUE_TIME_MAX},
        {WINDIVERT_PARAM_QUEUE_SIZE, WINDIVERT_PARAM_QUEUE_SIZE_DEFAULT, WINDIVERT_PARAM_QUEUE_SIZE_MIN,
         WINDIVERT_PARAM_QUEUE_SIZE_MAX},
    };
    HANDLE h = open_on(&udp, 0, 0);
    UINT64 value = 0;
    int i;

    for (i = 0; i < 3; i++) {
        SUCCEEDS(WinDivertGetParam(h, rows[i].param, &value));
        EQUAL(value, rows[i].initial);
        FAILS(WinDivertSetParam(h, rows[i].param, rows[i].min - 1), ERROR_INVALID_PARAMETER, EINVAL);
        FAILS(WinDivertSetParam(h, rows[i].param, rows[i].max + 1), ERROR_INVALID_PARAMETER, EINVAL);
        SUCCEEDS(WinDivertSetParam(h, rows[i].param, rows[i].min));
        SUCCEEDS(WinDivertSetParam(h, rows[i].param, rows[i].max));
        SUCCEEDS(WinDivertGetParam(h, rows[i].param, &value));
        EQUAL(value, rows[i].max);
    }
    SUCCEEDS(WinDivertGetParam(h, WINDIVERT_PARAM_VERSION_MAJOR, &value));
    EQUAL(value, 2);
    SUCCEEDS(WinDivertGetParam(h, WINDIVERT_PARAM_VERSION_MINOR, &value));
    EQUAL(value, 2);
    FAILS(WinDivertSetParam(h, WINDIVERT_PARAM_VERSION_MAJOR, 2), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertSetParam(h, (WINDIVERT_PARAM)5, 100), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertGetParam(h, (WINDIVERT_PARAM)5, &value), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertGetParam(h, (WINDIVERT_PARAM)-1, &value), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertGetParam(h, (WINDIVERT_PARAM)256, &value), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertGetParam(h, WINDIVERT_PARAM_QUEUE_TIME, NULL), ERROR_NOACCESS, EFAULT);
    SUCCEEDS(CloseHandle(h)); /* as on Windows, where a handle is a handle */
    FAILS(WinDivertClose(h), ERROR_INVALID_HANDLE, EBADF);
}

static void check_shutdown(void)
{
    HANDLE h = open_on(&udp, 0, 0);
    UINT8 packet[100];
    WINDIVERT_ADDRESS addr;
    UINT length;

    FAILS(WinDivertShutdown(h, (WINDIVERT_SHUTDOWN)0), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertShutdown(h, (WINDIVERT_SHUTDOWN)4), ERROR_INVALID_PARAMETER, EINVAL);
    fill("1");
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    say(&udp, "passes");
    HEARS(&udp, "passes");
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr));
    FAILS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr), ERROR_NO_DATA, EPIPE);
    SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr));
    HEARS(&udp, "1");
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_SEND));
    FAILS(WinDivertSend(h, packet, length, NULL, &addr), ERROR_NO_DATA, EPIPE);
    FAILS(WinDivertSend(h, packet, length, NULL, NULL), ERROR_INVALID_PARAMETER, EINVAL); /* this error comes first */
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_BOTH));
    SUCCEEDS(WinDivertClose(h));
    FAILS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_BOTH), ERROR_INVALID_HANDLE, EBADF);
}

/* receiver waits for a packet and returns the error it gets. */
static void *receiver(void *handle)
{
    UINT8 packet[100];

    if (WinDivertRecv((HANDLE)handle, packet, sizeof(packet), NULL, NULL))
        return NULL;
    return (void *)(uintptr_t)WinDivertGetLastError();
}

static void check_waiters(void)
{
    enum { WAITERS = 5 };
    int closing, i;

    for (closing = 0; closing < 2; closing++) {
        HANDLE h = open_on(&udp, 0, 0);
        pthread_t threads[WAITERS];
        void *error;

        for (i = 0; i < WAITERS; i++)
            pthread_create(&threads[i], NULL, receiver, h);
        pause_ms(50);
        if (closing)
            SUCCEEDS(WinDivertClose(h));
        else
            SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
        for (i = 0; i < WAITERS; i++) {
            pthread_join(threads[i], &error);
            EQUAL((uintptr_t)error, closing ? ERROR_OPERATION_ABORTED : ERROR_NO_DATA);
        }
        if (!closing)
            SUCCEEDS(WinDivertClose(h));
        FAILS(WinDivertRecv(h, NULL, 0, NULL, NULL), ERROR_INVALID_HANDLE, EBADF);
    }
}

/* An overlapped request with its memory. */
struct request {
    OVERLAPPED overlapped;
    UINT8 packet[100];
    WINDIVERT_ADDRESS addrs[2];
    UINT length, size;
};

static void start(HANDLE h, struct request *r, HANDLE event)
{
    memset(r, 0, sizeof(*r));
    r->overlapped.hEvent = event;
    r->length = 777;
    r->size = sizeof(r->addrs);
    FAILS(WinDivertRecvEx(h, r->packet, sizeof(r->packet), &r->length, 0, r->addrs, &r->size, &r->overlapped),
          ERROR_IO_PENDING, EINPROGRESS);
    EQUAL(r->length, 777);
}

static void check_overlapped(void)
{
    HANDLE h = open_on(&udp, 0, 0), event = CreateEvent(NULL, TRUE, TRUE, NULL);
    int own = eventfd(0, EFD_CLOEXEC); /* a blocking one, of the program's own */
    struct pollfd f = {own, POLLIN, 0};
    struct request r[4];
    DWORD transferred = 0;
    int i;

    start(h, &r[0], event);
    EQUAL(WaitForSingleObject(event, 20), WAIT_TIMEOUT); /* it was reset */
    CHECK(!HasOverlappedIoCompleted(&r[0].overlapped));
    FAILS(GetOverlappedResult(h, &r[0].overlapped, &transferred, FALSE), ERROR_IO_INCOMPLETE, EAGAIN);
    say(&udp, "overlapped");
    EQUAL(WaitForSingleObject(event, 3000), WAIT_OBJECT_0);
    SUCCEEDS(GetOverlappedResult(h, &r[0].overlapped, &transferred, FALSE));
    EQUAL(transferred, 38);
    EQUAL(r[0].size, 80);
    EQUAL(r[0].length, 777);
    EQUAL(r[0].addrs[0].Outbound, 1);
    CHECK(memcmp(r[0].packet + 28, "overlapped", 10) == 0);

    /* Sending completes at once. */
    SUCCEEDS(WinDivertSendEx(h, r[0].packet, transferred, NULL, 0, r[0].addrs, 80, &r[0].overlapped));
    EQUAL(WaitForSingleObject(event, 0), WAIT_OBJECT_0);
    SUCCEEDS(GetOverlappedResult(h, &r[0].overlapped, &transferred, TRUE));
    EQUAL(transferred, 38);
    HEARS(&udp, "overlapped");
    FAILS(WinDivertSendEx(h, r[0].packet, 10, NULL, 0, r[0].addrs, 80, &r[0].overlapped), ERROR_INSUFFICIENT_BUFFER,
          EMSGSIZE);
    CHECK(HasOverlappedIoCompleted(&r[0].overlapped));

    /* Several are served in the order they came; one is cancelled before, one has no event. */
    start(h, &r[0], (HANDLE)(uintptr_t)own);
    start(h, &r[1], event);
    start(h, &r[2], NULL);
    start(h, &r[3], NULL);
    SUCCEEDS(CancelIoEx(h, &r[1].overlapped));
    EQUAL(WaitForSingleObject(event, 3000), WAIT_OBJECT_0);
    FAILS(GetOverlappedResult(h, &r[1].overlapped, &transferred, TRUE), ERROR_OPERATION_ABORTED, ECANCELED);
    FAILS(CancelIoEx(h, &r[1].overlapped), ERROR_NOT_FOUND, ENOENT);
    say(&udp, "1");
    EQUAL(poll(&f, 1, 3000), 1);
    say(&udp, "2");
    SUCCEEDS(GetOverlappedResult(h, &r[2].overlapped, &transferred, TRUE));
    EQUAL(r[0].packet[28], '1');
    EQUAL(r[2].packet[28], '2');

    /* Cancelling the one that waits in the system: the next one goes on. */
    start(h, &r[0], event);
    SUCCEEDS(CancelIoEx(h, &r[3].overlapped));
    FAILS(GetOverlappedResult(h, &r[3].overlapped, &transferred, TRUE), ERROR_OPERATION_ABORTED, ECANCELED);
    say(&udp, "3");
    SUCCEEDS(GetOverlappedResult(h, &r[0].overlapped, &transferred, TRUE));
    EQUAL(r[0].packet[28], '3');
    FAILS(CancelIoEx(h, NULL), ERROR_NOT_FOUND, ENOENT);

    /* A short buffer is an error of the request. */
    memset(&r[0].overlapped, 0, sizeof(OVERLAPPED));
    FAILS(WinDivertRecvEx(h, r[0].packet, 30, NULL, 0, r[0].addrs, NULL, &r[0].overlapped), ERROR_IO_PENDING,
          EINPROGRESS);
    say(&udp, "long");
    FAILS(GetOverlappedResult(h, &r[0].overlapped, &transferred, TRUE), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);

    /* A packet already there is delivered at once. */
    fill("45");
    start(h, &r[0], event);
    CHECK(GetOverlappedResult(h, &r[0].overlapped, &transferred, TRUE));
    EQUAL(r[0].packet[28], '4');

    for (i = 0; i < 4; i++)
        start(h, &r[i], i == 0 ? event : NULL);
    SUCCEEDS(CancelIoEx(h, NULL)); /* all */
    for (i = 0; i < 4; i++)
        FAILS(GetOverlappedResult(h, &r[i].overlapped, NULL, TRUE), ERROR_OPERATION_ABORTED, ECANCELED);
    for (i = 0; i < 4; i++)
        start(h, &r[i], i == 0 ? event : NULL);
    SUCCEEDS(WinDivertClose(h));
    for (i = 0; i < 4; i++) {
        CHECK(HasOverlappedIoCompleted(&r[i].overlapped)); /* nothing touches them after Close */
        FAILS(GetOverlappedResult(h, &r[i].overlapped, NULL, FALSE), ERROR_OPERATION_ABORTED, ECANCELED);
    }
    EQUAL(WaitForSingleObject(event, 0), WAIT_OBJECT_0);
    FAILS(WinDivertRecvEx(h, r[0].packet, 30, NULL, 0, r[0].addrs, NULL, &r[0].overlapped), ERROR_INVALID_HANDLE, EBADF);
    CHECK(HasOverlappedIoCompleted(&r[0].overlapped));
    SUCCEEDS(CloseHandle(event));
    close(own);
}

/* A handle sees the packets that handles above it send, and none of those below (specification: api.md 13). */
static void check_priorities(void)
{
    HANDLE high = open_on(&udp, 100, 0), low = open_on(&udp, -100, 0);
    UINT8 packet[100];
    WINDIVERT_ADDRESS addr;
    UINT length;

    say(&udp, "down");
    SUCCEEDS(WinDivertRecv(high, packet, sizeof(packet), &length, &addr));
    SUCCEEDS(WinDivertSend(high, packet, length, NULL, &addr));
    SUCCEEDS(WinDivertRecv(low, packet, sizeof(packet), &length, &addr));
    EQUAL(addr.Impostor, 0);
    HEARS(&udp, "");
    SUCCEEDS(WinDivertSend(low, packet, length, NULL, &addr));
    HEARS(&udp, "down");
    memset(&addr, 0, sizeof(addr));
    addr.Outbound = 1;
    SUCCEEDS(WinDivertSend(low, packet, length, NULL, &addr)); /* a new one: from here on down */
    HEARS(&udp, "down");
    SUCCEEDS(WinDivertClose(high));
    SUCCEEDS(WinDivertClose(low));
}

/* ---- Many threads ---- */

struct load {
    HANDLE handle;
    int passed, wrong;
};

static void *pass_on(void *argument)
{
    struct load *l = (struct load *)argument;
    UINT8 *buffer = (UINT8 *)malloc(WINDIVERT_MTU_MAX);
    WINDIVERT_ADDRESS addrs[8];
    UINT length, size;

    for (;;) {
        size = sizeof(addrs);
        if (!WinDivertRecvEx(l->handle, buffer, WINDIVERT_MTU_MAX, &length, 0, addrs, &size, NULL)) {
            DWORD error = GetLastError();
            if (error != ERROR_OPERATION_ABORTED && error != ERROR_INVALID_HANDLE && error != ERROR_BAD_COMMAND)
                __atomic_add_fetch(&l->wrong, 1, __ATOMIC_RELAXED);
            break;
        }
        __atomic_add_fetch(&l->passed, (int)(size / sizeof(addrs[0])), __ATOMIC_RELAXED);
        if (!WinDivertSendEx(l->handle, buffer, length, NULL, 0, addrs, size, NULL)) {
            DWORD error = GetLastError();
            if (error != ERROR_INVALID_HANDLE && error != ERROR_BAD_COMMAND)
                __atomic_add_fetch(&l->wrong, 1, __ATOMIC_RELAXED);
        }
    }
    free(buffer);
    return NULL;
}

static void check_threads(void)
{
    enum { THREADS = 6, DATAGRAMS = 2000 };
    struct load l = {NULL, 0, 0};
    pthread_t threads[THREADS];
    int i;

    l.handle = open_on(&udp, 0, 0);
    for (i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, pass_on, &l);
    for (i = 0; i < DATAGRAMS; i++) {
        say(&udp, "through");
        HEARS(&udp, "through");
    }
    SUCCEEDS(WinDivertClose(l.handle));
    for (i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    EQUAL(l.passed, DATAGRAMS);
    EQUAL(l.wrong, 0);
}

/* Handles close while threads go on calling them, and threads come and go. */
static void check_closing_under_load(void)
{
    enum { ROUNDS = 15, THREADS = 4 };
    int round, i;

    for (round = 0; round < ROUNDS; round++) {
        struct load l = {NULL, 0, 0};
        pthread_t threads[THREADS];

        l.handle = open_on(&udp, 0, 0);
        for (i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, pass_on, &l);
        for (i = 0; i < 50; i++)
            say(&udp, "load");
        SUCCEEDS(WinDivertClose(l.handle));
        for (i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        EQUAL(l.wrong, 0);
    }
    while (*heard(&udp, 50) != 0)
        ;
}

/* The errors of one thread are not those of another. */
static void *fail_differently(void *argument)
{
    int i;

    (void)argument;
    for (i = 0; i < 1000; i++)
        FAILS(WinDivertClose(NULL), ERROR_INVALID_HANDLE, EBADF);
    return NULL;
}

static void check_thread_errors(void)
{
    pthread_t thread;
    int i;

    pthread_create(&thread, NULL, fail_differently, NULL);
    for (i = 0; i < 1000; i++)
        FAILS(WinDivertHelperParseIPv4Address("x", NULL), ERROR_INVALID_PARAMETER, EINVAL);
    pthread_join(thread, NULL);
}

/* A layer works, or is refused with a clear error. */
static void check_layers(void)
{
    static const WINDIVERT_LAYER layers[] = {WINDIVERT_LAYER_NETWORK_FORWARD, WINDIVERT_LAYER_FLOW,
                                             WINDIVERT_LAYER_SOCKET, WINDIVERT_LAYER_REFLECT};
    int i;

    for (i = 0; i < 4; i++) {
        HANDLE h;

        SetLastError(0);
        h = WinDivertOpen("false", layers[i], 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
        if (h != INVALID_HANDLE_VALUE)
            SUCCEEDS(WinDivertClose(h));
        else if (GetLastError() == ERROR_NOT_SUPPORTED || GetLastError() == ERROR_ACCESS_DENIED)
            printf("layer %d: error %u\n", layers[i], GetLastError());
        else
            CHECK(h != INVALID_HANDLE_VALUE);
    }
}

static const struct {
    const char *name;
    void (*check)(void);
} checks[] = {
    {"truncation", check_truncation}, {"batches", check_batches},       {"queue time", check_queue_time},
    {"flags", check_flags},           {"params", check_params},         {"shutdown", check_shutdown},
    {"waiters", check_waiters},       {"overlapped", check_overlapped}, {"priorities", check_priorities},
    {"threads", check_threads},       {"closing", check_closing_under_load}, {"errors", check_thread_errors},
    {"layers", check_layers},
};

int main(void)
{
    struct pair udp6 = open_pair(AF_INET6);
    size_t i;

    setvbuf(stdout, NULL, _IOLBF, 0);
    udp = open_pair(AF_INET);
    check_divert(&udp);
    check_divert(&udp6);
    check_longest(&udp);
    check_longest(&udp6);
    for (i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        int before = check_failures;
        checks[i].check();
        if (check_failures != before)
            printf("(%s)\n", checks[i].name);
    }
    close_pair(&udp);
    close_pair(&udp6);
    return failures();
}
