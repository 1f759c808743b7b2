/* gone.c has a handle whose rules are removed. It prints "ready" and waits for the error. */
#include "traffic.h"

int main(void)
{
    struct pair udp = open_pair(AF_INET);
    HANDLE h = open_on(&udp, 0, 0);
    OVERLAPPED request;
    UINT8 packet[100];
    DWORD transferred;

    setvbuf(stdout, NULL, _IOLBF, 0);
    memset(&request, 0, sizeof(request));
    FAILS(WinDivertRecvEx(h, packet, sizeof(packet), NULL, 0, NULL, NULL, &request), ERROR_IO_PENDING, EINPROGRESS);
    printf("ready\n");
    FAILS(GetOverlappedResult(h, &request, &transferred, TRUE), ERROR_DEVICE_NOT_CONNECTED, ENODEV);
    FAILS(WinDivertRecv(h, packet, sizeof(packet), NULL, NULL), ERROR_DEVICE_NOT_CONNECTED, ENODEV);
    say(&udp, "undisturbed");
    HEARS(&udp, "undisturbed");
    SUCCEEDS(WinDivertClose(h));
    close_pair(&udp);
    return failures();
}
