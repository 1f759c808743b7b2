/* handles.c: handles, and waiting for them. Each is a descriptor that is readable while the object is signalled. */
#include "win32.h"

#include <sys/eventfd.h>

/* As in libwindivert: an event that resets itself has this bit besides its descriptor; handles lie above those. */
#define AUTO_RESET ((uintptr_t)0x80000000u)
#define DESCRIPTORS ((uintptr_t)0x40000000u)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object **objects; /* by descriptor; NULL: only the descriptor's readability matters */
static int room;

void win32_lock(void)
{
    pthread_mutex_lock(&lock);
}

void win32_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

DWORD win32_error(int number)
{
    switch (number) {
    case 0:
        return ERROR_SUCCESS;
    case EACCES:
    case EPERM:
        return ERROR_ACCESS_DENIED;
    case EBADF:
        return ERROR_INVALID_HANDLE;
    case EINVAL:
    case ESRCH:
        return ERROR_INVALID_PARAMETER;
    case EMFILE:
    case ENFILE:
        return ERROR_TOO_MANY_OPEN_FILES;
    case ENOENT:
        return ERROR_FILE_NOT_FOUND;
    case ENOMEM:
    case EAGAIN:
        return ERROR_NO_SYSTEM_RESOURCES;
    case ENOSYS:
        return ERROR_NOT_SUPPORTED;
    case EPIPE:
        return ERROR_BROKEN_PIPE;
    }
    return ERROR_GEN_FAILURE;
}

int win32_descriptor(HANDLE handle)
{
    uintptr_t number = (uintptr_t)handle & ~AUTO_RESET;

    switch ((intptr_t)handle) {
    case (intptr_t)(int32_t)STD_INPUT_HANDLE:
        return STDIN_FILENO;
    case (intptr_t)(int32_t)STD_OUTPUT_HANDLE:
        return STDOUT_FILENO;
    case (intptr_t)(int32_t)STD_ERROR_HANDLE:
        return STDERR_FILENO;
    }
    return number == 0 || number >= DESCRIPTORS ? -1 : (int)number;
}

/* object_of returns the object of a handle. The caller holds the lock. */
static struct object *object_of(HANDLE handle)
{
    int fd = win32_descriptor(handle);

    return fd >= 0 && fd < room ? objects[fd] : NULL;
}

static BOOL make_room(int fd)
{
    int wanted = room == 0 ? 64 : room;
    struct object **more;

    if (fd < room)
        return TRUE;
    while (wanted <= fd)
        wanted *= 2;
    more = (struct object **)realloc(objects, (size_t)wanted * sizeof(*more));
    if (more == NULL)
        return FALSE;
    memset(more + room, 0, (size_t)(wanted - room) * sizeof(*more));
    objects = more;
    room = wanted;
    return TRUE;
}

/* forget removes a reference. The caller holds the lock. */
static void forget(struct object *object)
{
    if (object == NULL || --object->refs > 0)
        return;
    if (object->kind == THREAD)
        close(object->ended);
    free(object);
}

HANDLE win32_add(int fd, struct object *object)
{
    DWORD error = fd < 0 ? win32_error(errno) : object == NULL ? ERROR_NOT_ENOUGH_MEMORY : ERROR_SUCCESS;
    int above;

    win32_lock();
    if (fd == 0) { /* a program without standard input: 0 is no handle */
        above = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (above < 0)
            error = win32_error(errno);
        close(fd);
        fd = above;
    }
    if (error == ERROR_SUCCESS && !make_room(fd))
        error = ERROR_NOT_ENOUGH_MEMORY;
    if (error == ERROR_SUCCESS)
        objects[fd] = object;
    else {
        forget(object);
        if (fd >= 0)
            close(fd);
    }
    win32_unlock();
    if (error == ERROR_SUCCESS)
        return (HANDLE)(uintptr_t)fd;
    SetLastError(error);
    return NULL;
}

struct object *win32_get(HANDLE handle, enum kind kind)
{
    struct object *object;

    win32_lock();
    object = object_of(handle);
    if (object == NULL || object->kind != kind) {
        object = NULL;
        SetLastError(ERROR_INVALID_HANDLE);
    } else
        object->refs++;
    win32_unlock();
    return object;
}

