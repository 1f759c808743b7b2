/*
 * segments.c sends packets on through a buffer of 1,600 bytes, as programs do that were written for the wire, until it
 * has seen so many bytes of TCP: ADDRESS PORT BYTES. It dials, uploads, and prints how many packets were too long.
 */
#include <windivert.h>

#include <stdio.h>
#include <string.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static HANDLE handle;
static unsigned long long_packets, packets;

static void *divert(void *unused)
{
    static UINT8 packet[1600];
    WINDIVERT_ADDRESS addr;
    UINT length;

    (void)unused;
    for (;;) {
        if (WinDivertRecv(handle, packet, sizeof(packet), &length, &addr)) {
            packets++;
            WinDivertSend(handle, packet, length, NULL, &addr);
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
    long left;
    int s = socket(AF_INET, SOCK_STREAM, 0);

    if (argc != 4 || s < 0)
        return 2;
    memset(&to, 0, sizeof(to));
    to.sin_family = AF_INET;
    to.sin_port = htons((unsigned short)atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    handle = WinDivertOpen("outbound and tcp", WINDIVERT_LAYER_NETWORK, 0, 0);
    if (handle == INVALID_HANDLE_VALUE) {
        fprintf(stderr, "WinDivertOpen: error %u\n", (unsigned)GetLastError());
        return 1;
    }
    pthread_create(&thread, NULL, divert, NULL);
    if (connect(s, (struct sockaddr *)&to, sizeof(to)) != 0)
        return 3;
    for (left = atol(argv[3]); left > 0;) {
        ssize_t n = write(s, block, left < (long)sizeof(block) ? (size_t)left : sizeof(block));
        if (n <= 0)
            return 4;
        left -= n;
    }
    shutdown(s, SHUT_WR);
    while (read(s, block, sizeof(block)) > 0)
        ; /* until the other end has all of it */
    WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_RECV);
    pthread_join(thread, NULL);
    printf("%lu too long, %s\n", long_packets, packets > 100 ? "many" : "few");
    return 0;
}
