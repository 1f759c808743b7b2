/* hang.c opens a handle, for packets or for copies (argument "sniff"), and prints the error, 0 if there is none. */
#include <windivert.h>

#include <stdio.h>

int main(int argc, char **argv)
{
    HANDLE handle;

    (void)argv;
    handle = WinDivertOpen("udp", WINDIVERT_LAYER_NETWORK, 0, argc > 1 ? WINDIVERT_FLAG_SNIFF : 0);
    printf("%u\n", handle == INVALID_HANDLE_VALUE ? (unsigned)GetLastError() : 0U);
    return handle != INVALID_HANDLE_VALUE && !WinDivertClose(handle);
}
