/*
 * A program as people write them for WinDivert, with our WinDivert.dll and the test driver: it opens handles, sends
 * packets that the driver gives back to it, receives, waits in each way that Windows has, changes limits and closes. It
 * prints how much it has tried, and the first thing that is not as it should be.
 */
#include <windows.h>
#include <stdio.h>
#include <string.h>
#include <windivert.h>

/* The test driver's own control codes, see driver/model.h. */
#define TEST_RESET  0x00122000
#define TEST_FAIL   0x00122008
#define TEST_MODE   0x00122010
#define TEST_CLIENT 0x0012201C
#define MODE_LOOP   1

#define IOCTL_RECV 0x0012648E

static int step;

static void fail(const char *what)
{
    printf("step %d, %s: error %lu\n", step, what, (unsigned long)GetLastError());
    fflush(stdout);
    ExitProcess(1);
}

#define CHECK(condition) do { step++; if (!(condition)) fail(#condition); } while (0)

/* host_process returns the id of this process on the Linux below Wine, with a system call of that. */
static DWORD host_process(void)
{
    long id;

    __asm__ volatile("syscall" : "=a"(id) : "a"(39L) : "rcx", "r11", "memory"); /* getpid */
    return (DWORD)id;
}

static void control(HANDLE device, DWORD code, DWORD value)
{
    DWORD got;

    CHECK(DeviceIoControl(device, code, &value, code == TEST_RESET ? 0 : sizeof value, NULL, 0, &got, NULL));
}

/* A UDP datagram from 10.0.0.1:40000 to 10.0.0.2:53, without checksums. */
static const UINT8 query[] = {
    0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    0x9C, 0x40, 0, 53, 0, 12, 0, 0, 'a', 's', 'k', '!',
};

static void exchange(HANDLE handle)
{
    UINT8 buffer[2 * sizeof query], packet[sizeof query];
    WINDIVERT_ADDRESS addr, addrs[2];
    UINT length, sent, size;

    memset(&addr, 0, sizeof addr);
    addr.Outbound = 1;
    memcpy(packet, query, sizeof query);
    CHECK(WinDivertHelperCalcChecksums(packet, sizeof packet, &addr, 0));
    CHECK(addr.IPChecksum && addr.UDPChecksum);
    CHECK(WinDivertSend(handle, packet, sizeof packet, &sent, &addr) && sent == sizeof packet);
    memset(buffer, 0, sizeof buffer);
    CHECK(WinDivertRecv(handle, buffer, sizeof buffer, &length, &addr));
    CHECK(length == sizeof packet && memcmp(buffer, packet, length) == 0);
    CHECK(addr.Layer == WINDIVERT_LAYER_NETWORK && addr.Event == WINDIVERT_EVENT_NETWORK_PACKET && addr.Outbound);

    /* The same, two packets in one call. */
    memcpy(buffer, packet, sizeof packet);
    memcpy(buffer + sizeof packet, packet, sizeof packet);
    addrs[0] = addrs[1] = addr;
    CHECK(WinDivertSendEx(handle, buffer, sizeof buffer, &sent, 0, addrs, sizeof addrs, NULL) && sent == sizeof buffer);
    memset(buffer, 0, sizeof buffer);
    for (UINT got = 0; got < sizeof buffer; got += length) {
        size = sizeof addrs;
        CHECK(WinDivertRecvEx(handle, buffer, sizeof buffer, &length, 0, addrs, &size, NULL));
        CHECK(length > 0 && size == length / sizeof packet * sizeof *addrs && memcmp(buffer, packet, sizeof packet) == 0);
    }
}

/* begin begins a receive that stays pending. */
static void begin(HANDLE handle, UINT8 *buffer, UINT size, WINDIVERT_ADDRESS *addr, OVERLAPPED *overlapped)
{
    CHECK(!WinDivertRecvEx(handle, buffer, size, NULL, 0, addr, NULL, overlapped));
    CHECK(GetLastError() == ERROR_IO_PENDING);
}

static void send_query(HANDLE handle)
{
    WINDIVERT_ADDRESS addr;
    UINT8 packet[sizeof query]; /* Wine wants memory that can be written, Windows does not */

    memset(&addr, 0, sizeof addr);
    memcpy(packet, query, sizeof query);
    addr.Outbound = addr.IPChecksum = addr.UDPChecksum = 1;
    CHECK(WinDivertSend(handle, packet, sizeof packet, NULL, &addr));
}

#define ROUNDS 2000

static HANDLE sender_handle;

static DWORD WINAPI sender(void *go)
{
    for (int i = 0; i < ROUNDS; i++) {
        WaitForSingleObject(go, INFINITE);
        send_query(sender_handle);
    }
    return 0;
}

