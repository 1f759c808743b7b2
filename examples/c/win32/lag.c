/*
 * lag.c makes a network slow: packets that match a filter wait. One thread receives them; every 10 milliseconds another
 * sends those that have waited long enough.
 */
#include "program.h"

#include <mmsystem.h>

enum { TICK = 10 };

typedef struct NODE {
    struct NODE *next;
    DWORD since;
    UINT length;
    WINDIVERT_ADDRESS address;
    UINT8 packet[1];
} NODE;

static HANDLE handle, mutex, stopped;
static NODE *first, **last = &first;
static DWORD lag;

/* release sends the packets that have waited long enough, or all. */
static void release(BOOL all)
{
    NODE *node;

    WaitForSingleObject(mutex, INFINITE);
    while ((node = first) != NULL && (all || timeGetTime() - node->since >= lag)) {
        if (!WinDivertSend(handle, node->packet, node->length, NULL, &node->address))
            warning("send a packet");
        first = node->next;
        if (first == NULL)
            last = &first;
        free(node);
    }
    ReleaseMutex(mutex);
}

static DWORD WINAPI tick(LPVOID unused)
{
    (void)unused;
    while (WaitForSingleObject(stopped, TICK) == WAIT_TIMEOUT)
        release(FALSE);
    release(TRUE);
    return 0;
}

static void append(const UINT8 *packet, UINT length, const WINDIVERT_ADDRESS *address)
{
    NODE *node = (NODE *)malloc(sizeof(*node) + length);

    if (node == NULL)
        fatal("out of memory");
    node->next = NULL;
    node->since = timeGetTime();
    node->length = length;
    node->address = *address;
    memcpy(node->packet, packet, length);
    WaitForSingleObject(mutex, INFINITE);
    *last = node;
    last = &node->next;
    ReleaseMutex(mutex);
}

static BOOL WINAPI stop(DWORD event)
{
    (void)event;
    return WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_RECV);
}

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS address;
    HANDLE timer;
    UINT length;

    if (argc != 3 || atoi(argv[2]) < 0)
        usage("lag FILTER MILLISECONDS");
    lag = (DWORD)atoi(argv[2]);
    handle = open_handle(argv[1], WINDIVERT_LAYER_NETWORK, 0, 0);
    mutex = CreateMutex(NULL, FALSE, NULL);
    stopped = CreateEvent(NULL, TRUE, FALSE, NULL);
    timeBeginPeriod(TICK);
    timer = CreateThread(NULL, 1, tick, NULL, 0, NULL);
    if (timer == NULL || !SetThreadPriority(timer, THREAD_PRIORITY_NORMAL) || !SetConsoleCtrlHandler(stop, TRUE))
        fatal("failed to start (%u)", (unsigned)GetLastError());
    printf("control-C ends it\n");
    fflush(stdout);
    while (WinDivertRecv(handle, packet, sizeof(packet), &length, &address))
        append(packet, length, &address);
    SetEvent(stopped);
    WaitForSingleObject(timer, INFINITE);
    timeEndPeriod(TICK);
    CloseHandle(timer);
    WinDivertClose(handle);
    printf("everything is sent\n");
    return 0;
}
