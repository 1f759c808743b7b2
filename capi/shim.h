/*
 * shim.h: what the C files of the library share.
 *
 * The functions of windivert.h are C, around Go: an error number belongs to the thread of the caller, and the
 * thread-local memory of C is where a caller looks for it.
 */
#ifndef WINDIVERT_SHIM_H
#define WINDIVERT_SHIM_H

#include <string.h>

#include "windivert.h"

/* divert_alive tells whether Go may be called: not in a forked child, which lacks Go's threads. */
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

/* length is strlen for a text that may be NULL. */
static inline size_t length(const char *text)
{
    return text == NULL ? 0 : strlen(text);
}

/* divert_set_error leaves an error number for the thread. */
void divert_set_error(DWORD error);

/* divert_program_call returns the function of a name that the program's own calls reach, or ours. */
void *divert_program_call(const char *name, void *ours);

/* divert_begin makes a request pending, divert_end complete. error 0 is success. */
void divert_begin(LPOVERLAPPED overlapped);
void divert_end(LPOVERLAPPED overlapped, DWORD error, DWORD transferred);

/* divert_refuse marks a request that failed within its call: it counts as complete, its event is not set. */
void divert_refuse(LPOVERLAPPED overlapped, DWORD error);

/* divert_extended tells whether the environment asks for the extended dialect of the filter language. */
BOOL divert_extended(void);

/* divert_segments tells whether the environment asks for packets that are no longer than the path's MTU. */
BOOL divert_segments(void);

/* divert_descriptions are the texts of errors of the filter compiler that have been asked for, by kind. */
extern char *divert_descriptions[256];

/* divert_parsed is what the parser finds: offsets in bytes, -1 for what is absent; see packet.Parsed. */
struct divert_parsed {
    INT32 ipv4, ipv6, icmp, icmpv6, tcp, udp, data;
    UINT32 data_len, total;
    UINT8 protocol, truncated;
};

#endif
