//go:build !windows

/* handle.c: the functions on handles, which on Linux are Go's. device_windows.c has those of Windows. */
#include "shim.h"
#include "_cgo_export.h"

BOOL WinDivertRecvEx(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, UINT64 flags,
                     WINDIVERT_ADDRESS *pAddr, UINT *pAddrLen, LPOVERLAPPED lpOverlapped)
{
    UINT transferred = 0;
    DWORD error;

    if (!alive())
        return FALSE;
    if (flags != 0)
        return divert_fail(ERROR_INVALID_PARAMETER);
    if (lpOverlapped != NULL)
        divert_begin(lpOverlapped);
    error = divertRecv((uintptr_t)handle, pPacket, packetLen, &transferred, pAddr, pAddrLen, lpOverlapped);
    if (error != ERROR_SUCCESS) {
        /* A pending request may be complete by now, and its memory gone. */
        if (lpOverlapped != NULL && error != ERROR_IO_PENDING)
            divert_refuse(lpOverlapped, error);
        return divert_fail(error);
    }
    if (pRecvLen != NULL)
        *pRecvLen = transferred;
    if (lpOverlapped != NULL)
        divert_end(lpOverlapped, ERROR_SUCCESS, transferred);
    return TRUE;
}

BOOL WinDivertSendEx(HANDLE handle, const VOID *pPacket, UINT packetLen, UINT *pSendLen, UINT64 flags,
                     const WINDIVERT_ADDRESS *pAddr, UINT addrLen, LPOVERLAPPED lpOverlapped)
{
    UINT transferred = 0;
    DWORD error;

    if (!alive())
        return FALSE;
    if (flags != 0)
        return divert_fail(ERROR_INVALID_PARAMETER);
    if (lpOverlapped != NULL)
        divert_begin(lpOverlapped);
    error = divertSend((uintptr_t)handle, (VOID *)pPacket, packetLen, &transferred, (VOID *)pAddr, addrLen);
    if (error != ERROR_SUCCESS) {
        if (lpOverlapped != NULL)
            divert_refuse(lpOverlapped, error);
        return divert_fail(error);
    }
    if (pSendLen != NULL)
        *pSendLen = transferred;
    if (lpOverlapped != NULL)
        divert_end(lpOverlapped, ERROR_SUCCESS, transferred);
    return TRUE;
}

BOOL WinDivertShutdown(HANDLE handle, WINDIVERT_SHUTDOWN how)
{
    return alive() && done(divertShutdown((uintptr_t)handle, (UINT32)how));
}

BOOL WinDivertClose(HANDLE handle)
{
    return alive() && done(divertClose((uintptr_t)handle));
}

BOOL WinDivertSetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 value)
{
    return alive() && done(divertSetParam((uintptr_t)handle, (UINT32)param, value));
}

BOOL WinDivertGetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 *pValue)
{
    return alive() && done(divertGetParam((uintptr_t)handle, (UINT32)param, pValue));
}
