/*
 * descriptor.c checks WinDivertGetFd and WinDivertRecvTimeout, on the loopback device of the network namespace it runs
 * in, which must be made for it. With an argument it also checks the layer SOCKET.
 */
#include "traffic.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>

enum { LONG = 20000 }; /* milliseconds to wait for an event that must come */

static UINT8 packet[WINDIVERT_MTU_MAX];

/* readable returns the result of poll for a descriptor within the time. */
static int readable(int fd, int milliseconds)
{
    struct pollfd p = {fd, POLLIN, 0};
    int n = poll(&p, 1, milliseconds);

    return n == 1 ? p.revents : n;
}

static BOOL receive_within(HANDLE h, UINT *length, WINDIVERT_ADDRESS *addr, DWORD milliseconds)
{
    return WinDivertRecvTimeout(h, packet, sizeof(packet), length, addr, NULL, milliseconds);
}

static int get_fd(HANDLE h)
{
    int fd = WinDivertGetFd(h);

    CHECK(fd > 2);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    return fd;
}

/* A packet makes the descriptor readable, and its receipt unreadable. */
static void check_packets(void)
{
    struct pair p = open_pair(AF_INET);
    HANDLE h = open_on(&p, 0, 0);
    int fd = get_fd(h), other = get_fd(h);
    WINDIVERT_ADDRESS addr;
    UINT length;
    int i;

    CHECK(fd != other);
    for (i = 0; i < 3; i++) {
        EQUAL(readable(fd, 0), 0);
        FAILS(receive_within(h, &length, &addr, 0), WAIT_TIMEOUT, ETIMEDOUT);
        FAILS(receive_within(h, &length, &addr, 20), WAIT_TIMEOUT, ETIMEDOUT);
        EQUAL(readable(fd, 0), 0);
        say(&p, "hello");
        EQUAL(readable(fd, LONG), POLLIN);
        EQUAL(readable(other, 0), POLLIN);
        SUCCEEDS(receive_within(h, &length, &addr, 0));
        EQUAL(length, 33);
        SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr));
        HEARS(&p, "hello");
    }
    close(other);
    say(&p, "plain");
    SUCCEEDS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr)); /* waits as ever */
    EQUAL(length, 33);
    EQUAL(readable(fd, 0), 0);
    SUCCEEDS(WinDivertClose(h));
    EQUAL(readable(fd, 0), POLLIN);
    FAILS(receive_within(h, &length, &addr, 0), ERROR_INVALID_HANDLE, EBADF);
    EQUAL(WinDivertGetFd(h), -1);
    EQUAL(GetLastError(), ERROR_INVALID_HANDLE);
    close(fd);
    close_pair(&p);
}

/* A limit without a descriptor. */
static void check_limit(void)
{
    struct pair p = open_pair(AF_INET);
    HANDLE h = open_on(&p, 0, 0);
    WINDIVERT_ADDRESS addrs[2];
    UINT length, size = sizeof(addrs);

    FAILS(receive_within(h, &length, addrs, 0), WAIT_TIMEOUT, ETIMEDOUT);
    FAILS(receive_within(h, &length, addrs, 20), WAIT_TIMEOUT, ETIMEDOUT);
    say(&p, "one");
    say(&p, "two");
    SUCCEEDS(receive_within(h, &length, addrs, LONG));
    EQUAL(length, 31);
    SUCCEEDS(receive_within(h, &length, addrs, INFINITE));
    say(&p, "three");
    SUCCEEDS(WinDivertRecvTimeout(h, packet, sizeof(packet), &length, addrs, &size, LONG));
    EQUAL(length, 33);
    EQUAL(size, sizeof(addrs[0]));
    size = 1;
    FAILS(WinDivertRecvTimeout(h, packet, sizeof(packet), &length, addrs, &size, 0), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    FAILS(receive_within(h, &length, addrs, LONG), ERROR_NO_DATA, EPIPE);
    FAILS(receive_within(h, &length, addrs, 0), ERROR_NO_DATA, EPIPE);
    SUCCEEDS(WinDivertClose(h));
    close_pair(&p);
}

/* Every packet of a burst comes, in order, and every wake-up finds one. */
static void check_burst(UINT64 flags, UINT batch)
{
    enum { PACKETS = 300 };
    struct pair p = open_pair(AF_INET);
    HANDLE h = open_on(&p, 0, flags);
    int fd = get_fd(h), loop = epoll_create1(EPOLL_CLOEXEC), got = 0, sent = 0, idle = 0, i;
    struct epoll_event event = {EPOLLIN, {NULL}};
    static UINT8 packets[64 * 100];
    WINDIVERT_ADDRESS addrs[64];
    char text[20];

    CHECK(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event) == 0);
    while (got < PACKETS) {
        int before = got;

        for (i = 0; i < 7 && sent < PACKETS; i++) {
            sprintf(text, "%07d", sent++);
            say(&p, text);
        }
        if (epoll_wait(loop, &event, 1, LONG) != 1) {
            printf("%d of %d packets came, %d were sent\n", got, PACKETS, sent);
            check_failures++;
            break;
        }
        for (;;) {
            UINT length = 0, size = batch * (UINT)sizeof(addrs[0]), at;

            if (!WinDivertRecvTimeout(h, packets, sizeof(packets), &length, addrs, &size, 0)) {
                EQUAL(GetLastError(), WAIT_TIMEOUT);
                break;
            }
            for (at = 0; at < length; at += 35) {
                CHECK(atoi((char *)packets + at + 28) == got);
                got++;
            }
            if (!(flags & WINDIVERT_FLAG_SNIFF))
                SUCCEEDS(WinDivertSendEx(h, packets, length, NULL, 0, addrs, size, NULL));
        }
        idle += got == before;
    }
    EQUAL(got, PACKETS);
    EQUAL(idle, 0);
    EQUAL(epoll_wait(loop, &event, 1, 0), 0);
    SUCCEEDS(WinDivertClose(h));
    EQUAL(epoll_wait(loop, &event, 1, 0), 1);
    close(loop);
    close(fd);
    close_pair(&p);
}

