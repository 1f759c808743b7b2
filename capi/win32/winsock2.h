/*
 * winsock2.h: the names of Winsock over the sockets of Linux. A SOCKET is a descriptor, so it is also a handle.
 * Lengths of addresses may be int. After WSAStartup a broken connection is an error, as on Windows, not SIGPIPE.
 */
#ifndef WINDIVERT_WIN32_WINSOCK2_H
#define WINDIVERT_WIN32_WINSOCK2_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* see windows.h */
#endif

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include "windows.h"

typedef int SOCKET;
typedef struct sockaddr SOCKADDR, *PSOCKADDR, *LPSOCKADDR;
typedef struct sockaddr_in SOCKADDR_IN, *PSOCKADDR_IN;
typedef struct sockaddr_in6 SOCKADDR_IN6, *PSOCKADDR_IN6;
typedef struct sockaddr_storage SOCKADDR_STORAGE, *PSOCKADDR_STORAGE;
typedef struct in_addr IN_ADDR, *PIN_ADDR;
typedef struct in6_addr IN6_ADDR, *PIN6_ADDR;
typedef struct addrinfo ADDRINFO, ADDRINFOA, *PADDRINFOA;
typedef struct timeval TIMEVAL;
typedef struct pollfd WSAPOLLFD, *LPWSAPOLLFD;
typedef USHORT ADDRESS_FAMILY;

typedef struct WSAData {
    WORD wVersion, wHighVersion;
    char szDescription[257], szSystemStatus[129];
} WSADATA, *LPWSADATA;

#define INVALID_SOCKET ((SOCKET)-1)
#define SOCKET_ERROR (-1)
#define SD_RECEIVE SHUT_RD
#define SD_SEND SHUT_WR
#define SD_BOTH SHUT_RDWR

/* The error numbers of Winsock. */
#define WSAEINTR 10004
#define WSAEBADF 10009
#define WSAEACCES 10013
#define WSAEFAULT 10014
#define WSAEINVAL 10022
#define WSAEMFILE 10024
#define WSAEWOULDBLOCK 10035
#define WSAEINPROGRESS 10036
#define WSAEALREADY 10037
#define WSAENOTSOCK 10038
#define WSAEDESTADDRREQ 10039
#define WSAEMSGSIZE 10040
#define WSAEPROTOTYPE 10041
#define WSAENOPROTOOPT 10042
#define WSAEPROTONOSUPPORT 10043
#define WSAEOPNOTSUPP 10045
#define WSAEAFNOSUPPORT 10047
#define WSAEADDRINUSE 10048
#define WSAEADDRNOTAVAIL 10049
#define WSAENETDOWN 10050
#define WSAENETUNREACH 10051
#define WSAENETRESET 10052
#define WSAECONNABORTED 10053
#define WSAECONNRESET 10054
#define WSAENOBUFS 10055
#define WSAEISCONN 10056
#define WSAENOTCONN 10057
#define WSAESHUTDOWN 10058
#define WSAETIMEDOUT 10060
#define WSAECONNREFUSED 10061
#define WSAEHOSTUNREACH 10065
#define WSAVERNOTSUPPORTED 10092

#ifdef __cplusplus
extern "C" {
#endif

int WSAStartup(WORD version, LPWSADATA data);
int WSACleanup(void);
int WSAGetLastError(void); /* from errno */
void WSASetLastError(int error);
int closesocket(SOCKET s);
int ioctlsocket(SOCKET s, long command, u_long *argument);
#define WSAPoll poll

/* Timeouts may be a DWORD of milliseconds, as on Windows. */
int win32_setsockopt(SOCKET s, int level, int name, const void *value, int size);

#ifdef __cplusplus
}

/* Lengths of Winsock are int. */
static inline SOCKET accept(SOCKET s, struct sockaddr *a, int *n) { return accept(s, a, (socklen_t *)n); }
static inline int getsockname(SOCKET s, struct sockaddr *a, int *n) { return getsockname(s, a, (socklen_t *)n); }
static inline int getpeername(SOCKET s, struct sockaddr *a, int *n) { return getpeername(s, a, (socklen_t *)n); }
static inline int getsockopt(SOCKET s, int l, int o, void *v, int *n) { return getsockopt(s, l, o, v, (socklen_t *)n); }
static inline ssize_t recvfrom(SOCKET s, void *b, size_t n, int f, struct sockaddr *a, int *l)
{
    return recvfrom(s, b, n, f, a, (socklen_t *)l);
}
#else
#define accept(s, a, n) accept((s), (a), (socklen_t *)(n))
#define getsockname(s, a, n) getsockname((s), (a), (socklen_t *)(n))
#define getpeername(s, a, n) getpeername((s), (a), (socklen_t *)(n))
#define getsockopt(s, l, o, v, n) getsockopt((s), (l), (o), (v), (socklen_t *)(n))
#define recvfrom(s, b, n, f, a, l) recvfrom((s), (b), (n), (f), (a), (socklen_t *)(l))
#endif
#define setsockopt(s, l, o, v, n) win32_setsockopt((s), (l), (o), (v), (int)(n))

#endif
