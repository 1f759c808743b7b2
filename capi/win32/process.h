/* process.h: threads started by the C library of Windows. */
#ifndef WINDIVERT_WIN32_PROCESS_H
#define WINDIVERT_WIN32_PROCESS_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* see windows.h */
#endif

#include <unistd.h>

#include "windows.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 0 and errno, or the handle of the thread. */
uintptr_t _beginthreadex(void *attributes, unsigned stack, unsigned (*start)(void *), void *parameter, unsigned flags,
                         unsigned *id);
/* The thread has no handle: -1L and errno, or a number that is not a handle. */
uintptr_t _beginthread(void (*start)(void *), unsigned stack, void *parameter);
DECLSPEC_NORETURN void _endthreadex(unsigned code);
DECLSPEC_NORETURN void _endthread(void);

#ifdef __cplusplus
}
#endif

#endif