/* Packets received ahead go on when the handle closes, even one that cannot send. */
static void check_given_back(UINT64 flags)
{
    struct pair p = open_pair(AF_INET);
    HANDLE h = open_on(&p, 0, flags);
    int fd = get_fd(h);

    say(&p, "1");
    say(&p, "2");
    say(&p, "3");
    EQUAL(readable(fd, LONG), POLLIN);
    HEARS(&p, "");
    SUCCEEDS(WinDivertClose(h));
    HEARS(&p, "1");
    HEARS(&p, "2");
    HEARS(&p, "3");
    HEARS(&p, "");
    close(fd);
    close_pair(&p);
}

/* Waiting packets are received after a shutdown; then the end is reported for good. */
static void check_shutdown(void)
{
    struct pair p = open_pair(AF_INET);
    HANDLE h = open_on(&p, 0, 0);
    int fd = get_fd(h), i;
    WINDIVERT_ADDRESS addr;
    UINT length;

    say(&p, "last");
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(receive_within(h, &length, &addr, 0));
    EQUAL(length, 32);
    SUCCEEDS(WinDivertSend(h, packet, length, NULL, &addr));
    HEARS(&p, "last");
    for (i = 0; i < 3; i++) {
        EQUAL(readable(fd, 0), POLLIN);
        FAILS(receive_within(h, &length, &addr, i == 0 ? LONG : 0), ERROR_NO_DATA, EPIPE);
    }
    FAILS(WinDivertRecv(h, packet, sizeof(packet), &length, &addr), ERROR_NO_DATA, EPIPE);
    SUCCEEDS(WinDivertClose(h));
    close(fd);
    close_pair(&p);
}

/* Whatever ends the handle ends a waiting poll. */
static HANDLE ends;

static void *end_by_shutdown(void *unused)
{
    (void)unused;
    SUCCEEDS(WinDivertShutdown(ends, WINDIVERT_SHUTDOWN_BOTH));
    return NULL;
}

static void *end_by_close(void *unused)
{
    (void)unused;
    SUCCEEDS(WinDivertClose(ends));
    return NULL;
}

static void check_ends(UINT64 flags, void *(*end)(void *))
{
    struct pair p = open_pair(AF_INET);
    pthread_t thread;
    int fd;

    ends = open_on(&p, 0, flags);
    fd = get_fd(ends);
    EQUAL(readable(fd, 0), 0);
    pthread_create(&thread, NULL, end, NULL);
    EQUAL(readable(fd, LONG), POLLIN);
    pthread_join(thread, NULL);
    if (end == end_by_shutdown) {
        FAILS(receive_within(ends, NULL, NULL, 0), ERROR_NO_DATA, EPIPE);
        SUCCEEDS(WinDivertClose(ends));
    }
    EQUAL(readable(fd, 0), POLLIN);
    close(fd);
    close_pair(&p);
}

/* A thread already waiting in a receive call gets its packet, and so does an overlapped request. */
struct receiver {
    HANDLE handle;
    volatile int begun;
    UINT length;
};

static void *receiver(void *argument)
{
    struct receiver *r = (struct receiver *)argument;
    WINDIVERT_ADDRESS addr;

    r->begun = 1;
    SUCCEEDS(WinDivertRecv(r->handle, packet, sizeof(packet), &r->length, &addr));
    return NULL;
}