/* Whoever has waited for the event finds the request complete, and may free its memory. */
static void wait_for_events(HANDLE handle)
{
    HANDLE event = CreateEvent(NULL, FALSE, FALSE, NULL), go = CreateEvent(NULL, FALSE, FALSE, NULL);
    HANDLE thread;

    CHECK(event != NULL && go != NULL);
    sender_handle = handle;
    thread = CreateThread(NULL, 0, sender, go, 0, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        struct { OVERLAPPED overlapped; WINDIVERT_ADDRESS addr; UINT8 buffer[64]; } *r;
        DWORD n = 0;

        r = VirtualAlloc(NULL, sizeof *r, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
        CHECK(r != NULL);
        r->overlapped.hEvent = event;
        begin(handle, r->buffer, sizeof r->buffer, &r->addr, &r->overlapped);
        SetEvent(go);
        CHECK(WaitForSingleObject(event, 60000) == WAIT_OBJECT_0);
        CHECK(GetOverlappedResult(handle, &r->overlapped, &n, FALSE) && n == sizeof query);
        CHECK(memcmp(r->buffer, query, 20) == 0 && r->addr.Outbound);
        CHECK(VirtualFree(r, 0, MEM_RELEASE));
    }
    CHECK(WaitForSingleObject(thread, 60000) == WAIT_OBJECT_0);
    CloseHandle(thread);
    CloseHandle(event);
    CloseHandle(go);
}

/* A handle is one of Windows: requests on it are cancelled, and told to a completion port, by Windows itself. */
static void use_kernel_handle(void)
{
    HANDLE handle = WinDivertOpen("udp", WINDIVERT_LAYER_NETWORK, 0, 0), port, twin;
    UINT8 buffer[64];
    WINDIVERT_ADDRESS addr;
    OVERLAPPED overlapped, *told = NULL;
    ULONG_PTR key = 0;
    DWORD n = 0;

    CHECK(handle != INVALID_HANDLE_VALUE);
    memset(&overlapped, 0, sizeof overlapped);
    begin(handle, buffer, sizeof buffer, &addr, &overlapped);
    CHECK(CancelIoEx(handle, &overlapped));
    CHECK(!GetOverlappedResult(handle, &overlapped, &n, TRUE) && GetLastError() == ERROR_OPERATION_ABORTED);
    CHECK(!CancelIoEx(handle, &overlapped) && GetLastError() == ERROR_NOT_FOUND);

    port = CreateIoCompletionPort(handle, NULL, 4711, 1);
    CHECK(port != NULL);
    memset(&overlapped, 0, sizeof overlapped);
    begin(handle, buffer, sizeof buffer, &addr, &overlapped);
    send_query(handle); /* of a call that waits the port is not told */
    CHECK(GetQueuedCompletionStatus(port, &n, &key, &told, 60000) && told == &overlapped && key == 4711 && n == sizeof query);
    send_query(handle);
    CHECK(WinDivertRecv(handle, buffer, sizeof buffer, NULL, &addr));
    CHECK(!GetQueuedCompletionStatus(port, &n, &key, &told, 0) && told == NULL);
    CHECK(CloseHandle(port));

    CHECK(DuplicateHandle(GetCurrentProcess(), handle, GetCurrentProcess(), &twin, 0, FALSE, DUPLICATE_SAME_ACCESS));
    CHECK(CloseHandle(handle));
    CHECK(WinDivertSetParam(twin, WINDIVERT_PARAM_QUEUE_TIME, 500));
    CHECK(CloseHandle(twin));
    CHECK(!WinDivertClose(twin) && GetLastError() == ERROR_INVALID_HANDLE);
}

static void refuse(HANDLE device, DWORD code, DWORD status)
{
    DWORD fault[6] = {code, status, 0, 1, 0, 0}, got;

    CHECK(DeviceIoControl(device, TEST_FAIL, fault, sizeof fault, NULL, 0, &got, NULL));
}

/* What the driver says is what the program gets. */
static void fail_in_driver(HANDLE device, HANDLE handle)
{
    UINT8 buffer[2 * sizeof query];
    WINDIVERT_ADDRESS addr, addrs[2];
    OVERLAPPED overlapped;
    DWORD n = 0;
    UINT size = 4711;

    refuse(device, IOCTL_RECV, 0xC0000184); /* STATUS_INVALID_DEVICE_STATE */
    CHECK(!WinDivertRecv(handle, buffer, sizeof buffer, &size, &addr) && GetLastError() == ERROR_BAD_COMMAND && size == 4711);
    refuse(device, IOCTL_RECV, 0xC0000120); /* STATUS_CANCELLED */
    CHECK(!WinDivertRecv(handle, buffer, sizeof buffer, &size, &addr) && GetLastError() == ERROR_OPERATION_ABORTED);

    send_query(handle);
    CHECK(!WinDivertRecv(handle, buffer, 20, &size, &addr) && GetLastError() == ERROR_INSUFFICIENT_BUFFER && size == 4711);
    CHECK(addr.Outbound);
    size = sizeof *addrs - 1;
    CHECK(!WinDivertRecvEx(handle, buffer, sizeof buffer, NULL, 0, addrs, &size, NULL) && GetLastError() == ERROR_INVALID_PARAMETER);
    CHECK(!WinDivertRecvEx(handle, buffer, sizeof buffer, NULL, 1, addrs, NULL, NULL) && GetLastError() == ERROR_INVALID_PARAMETER);

    /* An impostor at the end of its hops is refused, the packet behind it goes out, and the count says so. */
    memset(addrs, 0, sizeof addrs);
    addrs[0].Outbound = addrs[1].Outbound = addrs[0].Impostor = 1;
    memcpy(buffer, query, sizeof query);
    memcpy(buffer + sizeof query, query, sizeof query);
    buffer[8] = 1;
    memset(&overlapped, 0, sizeof overlapped);
    CHECK(!WinDivertSendEx(handle, buffer, sizeof buffer, NULL, 0, addrs, sizeof addrs, &overlapped));
    CHECK(GetLastError() == ERROR_IO_PENDING || GetLastError() == ERROR_HOST_UNREACHABLE);
    CHECK(!GetOverlappedResult(handle, &overlapped, &n, TRUE) && GetLastError() == ERROR_HOST_UNREACHABLE);
    CHECK(n == sizeof buffer);
    CHECK(WinDivertRecv(handle, buffer, sizeof buffer, &size, &addr) && size == sizeof query && !addr.Impostor);
}

/* What cannot be opened says why. */
static void fail_to_open(void)
{
    static const struct { const char *filter; WINDIVERT_LAYER layer; INT16 priority; UINT64 flags; } rows[] = {
        {"tcp.Nonsense == 1", WINDIVERT_LAYER_NETWORK, 0, 0},
        {NULL, WINDIVERT_LAYER_NETWORK, 0, 0},
        {"true", (WINDIVERT_LAYER)5, 0, 0},
        {"true", WINDIVERT_LAYER_NETWORK, 30001, 0},
        {"true", WINDIVERT_LAYER_NETWORK, 0, 0x40},
        {"true", WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_DROP},
        {"true", WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_RECV_ONLY | WINDIVERT_FLAG_SEND_ONLY},
        {"true", WINDIVERT_LAYER_FLOW, 0, WINDIVERT_FLAG_SNIFF}, /* the driver refuses it */
    };

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK(WinDivertOpen(rows[i].filter, rows[i].layer, rows[i].priority, rows[i].flags) == INVALID_HANDLE_VALUE);
        CHECK(GetLastError() == ERROR_INVALID_PARAMETER);
    }
}

