/* traffic.h: UDP sockets on loopback, and packets like theirs. */
#ifndef TRAFFIC_H
#define TRAFFIC_H

#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

/* A receiving socket and a socket connected to it. */
struct pair {
    int in, out, family;
    UINT16 port;
};

static inline struct pair open_pair(int family)
{
    struct sockaddr_storage storage;
    struct sockaddr_in *v4 = (struct sockaddr_in *)&storage;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&storage;
    socklen_t n = sizeof(storage);
    struct pair p;

    memset(&storage, 0, sizeof(storage));
    storage.ss_family = (sa_family_t)family;
    if (family == AF_INET)
        v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        v6->sin6_addr = in6addr_loopback;
    p.family = family;
    p.in = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    p.out = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (bind(p.in, (struct sockaddr *)&storage, family == AF_INET ? sizeof(*v4) : sizeof(*v6)) != 0 ||
        getsockname(p.in, (struct sockaddr *)&storage, &n) != 0 ||
        connect(p.out, (struct sockaddr *)&storage, n) != 0) {
        perror("sockets");
        exit(2);
    }
    p.port = ntohs(family == AF_INET ? v4->sin_port : v6->sin6_port);
    return p;
}

static inline void close_pair(struct pair *p)
{
    close(p->in);
    close(p->out);
}

static inline void say(struct pair *p, const char *text)
{
    CHECK(send(p->out, text, strlen(text), 0) == (ssize_t)strlen(text));
}

/* heard returns the next datagram, "" if none comes within the time. */
static inline const char *heard(struct pair *p, int milliseconds)
{
    static char text[2048];
    struct pollfd f = {p->in, POLLIN, 0};
    ssize_t n = poll(&f, 1, milliseconds) == 1 ? recv(p->in, text, sizeof(text) - 1, 0) : 0;

    text[n < 0 ? 0 : n] = 0;
    return text;
}

#define HEARS(p, want)                                                                    \
    do {                                                                                  \
        const char *got_ = heard(p, *(want) == 0 ? 50 : 3000);                            \
        if (strcmp(got_, want) != 0) {                                                    \
            __atomic_add_fetch(&check_failures, 1, __ATOMIC_RELAXED);                     \
            printf("%s:%d: heard \"%s\", want \"%s\"\n", __FILE__, __LINE__, got_, want); \
        }                                                                                 \
    } while (0)

static inline void pause_ms(long milliseconds)
{
    struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    nanosleep(&t, NULL);
}

/* open_on opens a handle for the datagrams of a pair. */
static inline HANDLE open_on(struct pair *p, INT16 priority, UINT64 flags)
{
    char filter[100];
    HANDLE h;

    sprintf(filter, "outbound and loopback and udp.DstPort == %u", p->port);
    h = WinDivertOpen(filter, WINDIVERT_LAYER_NETWORK, priority, flags);
    if (h == INVALID_HANDLE_VALUE) {
        printf("open %s: error %u\n", filter, GetLastError());
        exit(2);
    }
    return h;
}

/* header_length is the length of the IP and UDP headers of a pair's packets. */
static inline UINT header_length(const struct pair *p)
{
    return p->family == AF_INET ? 28 : 48;
}

#endif
