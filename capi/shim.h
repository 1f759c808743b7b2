/*
 * shim.h: declarations shared by the library's C files.
 *
 * The functions of windivert.h are C, around Go: an error number belongs to the caller's thread, and callers find it
 * in C's thread-local memory.
 */
#ifndef WINDIVERT_SHIM_H
#define WINDIVERT_SHIM_H

#include <string.h>

#include "windivert.h"

/* divert_alive reports whether Go may be called: not in a forked child, which lacks Go's threads. */
BOOL divert_alive(void);

/* divert_fail leaves an error number for the thread, and errno. It returns FALSE. */
BOOL divert_fail(DWORD error);

/* done turns an error number of Go into a result. */
static inline BOOL done(DWORD error)
{
    return error == ERROR_SUCCESS ? TRUE : divert_fail(error);
}

/* alive leaves an error for callers in a forked child. */
static inline BOOL alive(void)
{
    return divert_alive() || divert_fail(ERROR_NOT_SUPPORTED);
}

#ifdef _WIN32

static inline BOOL enter(void)
{
    return TRUE;
}

static inline DWORD left(DWORD result)
{
    return result;
}

#else

/* divert_inside is set while the thread is inside Go or holds a lock of the library: a call then comes from a handler. */
extern __thread volatile int divert_inside __attribute__((tls_model("initial-exec")));

/*
 * divert_prepare_thread gives the thread a stack for signal handlers, unless it has one. FALSE: it is running on that
 * stack.
 */
BOOL divert_prepare_thread(void);

/* divert_prepare_handlers makes the installed handlers run on such stacks, and reports whether it had to change one. */
BOOL divert_prepare_handlers(void);

/* enter reports whether the thread may call Go, and marks it. It leaves an error in forked children and in handlers. */
static inline BOOL enter(void)
{
    if (!alive())
        return FALSE;
    if (divert_inside || !divert_prepare_thread())
        return divert_fail(ERROR_POSSIBLE_DEADLOCK);
    divert_inside = 1;
    return TRUE;
}

/* left removes the mark from the thread, and returns the result of Go. */
static inline DWORD left(DWORD result)
{
    divert_inside = 0;
    return result;
}

/* The calls that a goroutine makes. */
enum { DIVERT_ORDER_SHUTDOWN, DIVERT_ORDER_CLOSE };

/*
 * divert_order has a goroutine make a call, and may be used in signal handlers. It waits for the result, unless the
 * thread is inside: then it returns 0, and the call is made after the handler has returned, or before.
 */
DWORD divert_order(UINT32 call, HANDLE handle, UINT32 how);

/* divert_take_orders sets the pipe for orders, divert_answer gives the result of one to the waiting thread. */
void divert_take_orders(int fd);
void divert_answer(UINT64 address, DWORD error);

#endif

/* length is strlen for a text that may be NULL. */
static inline size_t length(const char *text)
{
    return text == NULL ? 0 : strlen(text);
}

/* divert_set_error leaves an error number for the thread. */
void divert_set_error(DWORD error);

/* divert_program_call returns the function that the program's own calls of a name reach, or ours. */
void *divert_program_call(const char *name, void *ours);

/* divert_begin makes a request pending, divert_end completes it. error 0 is success. */
void divert_begin(LPOVERLAPPED overlapped);
void divert_end(LPOVERLAPPED overlapped, DWORD error, DWORD transferred);

/* divert_refuse marks a request that failed within its call: it counts as complete, its event is not set. */
void divert_refuse(LPOVERLAPPED overlapped, DWORD error);

/* divert_extended reports whether the environment asks for the extended dialect of the filter language. */
BOOL divert_extended(void);

/*
 * divert_segments returns the environment's choice of when packets come no longer than the path's MTU: from the start,
 * never, or, by default, from the first receive call on whose buffer is too short for longer ones.
 */
enum { DIVERT_SEGMENTS_IF_SHORT, DIVERT_SEGMENTS_ALWAYS, DIVERT_SEGMENTS_NEVER };
int divert_segments(void);

/*
 * divert_hang returns the environment's time in milliseconds after which packets pass while the program receives
 * nothing. If it is negative they are dropped instead; 0: never.
 */
int divert_hang(void);

/* divert_descriptions are the texts of filter errors that have been asked for, by kind. */
extern char *divert_descriptions[256];

/* divert_parsed is the result of the parser: offsets in bytes, -1 for absent parts; see packet.Parsed. */
struct divert_parsed {
    INT32 ipv4, ipv6, icmp, icmpv6, tcp, udp, data;
    UINT32 data_len, total;
    UINT8 protocol, truncated;
};

#endif
