//go:build !windows

/* handle.c: the functions on handles, for Linux, where Go does the work. device_windows.c has those for Windows. */
#include "shim.h"
#include "_cgo_export.h"

/* receive is WinDivertRecvEx with a limit for the wait of a call that is not overlapped, in milliseconds, or INFINITE. */
static BOOL receive(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, WINDIVERT_ADDRESS *pAddr, UINT *pAddrLen,
                    DWORD milliseconds, LPOVERLAPPED lpOverlapped)
{
    UINT transferred = 0;
    DWORD error;

    if (!enter())
        return FALSE;
    if (lpOverlapped != NULL)
        divert_begin(lpOverlapped);
    error = left(divertRecv((uintptr_t)handle, pPacket, packetLen, &transferred, pAddr, pAddrLen, milliseconds,
                            lpOverlapped));
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

BOOL WinDivertRecvEx(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, UINT64 flags,
                     WINDIVERT_ADDRESS *pAddr, UINT *pAddrLen, LPOVERLAPPED lpOverlapped)
{
    if (!alive())
        return FALSE;
    if (flags != 0)
        return divert_fail(ERROR_INVALID_PARAMETER);
    return receive(handle, pPacket, packetLen, pRecvLen, pAddr, pAddrLen, INFINITE, lpOverlapped);
}

BOOL WinDivertRecvTimeout(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, WINDIVERT_ADDRESS *pAddr,
                          UINT *pAddrLen, DWORD milliseconds)
{
    return receive(handle, pPacket, packetLen, pRecvLen, pAddr, pAddrLen, milliseconds, NULL);
}

int WinDivertGetFd(HANDLE handle)
{
    int fd = -1;

    if (!enter())
        return -1;
    return done(left(divertDescriptor((uintptr_t)handle, &fd))) ? fd : -1;
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
    if (!enter())
        return FALSE;
    if (lpOverlapped != NULL)
        divert_begin(lpOverlapped);
    error = left(divertSend((uintptr_t)handle, (VOID *)pPacket, packetLen, &transferred, (VOID *)pAddr, addrLen));
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
    if (!alive())
        return FALSE;
    if (how < WINDIVERT_SHUTDOWN_RECV || how > WINDIVERT_SHUTDOWN_BOTH)
        return divert_fail(ERROR_INVALID_PARAMETER);
    return done(divert_order(DIVERT_ORDER_SHUTDOWN, handle, (UINT32)how));
}

BOOL WinDivertClose(HANDLE handle)
{
    return alive() && done(divert_order(DIVERT_ORDER_CLOSE, handle, 0));
}

BOOL WinDivertSetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 value)
{
    return enter() && done(left(divertSetParam((uintptr_t)handle, (UINT32)param, value)));
}

BOOL WinDivertGetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 *pValue)
{
    return enter() && done(left(divertGetParam((uintptr_t)handle, (UINT32)param, pValue)));
}
