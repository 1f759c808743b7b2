/* byteorder.c: the helpers that swap bytes. They need no Go and work in forked children too. */
#include "shim.h"

UINT16 WinDivertHelperNtohs(UINT16 x)
{
    return (UINT16)(x << 8 | x >> 8);
}

UINT32 WinDivertHelperNtohl(UINT32 x)
{
    return x << 24 | (x & 0xFF00u) << 8 | (x >> 8 & 0xFF00u) | x >> 24;
}

UINT64 WinDivertHelperNtohll(UINT64 x)
{
    return (UINT64)WinDivertHelperNtohl((UINT32)x) << 32 | WinDivertHelperNtohl((UINT32)(x >> 32));
}

/* Input and output may be the same array, so a word is read before its place is written. */
void WinDivertHelperNtohIPv6Address(const UINT *inAddr, UINT *outAddr)
{
    int i;

    for (i = 0; i < 2; i++) {
        UINT low = inAddr[i], high = inAddr[3 - i];
        outAddr[i] = WinDivertHelperNtohl(high);
        outAddr[3 - i] = WinDivertHelperNtohl(low);
    }
}

/* Swapping is its own inverse. */

UINT16 WinDivertHelperHtons(UINT16 x)
{
    return WinDivertHelperNtohs(x);
}

UINT32 WinDivertHelperHtonl(UINT32 x)
{
    return WinDivertHelperNtohl(x);
}

UINT64 WinDivertHelperHtonll(UINT64 x)
{
    return WinDivertHelperNtohll(x);
}

void WinDivertHelperHtonIPv6Address(const UINT *inAddr, UINT *outAddr)
{
    WinDivertHelperNtohIPv6Address(inAddr, outAddr);
}

void WinDivertHelperNtohIpv6Address(const UINT *inAddr, UINT *outAddr)
{
    WinDivertHelperNtohIPv6Address(inAddr, outAddr);
}

void WinDivertHelperHtonIpv6Address(const UINT *inAddr, UINT *outAddr)
{
    WinDivertHelperNtohIPv6Address(inAddr, outAddr);
}
