/* process.h prints the parts of events for the examples: programs, protocols and addresses. */
#ifndef PROCESS_H
#define PROCESS_H

#include "console.h"

enum { PATH_SIZE = 4096, ADDRESS_SIZE = 46 };

/* image_path returns the path of a process's program, "???" if the process has ended or is hidden from this user. */
static inline const char *image_path(UINT32 pid)
{
    static char path[PATH_SIZE];
    char link[32];
    ssize_t n;

    sprintf(link, "/proc/%u/exe", pid);
    n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0)
        return "???";
    path[n] = 0;
    return path;
}

/* image_name returns the last element of image_path. */
static inline const char *image_name(UINT32 pid)
{
    const char *path = image_path(pid), *slash = strrchr(path, '/');

    return slash == NULL ? path : slash + 1;
}

/* protocol_name returns the name of a protocol, or its number as text. */
static inline const char *protocol_name(UINT8 protocol)
{
    static char number[4];

    switch (protocol) {
    case 1:
        return "ICMP";
    case 6:
        return "TCP";
    case 17:
        return "UDP";
    case 58:
        return "ICMPV6";
    }
    sprintf(number, "%u", protocol);
    return number;
}

/* format_address writes an address of a flow or socket, ADDRESS_SIZE bytes at most, and returns text. */
static inline const char *format_address(const UINT32 *addr, char *text)
{
    if (!WinDivertHelperFormatIPv6Address(addr, text, ADDRESS_SIZE))
        fatal("failed to format an address (%u)", GetLastError());
    return text;
}

#endif
