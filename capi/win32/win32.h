/* win32.h: what the C files of the library share. */
#ifndef WINDIVERT_WIN32_H
#define WINDIVERT_WIN32_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "windows.h"
#include "winsock2.h"

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

/* What a descriptor stands for, beyond what poll tells. */
enum kind { MUTEX, SEMAPHORE, THREAD, PROCESS };

struct object {
    enum kind kind;
    int refs;  /* handles, and a thread that runs */
    pid_t id;  /* of a thread or process; of a mutex's owner, 0 if it is free */
    int depth; /* a mutex: how often its owner holds it */
    BOOL abandoned;
    LONG maximum; /* of a semaphore */
    DWORD code;   /* a thread: STILL_ACTIVE, then what it returned */
    int ended;    /* a thread: an eventfd, readable when it has ended */
};

/* fails leaves an error number and returns FALSE. */
static inline BOOL fails(DWORD error)
{
    SetLastError(error);
    return FALSE;
}

/* win32_descriptor returns the descriptor of a handle, -1 if it has none. */
int win32_descriptor(HANDLE handle);

/* win32_add makes a handle of a descriptor and an object, of which it takes over one reference; NULL leaves an error. */
HANDLE win32_add(int fd, struct object *object);

/* win32_get returns the object of a handle with a reference, NULL and an error if there is none of the kind. */
struct object *win32_get(HANDLE handle, enum kind kind);
void win32_release(struct object *object);

/* win32_lock guards what objects say. */
void win32_lock(void);
void win32_unlock(void);

/* win32_abandon lets go of the mutexes of the calling thread, which ends. */
void win32_abandon(void);

/* win32_error is the number of Windows for one of errno. */
DWORD win32_error(int number);

/* win32_image reads the path of a process's executable. It returns its length, 0 and an error if it cannot. */
DWORD win32_image(pid_t id, char *path, DWORD size);

/* win32_helper starts a detached thread that runs no signal handlers. */
BOOL win32_helper(void *(*start)(void *), void *argument);

#endif
