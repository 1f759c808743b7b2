/*
 * A contender that is as fast as a queue loop in C can be made without the library: batches of 64 messages in one receive call,
 * packets as the stack has them (GSO), one verdict for a batch. It takes the number of the queue as its argument, and tells its
 * usage as contender.c does.
 *
 * With an interface, an address of a neighbour there and a second address as further arguments it leads outgoing packets of TCP over IPv4
 * to the first: it drops them, and sends their bytes by a packet socket, which takes them whole (PACKET_VNET_HDR) and past the IP
 * stack. Incoming packets, which are answers, go on with the second address as their source.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, SLOT = 66 << 10, RECEIVE_BUFFER = 12 << 20, QUEUE_LENGTH = 2 * 4096, MTU = 1500 };

static int fd;
static uint16_t queue;
static atomic_ullong handled;
static atomic_int failed, stop; /* failed: errno of the loop */

/* Where packets are led; out is -1 if they go on. */
static int out = -1;
static struct in_addr real, aim;
static struct ethhdr link_header = {.h_proto = 0};
static struct sockaddr_ll way = {.sll_family = AF_PACKET};

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

/* id_of returns the number of a packet in its queue, 0 if the message has none, the hook, and where the packet is. */
static uint32_t id_of(char *slot, unsigned length, int *hook, unsigned char **payload, unsigned *size)
{
    const struct nlmsghdr *h = (const struct nlmsghdr *)slot;
    uint32_t id = 0;
    unsigned at = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct nfgenmsg));

    if (length < at || h->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
        return 0;
    while (at + NLA_HDRLEN <= length) {
        const struct nlattr *a = (const struct nlattr *)(slot + at);

        if ((a->nla_type & NLA_TYPE_MASK) == NFQA_PACKET_HDR) {
            const struct nfqnl_msg_packet_hdr *p = (const struct nfqnl_msg_packet_hdr *)((const char *)a + NLA_HDRLEN);

            id = ntohl(p->packet_id);
            *hook = p->hook;
        }
        if ((a->nla_type & NLA_TYPE_MASK) == NFQA_PAYLOAD) {
            *payload = (unsigned char *)slot + at + NLA_HDRLEN;
            *size = a->nla_len - NLA_HDRLEN;
        }
        at += NLA_ALIGN(a->nla_len);
    }
    return id;
}

