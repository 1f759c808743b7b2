/*
 * A program as people write them for WinDivert, with WinDivert.dll on the engine of this package: it opens
 * handles, sends packets that the test driver gives back to it, receives, changes limits and closes. It prints what it
 * has tried, and the first thing that is not as it should be.
 */
#include <windows.h>
#include <stdio.h>
#include <string.h>
#include <windivert.h>

/* The test driver's own control codes, see driver/driver.c. */
#define TEST_RESET  0x00122000
#define TEST_MODE   0x00122010
#define TEST_CLIENT 0x0012201C
#define MODE_LOOP   1

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

int main(void)
{
    HANDLE first, device, handle;
    WINDIVERT_ADDRESS addr;
    UINT8 buffer[64];
    UINT64 value;
    UINT length;

    /* A filter that does not compile. */
    CHECK(WinDivertOpen("tcp.Nonsense == 1", WINDIVERT_LAYER_NETWORK, 0, 0) == INVALID_HANDLE_VALUE);
    CHECK(GetLastError() == ERROR_INVALID_PARAMETER);

    first = WinDivertOpen("false", WINDIVERT_LAYER_NETWORK, 0, 0); /* installs and starts the driver */
    CHECK(first != INVALID_HANDLE_VALUE);
    device = CreateFileA("\\\\.\\WinDivert", GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, 0, NULL);
    CHECK(device != INVALID_HANDLE_VALUE);
    control(device, TEST_CLIENT, host_process());
    control(device, TEST_RESET, 0);
    control(device, TEST_MODE, MODE_LOOP);

    handle = WinDivertOpen("outbound and udp.DstPort == 53", WINDIVERT_LAYER_NETWORK, 7, 0);
    CHECK(handle != INVALID_HANDLE_VALUE);
    exchange(handle);

    CHECK(WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, 100));
    CHECK(WinDivertGetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, &value) && value == 100);
    CHECK(!WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, 1) && GetLastError() == ERROR_INVALID_PARAMETER);
    CHECK(WinDivertGetParam(handle, WINDIVERT_PARAM_VERSION_MAJOR, &value) && value == 2);

    CHECK(WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH));
    CHECK(!WinDivertRecv(handle, buffer, sizeof buffer, &length, &addr) && GetLastError() == ERROR_NO_DATA);
    CHECK(WinDivertClose(handle));
    CHECK(!WinDivertClose(handle) && GetLastError() == ERROR_INVALID_HANDLE);

    CHECK(WinDivertClose(first));
    control(device, TEST_RESET, 0);
    CHECK(CloseHandle(device));
    printf("%d steps\n", step);
    return 0;
}
