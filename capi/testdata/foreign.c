/*
 * foreign.c loads the library as a plugin would be and checks that it is a good guest: signals, forks, threads,
 * loading and unloading. Its argument is the path of the library.
 */
#include "windivert.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int failed;

#define CHECK(condition)                                                   \
    do {                                                                   \
        if (!(condition)) {                                                \
            printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            failed = 1;                                                    \
        }                                                                  \
    } while (0)

/* The functions in use. */
static HANDLE (*open_)(const char *, WINDIVERT_LAYER, INT16, UINT64);
static BOOL (*recv_)(HANDLE, VOID *, UINT, UINT *, WINDIVERT_ADDRESS *);
static BOOL (*send_)(HANDLE, const VOID *, UINT, UINT *, const WINDIVERT_ADDRESS *);
static BOOL (*close_)(HANDLE);
static BOOL (*compile_)(const char *, WINDIVERT_LAYER, char *, UINT, const char **, UINT *);
static BOOL (*parse_)(const char *, UINT32 *);
static BOOL (*cancel_)(HANDLE, LPOVERLAPPED);
static UINT16 (*swap_)(UINT16);
static DWORD (*error_)(void);

static void *load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (library == NULL) {
        printf("%s\n", dlerror());
        exit(2);
    }
    *(void **)&open_ = dlsym(library, "WinDivertOpen");
    *(void **)&recv_ = dlsym(library, "WinDivertRecv");
    *(void **)&send_ = dlsym(library, "WinDivertSend");
    *(void **)&close_ = dlsym(library, "WinDivertClose");
    *(void **)&compile_ = dlsym(library, "WinDivertHelperCompileFilter");
    *(void **)&parse_ = dlsym(library, "WinDivertHelperParseIPv4Address");
    *(void **)&cancel_ = dlsym(library, "CancelIoEx");
    *(void **)&swap_ = dlsym(library, "WinDivertHelperNtohs");
    *(void **)&error_ = dlsym(library, "WinDivertGetLastError");
    return library;
}

static BOOL works(void)
{
    UINT32 addr = 0;

    return compile_("tcp.DstPort == 80", WINDIVERT_LAYER_NETWORK, NULL, 0, NULL, NULL) && parse_("1.2.3.4", &addr) &&
           addr == 0x01020304;
}

/* ---- Signals ---- */

static volatile sig_atomic_t handled;

static void handler(int number)
{
    handled = number;
}

/* Signals that Go needs: faults in its code become panics, writes to broken pipes errors, and SIGURG preempts. */
static int taken_by_go(int number)
{
    return number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGPIPE || number == SIGURG;
}

static void check_signals(const char *path)
{
    struct sigaction before[65], after;
    sigset_t mask_before, mask_after;
    int i;

    signal(SIGUSR1, handler);
    signal(SIGTERM, handler);
    signal(SIGUSR2, SIG_IGN);
    for (i = 1; i <= 64; i++)
        if (sigaction(i, NULL, &before[i]) != 0)
            before[i].sa_handler = SIG_ERR;
    pthread_sigmask(SIG_SETMASK, NULL, &mask_before);
    load(path);
    CHECK(works());
    for (i = 1; i <= 64; i++) {
        if (before[i].sa_handler == SIG_ERR || sigaction(i, NULL, &after) != 0)
            continue;
        if ((after.sa_handler != before[i].sa_handler) != taken_by_go(i)) {
            printf("the handler of signal %d has %schanged\n", i, taken_by_go(i) ? "not " : "");
            failed = 1;
        }
    }
    pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
    CHECK(memcmp(&mask_before, &mask_after, sizeof(unsigned long)) == 0);
    raise(SIGUSR1);
    CHECK(handled == SIGUSR1);
    kill(getpid(), SIGTERM);
    for (i = 0; i < 1000 && handled != SIGTERM; i++)
        usleep(1000);
    CHECK(handled == SIGTERM);
    kill(getpid(), SIGUSR2);
    CHECK(works());
}

/* ---- Loading and unloading: Go stays, so the library can be loaded again ---- */

static void check_unloading(const char *path)
{
    void *library = load(path);
    void *first = (void *)(uintptr_t)open_;
    int i;

    for (i = 0; i < 10; i++) {
        CHECK(works());
        CHECK(dlclose(library) == 0);
        library = load(path);
        CHECK((void *)(uintptr_t)open_ == first);
    }
    CHECK(works());
}

/* ---- Forks ---- */

/* refuses checks that every call of a child fails at once, with the right error. */
static void refuses(HANDLE handle)
{
    WINDIVERT_ADDRESS addr;
    char packet[100];
    UINT length;

    memset(&addr, 0, sizeof(addr));
    memset(packet, 0, sizeof(packet));
    alarm(10); /* a call that hangs is a failure */
    CHECK(open_("true", WINDIVERT_LAYER_NETWORK, 0, 0) == INVALID_HANDLE_VALUE);
    CHECK(error_() == ERROR_NOT_SUPPORTED && errno == EOPNOTSUPP);
    CHECK(!recv_(handle, packet, sizeof(packet), &length, &addr) && error_() == ERROR_NOT_SUPPORTED);
    CHECK(!send_(handle, packet, sizeof(packet), &length, &addr) && error_() == ERROR_NOT_SUPPORTED);
    CHECK(!close_(handle) && error_() == ERROR_NOT_SUPPORTED);
    CHECK(!cancel_(handle, NULL) && error_() == ERROR_NOT_SUPPORTED);
    CHECK(!works() && error_() == ERROR_NOT_SUPPORTED);
    CHECK(swap_(0x1234) == 0x3412); /* this one needs no Go */
    fflush(stdout);
    _exit(failed);
}

