/*
 * signals.c calls the library from signal handlers, while the interrupted thread runs or waits anywhere in the
 * library, with one thread and with several. It must run in a namespace of its own. SIGALRM ends a hang.
 */
#include "traffic.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

enum { THREADS = 3 };

static struct pair udp;
static HANDLE volatile handle;
static volatile int going;                 /* the talker and the shooter go on */
static volatile sig_atomic_t handled;      /* handlers that have run */
static volatile sig_atomic_t refused, made; /* calls of handlers */
static pthread_t targets[THREADS];         /* the threads that signals are sent to */

/* allowed checks a call of a handler: it works, or fails because it comes from a handler. */
static void allowed(BOOL result, DWORD error)
{
    if (result)
        made++;
    else if (WinDivertGetLastError() == ERROR_POSSIBLE_DEADLOCK) {
        CHECK(errno == EDEADLK);
        refused++;
    } else
        CHECK(WinDivertGetLastError() == error);
}

/* ---- Handlers ---- */

static void shut_down(int number)
{
    (void)number;
    CHECK(WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH));
    handled++;
}

static void shut_down_and_close(int number)
{
    shut_down(number);
    CHECK(WinDivertClose(handle));
}

/* The way in which programs for Windows end, where handlers have a thread of their own. */
static void end_program(int number)
{
    shut_down_and_close(number);
    exit(failures());
}

static void call_everything(int number)
{
    UINT8 packet[100];
    WINDIVERT_ADDRESS addr;
    OVERLAPPED overlapped;
    UINT64 value;
    UINT32 ip;
    UINT n = 0;
    DWORD transferred;
    char text[200];
    HANDLE other;

    memset(&overlapped, 0, sizeof(overlapped));
    allowed(WinDivertRecv(handle, packet, sizeof(packet), &n, &addr), 0);
    if (n > 0) {
        allowed(WinDivertHelperCalcChecksums(packet, n, &addr, 0), 0);
        allowed(WinDivertSend(handle, packet, n, NULL, &addr), 0);
        allowed(WinDivertHelperEvalFilter("udp", packet, n, &addr), 0);
    }
    allowed(WinDivertGetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, &value), 0);
    allowed(WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, 4096), 0);
    allowed(WinDivertHelperCompileFilter("tcp and ip", WINDIVERT_LAYER_NETWORK, NULL, 0, NULL, NULL), 0);
    allowed(WinDivertHelperFormatFilter("tcp and ip", WINDIVERT_LAYER_NETWORK, text, sizeof(text)), 0);
    allowed(WinDivertHelperParseIPv4Address("1.2.3.4", &ip), 0);
    allowed(CancelIoEx(handle, NULL), ERROR_NOT_FOUND);
    allowed(GetOverlappedResult(handle, &overlapped, &transferred, FALSE), 0);
    other = WinDivertOpen("false", WINDIVERT_LAYER_NETWORK, 0, 0);
    allowed(other != INVALID_HANDLE_VALUE, 0);
    if (other != INVALID_HANDLE_VALUE)
        CHECK(WinDivertClose(other));
    CHECK(!WinDivertShutdown(handle, (WINDIVERT_SHUTDOWN)4) && WinDivertGetLastError() == ERROR_INVALID_PARAMETER);
    CHECK(WinDivertHelperNtohs(0x1234) == 0x3412); /* this one needs no Go */
    shut_down(number);
}

/* USE_STACK writes to as much stack as a handler might need, and reads it again. */
#define USE_STACK(name, size)                            \
    static void name(int number)                         \
    {                                                    \
        volatile UINT8 space[size];                      \
        UINT i;                                          \
                                                         \
        for (i = 0; i < sizeof(space); i += 64)          \
            space[i] = (UINT8)number;                    \
        for (i = 0; i < sizeof(space); i += 64)          \
            CHECK(space[i] == number);                   \
        handled++;                                       \
    }
USE_STACK(use_much_stack, 128 << 10)
USE_STACK(use_some_stack, 24 << 10)

static void install(void (*handler)(int))
{
    struct sigaction action; /* without SA_ONSTACK */

    memset(&action, 0, sizeof(action));
    action.sa_handler = handler;
    CHECK(sigaction(SIGINT, &action, NULL) == 0);
}

/* ---- Threads of the program; signals go to the targets alone ---- */

static pthread_t start(void *(*f)(void *), BOOL blocked)
{
    sigset_t set, before;
    pthread_t thread;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, &before);
    if (!blocked)
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    CHECK(pthread_create(&thread, NULL, f, NULL) == 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return thread;
}