/* open_way opens the packet socket. It returns 0, or an errno. */
static int open_way(const char *device, const char *to, const char *instead_of)
{
    struct arpreq neighbour = {0};
    struct ifreq own = {0};
    int one = 1, size = RECEIVE_BUFFER, asked;

    if (inet_pton(AF_INET, to, &real) != 1 || inet_pton(AF_INET, instead_of, &aim) != 1 || strlen(device) >= IFNAMSIZ)
        return EINVAL;
    out = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (out < 0 || setsockopt(out, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) != 0)
        return errno;
    if (setsockopt(out, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) != 0)
        (void)setsockopt(out, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    strcpy(own.ifr_name, device);
    strcpy(neighbour.arp_dev, device);
    ((struct sockaddr_in *)&neighbour.arp_pa)->sin_family = AF_INET;
    ((struct sockaddr_in *)&neighbour.arp_pa)->sin_addr = real;
    asked = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (asked < 0 || ioctl(asked, SIOCGIFHWADDR, &own) != 0 || ioctl(asked, SIOCGARP, &neighbour) != 0)
        return errno;
    close(asked);
    memcpy(link_header.h_source, own.ifr_hwaddr.sa_data, ETH_ALEN);
    memcpy(link_header.h_dest, neighbour.arp_ha.sa_data, ETH_ALEN);
    link_header.h_proto = htons(ETH_P_IP);
    way.sll_ifindex = (int)if_nametoindex(device);
    way.sll_protocol = htons(ETH_P_IP);
    way.sll_halen = ETH_ALEN;
    memcpy(way.sll_addr, link_header.h_dest, ETH_ALEN);
    return 0;
}

/* sum adds up words in network order, and returns them folded. */
static uint16_t sum(const void *data, unsigned length, uint32_t n)
{
    const uint16_t *words = data;

    for (; length > 1; length -= 2)
        n += *words++;
    if (length)
        n += *(const unsigned char *)words; /* on a machine that has the low byte first */
    while (n >> 16)
        n = (n & 0xffff) + (n >> 16);
    return (uint16_t)n;
}

/* header_of returns the length of the IP header of a packet of TCP over IPv4, 0 if it is none. */
static unsigned header_of(const unsigned char *packet, unsigned size)
{
    const struct iphdr *ip = (const struct iphdr *)packet;
    unsigned header = size >= sizeof(*ip) ? ip->ihl * 4u : 0;

    if (header < sizeof(*ip) || size < header + sizeof(struct tcphdr) || ip->version != 4 || ip->protocol != IPPROTO_TCP)
        return 0;
    return header;
}

/* renew writes the checksum of the IP header, and into TCP's field the sum of the pseudo-header. */
static void renew(struct iphdr *ip, struct tcphdr *tcp, unsigned header, unsigned size)
{
    ip->check = 0;
    ip->check = (uint16_t)~sum(ip, header, 0);
    tcp->check = sum(&ip->saddr, 8, htons(IPPROTO_TCP) + htons((uint16_t)(size - header)));
}

/* answer lets an answer go on with the second address. It returns 0, or an errno. */
static int answer(unsigned char *packet, unsigned size, uint32_t id)
{
    struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(NF_ACCEPT), .id = htonl(id)};
    struct iphdr *ip = (struct iphdr *)packet;
    unsigned header = header_of(packet, size);
    struct tcphdr *tcp = (struct tcphdr *)(packet + header);
    static const char padding[NLA_ALIGNTO];
    struct nlattr payload = {.nla_type = NFQA_PAYLOAD, .nla_len = (uint16_t)(NLA_HDRLEN + size)};
    struct message m;
    struct iovec parts[] = {{&m, 0}, {&payload, NLA_HDRLEN}, {packet, size}, {(void *)padding, NLA_ALIGN(size) - size}};
    struct msghdr all = {.msg_iov = parts, .msg_iovlen = 4};

    if (header == 0)
        return EPROTO;
    ip->saddr = aim.s_addr;
    renew(ip, tcp, header, size);
    tcp->check = (uint16_t)~sum(tcp, size - header, 0);
    begin(&m, NFQNL_MSG_VERDICT, 0);
    attribute(&m, NFQA_VERDICT_HDR, &verdict, sizeof(verdict));
    parts[0].iov_len = m.header.nlmsg_len;
    m.header.nlmsg_len += NLA_HDRLEN + NLA_ALIGN(size);
    return sendmsg(fd, &all, 0) < 0 ? errno : 0;
}

/* lead sends a packet to the address. The device, or the kernel, completes its checksum and cuts it. It returns 0, or an errno. */
static int lead(unsigned char *packet, unsigned size)
{
    struct iphdr *ip = (struct iphdr *)packet;
    unsigned header = header_of(packet, size);
    struct tcphdr *tcp = (struct tcphdr *)(packet + header);
    struct virtio_net_hdr whole = {0};
    struct iovec parts[] = {{&whole, sizeof(whole)}, {&link_header, sizeof(link_header)}, {packet, size}};
    struct msghdr m = {.msg_name = &way, .msg_namelen = sizeof(way), .msg_iov = parts, .msg_iovlen = 3};

    if (header == 0)
        return EPROTO;
    ip->daddr = real.s_addr;
    renew(ip, tcp, header, size);
    whole.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    whole.csum_start = (uint16_t)(sizeof(link_header) + header);
    whole.csum_offset = 16;
    if (size > MTU) {
        whole.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        whole.hdr_len = (uint16_t)(sizeof(link_header) + header + tcp->doff * 4u);
        whole.gso_size = (uint16_t)(MTU - header - tcp->doff * 4u);
    }
    while (sendmsg(out, &m, 0) < 0)
        if (errno != EINTR && errno != ENOBUFS)
            return errno;
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
        struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(out < 0 ? NF_ACCEPT : NF_DROP)};
        uint32_t last = 0, id;
        struct message m;
        unsigned char *packet = NULL;
        unsigned size = 0;
        int error, hook = 0;

        n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            failed = errno;
            break;
        }
        for (i = 0; i < n; i++)
            if ((id = id_of(slots[i].iov_base, messages[i].msg_len, &hook, &packet, &size)) != 0) {
                last = id;
                handled++; /* before it can arrive anywhere */
                if (out < 0)
                    continue;
                error = hook == NF_INET_POST_ROUTING ? lead(packet, size) : answer(packet, size, id);
                if (error)
                    failed = error;
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

    if (argc != 2 && argc != 5)
        return 2;
    queue = (uint16_t)atoi(argv[1]);
    if ((error = bind_queue()) != 0 || (argc == 5 && (error = open_way(argv[2], argv[3], argv[4])) != 0)) {
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
