/*
 * segments.c sends packets on through a short buffer, as programs written for the wire do: ADDRESS PORT BYTES BUFFER.
 * It dials, opens a handle, fills the socket, so that packets wait from before the first receive call, and uploads
 * BYTES bytes. It prints the number of packets that were too long. With the argument descriptor it waits for a
 * descriptor; with sniff it receives copies, and prints the number of their payload bytes, and of the copies that
 * differ from the wire.
 */
#include <windivert.h>

#include <stdio.h>
#include <string.h>

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static HANDLE handle;
static UINT room;
static int fd = -1;
static int sniffs;
static unsigned long long_packets, packets, lost, payload, wrong;

/*
 * Counts the payload of an outbound copy; it is wrong if its length or checksums are not those of a packet on the
 * wire.
 */
static void look(void *packet, UINT length, WINDIVERT_ADDRESS *addr)
{
    PWINDIVERT_IPHDR ip;
    PVOID data;
    UINT size = 0;
    UINT8 copy[1600];

    if (!addr->Outbound)
        return;
    if (length > sizeof(copy) || !WinDivertHelperParsePacket(packet, length, &ip, NULL, NULL, NULL, NULL, NULL, NULL, &data, &size, NULL, NULL)) {
        wrong++;
        return;
    }
    payload += size;
    memcpy(copy, packet, length);
    WinDivertHelperCalcChecksums(copy, length, NULL, addr->TCPChecksum ? 0 : WINDIVERT_HELPER_NO_TCP_CHECKSUM);
    wrong += ntohs(ip->Length) != length || memcmp(copy, packet, length) != 0;
}

static void *divert(void *unused)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    struct pollfd wait = {fd, POLLIN, 0};
    WINDIVERT_ADDRESS addr;
    UINT length;

    (void)unused;
    for (;;) {
        if (fd >= 0)
            (void)poll(&wait, 1, -1);
        if (WinDivertRecv(handle, packet, room, &length, &addr)) {
            packets++;
            if (sniffs)
                look(packet, length, &addr);
            else if (!WinDivertSend(handle, packet, length, NULL, &addr))
                lost++;
        } else if (GetLastError() == ERROR_INSUFFICIENT_BUFFER) {
            long_packets++;
        } else {
            return NULL;
        }
    }
}

int main(int argc, char **argv)
{
    static char block[65536];
    struct sockaddr_in to;
    pthread_t thread;
    ssize_t n;
    long left;
    int s = socket(AF_INET, SOCK_STREAM, 0);

    if (argc < 5 || s < 0)
        return 2;
    memset(&to, 0, sizeof(to));
    to.sin_family = AF_INET;
    to.sin_port = htons((unsigned short)atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    left = atol(argv[3]);
    room = (UINT)atoi(argv[4]);
    if (connect(s, (struct sockaddr *)&to, sizeof(to)) != 0)
        return 3;
    sniffs = argc > 5 && strcmp(argv[5], "sniff") == 0;
    handle = WinDivertOpen("tcp", WINDIVERT_LAYER_NETWORK, 0, sniffs ? WINDIVERT_FLAG_SNIFF : 0);
    if (handle == INVALID_HANDLE_VALUE) {
        fprintf(stderr, "WinDivertOpen: error %u\n", (unsigned)GetLastError());
        return 1;
    }
    if (sniffs) {
        UINT64 most = WINDIVERT_PARAM_QUEUE_LENGTH_MAX;

        WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, most);
        WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_SIZE, WINDIVERT_PARAM_QUEUE_SIZE_MAX);
    } else if (argc > 5)
        fd = WinDivertGetFd(handle);
    n = send(s, block, sizeof(block), MSG_DONTWAIT);
    left -= n;
    if (fd >= 0) { /* by then packets received ahead are too long */
        struct pollfd wait = {fd, POLLIN, 0};

        (void)poll(&wait, 1, -1);
    }
    pthread_create(&thread, NULL, divert, NULL);
    while (left > 0) {
        n = write(s, block, left < (long)sizeof(block) ? (size_t)left : sizeof(block));
        if (n <= 0)
            return 4;
        left -= n;
    }
    shutdown(s, SHUT_WR);
    while (read(s, block, sizeof(block)) > 0)
        ; /* until the other end has all of it */
    WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_RECV);
    pthread_join(thread, NULL);
    if (!WinDivertClose(handle))
        return 5;
    if (sniffs)
        printf("%lu bytes, %lu wrong, ", payload, wrong);
    printf("%lu too long, %lu not sent, %s\n", long_packets, lost, packets > 100 ? "many" : "few");
    return 0;
}
