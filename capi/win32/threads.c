/* threads.c: threads, their locks, and time. */
#include "win32.h"

#include "process.h"

#include <sched.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>

HANDLE GetCurrentThread(void)
{
    return (HANDLE)(intptr_t)-2;
}

DWORD GetCurrentThreadId(void)
{
    static __thread DWORD id;

    if (id == 0)
        id = (DWORD)syscall(SYS_gettid);
    return id;
}

BOOL win32_helper(void *(*start)(void *), void *argument)
{
    sigset_t all, before;
    pthread_t thread;
    int result;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&thread, NULL, start, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result == 0)
        pthread_detach(thread);
    return result == 0 || fails(win32_error(result));
}

/* ---- Threads ---- */

/* The argument of a new thread. */
struct beginning {
    struct object *object;
    LPTHREAD_START_ROUTINE start;
    LPVOID parameter;
    BOOL suspended;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the ids and the suspension of new threads */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static __thread struct object *self; /* for threads created here */
static pthread_key_t ending;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* end runs when a thread ends, in whatever way. */
static void end(void *object_)
{
    struct object *object = (struct object *)object_;
    const uint64_t n = 1;

    win32_abandon();
    win32_lock();
    if (object->code == STILL_ACTIVE)
        object->code = 0;
    (void)!write(object->ended, &n, sizeof(n));
    win32_unlock();
    win32_release(object);
}

static void make_key(void)
{
    (void)pthread_key_create(&ending, end);
}

static void *begin(void *beginning_)
{
    struct beginning b = *(struct beginning *)beginning_;

    free(beginning_);
    self = b.object;
    pthread_once(&once, make_key);
    pthread_setspecific(ending, b.object);
    pthread_mutex_lock(&lock);
    self->id = (pid_t)GetCurrentThreadId();
    pthread_cond_broadcast(&changed);
    while (self->depth > 0) /* the count of suspensions */
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    ExitThread(b.start(b.parameter));
}

static int start_thread(SIZE_T stack, struct beginning *b)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int result;

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (stack > 0) /* enough stack for Windows may be too little for Linux */
        (void)pthread_attr_setstacksize(&attributes, stack < 1 << 20 ? 1 << 20 : (stack + 65535) & ~(SIZE_T)65535);
    result = pthread_create(&thread, &attributes, begin, b);
    pthread_attr_destroy(&attributes);
    return result;
}

HANDLE CreateThread(LPSECURITY_ATTRIBUTES attributes, SIZE_T stack, LPTHREAD_START_ROUTINE start, LPVOID parameter,
                    DWORD flags, LPDWORD id)
{
    struct object *object = (struct object *)calloc(1, sizeof(*object));
    struct beginning *b = (struct beginning *)malloc(sizeof(*b));
    HANDLE handle;
    int result;

    (void)attributes;
    if (object == NULL || b == NULL || start == NULL) {
        free(object);
        free(b);
        SetLastError(start == NULL ? ERROR_INVALID_PARAMETER : ERROR_NOT_ENOUGH_MEMORY);
        return NULL;
    }
    object->kind = THREAD;
    object->refs = 2; /* the handle's and the thread's */
    object->code = STILL_ACTIVE;
    object->depth = flags & CREATE_SUSPENDED ? 1 : 0;
    object->ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    b->object = object;
    b->start = start;
    b->parameter = parameter;
    handle = win32_add(object->ended < 0 ? -1 : fcntl(object->ended, F_DUPFD_CLOEXEC, 3), object);
    result = handle == NULL ? 0 : start_thread(stack, b);
    if (handle == NULL || result != 0) {
        free(b);
        win32_release(object); /* the thread's */
        if (handle != NULL) {
            CloseHandle(handle);
            SetLastError(win32_error(result));
        }
        return NULL;
    }
    pthread_mutex_lock(&lock);
    while (object->id == 0)
        pthread_cond_wait(&changed, &lock);
    if (id != NULL)
        *id = (DWORD)object->id;
    pthread_mutex_unlock(&lock);
    return handle;
}

DWORD ResumeThread(HANDLE thread)
{
    struct object *object = win32_get(thread, THREAD);
    int before;

    if (object == NULL)
        return (DWORD)-1;
    pthread_mutex_lock(&lock);
    before = object->depth;
    if (before > 0)
        object->depth--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    win32_release(object);
    return (DWORD)before;
}

