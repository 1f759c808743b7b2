/* windivert.c: the functions of windivert.h that Go serves. */
#include "shim.h"
#include "_cgo_export.h"

#include <string.h>

char *divert_descriptions[256];

HANDLE WinDivertOpen(const char *filter, WINDIVERT_LAYER layer, INT16 priority, UINT64 flags)
{
    uintptr_t handle = 0;
    DWORD error;

    if (!enter())
        return INVALID_HANDLE_VALUE;
    error = left(divertOpen((char *)filter, length(filter), (UINT32)layer, priority, flags, divert_extended(),
                            divert_segments(), divert_hang(), &handle));
    if (error != ERROR_SUCCESS) {
        divert_fail(error);
        return INVALID_HANDLE_VALUE;
    }
    return (HANDLE)handle;
}

BOOL WinDivertRecv(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, WINDIVERT_ADDRESS *pAddr)
{
    return WinDivertRecvEx(handle, pPacket, packetLen, pRecvLen, 0, pAddr, NULL, NULL);
}

BOOL WinDivertSend(HANDLE handle, const VOID *pPacket, UINT packetLen, UINT *pSendLen,
                   const WINDIVERT_ADDRESS *pAddr)
{
    return WinDivertSendEx(handle, pPacket, packetLen, pSendLen, 0, pAddr, sizeof(*pAddr), NULL);
}

UINT64 WinDivertHelperHashPacket(const VOID *pPacket, UINT packetLen, UINT64 seed)
{
    UINT64 hash;

    if (!enter())
        return 0;
    hash = divertHash((VOID *)pPacket, packetLen, seed);
    (void)left(ERROR_SUCCESS);
    return hash;
}

/* at returns the header at an offset, NULL for an absent one. */
static VOID *at(const VOID *packet, INT32 offset)
{
    return offset < 0 ? NULL : (VOID *)((UINT8 *)packet + offset);
}

#define OUTPUT(pointer, value)      \
    do {                            \
        if ((pointer) != NULL)      \
            *(pointer) = (value);   \
    } while (0)

BOOL WinDivertHelperParsePacket(const VOID *pPacket, UINT packetLen, PWINDIVERT_IPHDR *ppIpHdr,
                                PWINDIVERT_IPV6HDR *ppIpv6Hdr, UINT8 *pProtocol, PWINDIVERT_ICMPHDR *ppIcmpHdr,
                                PWINDIVERT_ICMPV6HDR *ppIcmpv6Hdr, PWINDIVERT_TCPHDR *ppTcpHdr,
                                PWINDIVERT_UDPHDR *ppUdpHdr, PVOID *ppData, UINT *pDataLen, PVOID *ppNext,
                                UINT *pNextLen)
{
    struct divert_parsed p;
    BOOL more;

    if (!enter() || !left((DWORD)divertParse((VOID *)pPacket, packetLen, &p)) || p.truncated)
        return FALSE;
    more = packetLen > p.total;
    OUTPUT(ppIpHdr, (PWINDIVERT_IPHDR)at(pPacket, p.ipv4));
    OUTPUT(ppIpv6Hdr, (PWINDIVERT_IPV6HDR)at(pPacket, p.ipv6));
    OUTPUT(pProtocol, p.protocol);
    OUTPUT(ppIcmpHdr, (PWINDIVERT_ICMPHDR)at(pPacket, p.icmp));
    OUTPUT(ppIcmpv6Hdr, (PWINDIVERT_ICMPV6HDR)at(pPacket, p.icmpv6));
    OUTPUT(ppTcpHdr, (PWINDIVERT_TCPHDR)at(pPacket, p.tcp));
    OUTPUT(ppUdpHdr, (PWINDIVERT_UDPHDR)at(pPacket, p.udp));
    OUTPUT(ppData, at(pPacket, p.data));
    OUTPUT(pDataLen, p.data_len);
    OUTPUT(ppNext, more ? at(pPacket, (INT32)p.total) : NULL);
    OUTPUT(pNextLen, more ? packetLen - p.total : 0);
    return TRUE;
}