void win32_release(struct object *object)
{
    win32_lock();
    forget(object);
    win32_unlock();
}

extern BOOL WinDivertClose(HANDLE handle);

BOOL CloseHandle(HANDLE handle)
{
    int fd = win32_descriptor(handle);

    if ((intptr_t)handle < 0)
        return fd >= 0 || handle == GetCurrentProcess() || handle == GetCurrentThread() || fails(ERROR_INVALID_HANDLE);
    if (fd < 0)
        return WinDivertClose(handle);
    win32_lock();
    if (fd < room) {
        forget(objects[fd]);
        objects[fd] = NULL;
    }
    fd = close(fd);
    win32_unlock();
    return fd == 0 || fails(ERROR_INVALID_HANDLE);
}

BOOL DuplicateHandle(HANDLE fromProcess, HANDLE handle, HANDLE toProcess, LPHANDLE copy, DWORD access, BOOL inherit,
                     DWORD options)
{
    int fd = win32_descriptor(handle);
    struct object *object;
    BOOL ok;

    (void)access;
    if (fromProcess != GetCurrentProcess() || toProcess != GetCurrentProcess())
        return fails(ERROR_NOT_SUPPORTED);
    if (copy == NULL)
        return fails(ERROR_INVALID_PARAMETER);
    win32_lock();
    fd = fd < 0 ? -1 : fcntl(fd, inherit ? F_DUPFD : F_DUPFD_CLOEXEC, 3);
    object = object_of(handle);
    ok = fd >= 0 && make_room(fd);
    if (ok) {
        objects[fd] = object;
        if (object != NULL)
            object->refs++;
    }
    win32_unlock();
    if (!ok)
        return fails(ERROR_INVALID_HANDLE);
    *copy = (HANDLE)((uintptr_t)fd | ((intptr_t)handle > 0 ? (uintptr_t)handle & AUTO_RESET : 0));
    return !(options & DUPLICATE_CLOSE_SOURCE) || CloseHandle(handle);
}

/* ---- Mutexes and semaphores: counters in eventfds ------------------------------------------------------------ */

static HANDLE counter(enum kind kind, LONG initial, LONG maximum, LPCSTR name)
{
    struct object *object;

    if (name != NULL) {
        SetLastError(ERROR_NOT_SUPPORTED);
        return NULL;
    }
    object = (struct object *)calloc(1, sizeof(*object));
    if (object != NULL) {
        object->kind = kind;
        object->refs = 1;
        object->maximum = maximum;
        if (kind == MUTEX && initial == 0) {
            object->id = (pid_t)GetCurrentThreadId();
            object->depth = 1;
        }
    }
    return win32_add(eventfd((unsigned)initial, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE), object);
}

HANDLE CreateMutex(LPSECURITY_ATTRIBUTES attributes, BOOL owned, LPCSTR name)
{
    (void)attributes;
    return counter(MUTEX, owned ? 0 : 1, 1, name);
}

HANDLE CreateSemaphore(LPSECURITY_ATTRIBUTES attributes, LONG initial, LONG maximum, LPCSTR name)
{
    (void)attributes;
    if (maximum <= 0 || initial < 0 || initial > maximum) {
        SetLastError(ERROR_INVALID_PARAMETER);
        return NULL;
    }
    return counter(SEMAPHORE, initial, maximum, name);
}

/* put adds to a counter. */
static void put(int fd, LONG count)
{
    const uint64_t n = (uint64_t)count;

    (void)!write(fd, &n, sizeof(n)); /* stays below the limit, which programs never reach */
}

/* take reads an eventfd, which may be a blocking one of the program's own, and reports whether it was set. */
static BOOL take(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    uint64_t count;

    return poll(&p, 1, 0) == 1 && read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count);
}

