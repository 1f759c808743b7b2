//go:build !windows

/*
 * signals.c: calls from signal handlers, and the stacks that handlers run on.
 *
 * A handler can interrupt its thread inside Go, which cannot be entered a second time. Each call therefore marks its
 * thread (enter in shim.h). Calls of a marked thread fail, except those that end something: these go through a pipe to
 * a goroutine. Go's own threads run no handlers of the program: they block its signals.
 */
#include "shim.h"

#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread volatile int divert_inside __attribute__((tls_model("initial-exec")));

/* ---- Orders: calls that a goroutine makes ---- */

/* An order in the pipe; see orders.go. A write of so few bytes is atomic. */
struct order {
    UINT64 handle;
    UINT32 call, how;
    UINT64 answer; /* address of the struct answer of a thread that waits, or 0 */
};

struct answer {
    UINT32 given;
    DWORD error;
};

static volatile int orders = -1;

void divert_take_orders(int fd)
{
    orders = fd;
}

static long futex(volatile UINT32 *word, int operation, UINT32 value)
{
    return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

void divert_answer(UINT64 address, DWORD error)
{
    struct answer *answer = (struct answer *)(uintptr_t)address;

    answer->error = error;
    __atomic_store_n(&answer->given, 1, __ATOMIC_RELEASE);
    (void)futex(&answer->given, FUTEX_WAKE, INT_MAX); /* harmless if the thread has gone on and the word is gone */
}

/* put_in writes an order to the pipe. A marked thread does not wait for room: Go may need it to continue. */
static BOOL put_in(const struct order *order, BOOL wait)
{
    struct pollfd room = {orders, POLLOUT, 0};

    for (;;) {
        if (write(orders, order, sizeof(*order)) == (ssize_t)sizeof(*order))
            return TRUE;
        if (errno != EINTR && (errno != EAGAIN || !wait))
            return FALSE;
        if (errno == EAGAIN)
            (void)poll(&room, 1, -1);
    }
}

DWORD divert_order(UINT32 call, HANDLE handle, UINT32 how)
{
    struct answer answer = {0, ERROR_SUCCESS};
    struct order order = {(uintptr_t)handle, call, how, 0};
    BOOL wait = !divert_inside;
    int before = errno;

    if (orders < 0)
        return ERROR_INVALID_HANDLE; /* none has been opened */
    if (wait)
        order.answer = (uintptr_t)&answer;
    if (!put_in(&order, wait))
        return ERROR_NO_SYSTEM_RESOURCES;
    while (wait && !__atomic_load_n(&answer.given, __ATOMIC_ACQUIRE))
        (void)futex(&answer.given, FUTEX_WAIT, 0);
    errno = before;
    return answer.error;
}

/* ---- Go's threads ---- */

/*
 * Threads that Go starts inherit the signal mask of the thread that starts Go. Go's second entry of .init_array does
 * that: the first entry blocks all signals, and a later one restores the mask.
 */
static sigset_t mask_before;

__attribute__((constructor(101))) static void block_signals(void)
{
    sigset_t all;

    sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &mask_before);
}

__attribute__((constructor)) static void restore_signals(void)
{
    (void)pthread_sigmask(SIG_SETMASK, &mask_before, NULL);
}

/* ---- Stacks ---- */

/*
 * A goroutine's stack has no room for a handler. So each thread that calls Go gets a stack for handlers, unless it has
 * one, and handlers are made to run on it. From that stack Go cannot be called: while a thread runs on a goroutine's
 * stack, the next signal, such as those that Go sends to itself, would begin at the top of the handlers' stack again.
 */
enum { STACK = 256 << 10, GUARD = 64 << 10 };

static pthread_key_t stack_key;
static BOOL have_key;
static __thread BOOL has_stack __attribute__((tls_model("initial-exec")));
static __thread uintptr_t stack_low __attribute__((tls_model("initial-exec")));
static __thread size_t stack_size __attribute__((tls_model("initial-exec")));

static void free_stack(void *area)
{
    stack_t own, none;

    memset(&none, 0, sizeof(none));
    none.ss_flags = SS_DISABLE;
    if (sigaltstack(NULL, &own) == 0 && own.ss_sp == (char *)area + GUARD)
        (void)sigaltstack(&none, NULL);
    (void)munmap(area, GUARD + STACK);
    has_stack = FALSE; /* another destructor of the thread may still call */
    stack_size = 0;
}

__attribute__((constructor)) static void make_key(void)
{
    have_key = pthread_key_create(&stack_key, free_stack) == 0;
}

/* make_stack gives the thread a stack for handlers. If it cannot, Go supplies a smaller one. */
static void make_stack(stack_t *stack)
{
    char *area;

    memset(stack, 0, sizeof(*stack));
    if (!have_key)
        return;
    area = (char *)mmap(NULL, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return;
    stack->ss_sp = area + GUARD;
    stack->ss_size = STACK;
    if (mprotect(area, GUARD, PROT_NONE) != 0 || pthread_setspecific(stack_key, area) != 0 ||
        sigaltstack(stack, NULL) != 0) {
        (void)pthread_setspecific(stack_key, NULL);
        (void)munmap(area, GUARD + STACK);
        stack->ss_size = 0;
    }
}

BOOL divert_prepare_thread(void)
{
    stack_t stack;

    if (!has_stack) {
        if (sigaltstack(NULL, &stack) != 0 || stack.ss_flags & SS_DISABLE)
            make_stack(&stack);
        stack_low = (uintptr_t)stack.ss_sp;
        stack_size = stack.ss_size;
        has_stack = TRUE;
    }
    return (uintptr_t)__builtin_frame_address(0) - stack_low >= stack_size;
}

BOOL divert_prepare_handlers(void)
{
    struct sigaction action;
    BOOL changed = FALSE;
    int i;

    for (i = 1; i < NSIG; i++)
        if (sigaction(i, NULL, &action) == 0 && action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN &&
            !(action.sa_flags & SA_ONSTACK)) {
            action.sa_flags |= SA_ONSTACK;
            changed |= sigaction(i, &action, NULL) == 0;
        }
    return changed;
}
