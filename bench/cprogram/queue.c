/*
 * A contender that is as fast as a queue loop in C can be made without the library: batches of 64 messages in one receive call,
 * packets as the stack has them (GSO), one verdict for a batch. It takes the number of the queue as its argument, and tells its
 * usage as contender.c does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, SLOT = 66 << 10, RECEIVE_BUFFER = 12 << 20, QUEUE_LENGTH = 2 * 4096 };

static int fd;
static uint16_t queue;
static atomic_ullong handled;
static atomic_int failed, stop; /* failed: errno of the loop */

/* A message with room for the attributes that are sent here. */
struct message {
    struct nlmsghdr header;
    struct nfgenmsg family;
    char attributes[128];
};

static void begin(struct message *m, int type, int flags)
{
    memset(m, 0, sizeof(*m));
    m->header.nlmsg_len = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(m->family));
    m->header.nlmsg_type = (uint16_t)(NFNL_SUBSYS_QUEUE << 8 | type);
    m->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    m->family.nfgen_family = AF_UNSPEC;
    m->family.res_id = htons(queue);
}

static void attribute(struct message *m, int type, const void *data, size_t length)
{
    struct nlattr *a = (struct nlattr *)((char *)m + m->header.nlmsg_len);

    a->nla_type = (uint16_t)type;
    a->nla_len = (uint16_t)(NLA_HDRLEN + length);
    memcpy((char *)a + NLA_HDRLEN, data, length);
    m->header.nlmsg_len += NLA_ALIGN(a->nla_len);
}

static void number(struct message *m, int type, uint32_t value)
{
    value = htonl(value);
    attribute(m, type, &value, sizeof(value));
}

/* bind_queue returns 0, or an errno. */
static int bind_queue(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    struct nfqnl_msg_config_cmd command = {.command = NFQNL_CFG_CMD_BIND};
    struct nfqnl_msg_config_params params = {.copy_range = htonl(0xffff), .copy_mode = NFQNL_COPY_PACKET};
    struct timeval timeout = {0, 50000}; /* so that the loop sees in time that it is to end */
    struct message m;
    char answer[4096];
    int size = RECEIVE_BUFFER, one = 1;

    fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return errno;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) != 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    if (setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof(one)) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) != 0)
        return errno;
    begin(&m, NFQNL_MSG_CONFIG, NLM_F_ACK);
    attribute(&m, NFQA_CFG_CMD, &command, sizeof(command));
    attribute(&m, NFQA_CFG_PARAMS, &params, sizeof(params));
    number(&m, NFQA_CFG_QUEUE_MAXLEN, QUEUE_LENGTH);
    number(&m, NFQA_CFG_FLAGS, NFQA_CFG_F_GSO);
    number(&m, NFQA_CFG_MASK, NFQA_CFG_F_GSO);
    if (send(fd, &m, m.header.nlmsg_len, 0) < 0 || recv(fd, answer, sizeof(answer), 0) < 0)
        return errno;
    return -((struct nlmsgerr *)NLMSG_DATA((struct nlmsghdr *)answer))->error;
}

/* id_of returns the number of a packet in its queue, 0 if the message has none. */
static uint32_t id_of(const char *slot, unsigned length)
{
    const struct nlmsghdr *h = (const struct nlmsghdr *)slot;
    unsigned at = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct nfgenmsg));

    if (length < at || h->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
        return 0;
    while (at + NLA_HDRLEN <= length) {
        const struct nlattr *a = (const struct nlattr *)(slot + at);

        if ((a->nla_type & NLA_TYPE_MASK) == NFQA_PACKET_HDR)
            return ntohl(((const struct nfqnl_msg_packet_hdr *)((const char *)a + NLA_HDRLEN))->packet_id);
        at += NLA_ALIGN(a->nla_len);
    }
    return 0;
}

static void *loop(void *unused)
{
    static struct mmsghdr messages[BATCH];
    static struct iovec slots[BATCH];
    char *memory = malloc((size_t)BATCH * SLOT);
    int i, n;

    (void)unused;
    for (i = 0; memory && i < BATCH; i++) {
        slots[i].iov_base = memory + (size_t)i * SLOT;
        slots[i].iov_len = SLOT;
        messages[i].msg_hdr.msg_iov = &slots[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    while (memory && !stop) {
        struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(NF_ACCEPT)};
        uint32_t last = 0, id;
        struct message m;

        n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            failed = errno;
            break;
        }
        for (i = 0; i < n; i++)
            if ((id = id_of(slots[i].iov_base, messages[i].msg_len)) != 0) {
                last = id;
                handled++; /* before it can arrive anywhere */
            }
        if (last == 0)
            continue;
        verdict.id = htonl(last);
        begin(&m, NFQNL_MSG_VERDICT_BATCH, 0);
        attribute(&m, NFQA_VERDICT_HDR, &verdict, sizeof(verdict));
        if (send(fd, &m, m.header.nlmsg_len, 0) < 0) {
            failed = errno;
            break;
        }
    }
    free(memory);
    return NULL;
}

static long long nanoseconds(const struct timeval *t)
{
    return t->tv_sec * 1000000000LL + t->tv_usec * 1000LL;
}

static void tell(int error)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    printf("{\"CPU\":%lld,\"Handled\":%llu", nanoseconds(&u.ru_utime) + nanoseconds(&u.ru_stime), (unsigned long long)handled);
    if (error)
        printf(",\"%s\":\"netfilter queue: %s\"", error == EPERM ? "Unavailable" : "Error", strerror(error));
    printf("}\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char line[64];
    pthread_t thread;
    int error;

    if (argc != 2)
        return 2;
    queue = (uint16_t)atoi(argv[1]);
    if ((error = bind_queue()) != 0) {
        tell(error);
        return 0;
    }
    if (pthread_create(&thread, NULL, loop, NULL))
        return 1;
    do
        tell(failed);
    while (fgets(line, sizeof line, stdin));
    stop = 1;
    pthread_join(thread, NULL);
    return 0;
}