BOOL ReleaseMutex(HANDLE mutex)
{
    DWORD error = ERROR_SUCCESS;
    struct object *object;

    win32_lock();
    object = object_of(mutex);
    if (object == NULL || object->kind != MUTEX)
        error = ERROR_INVALID_HANDLE;
    else if (object->id != (pid_t)GetCurrentThreadId())
        error = ERROR_NOT_OWNER;
    else if (--object->depth == 0) {
        object->id = 0;
        put(win32_descriptor(mutex), 1);
    }
    win32_unlock();
    return error == ERROR_SUCCESS || fails(error);
}

BOOL ReleaseSemaphore(HANDLE semaphore, LONG count, LPLONG previous)
{
    DWORD error = ERROR_SUCCESS;
    struct object *object;
    LONG now = 0;
    int fd = win32_descriptor(semaphore);

    win32_lock();
    object = object_of(semaphore);
    if (object == NULL || object->kind != SEMAPHORE)
        error = ERROR_INVALID_HANDLE;
    else {
        while (take(fd))
            now++;
        if (count <= 0)
            error = ERROR_INVALID_PARAMETER;
        else if (count > object->maximum - now)
            error = ERROR_TOO_MANY_POSTS;
        else if (previous != NULL)
            *previous = now;
        if (now + (error == ERROR_SUCCESS ? count : 0) > 0)
            put(fd, now + (error == ERROR_SUCCESS ? count : 0));
    }
    win32_unlock();
    return error == ERROR_SUCCESS || fails(error);
}

void win32_abandon(void)
{
    pid_t self = (pid_t)GetCurrentThreadId();
    int fd;

    win32_lock();
    for (fd = 0; fd < room; fd++)
        if (objects[fd] != NULL && objects[fd]->kind == MUTEX && objects[fd]->id == self) {
            objects[fd]->id = 0;
            objects[fd]->depth = 0;
            objects[fd]->abandoned = TRUE;
            put(fd, 1);
        }
    win32_unlock();
}

/* ---- Waiting ---------------------------------------------------------------------------------------------------- */

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

enum { NOT_NOW = -1, OBTAINED, ABANDONED };

/* owned reports whether the calling thread holds a mutex. The caller holds the lock. */
static BOOL owned(HANDLE handle)
{
    struct object *object = object_of(handle);

    return object != NULL && object->kind == MUTEX && object->id == (pid_t)GetCurrentThreadId();
}

/* consumed reports whether waiting for a handle that is not a mutex resets it. The caller holds the lock. */
static BOOL consumed(HANDLE handle)
{
    struct object *object = object_of(handle);

    return (object != NULL && object->kind == SEMAPHORE) || ((intptr_t)handle > 0 && (uintptr_t)handle & AUTO_RESET);
}

/* obtain takes an object that poll has reported, unless another thread was faster. The caller holds the lock. */
static int obtain(HANDLE handle)
{
    struct object *object = object_of(handle);
    int fd = win32_descriptor(handle);
    BOOL abandoned;

    if (object != NULL && object->kind == MUTEX) {
        if (owned(handle)) {
            object->depth++;
            return OBTAINED;
        }
        if (!take(fd))
            return NOT_NOW;
        abandoned = object->abandoned;
        object->abandoned = FALSE;
        object->id = (pid_t)GetCurrentThreadId();
        object->depth = 1;
        return abandoned ? ABANDONED : OBTAINED;
    }
    return !consumed(handle) || take(fd) ? OBTAINED : NOT_NOW;
}

/* give_back undoes obtain. The caller holds the lock. */
static void give_back(HANDLE handle, int how)
{
    struct object *object = object_of(handle);

    if (object != NULL && object->kind == MUTEX) {
        if (--object->depth > 0)
            return;
        object->id = 0;
        object->abandoned = how == ABANDONED;
        put(win32_descriptor(handle), 1);
    } else if (consumed(handle))
        put(win32_descriptor(handle), 1);
}

/* obtain_any takes the first ready handle and returns the result of the wait, WAIT_TIMEOUT if none is ready. */
static DWORD obtain_any(DWORD count, const HANDLE *handles, const struct pollfd *polls)
{
    DWORD i, result = WAIT_TIMEOUT;
    int how;

    win32_lock();
    for (i = 0; i < count && result == WAIT_TIMEOUT; i++) {
        if (polls[i].revents == 0 && !owned(handles[i]))
            continue;
        how = obtain(handles[i]);
        if (how != NOT_NOW)
            result = (how == ABANDONED ? WAIT_ABANDONED_0 : WAIT_OBJECT_0) + i;
    }
    win32_unlock();
    return result;
}

