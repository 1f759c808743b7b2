/* A program of 32 bits, to be built, not run: the header's checks of layouts are made by compiling it. */
#include <windivert.h>
#include <stdio.h>

int main(void)
{
    HANDLE handle = WinDivertOpen("true", WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_SNIFF);
    UINT8 packet[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS addr;
    UINT length;

    if (handle == INVALID_HANDLE_VALUE)
        return 1;
    while (WinDivertRecv(handle, packet, sizeof packet, &length, &addr))
        printf("%u bytes\n", length);
    return WinDivertClose(handle) ? 0 : 1;
}