static void check_others(void)
{
    struct pair p = open_pair(AF_INET);
    struct receiver r = {open_on(&p, 0, 0), 0, 0};
    WINDIVERT_ADDRESS addr;
    OVERLAPPED request;
    UINT8 other[100];
    pthread_t thread;
    DWORD length;
    int fd;

    pthread_create(&thread, NULL, receiver, &r);
    while (!r.begun)
        pause_ms(1);
    pause_ms(20); /* it should wait by now; if not, the checks still hold */
    fd = get_fd(r.handle);
    say(&p, "for the thread");
    pthread_join(thread, NULL);
    EQUAL(r.length, 42);
    EQUAL(readable(fd, 0), 0);

    memset(&request, 0, sizeof(request));
    FAILS(WinDivertRecvEx(r.handle, other, sizeof(other), NULL, 0, &addr, NULL, &request), ERROR_IO_PENDING, EINPROGRESS);
    FAILS(WinDivertRecvTimeout(r.handle, packet, sizeof(packet), NULL, NULL, NULL, 0), WAIT_TIMEOUT, ETIMEDOUT);
    FAILS(WinDivertRecvTimeout(r.handle, packet, sizeof(packet), NULL, NULL, NULL, 20), WAIT_TIMEOUT, ETIMEDOUT);
    say(&p, "for the request");
    SUCCEEDS(GetOverlappedResult(r.handle, &request, &length, TRUE));
    EQUAL(length, 43);
    FAILS(WinDivertRecvEx(r.handle, other, sizeof(other), NULL, 0, &addr, NULL, &request), ERROR_IO_PENDING, EINPROGRESS);
    SUCCEEDS(CancelIoEx(r.handle, &request));
    FAILS(GetOverlappedResult(r.handle, &request, &length, TRUE), ERROR_OPERATION_ABORTED, ECANCELED);
    say(&p, "for the next");
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(WinDivertRecvEx(r.handle, other, sizeof(other), NULL, 0, &addr, NULL, &request)); /* at once */
    SUCCEEDS(WinDivertClose(r.handle));
    close(fd);
    close_pair(&p);
}

/* A program that reads the descriptor, against the rules, still gets its packets. */
static void check_misuse(void)
{
    struct pair p = open_pair(AF_INET);
    HANDLE h = open_on(&p, 0, 0), sender = open_on(&p, 1, WINDIVERT_FLAG_SEND_ONLY);
    int fd = get_fd(h);
    UINT length;
    char count[8];

    EQUAL(WinDivertGetFd(sender), -1);
    EQUAL(GetLastError(), ERROR_INVALID_PARAMETER);
    SUCCEEDS(WinDivertClose(sender));
    EQUAL(WinDivertGetFd(INVALID_HANDLE_VALUE), -1);
    EQUAL(GetLastError(), ERROR_INVALID_HANDLE);
    say(&p, "x");
    EQUAL(readable(fd, LONG), POLLIN);
    EQUAL(read(fd, count, sizeof(count)), 8);
    SUCCEEDS(receive_within(h, &length, NULL, 0));
    EQUAL(length, 29);
    say(&p, "yz");
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(receive_within(h, &length, NULL, 0));
    EQUAL(length, 30);
    SUCCEEDS(WinDivertClose(h));
    close(fd);
    close_pair(&p);
}

/* The layers with events. */
static void check_reflect(void)
{
    HANDLE h = WinDivertOpen("event == CLOSE", WINDIVERT_LAYER_REFLECT, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
    struct pair p = open_pair(AF_INET);
    WINDIVERT_ADDRESS addr;
    UINT length;
    int fd = get_fd(h);

    EQUAL(readable(fd, 0), 0);
    SUCCEEDS(WinDivertClose(open_on(&p, 0, 0)));
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(receive_within(h, &length, &addr, 0));
    EQUAL(addr.Event, WINDIVERT_EVENT_REFLECT_CLOSE);
    EQUAL(readable(fd, 0), 0);
    SUCCEEDS(WinDivertClose(h));
    EQUAL(readable(fd, 0), POLLIN);
    close(fd);
    close_pair(&p);
}

static void check_sockets(void)
{
    HANDLE h = WinDivertOpen("event == BIND", WINDIVERT_LAYER_SOCKET, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
    WINDIVERT_ADDRESS addr;
    struct pair p;
    UINT length;
    int fd = get_fd(h);

    EQUAL(readable(fd, 0), 0);
    p = open_pair(AF_INET);
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(WinDivertRecvTimeout(h, NULL, 0, &length, &addr, NULL, 0));
    EQUAL(addr.Event, WINDIVERT_EVENT_SOCKET_BIND);
    EQUAL(addr.Socket.LocalPort, p.port);
    SUCCEEDS(WinDivertShutdown(h, WINDIVERT_SHUTDOWN_RECV));
    EQUAL(readable(fd, LONG), POLLIN);
    SUCCEEDS(WinDivertClose(h));
    close(fd);
    close_pair(&p);
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1) {
        check_sockets();
        return failures();
    }
    check_packets();
    check_limit();
    check_burst(0, 1);
    check_burst(0, 64);
    check_burst(WINDIVERT_FLAG_SNIFF, 64);
    check_given_back(0);
    check_given_back(WINDIVERT_FLAG_RECV_ONLY);
    check_shutdown();
    check_ends(0, end_by_shutdown);
    check_ends(0, end_by_close);
    check_ends(WINDIVERT_FLAG_DROP, end_by_shutdown);
    check_ends(WINDIVERT_FLAG_SNIFF, end_by_close);
    check_others();
    check_misuse();
    check_reflect();
    return failures();
}