BOOL WinDivertHelperParseIPv4Address(const char *addrStr, UINT32 *pAddr)
{
    UINT32 addr;

    if (!enter())
        return FALSE;
    if (!left((DWORD)divertParseIPv4((char *)addrStr, length(addrStr), &addr)))
        return divert_fail(ERROR_INVALID_PARAMETER);
    OUTPUT(pAddr, addr);
    return TRUE;
}

BOOL WinDivertHelperParseIPv6Address(const char *addrStr, UINT32 *pAddr)
{
    UINT32 addr[4];

    if (!enter())
        return FALSE;
    if (!left((DWORD)divertParseIPv6((char *)addrStr, length(addrStr), addr)))
        return divert_fail(ERROR_INVALID_PARAMETER);
    if (pAddr != NULL)
        memcpy(pAddr, addr, sizeof(addr));
    return TRUE;
}

BOOL WinDivertHelperFormatIPv4Address(UINT32 addr, char *buffer, UINT bufLen)
{
    return enter() && done(left(divertFormatIPv4(addr, buffer, bufLen)));
}

BOOL WinDivertHelperFormatIPv6Address(const UINT32 *pAddr, char *buffer, UINT bufLen)
{
    return enter() && done(left(divertFormatIPv6((UINT32 *)pAddr, buffer, bufLen)));
}

BOOL WinDivertHelperCalcChecksums(VOID *pPacket, UINT packetLen, WINDIVERT_ADDRESS *pAddr, UINT64 flags)
{
    return enter() && left((DWORD)divertChecksums(pPacket, packetLen, pAddr, flags));
}

BOOL WinDivertHelperDecrementTTL(VOID *pPacket, UINT packetLen)
{
    return enter() && left((DWORD)divertDecrementTTL(pPacket, packetLen));
}

BOOL WinDivertHelperCompileFilter(const char *filter, WINDIVERT_LAYER layer, char *object, UINT objLen,
                                  const char **errorStr, UINT *errorPos)
{
    char *description = NULL;
    UINT position = 0;
    DWORD error;

    if (!alive())
        return FALSE;
    if (filter == NULL)
        return divert_fail(ERROR_INVALID_PARAMETER);
    divert_set_error(ERROR_SUCCESS);
    if (!enter())
        return FALSE;
    error = left(divertCompile((char *)filter, strlen(filter), (UINT32)layer, divert_extended(), object, objLen,
                               &description, &position));
    OUTPUT(errorStr, description);
    OUTPUT(errorPos, position);
    return done(error);
}

BOOL WinDivertHelperExplainFilterError(const char *filter, WINDIVERT_LAYER layer, char *buffer, UINT bufLen)
{
    if (!alive())
        return FALSE;
    if (filter == NULL || buffer == NULL)
        return divert_fail(ERROR_INVALID_PARAMETER);
    return enter() && done(left(divertExplainError((char *)filter, strlen(filter), (UINT32)layer, divert_extended(), buffer,
                                                   bufLen)));
}

BOOL WinDivertHelperEvalFilter(const char *filter, const VOID *pPacket, UINT packetLen,
                               const WINDIVERT_ADDRESS *pAddr)
{
    BOOL match = FALSE;
    DWORD error;

    if (!alive())
        return FALSE;
    if (filter == NULL || pAddr == NULL)
        return divert_fail(ERROR_INVALID_PARAMETER);
    if (!enter())
        return FALSE;
    error = left(divertEval((char *)filter, strlen(filter), divert_extended(), (VOID *)pPacket, packetLen, (VOID *)pAddr,
                            &match));
    if (error != ERROR_SUCCESS)
        return divert_fail(error);
    if (!match)
        divert_set_error(ERROR_SUCCESS); /* FALSE without an error: evaluated, and no match */
    return match;
}

BOOL WinDivertHelperFormatFilter(const char *filter, WINDIVERT_LAYER layer, char *buffer, UINT bufLen)
{
    if (!alive())
        return FALSE;
    if (filter == NULL || buffer == NULL)
        return divert_fail(ERROR_INVALID_PARAMETER);
    return enter() && done(left(divertFormat((char *)filter, strlen(filter), (UINT32)layer, divert_extended(), buffer,
                                             bufLen)));
}