static void ends_well(pid_t child)
{
    int status = -1;

    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static volatile int calling = 1;

static void *call(void *unused)
{
    while (calling)
        works();
    return unused;
}

static void check_forks(char **argv)
{
    HANDLE handle = open_("false", WINDIVERT_LAYER_NETWORK, 0, 0);
    char *again[] = {argv[0], argv[1], (char *)"works", NULL};
    pthread_t threads[3];
    pid_t child;
    int i;

    for (i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, call, NULL);
    for (i = 0; i < 20; i++) {
        if ((child = fork()) == 0)
            refuses(handle);
        ends_well(child);
    }
    if ((child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)) == 0)
        refuses(handle); /* a fork without the handlers of pthread_atfork */
    ends_well(child);
    for (i = 0; i < 5; i++) {
        if ((child = fork()) == 0) {
            execv(argv[0], again);
            _exit(3);
        }
        ends_well(child);
    }
    CHECK(posix_spawn(&child, argv[0], NULL, NULL, again, environ) == 0);
    ends_well(child);
    calling = 0;
    for (i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK(works());
    if (handle != INVALID_HANDLE_VALUE)
        CHECK(close_(handle));
}

/* ---- Threads that come and go ---- */

static void *work(void *unused)
{
    int i;

    (void)unused;
    for (i = 0; i < 10; i++)
        if (!works())
            return (void *)1;
    return NULL;
}

static int threads_now(void)
{
    char line[200];
    int n = -1;
    FILE *f = fopen("/proc/self/status", "r");

    while (f != NULL && fgets(line, sizeof(line), f) != NULL)
        if (sscanf(line, "Threads: %d", &n) == 1)
            break;
    if (f != NULL)
        fclose(f);
    return n;
}

static void check_threads(void)
{
    enum { ROUNDS = 20, THREADS = 20 };
    pthread_t threads[THREADS];
    void *result;
    int round, i;

    for (round = 0; round < ROUNDS; round++) {
        for (i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, work, NULL);
        for (i = 0; i < THREADS; i++) {
            pthread_join(threads[i], &result);
            CHECK(result == NULL);
        }
    }
    CHECK(threads_now() < 30); /* Go keeps none of theirs, and few of its own */
}

/* ---- Children started with another argument ---- */

static sigjmp_buf out;

static void escape(int number)
{
    handled = number;
    siglongjmp(out, 1);
}

/* A fault of the program's own reaches the program's handler. */
static int fault(const char *path)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = escape;
    sigaction(SIGSEGV, &action, NULL);
    load(path);
    if (!works())
        return 1;
    if (sigsetjmp(out, 1) == 0)
        *(volatile int *)8 = 1;
    return handled == SIGSEGV && works() ? 0 : 1;
}

/* A write to a broken pipe ends a program that does not handle it, as without the library. */
static int broken_pipe(const char *path, void (*disposition)(int))
{
    int ends[2];

    load(path);
    if (!works() || pipe(ends) != 0)
        return 1;
    if (disposition != SIG_DFL)
        signal(SIGPIPE, disposition);
    close(ends[0]);
    return write(ends[1], "x", 1) < 0 && errno == EPIPE && works() ? 0 : 1;
}

static int status_of(char **argv, const char *job)
{
    char *args[] = {argv[0], argv[1], (char *)job, NULL};
    int status = -1;
    pid_t child;

    if (posix_spawn(&child, argv[0], NULL, NULL, args, environ) != 0 || waitpid(child, &status, 0) != child)
        return -1;
    return status;
}

static void check_children(char **argv)
{
    int status = status_of(argv, "pipe");

    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
    CHECK(status_of(argv, "pipe-ignored") == 0);
    CHECK(status_of(argv, "pipe-handled") == 0);
    CHECK(status_of(argv, "fault") == 0);
}

int main(int argc, char **argv)
{
    const char *job = argc > 2 ? argv[2] : "";

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2)
        return 2;
    if (strcmp(job, "works") == 0)
        return load(argv[1]), !works();
    if (strcmp(job, "fault") == 0)
        return fault(argv[1]);
    if (strcmp(job, "pipe") == 0)
        return broken_pipe(argv[1], SIG_DFL);
    if (strcmp(job, "pipe-ignored") == 0)
        return broken_pipe(argv[1], SIG_IGN);
    if (strcmp(job, "pipe-handled") == 0)
        return broken_pipe(argv[1], handler);
    check_signals(argv[1]);
    check_unloading(argv[1]);
    check_threads();
    check_forks(argv);
    check_children(argv);
    return failed;
}
