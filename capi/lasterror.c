/* lasterror.c: error numbers per thread, errno, the environment, and forked children. */
#include "shim.h"

#include <stdlib.h>
#include <string.h>

BOOL divert_extended(void)
{
    const char *dialect = getenv("DIVERT_DIALECT");

    return dialect != NULL && strcmp(dialect, "extended") == 0;
}

int divert_segments(void)
{
    const char *segments = getenv("DIVERT_SEGMENTS");

    if (segments != NULL && strcmp(segments, "1") == 0)
        return DIVERT_SEGMENTS_ALWAYS;
    return segments != NULL && strcmp(segments, "0") == 0 ? DIVERT_SEGMENTS_NEVER : DIVERT_SEGMENTS_IF_SHORT;
}

/* milliseconds reads a time from the environment, 0 if there is none. An invalid one becomes 1, which is too short. */
static int milliseconds(const char *name)
{
    const char *text = getenv(name);
    char *end;
    long n;

    if (text == NULL || *text == '\0')
        return 0;
    n = strtol(text, &end, 10);
    return *end != '\0' || n < 1 || n > 1000000000 ? 1 : (int)n;
}

int divert_hang(void)
{
    int pass = milliseconds("DIVERT_PASS_ON_HANG"), drop = milliseconds("DIVERT_DROP_ON_HANG");

    return pass != 0 && drop != 0 ? 1 : pass - drop;
}

#ifdef _WIN32

BOOL divert_alive(void)
{
    return TRUE;
}

void divert_set_error(DWORD error)
{
    SetLastError(error);
}

BOOL divert_fail(DWORD error)
{
    SetLastError(error);
    return FALSE;
}

DWORD WinDivertGetLastError(void)
{
    return GetLastError();
}

#else

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

static __thread DWORD last_error __attribute__((tls_model("initial-exec"))); /* read in signal handlers too */

/* errno for each error number; EIO for all others. */
static const struct {
    DWORD error;
    int value;
} errnos[] = {
    {ERROR_INVALID_FUNCTION, ENOSYS},
    {ERROR_FILE_NOT_FOUND, ENOENT},
    {ERROR_ACCESS_DENIED, EACCES},
    {ERROR_INVALID_HANDLE, EBADF},
    {ERROR_BAD_COMMAND, ENXIO},
    {ERROR_NOT_SUPPORTED, EOPNOTSUPP},
    {ERROR_INVALID_PARAMETER, EINVAL},
    {ERROR_INSUFFICIENT_BUFFER, EMSGSIZE},
    {ERROR_NO_DATA, EPIPE},
    {WAIT_TIMEOUT, ETIMEDOUT},
    {ERROR_OPERATION_ABORTED, ECANCELED},
    {ERROR_IO_INCOMPLETE, EAGAIN},
    {ERROR_IO_PENDING, EINPROGRESS},
    {ERROR_NOACCESS, EFAULT},
    {ERROR_POSSIBLE_DEADLOCK, EDEADLK},
    {ERROR_DEVICE_NOT_CONNECTED, ENODEV},
    {ERROR_NOT_FOUND, ENOENT},
    {ERROR_HOST_UNREACHABLE, EHOSTUNREACH},
    {ERROR_NO_SYSTEM_RESOURCES, ENOMEM},
};

static int errno_of(DWORD error)
{
    size_t i;

    for (i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++)
        if (errnos[i].error == error)
            return errnos[i].value;
    return EIO;
}

/*
 * The weak pair. If the program has its own SetLastError, that one receives the errors. A shared library linked by Go
 * calls its own functions directly, so the program's must be looked up.
 */

__attribute__((weak)) void SetLastError(DWORD error)
{
    last_error = error;
}

__attribute__((weak)) DWORD GetLastError(void)
{
    return last_error;
}

void *divert_program_call(const char *name, void *ours)
{
    void *program = dlopen(NULL, RTLD_LAZY); /* RTLD_DEFAULT would begin with the library itself */
    void *found = program == NULL ? NULL : dlsym(program, name);

    if (program != NULL)
        dlclose(program);
    return found == NULL ? ours : found;
}

static void (*set_last_error)(DWORD) = SetLastError;

__attribute__((constructor)) static void find_program_calls(void)
{
    *(void **)&set_last_error = divert_program_call("SetLastError", *(void **)&set_last_error);
}

void divert_set_error(DWORD error)
{
    set_last_error(error);
    last_error = error;
}

BOOL divert_fail(DWORD error)
{
    divert_set_error(error);
    errno = errno_of(error);
    return FALSE;
}

DWORD WinDivertGetLastError(void)
{
    return last_error;
}

/*
 * The mark lies in a page that the kernel wipes in forked children, whatever call forked them; where the kernel
 * (before 4.14) cannot, a handler of pthread_atfork does so. NULL: the constructor has not run yet.
 */
static volatile char *mark;
static volatile char fallback;

static void forked(void)
{
    *mark = 0;
}

__attribute__((constructor)) static void watch_forks(void)
{
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    mark = page == MAP_FAILED ? &fallback : (volatile char *)page;
#ifdef MADV_WIPEONFORK
    if (page != MAP_FAILED)
        (void)madvise(page, size, MADV_WIPEONFORK);
#endif
    *mark = 1;
    (void)pthread_atfork(NULL, NULL, forked);
}

BOOL divert_alive(void)
{
    return mark == NULL || *mark != 0;
}

#endif
