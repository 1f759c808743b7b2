/* console.h is shared by the examples: colours, errors, time, handles with filters from the command line. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "windivert.h"

enum colour { PLAIN = 0, RED = 31, GREEN = 32, YELLOW = 33, BLUE = 34, MAGENTA = 35, CYAN = 36 };

/* set_colour colours the following output, if it goes to a terminal. */
static inline void set_colour(enum colour c)
{
    if (isatty(STDOUT_FILENO))
        printf("\033[%dm", c);
}

static inline void complain(const char *kind, const char *format, va_list arguments)
{
    fprintf(stderr, "%s: ", kind);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

static inline void warning(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    complain("warning", format, arguments);
    va_end(arguments);
}

static inline void fatal(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    complain("error", format, arguments);
    va_end(arguments);
    exit(EXIT_FAILURE);
}

/* open_or_explain opens a handle, or prints the error; for a wrong filter, that of the filter compiler. */
static inline HANDLE open_or_explain(const char *filter, WINDIVERT_LAYER layer, INT16 priority, UINT64 flags)
{
    HANDLE handle = WinDivertOpen(filter, layer, priority, flags);
    const char *reason;

    if (handle != INVALID_HANDLE_VALUE)
        return handle;
    if (GetLastError() == ERROR_INVALID_PARAMETER &&
        !WinDivertHelperCompileFilter(filter, layer, NULL, 0, &reason, NULL))
        fatal("invalid filter \"%s\"", reason);
    fatal("failed to open the handle (%u)", GetLastError());
    return INVALID_HANDLE_VALUE;
}

/* longest_queue sets a handle's queue to the greatest length, size and time. */
static inline void longest_queue(HANDLE handle)
{
    if (!WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, WINDIVERT_PARAM_QUEUE_LENGTH_MAX) ||
        !WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_TIME, WINDIVERT_PARAM_QUEUE_TIME_MAX) ||
        !WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_SIZE, WINDIVERT_PARAM_QUEUE_SIZE_MAX))
        fatal("failed to set the queue's limits (%u)", GetLastError());
}

/* ticks returns the time in the unit of addresses' timestamps, nanoseconds. */
static inline INT64 ticks(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (INT64)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
