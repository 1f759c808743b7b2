//go:build !windows

/* overlapped.c: overlapped requests, and the events and waits of Windows that programs use with them. */
#include "shim.h"

/*
 * Internal of an OVERLAPPED is an NT status, as on Windows. These are the pairs of the specification (api.md 20), and
 * Windows' own for numbers that only Linux returns.
 */
static const struct {
    DWORD error;
    UINT32 status;
} statuses[] = {
    {ERROR_SUCCESS, 0x00000000u},
    {ERROR_IO_INCOMPLETE, 0x00000103u},
    {ERROR_INVALID_PARAMETER, 0xC000000Du},
    {ERROR_BAD_COMMAND, 0xC0000184u},
    {ERROR_NO_DATA, 0xC00000D9u},
    {ERROR_INSUFFICIENT_BUFFER, 0xC0000023u},
    {ERROR_HOST_UNREACHABLE, 0xC000A012u},
    {ERROR_NO_SYSTEM_RESOURCES, 0xC000009Au},
    {ERROR_INVALID_FUNCTION, 0xC0000010u},
    {ERROR_OPERATION_ABORTED, 0xC0000120u},
    {ERROR_NOACCESS, 0xC0000005u},
    {ERROR_INVALID_HANDLE, 0xC0000008u},
    {ERROR_NOT_SUPPORTED, 0xC00000BBu},
    {ERROR_ACCESS_DENIED, 0xC0000022u},
    {ERROR_DEVICE_NOT_CONNECTED, 0xC000009Du},
    {ERROR_GEN_FAILURE, 0xC0000001u},
};

enum { STATUSES = sizeof(statuses) / sizeof(statuses[0]) };

static UINT32 status_of(DWORD error)
{
    int i;

    for (i = 0; i < STATUSES; i++)
        if (statuses[i].error == error)
            return statuses[i].status;
    return statuses[STATUSES - 1].status;
}

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "_cgo_export.h"

/* Guards completions: a thread that has seen the event of one also sees its status. */
static pthread_mutex_t completions = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t completed = PTHREAD_COND_INITIALIZER;

/* lock marks the thread: a signal handler that interrupts it must not call anything that takes the lock. */
static void lock(void)
{
    divert_inside++;
    pthread_mutex_lock(&completions);
}

static void unlock(void)
{
    pthread_mutex_unlock(&completions);
    divert_inside--;
}

/* A program that has events of its own has its own calls for them. */
static BOOL (*set_event)(HANDLE) = SetEvent;
static BOOL (*reset_event)(HANDLE) = ResetEvent;

__attribute__((constructor)) static void find_program_calls(void)
{
    *(void **)&set_event = divert_program_call("SetEvent", *(void **)&set_event);
    *(void **)&reset_event = divert_program_call("ResetEvent", *(void **)&reset_event);
}

/* set_status is the last write to a request: a program that polls it may free the request then. */
static void set_status(LPOVERLAPPED overlapped, UINT32 status)
{
    __atomic_store_n(&overlapped->Internal, (ULONG_PTR)status, __ATOMIC_RELEASE);
}

void divert_begin(LPOVERLAPPED overlapped)
{
    overlapped->InternalHigh = 0;
    set_status(overlapped, 0x00000103u);
    if (overlapped->hEvent != NULL)
        reset_event(overlapped->hEvent);
}

void divert_end(LPOVERLAPPED overlapped, DWORD error, DWORD transferred)
{
    lock();
    overlapped->InternalHigh = transferred;
    if (overlapped->hEvent != NULL)
        set_event(overlapped->hEvent);
    set_status(overlapped, status_of(error));
    pthread_cond_broadcast(&completed);
    unlock();
}

void divert_refuse(LPOVERLAPPED overlapped, DWORD error)
{
    set_status(overlapped, status_of(error));
}

static DWORD error_of(UINT32 status)
{
    int i;

    for (i = 0; i < STATUSES; i++)
        if (statuses[i].status == status)
            return statuses[i].error;
    return ERROR_GEN_FAILURE;
}

/*
 * The handle of an event is the number of its eventfd. Events that reset themselves after a wait also have this bit.
 * Handles of WinDivertOpen lie between the two: see table.go.
 */
#define AUTO_RESET ((uintptr_t)0x80000000u)
#define DESCRIPTORS ((uintptr_t)0x40000000u)

/* descriptor returns the eventfd of an event, -1 if the handle is not an event. */
static int descriptor(HANDLE event)
{
    uintptr_t number = (uintptr_t)event & ~AUTO_RESET;

    return number == 0 || number >= DESCRIPTORS ? -1 : (int)number;
}

static BOOL resets_itself(HANDLE event)
{
    return ((uintptr_t)event & AUTO_RESET) != 0;
}

__attribute__((weak)) HANDLE CreateEvent(void *attributes, BOOL manualReset, BOOL initialState, LPCSTR name)
{
    int fd, above;

    (void)attributes;
    if (name != NULL) {
        divert_fail(ERROR_NOT_SUPPORTED);
        return NULL;
    }
    fd = eventfd(initialState ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd == 0) { /* a program without standard input: 0 is no handle */
        above = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
        fd = above;
    }
    if (fd < 0) {
        divert_fail(ERROR_NO_SYSTEM_RESOURCES);
        return NULL;
    }
    return (HANDLE)((uintptr_t)fd | (manualReset ? 0 : AUTO_RESET));
}

__attribute__((weak)) BOOL SetEvent(HANDLE event)
{
    const uint64_t one = 1;
    int fd = descriptor(event);

    if (fd < 0 || (write(fd, &one, sizeof(one)) != sizeof(one) && errno != EAGAIN))
        return divert_fail(ERROR_INVALID_HANDLE);
    return TRUE;
}