void ExitThread(DWORD code)
{
    if (self != NULL) {
        win32_lock();
        self->code = code;
        win32_unlock();
    } else
        win32_abandon();
    pthread_exit(NULL);
}

BOOL GetExitCodeThread(HANDLE thread, LPDWORD code)
{
    struct object *object;

    if (thread == GetCurrentThread()) {
        *code = STILL_ACTIVE;
        return TRUE;
    }
    object = win32_get(thread, THREAD);
    if (object == NULL)
        return FALSE;
    win32_lock();
    *code = object->code;
    win32_unlock();
    win32_release(object);
    return TRUE;
}

BOOL TerminateThread(HANDLE thread, DWORD code)
{
    (void)thread;
    (void)code;
    return fails(ERROR_NOT_SUPPORTED);
}

BOOL SetThreadPriority(HANDLE thread, int priority)
{
    struct object *object = NULL;
    int nice = priority <= THREAD_PRIORITY_IDLE ? 19 : priority >= THREAD_PRIORITY_TIME_CRITICAL ? -20 : -5 * priority;
    id_t id = GetCurrentThreadId();

    if (priority < THREAD_PRIORITY_IDLE || priority > THREAD_PRIORITY_TIME_CRITICAL)
        return fails(ERROR_INVALID_PARAMETER);
    if (thread != GetCurrentThread()) {
        if ((object = win32_get(thread, THREAD)) == NULL)
            return FALSE;
        id = (id_t)object->id;
        win32_release(object);
    }
    return setpriority(PRIO_PROCESS, id, nice) == 0 || fails(win32_error(errno));
}

BOOL SwitchToThread(void)
{
    return sched_yield() == 0;
}

/* The pair of the C library: start returns unsigned, which is a DWORD. */
uintptr_t _beginthreadex(void *attributes, unsigned stack, unsigned (*start)(void *), void *parameter, unsigned flags,
                         unsigned *id)
{
    HANDLE thread = CreateThread((LPSECURITY_ATTRIBUTES)attributes, stack, start, parameter, flags, id);

    if (thread == NULL)
        errno = GetLastError() == ERROR_INVALID_PARAMETER ? EINVAL : EAGAIN;
    return (uintptr_t)thread;
}

struct plain {
    void (*start)(void *);
    void *parameter;
};

static DWORD begin_plain(LPVOID plain_)
{
    struct plain plain = *(struct plain *)plain_;

    free(plain_);
    plain.start(plain.parameter);
    return 0;
}

uintptr_t _beginthread(void (*start)(void *), unsigned stack, void *parameter)
{
    struct plain *plain = (struct plain *)malloc(sizeof(*plain));
    HANDLE thread = NULL;
    DWORD id = 0;

    if (plain != NULL && start != NULL) {
        plain->start = start;
        plain->parameter = parameter;
        thread = CreateThread(NULL, stack, begin_plain, plain, 0, &id);
    }
    if (thread == NULL) {
        free(plain);
        errno = start == NULL ? EINVAL : EAGAIN;
        return (uintptr_t)-1L;
    }
    CloseHandle(thread);
    return (uintptr_t)id | (uintptr_t)1 << 31; /* above all descriptors, so that no call accepts it */
}

void _endthreadex(unsigned code)
{
    ExitThread(code);
}

void _endthread(void)
{
    ExitThread(0);
}

/* ---- Locks ---- */

void InitializeCriticalSection(LPCRITICAL_SECTION section)
{
    pthread_mutexattr_t recursive;

    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&section->mutex, &recursive);
    pthread_mutexattr_destroy(&recursive);
}

BOOL InitializeCriticalSectionAndSpinCount(LPCRITICAL_SECTION section, DWORD spin)
{
    (void)spin;
    InitializeCriticalSection(section);
    return TRUE;
}

void EnterCriticalSection(LPCRITICAL_SECTION section)
{
    pthread_mutex_lock(&section->mutex);
}

BOOL TryEnterCriticalSection(LPCRITICAL_SECTION section)
{
    return pthread_mutex_trylock(&section->mutex) == 0;
}

void LeaveCriticalSection(LPCRITICAL_SECTION section)
{
    pthread_mutex_unlock(&section->mutex);
}

