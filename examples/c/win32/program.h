/* program.h is shared by the programs. They include the headers of Windows, and run on Linux with libwindivert-win32. */
#ifndef PROGRAM_H
#define PROGRAM_H

#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>

#include <psapi.h>
#include <shlwapi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "windivert.h"

#define PLAIN (FOREGROUND_RED | FOREGROUND_GREEN | FOREGROUND_BLUE)

/* fatal ends the program with a message. */
static inline void fatal(const char *format, ...)
{
    va_list arguments;

    fputs("error: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static inline void warning(const char *what)
{
    fprintf(stderr, "warning: failed to %s (%u)\n", what, (unsigned)GetLastError());
}

static inline void usage(const char *text)
{
    fprintf(stderr, "usage: %s\n", text);
    exit(EXIT_FAILURE);
}

/* open_handle opens a handle, or prints the error and ends the program. */
static inline HANDLE open_handle(const char *filter, WINDIVERT_LAYER layer, INT16 priority, UINT64 flags)
{
    HANDLE handle = WinDivertOpen(filter, layer, priority, flags);
    const char *reason;
    char *text;

    if (handle != INVALID_HANDLE_VALUE)
        return handle;
    if (GetLastError() == ERROR_INVALID_PARAMETER && !WinDivertHelperCompileFilter(filter, layer, NULL, 0, &reason, NULL))
        fatal("invalid filter \"%s\"", reason);
    if (FormatMessageA(FORMAT_MESSAGE_ALLOCATE_BUFFER | FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS |
                           FORMAT_MESSAGE_MAX_WIDTH_MASK,
                       NULL, GetLastError(), 0, (LPSTR)&text, 0, NULL) > 0)
        fatal("failed to open the handle: %s", text);
    fatal("failed to open the handle (%u)", (unsigned)GetLastError());
    return NULL;
}

/* coloured prints a word in a colour. */
static inline void coloured(WORD colour, const char *word)
{
    HANDLE console = GetStdHandle(STD_OUTPUT_HANDLE);

    fflush(stdout);
    SetConsoleTextAttribute(console, colour);
    fputs(word, stdout);
    fflush(stdout);
    SetConsoleTextAttribute(console, PLAIN);
}

/* program_of returns the name of a process's program. */
static inline const char *program_of(DWORD pid)
{
    static char path[4096];
    HANDLE process = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, FALSE, pid);
    DWORD n = process == NULL ? 0 : GetProcessImageFileNameA(process, path, sizeof(path));

    if (process != NULL)
        CloseHandle(process);
    return n == 0 ? "???" : PathFindFileNameA(path);
}

/* ipv4_text formats an address of a packet header, address_text one of a flow; the text has room for 46 bytes. */
static inline const char *ipv4_text(UINT32 address, char *text)
{
    return WinDivertHelperFormatIPv4Address(WinDivertHelperNtohl(address), text, 46) ? text : "???";
}

static inline const char *address_text(const UINT32 *address, char *text)
{
    return WinDivertHelperFormatIPv6Address((const UINT *)address, text, 46) ? text : "???";
}

/* send_packet computes checksums and sends. */
static inline void send_packet(HANDLE handle, void *packet, UINT length, WINDIVERT_ADDRESS *address)
{
    if (!WinDivertHelperCalcChecksums(packet, length, address, 0) ||
        !WinDivertSend(handle, packet, length, NULL, address))
        warning("send a packet");
}

/* A TCP packet without options. */
typedef struct {
    WINDIVERT_IPHDR ip;
    WINDIVERT_TCPHDR tcp;
} TCP_PACKET;

/* tcp_packet makes one, from the addresses and ports of another, or with them swapped. */
static inline void tcp_packet(TCP_PACKET *p, const WINDIVERT_IPHDR *ip, const WINDIVERT_TCPHDR *tcp, BOOL swapped, UINT payload)
{
    memset(p, 0, sizeof(*p));
    p->ip.Version = 4;
    p->ip.HdrLength = sizeof(p->ip) / 4;
    p->ip.Length = WinDivertHelperHtons((UINT16)(sizeof(*p) + payload));
    p->ip.TTL = 64;
    p->ip.Protocol = IPPROTO_TCP;
    p->ip.SrcAddr = swapped ? ip->DstAddr : ip->SrcAddr;
    p->ip.DstAddr = swapped ? ip->SrcAddr : ip->DstAddr;
    p->tcp.SrcPort = swapped ? tcp->DstPort : tcp->SrcPort;
    p->tcp.DstPort = swapped ? tcp->SrcPort : tcp->DstPort;
    p->tcp.HdrLength = sizeof(p->tcp) / 4;
    p->tcp.Ack = 1;
}

#endif
