/* win32.h: declarations shared by the library's C files. */
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

/* The kinds of objects behind descriptors, for what poll cannot tell. */
enum kind { MUTEX, SEMAPHORE, THREAD, PROCESS };

struct object {
    enum kind kind;
    int refs;  /* handles, and a thread that runs */
    pid_t id;  /* of a thread or process; of a mutex's owner, 0 if it is free */
    int depth; /* of a mutex: the number of times that its owner holds it */
    BOOL abandoned;
    LONG maximum; /* of a semaphore */
    DWORD code;   /* of a thread: STILL_ACTIVE, then its result */
    int ended;    /* of a thread: an eventfd, readable when it has ended */
};

/* fails leaves an error number and returns FALSE. */
static inline BOOL fails(DWORD error)
{
    SetLastError(error);
    return FALSE;
}

/* win32_descriptor returns the descriptor of a handle, -1 if it has none. */
int win32_descriptor(HANDLE handle);

/* win32_add makes a handle of a descriptor and an object, taking over one reference to it; NULL leaves an error. */
HANDLE win32_add(int fd, struct object *object);

/* win32_get returns the object of a handle with a reference; NULL and an error if it is not of the kind. */
struct object *win32_get(HANDLE handle, enum kind kind);
void win32_release(struct object *object);

/* win32_lock guards the fields of objects. */
void win32_lock(void);
void win32_unlock(void);

/* win32_abandon releases the mutexes of the calling thread, which is ending. */
void win32_abandon(void);

/* win32_error is the Windows error number for an errno. */
DWORD win32_error(int number);

/* win32_image reads the path of a process's executable. It returns its length, 0 and an error if it cannot. */
DWORD win32_image(pid_t id, char *path, DWORD size);

/* win32_helper starts a detached thread that runs no signal handlers. */
BOOL win32_helper(void *(*start)(void *), void *argument);

#endif