static void *talk(void *unused)
{
    while (going)
        (void)send(udp.out, "x", 1, MSG_DONTWAIT);
    return unused;
}

/* pass receives, changes and sends until that fails, and returns the error. It spends half of the time in the library. */
static void *pass(void *unused)
{
    volatile int i;
    UINT8 packet[2000];
    WINDIVERT_ADDRESS addr;
    UINT n;

    (void)unused;
    while (WinDivertRecv(handle, packet, sizeof(packet), &n, &addr)) {
        WinDivertHelperDecrementTTL(packet, n);
        WinDivertHelperCalcChecksums(packet, n, &addr, 0);
        WinDivertSend(handle, packet, n, NULL, &addr);
        for (i = 0; i < 10000; i++)
            ;
    }
    return (void *)(uintptr_t)WinDivertGetLastError();
}

static unsigned random_now;

static unsigned next_random(void)
{
    return random_now = random_now * 1664525u + 1013904223u, random_now >> 16;
}

/* shoot_once interrupts one thread, at a time that varies. */
static void *shoot_once(void *unused)
{
    struct timespec t = {0, (long)(next_random() % 3000) * 1000};

    nanosleep(&t, NULL);
    pthread_kill(targets[next_random() % THREADS], SIGINT);
    return unused;
}

static void *shoot(void *unused)
{
    while (going) {
        pthread_kill(targets[0], SIGINT);
        sched_yield();
    }
    return unused;
}

/* ---- Checks ---- */

/* A handler ends the work of the thread, wherever it is. */
static void check_ending(void (*handler)(int), BOOL closes, BOOL late, int rounds)
{
    UINT8 packet[100];
    pthread_t talker, shooter;
    DWORD error;
    int i;

    for (i = 0; i < THREADS; i++)
        targets[i] = pthread_self();
    for (; rounds > 0; rounds--) {
        handled = 0;
        handle = open_on(&udp, 0, 0);
        going = 1;
        talker = start(talk, TRUE);
        if (late) /* so that the library has not seen the handler yet */
            CHECK(WinDivertRecv(handle, packet, sizeof(packet), NULL, NULL));
        install(handler);
        shooter = start(shoot_once, TRUE);
        error = (DWORD)(uintptr_t)pass(NULL);
        pthread_join(shooter, NULL);
        going = 0;
        pthread_join(talker, NULL);
        EQUAL(handled, 1);
        if (closes)
            CHECK(error == ERROR_NO_DATA || error == ERROR_OPERATION_ABORTED || error == ERROR_INVALID_HANDLE ||
                  error == ERROR_BAD_COMMAND);
        else {
            EQUAL(error, ERROR_NO_DATA);
            SUCCEEDS(WinDivertClose(handle));
        }
    }
}

/* A handler ends the program. */
static void wait_for_the_end(void)
{
    int i;

    install(end_program);
    for (i = 0; i < THREADS; i++)
        targets[i] = pthread_self();
    handle = open_on(&udp, 0, 0);
    going = 1;
    start(talk, TRUE);
    start(shoot_once, TRUE);
    pass(NULL);
    for (;;)
        pause(); /* the handler has shut the handle down, and goes on */
}

/* Signals come to any of several threads that receive. */
static void check_threads(int rounds)
{
    pthread_t shooter, talker;
    void *error;
    int i;

    install(shut_down);
    for (; rounds > 0; rounds--) {
        handled = 0;
        handle = open_on(&udp, 0, 0);
        going = 1;
        talker = start(talk, TRUE);
        for (i = 0; i < THREADS; i++)
            targets[i] = start(pass, FALSE);
        shooter = start(shoot_once, TRUE);
        pthread_join(shooter, NULL);
        for (i = 0; i < THREADS; i++) {
            pthread_join(targets[i], &error);
            EQUAL((uintptr_t)error, ERROR_NO_DATA);
        }
        going = 0;
        pthread_join(talker, NULL);
        EQUAL(handled, 1);
        SUCCEEDS(WinDivertClose(handle));
    }
}

/* Only the signal comes, and it is sent to the process: the waiting call ends. */
static void *interrupt(void *unused)
{
    pause_ms(20);
    kill(getpid(), SIGINT);
    return unused;
}