/* The library stays in memory: Go's threads cannot end. */
static void unload(void)
{
    HMODULE library = LoadLibraryA("WinDivert.dll");

    CHECK(library != NULL);
    for (int i = 0; i < 3; i++)
        FreeLibrary(library);
    CHECK(GetModuleHandleA("WinDivert.dll") == library);
}

int main(void)
{
    HANDLE first, device, handle;
    WINDIVERT_ADDRESS addr;
    UINT8 buffer[64];
    UINT64 value;
    UINT length;

    first = WinDivertOpen("false", WINDIVERT_LAYER_NETWORK, 0, 0); /* installs and starts the driver */
    CHECK(first != INVALID_HANDLE_VALUE);
    device = CreateFileA("\\\\.\\WinDivert", GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, 0, NULL);
    CHECK(device != INVALID_HANDLE_VALUE);
    control(device, TEST_CLIENT, host_process());
    control(device, TEST_RESET, 0);
    control(device, TEST_MODE, MODE_LOOP);

    fail_to_open();
    handle = WinDivertOpen("outbound and udp.DstPort == 53", WINDIVERT_LAYER_NETWORK, 7, 0);
    CHECK(handle != INVALID_HANDLE_VALUE);
    exchange(handle);
    wait_for_events(handle);
    fail_in_driver(device, handle);

    CHECK(WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, 100));
    CHECK(WinDivertGetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, &value) && value == 100);
    CHECK(!WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, 1) && GetLastError() == ERROR_INVALID_PARAMETER);
    CHECK(WinDivertGetParam(handle, WINDIVERT_PARAM_VERSION_MAJOR, &value) && value == 2);
    CHECK(!WinDivertGetParam(handle, (WINDIVERT_PARAM)5, &value) && GetLastError() == ERROR_INVALID_PARAMETER);

    CHECK(WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH));
    CHECK(!WinDivertRecv(handle, buffer, sizeof buffer, &length, &addr) && GetLastError() == ERROR_NO_DATA);
    CHECK(WinDivertClose(handle));
    CHECK(!WinDivertClose(handle) && GetLastError() == ERROR_INVALID_HANDLE);

    use_kernel_handle();
    unload();
    CHECK(WinDivertClose(first));
    control(device, TEST_RESET, 0);
    CHECK(CloseHandle(device));
    printf("%d steps\n", step);
    return 0;
}