/* take reads an eventfd, which may be a blocking one of the program's own, and reports whether it was set. */
static BOOL take(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    uint64_t count;

    return poll(&p, 1, 0) == 1 && read(fd, &count, sizeof(count)) == sizeof(count);
}

__attribute__((weak)) BOOL ResetEvent(HANDLE event)
{
    int fd = descriptor(event);

    if (fd < 0 || fcntl(fd, F_GETFD) < 0)
        return divert_fail(ERROR_INVALID_HANDLE);
    (void)take(fd);
    return TRUE;
}

static int64_t milliseconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* remaining returns the time left until a deadline, for poll; -1 is for ever. */
static int remaining(DWORD milliseconds, int64_t start)
{
    int64_t left;

    if (milliseconds == INFINITE)
        return -1;
    left = (int64_t)milliseconds - (milliseconds_now() - start);
    return left < 0 ? 0 : left > 0x7FFFFFFF ? 0x7FFFFFFF : (int)left;
}

/* obtain reports whether the caller gets an event that poll has reported, and resets it if waits do so. */
static BOOL obtain(HANDLE event)
{
    return !resets_itself(event) || take(descriptor(event));
}

/* wait_any returns the first of the events that is set. */
static DWORD wait_any(DWORD count, const HANDLE *events, struct pollfd *polls, DWORD milliseconds)
{
    int64_t start = milliseconds_now();
    DWORD i;
    int n;

    for (;;) {
        n = poll(polls, count, remaining(milliseconds, start));
        if (n < 0 && errno != EINTR)
            return divert_fail(ERROR_INVALID_HANDLE), WAIT_FAILED;
        for (i = 0; n > 0 && i < count; i++) {
            if (polls[i].revents & POLLNVAL)
                return divert_fail(ERROR_INVALID_HANDLE), WAIT_FAILED;
            if ((polls[i].revents & POLLIN) && obtain(events[i]))
                return WAIT_OBJECT_0 + i;
        }
        if (n == 0 && remaining(milliseconds, start) == 0)
            return WAIT_TIMEOUT;
    }
}

/* wait_all returns when all events are set at once; until then it resets none. */
static DWORD wait_all(DWORD count, const HANDLE *events, struct pollfd *polls, DWORD milliseconds)
{
    int64_t start = milliseconds_now();
    DWORD i;
    int n;

    for (;;) {
        for (i = 0; i < count; i++) {
            n = poll(polls + i, 1, remaining(milliseconds, start));
            if ((n < 0 && errno != EINTR) || (n > 0 && (polls[i].revents & POLLNVAL)))
                return divert_fail(ERROR_INVALID_HANDLE), WAIT_FAILED;
            if (n == 0 && remaining(milliseconds, start) == 0)
                return WAIT_TIMEOUT;
            if (n <= 0)
                i--; /* interrupted, or a wait longer than poll's longest */
        }
        if (poll(polls, count, 0) != (int)count)
            continue;
        for (i = 0; i < count && obtain(events[i]); i++)
            ;
        if (i == count)
            return WAIT_OBJECT_0;
    }
}

/* settle waits for a completion that has set an event but not yet its status. */
static void settle(void)
{
    if (divert_inside)
        return; /* in a signal handler; GetOverlappedResult is refused there */
    lock();
    unlock();
}

__attribute__((weak)) DWORD WaitForMultipleObjects(DWORD count, const HANDLE *events, BOOL all, DWORD milliseconds)
{
    struct pollfd polls[MAXIMUM_WAIT_OBJECTS];
    DWORD i, result;

    if (count == 0 || count > MAXIMUM_WAIT_OBJECTS || events == NULL)
        return divert_fail(ERROR_INVALID_PARAMETER), WAIT_FAILED;
    for (i = 0; i < count; i++) {
        polls[i].fd = descriptor(events[i]);
        polls[i].events = POLLIN;
        polls[i].revents = 0;
        if (polls[i].fd < 0)
            return divert_fail(ERROR_INVALID_HANDLE), WAIT_FAILED;
    }
    result = (all ? wait_all : wait_any)(count, events, polls, milliseconds);
    settle();
    return result;
}

__attribute__((weak)) DWORD WaitForSingleObject(HANDLE event, DWORD milliseconds)
{
    return WaitForMultipleObjects(1, &event, FALSE, milliseconds);
}

__attribute__((weak)) BOOL GetOverlappedResult(HANDLE handle, LPOVERLAPPED overlapped, LPDWORD transferred, BOOL wait)
{
    DWORD error;

    (void)handle; /* the request is enough */
    if (overlapped == NULL)
        return divert_fail(ERROR_INVALID_PARAMETER);
    if (divert_inside)
        return divert_fail(ERROR_POSSIBLE_DEADLOCK);
    lock();
    while (wait && overlapped->Internal == STATUS_PENDING && divert_alive())
        pthread_cond_wait(&completed, &completions);
    error = error_of((UINT32)overlapped->Internal);
    if (error != ERROR_IO_INCOMPLETE && transferred != NULL)
        *transferred = (DWORD)overlapped->InternalHigh;
    unlock();
    return error == ERROR_SUCCESS ? TRUE : divert_fail(error);
}

__attribute__((weak)) BOOL CancelIoEx(HANDLE handle, LPOVERLAPPED overlapped)
{
    return enter() && done(left(divertCancel((uintptr_t)handle, overlapped)));
}

__attribute__((weak)) BOOL CloseHandle(HANDLE handle)
{
    int fd = descriptor(handle);

    if (fd < 0)
        return WinDivertClose(handle);
    return close(fd) == 0 ? TRUE : divert_fail(ERROR_INVALID_HANDLE);
}