/* obtain_all takes all of the handles or none. */
static DWORD obtain_all(DWORD count, const HANDLE *handles)
{
    int how[MAXIMUM_WAIT_OBJECTS];
    DWORD i, n, result = WAIT_OBJECT_0;
    struct pollfd p;

    win32_lock();
    for (n = 0; n < count; n++) {
        p.fd = win32_descriptor(handles[n]);
        p.events = POLLIN;
        how[n] = owned(handles[n]) || poll(&p, 1, 0) == 1 ? obtain(handles[n]) : NOT_NOW;
        if (how[n] == NOT_NOW)
            break;
        if (how[n] == ABANDONED)
            result = WAIT_ABANDONED_0;
    }
    for (i = 0; n < count && i < n; i++)
        give_back(handles[i], how[i]);
    win32_unlock();
    return n == count ? result : WAIT_TIMEOUT;
}

/* settle waits for a completion that has set an event but not yet its status. */
static void settle(void)
{
    OVERLAPPED none;
    DWORD n;

    memset(&none, 0, sizeof(none));
    (void)GetOverlappedResult(NULL, &none, &n, FALSE);
}

DWORD WaitForMultipleObjects(DWORD count, const HANDLE *handles, BOOL all, DWORD milliseconds)
{
    struct pollfd polls[MAXIMUM_WAIT_OBJECTS];
    int64_t start = milliseconds_now();
    DWORD i, result;

    if (count == 0 || count > MAXIMUM_WAIT_OBJECTS || handles == NULL)
        return fails(ERROR_INVALID_PARAMETER), WAIT_FAILED;
    for (i = 0; i < count; i++) {
        polls[i].fd = win32_descriptor(handles[i]);
        polls[i].events = POLLIN;
        polls[i].revents = 0;
        if (polls[i].fd < 0 || fcntl(polls[i].fd, F_GETFD) < 0)
            return fails(ERROR_INVALID_HANDLE), WAIT_FAILED;
    }
    for (;;) {
        result = all ? obtain_all(count, handles) : obtain_any(count, handles, polls);
        if (result != WAIT_TIMEOUT)
            return settle(), result;
        /* All: wait for those that are not ready, one after the other. */
        for (i = 0; all && i < count - 1; i++) {
            if (poll(polls + i, 1, 0) == 0)
                break;
        }
        if (poll(all ? polls + i : polls, all ? 1 : count, remaining(milliseconds, start)) <= 0 &&
            remaining(milliseconds, start) == 0)
            return WAIT_TIMEOUT;
    }
}

DWORD WaitForSingleObject(HANDLE handle, DWORD milliseconds)
{
    return WaitForMultipleObjects(1, &handle, FALSE, milliseconds);
}

/* ---- Reading and writing ------------------------------------------------------------------------------------------ */

static BOOL transfer(ssize_t n, LPDWORD done, LPOVERLAPPED overlapped, BOOL can)
{
    if (overlapped != NULL)
        return fails(ERROR_NOT_SUPPORTED);
    if (!can || n < 0)
        return fails(can ? win32_error(errno) : ERROR_INVALID_HANDLE);
    if (done != NULL)
        *done = (DWORD)n;
    return TRUE;
}

BOOL ReadFile(HANDLE file, LPVOID buffer, DWORD size, LPDWORD done, LPOVERLAPPED overlapped)
{
    int fd = win32_descriptor(file);

    return transfer(fd < 0 || overlapped != NULL ? -1 : read(fd, buffer, size), done, overlapped, fd >= 0);
}

BOOL WriteFile(HANDLE file, LPCVOID buffer, DWORD size, LPDWORD done, LPOVERLAPPED overlapped)
{
    int fd = win32_descriptor(file);

    if (fd == STDOUT_FILENO)
        fflush(stdout);
    return transfer(fd < 0 || overlapped != NULL ? -1 : write(fd, buffer, size), done, overlapped, fd >= 0);
}
