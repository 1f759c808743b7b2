/* own.c defines some Windows calls itself: the library must use them instead of its own. */
#include "check.h"

static DWORD own_error;
static int resets;

void SetLastError(DWORD error)
{
    own_error = error;
}

DWORD GetLastError(void)
{
    return own_error;
}

BOOL ResetEvent(HANDLE event)
{
    resets += event == (HANDLE)(uintptr_t)0x12345678;
    return TRUE;
}

int main(void)
{
    OVERLAPPED overlapped;
    UINT8 packet[100];

    FAILS(WinDivertHelperParseIPv4Address("x", NULL), ERROR_INVALID_PARAMETER, EINVAL);
    EQUAL(own_error, ERROR_INVALID_PARAMETER);
    memset(&overlapped, 0, sizeof(overlapped));
    overlapped.hEvent = (HANDLE)(uintptr_t)0x12345678;
    FAILS(WinDivertRecvEx(NULL, packet, sizeof(packet), NULL, 0, NULL, NULL, &overlapped), ERROR_INVALID_HANDLE, EBADF);
    EQUAL(resets, 1);
    return failures();
}