void DeleteCriticalSection(LPCRITICAL_SECTION section)
{
    pthread_mutex_destroy(&section->mutex);
}

void InitializeSRWLock(PSRWLOCK l)
{
    pthread_rwlock_init(&l->lock, NULL);
}

void AcquireSRWLockExclusive(PSRWLOCK l)
{
    pthread_rwlock_wrlock(&l->lock);
}

void AcquireSRWLockShared(PSRWLOCK l)
{
    pthread_rwlock_rdlock(&l->lock);
}

void ReleaseSRWLockExclusive(PSRWLOCK l)
{
    pthread_rwlock_unlock(&l->lock);
}

void ReleaseSRWLockShared(PSRWLOCK l)
{
    pthread_rwlock_unlock(&l->lock);
}

void InitializeConditionVariable(PCONDITION_VARIABLE condition)
{
    pthread_cond_init(&condition->condition, NULL);
}

BOOL SleepConditionVariableCS(PCONDITION_VARIABLE condition, LPCRITICAL_SECTION section, DWORD milliseconds)
{
    struct timespec t;

    if (milliseconds == INFINITE)
        return pthread_cond_wait(&condition->condition, &section->mutex) == 0;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += (time_t)(milliseconds / 1000);
    t.tv_nsec += (long)(milliseconds % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return pthread_cond_clockwait(&condition->condition, &section->mutex, CLOCK_MONOTONIC, &t) == 0 ||
           fails(ERROR_TIMEOUT);
}

void WakeConditionVariable(PCONDITION_VARIABLE condition)
{
    pthread_cond_signal(&condition->condition);
}

void WakeAllConditionVariable(PCONDITION_VARIABLE condition)
{
    pthread_cond_broadcast(&condition->condition);
}

/* ---- Time ---- */

void Sleep(DWORD milliseconds)
{
    struct timespec t = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000};

    if (milliseconds == 0)
        sched_yield();
    while (milliseconds == INFINITE)
        pause();
    while (nanosleep(&t, &t) != 0 && errno == EINTR)
        ;
}

static int64_t nanoseconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

BOOL QueryPerformanceCounter(PLARGE_INTEGER count)
{
    count->QuadPart = nanoseconds();
    return TRUE;
}

BOOL QueryPerformanceFrequency(PLARGE_INTEGER frequency)
{
    frequency->QuadPart = 1000000000;
    return TRUE;
}

ULONGLONG GetTickCount64(void)
{
    struct timespec t;

    clock_gettime(CLOCK_BOOTTIME, &t); /* since the system's start, including sleep */
    return (ULONGLONG)t.tv_sec * 1000 + (ULONGLONG)t.tv_nsec / 1000000;
}

DWORD GetTickCount(void)
{
    return (DWORD)GetTickCount64();
}

void GetSystemTimeAsFileTime(LPFILETIME time)
{
    struct timespec t;
    ULONGLONG n;

    clock_gettime(CLOCK_REALTIME, &t);
    n = ((ULONGLONG)t.tv_sec + 11644473600u) * 10000000 + (ULONGLONG)t.tv_nsec / 100; /* since 1601, in 100 ns */
    time->dwLowDateTime = (DWORD)n;
    time->dwHighDateTime = (DWORD)(n >> 32);
}

static void system_time(LPSYSTEMTIME time, struct tm *(*convert)(const time_t *, struct tm *))
{
    struct timespec t;
    struct tm tm;

    clock_gettime(CLOCK_REALTIME, &t);
    memset(&tm, 0, sizeof(tm));
    (void)convert(&t.tv_sec, &tm);
    time->wYear = (WORD)(tm.tm_year + 1900);
    time->wMonth = (WORD)(tm.tm_mon + 1);
    time->wDayOfWeek = (WORD)tm.tm_wday;
    time->wDay = (WORD)tm.tm_mday;
    time->wHour = (WORD)tm.tm_hour;
    time->wMinute = (WORD)tm.tm_min;
    time->wSecond = (WORD)tm.tm_sec;
    time->wMilliseconds = (WORD)(t.tv_nsec / 1000000);
}

void GetSystemTime(LPSYSTEMTIME time)
{
    system_time(time, gmtime_r);
}

void GetLocalTime(LPSYSTEMTIME time)
{
    system_time(time, localtime_r);
}
