/* check.h: checks of the test programs. A failed one is printed; failures() is the exit status. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <string.h>

#include "windivert.h"

static int check_failures;

#define CHECK(condition)                                                                              \
    do {                                                                                              \
        if (!(condition)) {                                                                           \
            __atomic_add_fetch(&check_failures, 1, __ATOMIC_RELAXED);                                 \
            printf("%s:%d: %s is false (last error %u)\n", __FILE__, __LINE__, #condition,            \
                   (unsigned)WinDivertGetLastError());                                                \
        }                                                                                             \
    } while (0)

/* EQUAL compares numbers and prints both. */
#define EQUAL(got, want)                                                                              \
    do {                                                                                              \
        long long got_ = (long long)(got), want_ = (long long)(want);                                 \
        if (got_ != want_) {                                                                          \
            __atomic_add_fetch(&check_failures, 1, __ATOMIC_RELAXED);                                 \
            printf("%s:%d: %s is %lld, want %lld\n", __FILE__, __LINE__, #got, got_, want_);          \
        }                                                                                             \
    } while (0)

/* FAILS checks that a call returns FALSE, with an error number and its errno. */
#define FAILS(call, error, number)                                                                    \
    do {                                                                                              \
        SetLastError(12345);                                                                          \
        errno = 0;                                                                                    \
        EQUAL(call, FALSE);                                                                           \
        EQUAL(errno, number);                                                                         \
        EQUAL(WinDivertGetLastError(), error);                                                        \
        EQUAL(GetLastError(), error);                                                                 \
    } while (0)

#define SUCCEEDS(call)                                                                                \
    do {                                                                                              \
        SetLastError(12345);                                                                          \
        EQUAL(call, TRUE);                                                                            \
        EQUAL(GetLastError(), 12345);                                                                 \
    } while (0)

static int failures(void)
{
    if (check_failures > 0)
        printf("%d checks failed\n", check_failures);
    return check_failures > 0;
}

#endif
