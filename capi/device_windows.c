/*
 * device_windows.c: the functions on handles, for Windows. A handle is an open file of the driver's device, and a call
 * is one request of it (specification: windows-driver.md 4 and 5). So all of Windows' own calls on handles work
 * (CancelIoEx, CloseHandle, DuplicateHandle, completion ports), and the driver itself writes to an OVERLAPPED, its
 * event and the caller's memory.
 */
#include "shim.h"

#include <stdint.h>

#define IOCTL_RECV      0x0012648E
#define IOCTL_SEND      0x0012E491
#define IOCTL_SET_PARAM 0x0012E495
#define IOCTL_GET_PARAM 0x0012649A
#define IOCTL_SHUTDOWN  0x0012E49D

/* The header of every request (windows-driver.md 4.1). Windows copies it when the call begins. */
struct record {
    UINT64 low, high;
};

static UINT64 pointer(const volatile void *p)
{
    return (uintptr_t)p;
}

/* ---- Events of calls that wait ---------------------------------------------------------------------- */

static DWORD event_slot = FLS_OUT_OF_INDEXES;

static void WINAPI close_event(void *event)
{
    if (event != NULL)
        CloseHandle(event);
}

/* The library cannot be unloaded, as Go's threads cannot: it stays until the process ends. */
__attribute__((constructor)) static void stay(void)
{
    HMODULE self;

    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN, (LPCWSTR)(uintptr_t)&stay,
                       &self);
    event_slot = FlsAlloc(close_event);
}

/* thread_event returns the thread's event, which ends with the thread; NULL leaves an error. */
static HANDLE thread_event(void)
{
    HANDLE event = FlsGetValue(event_slot);

    if (event != NULL)
        return event;
    event = CreateEventW(NULL, TRUE, FALSE, NULL);
    if (event != NULL && !FlsSetValue(event_slot, event)) {
        CloseHandle(event);
        return NULL;
    }
    return event;
}

/* ---- Requests ---------------------------------------------------------------------------------------- */

/*
 * control makes a request, and waits for its end unless the caller brings an OVERLAPPED. transferred, which may be
 * NULL, is written only if the request has succeeded by then.
 */
static BOOL control(HANDLE handle, DWORD code, struct record record, void *data, UINT size, UINT *transferred,
                    LPOVERLAPPED overlapped)
{
    OVERLAPPED own;
    HANDLE event;
    DWORD n = 0;
    BOOL ok;

    if (overlapped == NULL) {
        event = thread_event();
        if (event == NULL)
            return FALSE;
        memset(&own, 0, sizeof(own));
        own.hEvent = (HANDLE)((uintptr_t)event | 1); /* keeps it from completion ports */
    }
    ok = DeviceIoControl(handle, code, &record, sizeof(record), data, size, &n, overlapped != NULL ? overlapped : &own);
    if (!ok && overlapped == NULL && GetLastError() == ERROR_IO_PENDING)
        ok = GetOverlappedResult(handle, &own, &n, TRUE);
    if (ok && transferred != NULL)
        *transferred = n;
    return ok;
}

BOOL WinDivertRecvEx(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, UINT64 flags,
                     WINDIVERT_ADDRESS *pAddr, UINT *pAddrLen, LPOVERLAPPED lpOverlapped)
{
    struct record record = {pointer(pAddr), pointer(pAddrLen)};

    if (flags != 0)
        return divert_fail(ERROR_INVALID_PARAMETER);
    return control(handle, IOCTL_RECV, record, pPacket, pPacket == NULL ? 0 : packetLen, pRecvLen, lpOverlapped);
}

BOOL WinDivertSendEx(HANDLE handle, const VOID *pPacket, UINT packetLen, UINT *pSendLen, UINT64 flags,
                     const WINDIVERT_ADDRESS *pAddr, UINT addrLen, LPOVERLAPPED lpOverlapped)
{
    struct record record = {pointer(pAddr), addrLen};

    if (flags != 0)
        return divert_fail(ERROR_INVALID_PARAMETER);
    return control(handle, IOCTL_SEND, record, (VOID *)pPacket, pPacket == NULL ? 0 : packetLen, pSendLen, lpOverlapped);
}

BOOL WinDivertShutdown(HANDLE handle, WINDIVERT_SHUTDOWN how)
{
    struct record record = {(UINT32)how, 0};

    return control(handle, IOCTL_SHUTDOWN, record, NULL, 0, NULL, NULL);
}

BOOL WinDivertClose(HANDLE handle)
{
    return CloseHandle(handle);
}

BOOL WinDivertSetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 value)
{
    struct record record = {value, (UINT32)param};

    return control(handle, IOCTL_SET_PARAM, record, NULL, 0, NULL, NULL);
}

BOOL WinDivertGetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 *pValue)
{
    struct record record = {(UINT32)param, 0};
    UINT64 value;

    if (!control(handle, IOCTL_GET_PARAM, record, &value, sizeof(value), NULL, NULL))
        return FALSE;
    if (pValue == NULL)
        return divert_fail(ERROR_NOACCESS);
    *pValue = value;
    return TRUE;
}