static void check_waiting(void)
{
    pthread_t killer;

    install(shut_down);
    handle = open_on(&udp, 0, 0);
    killer = start(interrupt, TRUE);
    EQUAL((uintptr_t)pass(NULL), ERROR_NO_DATA);
    pthread_join(killer, NULL);
    SUCCEEDS(WinDivertClose(handle));
}

/* A waiting overlapped request, and a thread that waits for it. */
static void check_overlapped(void)
{
    UINT8 packet[100];
    WINDIVERT_ADDRESS addr;
    OVERLAPPED overlapped;
    pthread_t killer;
    DWORD n;

    install(shut_down);
    handle = open_on(&udp, 0, 0);
    memset(&overlapped, 0, sizeof(overlapped));
    FAILS(WinDivertRecvEx(handle, packet, sizeof(packet), NULL, 0, &addr, NULL, &overlapped), ERROR_IO_PENDING, EINPROGRESS);
    killer = start(interrupt, TRUE);
    FAILS(GetOverlappedResult(handle, &overlapped, &n, TRUE), ERROR_NO_DATA, EPIPE);
    pthread_join(killer, NULL);
    SUCCEEDS(WinDivertClose(handle));
}

/* Handlers have room though they interrupt Go. */
static void check_stacks(void (*handler)(int), BOOL late)
{
    UINT8 packet[2000];
    WINDIVERT_ADDRESS addr;
    pthread_t shooter;
    char object[200];
    UINT n;

    handle = open_on(&udp, 0, 0);
    if (!late)
        install(handler);
    say(&udp, "x");
    SUCCEEDS(WinDivertRecv(handle, packet, sizeof(packet), &n, &addr));
    if (late)
        install(handler);
    handled = 0;
    going = 1;
    targets[0] = pthread_self();
    shooter = start(shoot, TRUE);
    while (handled < 3000) {
        CHECK(WinDivertHelperCompileFilter("tcp.DstPort == 80 and ip.TTL > 7", WINDIVERT_LAYER_NETWORK, object,
                                           sizeof(object), NULL, NULL));
        CHECK(WinDivertHelperEvalFilter("udp.PayloadLength == 1 and udp.Payload[0] == 120", packet, n, &addr));
        CHECK(WinDivertHelperCalcChecksums(packet, n, &addr, 0));
        CHECK(WinDivertSend(handle, packet, n, NULL, &addr));
    }
    going = 0;
    pthread_join(shooter, NULL);
    SUCCEEDS(WinDivertClose(handle));
    while (*heard(&udp, 0) != 0)
        ;
}

/* Threads that Go has started block the program's signals. */
static void check_go_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    char name[300], line[200];
    unsigned long long blocked;
    struct dirent *e;
    int others = 0;
    FILE *f;

    while (tasks != NULL && (e = readdir(tasks)) != NULL) {
        if (atoi(e->d_name) == 0 || atoi(e->d_name) == getpid())
            continue;
        sprintf(name, "/proc/self/task/%.20s/status", e->d_name);
        f = fopen(name, "r");
        while (f != NULL && fgets(line, sizeof(line), f) != NULL)
            if (sscanf(line, "SigBlk: %llx", &blocked) == 1) {
                others++;
                CHECK((blocked >> (SIGINT - 1) & 1) && (blocked >> (SIGTERM - 1) & 1) && (blocked >> (SIGUSR1 - 1) & 1));
            }
        if (f != NULL)
            fclose(f);
    }
    if (tasks != NULL)
        closedir(tasks);
    CHECK(others > 0);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 8;

    alarm(120);
    random_now = (unsigned)getpid() * 2654435761u;
    if (argc > 1 && strcmp(argv[1], "end") == 0) {
        udp = open_pair(AF_INET);
        wait_for_the_end();
    }
    CHECK(!WinDivertShutdown(NULL, WINDIVERT_SHUTDOWN_BOTH) && GetLastError() == ERROR_INVALID_HANDLE);
    udp = open_pair(AF_INET);
    check_go_threads();
    check_waiting();
    check_overlapped();
    check_ending(shut_down, FALSE, FALSE, rounds);
    check_ending(shut_down_and_close, TRUE, FALSE, rounds);
    check_ending(call_everything, FALSE, FALSE, rounds);
    check_ending(call_everything, FALSE, TRUE, rounds);
    check_threads(rounds);
    check_stacks(use_much_stack, FALSE);
    check_stacks(use_some_stack, TRUE);
    check_go_threads();
    close_pair(&udp);
    printf("handlers made %d calls, %d were refused\n", (int)made, (int)refused);
    CHECK(refused > 0);
    return failures();
}
