/*
 * windivert.h: the C interface of libwindivert, with the names, layouts and behaviour of WinDivert 2.2.
 *
 * A program written for WinDivert compiles against it unchanged, in C or C++. On Linux it needs no Windows
 * header: the few Windows types of the interface are defined here. A program with its own definitions
 * defines WINDIVERT_NO_WINDOWS_TYPES before it includes this header.
 *
 * Numbers in WINDIVERT_ADDRESS are in host order, numbers in packet headers in network order. Pointers
 * belong to the caller. The library keeps nothing after a call returns, except what an overlapped call
 * needs until it is complete. All functions may be called from any thread.
 *
 * A failing function returns FALSE (WinDivertOpen: INVALID_HANDLE_VALUE) and leaves an error number for the
 * thread: GetLastError(), or WinDivertGetLastError(), which is always the library's own. On Linux it
 * also sets errno. See windivert(7).
 */
#ifndef WINDIVERT_H
#define WINDIVERT_H

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "windivert.h: the layouts are those of little-endian machines"
#endif

#ifdef _WIN32
#include <windows.h>
#else
#include <errno.h>
#endif
#include <stddef.h>
#include <stdint.h>

/* The layouts need extensions, which must not cause warnings under -pedantic. */
#ifdef __GNUC__
#define WINDIVERT_EXTENSION_ __extension__
#else
#define WINDIVERT_EXTENSION_
#endif

/* ---- Windows types, where there is no Windows -------------------------------------------------------- */

#if !defined(_WIN32) && !defined(WINDIVERT_NO_WINDOWS_TYPES)

typedef void VOID;
typedef int BOOL;
typedef char CHAR;
typedef int INT;
typedef unsigned int UINT;
typedef int8_t INT8;
typedef int16_t INT16;
typedef int32_t INT32;
typedef int64_t INT64;
typedef uint8_t UINT8;
typedef uint16_t UINT16;
typedef uint32_t UINT32;
typedef uint64_t UINT64;
typedef uint32_t DWORD;
typedef uintptr_t ULONG_PTR;
typedef void *PVOID;
typedef void *LPVOID;
typedef BOOL *PBOOL;
typedef CHAR *PCHAR;
typedef UINT *PUINT;
typedef UINT8 *PUINT8;
typedef UINT16 *PUINT16;
typedef UINT32 *PUINT32;
typedef UINT64 *PUINT64;
typedef INT64 *PINT64;
typedef DWORD *PDWORD;
typedef DWORD *LPDWORD;
typedef const char *LPCSTR;
typedef void *HANDLE;
typedef HANDLE *PHANDLE;

/*
 * An overlapped request. Set it to zero and put an event into hEvent, or NULL. On Linux an event is the number of an
 * eventfd (cast to HANDLE), which the completion makes readable, or a result of CreateEvent. Internal is
 * STATUS_PENDING while the request waits, then its NT status; InternalHigh the bytes transferred.
 */
WINDIVERT_EXTENSION_ typedef struct _OVERLAPPED
{
    ULONG_PTR Internal;
    ULONG_PTR InternalHigh;
    WINDIVERT_EXTENSION_ union
    {
        WINDIVERT_EXTENSION_ struct
        {
            DWORD Offset;
            DWORD OffsetHigh;
        };
        PVOID Pointer;
    };
    HANDLE hEvent;
} OVERLAPPED, *LPOVERLAPPED;

#ifndef TRUE
#define TRUE 1
#endif
#ifndef FALSE
#define FALSE 0
#endif
#ifndef INVALID_HANDLE_VALUE
#define INVALID_HANDLE_VALUE ((HANDLE)(intptr_t)-1)
#endif
#ifndef INFINITE
#define INFINITE 0xFFFFFFFFu
#endif
#ifndef WAIT_OBJECT_0
#define WAIT_OBJECT_0 0u
#define WAIT_TIMEOUT 258u
#define WAIT_FAILED 0xFFFFFFFFu
#endif
#ifndef MAXIMUM_WAIT_OBJECTS
#define MAXIMUM_WAIT_OBJECTS 64
#endif
#ifndef STATUS_PENDING
#define STATUS_PENDING 0x00000103u
#endif
#ifndef HasOverlappedIoCompleted
#define HasOverlappedIoCompleted(ov) (*(volatile ULONG_PTR *)&(ov)->Internal != STATUS_PENDING)
#endif

#endif /* Windows types */

/* ---- Error numbers ----------------------------------------------------------------------------------- */

#ifndef _WIN32
#ifndef ERROR_SUCCESS
#define ERROR_SUCCESS 0
#endif
#ifndef ERROR_INVALID_FUNCTION
#define ERROR_INVALID_FUNCTION 1
#endif
#ifndef ERROR_FILE_NOT_FOUND
#define ERROR_FILE_NOT_FOUND 2
#endif
#ifndef ERROR_ACCESS_DENIED
#define ERROR_ACCESS_DENIED 5 /* Open: the rights are missing (Linux: CAP_NET_ADMIN) */
#endif
#ifndef ERROR_INVALID_HANDLE
#define ERROR_INVALID_HANDLE 6 /* no open handle has this value */
#endif
#ifndef ERROR_BAD_COMMAND
#define ERROR_BAD_COMMAND 22 /* the handle is closing */
#endif
#ifndef ERROR_GEN_FAILURE
#define ERROR_GEN_FAILURE 31 /* the system refused, for a reason without a number here */
#endif
#ifndef ERROR_NOT_SUPPORTED
#define ERROR_NOT_SUPPORTED 50 /* the system lacks the feature; or a call in a forked child */
#endif
#ifndef ERROR_INVALID_PARAMETER
#define ERROR_INVALID_PARAMETER 87
#endif
#ifndef ERROR_INSUFFICIENT_BUFFER
#define ERROR_INSUFFICIENT_BUFFER 122
#endif
#ifndef ERROR_NO_DATA
#define ERROR_NO_DATA 232 /* this half of the handle is shut down (and, for receiving, drained) */
#endif
#ifndef ERROR_INVALID_IMAGE_HASH
#define ERROR_INVALID_IMAGE_HASH 577
#endif
#ifndef ERROR_DRIVER_FAILED_PRIOR_UNLOAD
#define ERROR_DRIVER_FAILED_PRIOR_UNLOAD 654
#endif
#ifndef ERROR_OPERATION_ABORTED
#define ERROR_OPERATION_ABORTED 995 /* cancelled, or the handle closed during the call */
#endif
#ifndef ERROR_IO_INCOMPLETE
#define ERROR_IO_INCOMPLETE 996
#endif
#ifndef ERROR_IO_PENDING
#define ERROR_IO_PENDING 997
#endif
#ifndef ERROR_NOACCESS
#define ERROR_NOACCESS 998 /* a required pointer is NULL */
#endif
#ifndef ERROR_SERVICE_DOES_NOT_EXIST
#define ERROR_SERVICE_DOES_NOT_EXIST 1060
#endif
#ifndef ERROR_POSSIBLE_DEADLOCK
#define ERROR_POSSIBLE_DEADLOCK 1131 /* a signal handler that interrupted a call of the library: see windivert(7) */
#endif
#ifndef ERROR_DEVICE_NOT_CONNECTED
#define ERROR_DEVICE_NOT_CONNECTED 1167 /* another program has removed the handle's rules: close it, open another */
#endif
#ifndef ERROR_NOT_FOUND
#define ERROR_NOT_FOUND 1168
#endif
#ifndef ERROR_HOST_UNREACHABLE
#define ERROR_HOST_UNREACHABLE 1232 /* Send: the hop limit of an impostor packet is used up */
#endif
#ifndef ERROR_DRIVER_BLOCKED
#define ERROR_DRIVER_BLOCKED 1275
#endif
#ifndef ERROR_NO_SYSTEM_RESOURCES
#define ERROR_NO_SYSTEM_RESOURCES 1450
#endif
#ifndef EPT_S_NOT_REGISTERED
#define EPT_S_NOT_REGISTERED 1753
#endif
#endif /* _WIN32 */

/* ---- Linkage ----------------------------------------------------------------------------------------- */

#ifndef WINDIVERTEXPORT
#if defined(_WIN32) && defined(WINDIVERT_LIBRARY)
#define WINDIVERTEXPORT __declspec(dllexport)
#elif defined(_WIN32)
#define WINDIVERTEXPORT __declspec(dllimport)
#elif defined(__GNUC__)
#define WINDIVERTEXPORT __attribute__((visibility("default")))
#else
#define WINDIVERTEXPORT
#endif
#endif

#ifdef __cplusplus
#define WINDIVERT_DEFAULT_(value) = value
extern "C" {
#else
#define WINDIVERT_DEFAULT_(value)
#endif

/* ---- Layers, events, flags, parameters --------------------------------------------------------------- */

typedef enum
{
    WINDIVERT_LAYER_NETWORK = 0,         /* IP packets to and from this host */
    WINDIVERT_LAYER_NETWORK_FORWARD = 1, /* IP packets routed through this host */
    WINDIVERT_LAYER_FLOW = 2,            /* flows established and deleted */
    WINDIVERT_LAYER_SOCKET = 3,          /* bind, connect, listen, accept, close */
    WINDIVERT_LAYER_REFLECT = 4          /* other handles opened and closed */
} WINDIVERT_LAYER, *PWINDIVERT_LAYER;
#define WINDIVERT_LAYER_MAX WINDIVERT_LAYER_REFLECT

typedef enum
{
    WINDIVERT_EVENT_NETWORK_PACKET = 0,
    WINDIVERT_EVENT_FLOW_ESTABLISHED = 1,
    WINDIVERT_EVENT_FLOW_DELETED = 2,
    WINDIVERT_EVENT_SOCKET_BIND = 3,
    WINDIVERT_EVENT_SOCKET_CONNECT = 4,
    WINDIVERT_EVENT_SOCKET_LISTEN = 5,
    WINDIVERT_EVENT_SOCKET_ACCEPT = 6,
    WINDIVERT_EVENT_SOCKET_CLOSE = 7,
    WINDIVERT_EVENT_REFLECT_OPEN = 8,
    WINDIVERT_EVENT_REFLECT_CLOSE = 9
} WINDIVERT_EVENT, *PWINDIVERT_EVENT;
#define WINDIVERT_EVENT_MAX WINDIVERT_EVENT_REFLECT_CLOSE

#define WINDIVERT_FLAG_SNIFF 0x0001      /* receive copies; the packets themselves go on */
#define WINDIVERT_FLAG_DROP 0x0002       /* matching packets are dropped; none is received */
#define WINDIVERT_FLAG_RECV_ONLY 0x0004  /* nothing can be sent */
#define WINDIVERT_FLAG_READ_ONLY WINDIVERT_FLAG_RECV_ONLY
#define WINDIVERT_FLAG_SEND_ONLY 0x0008  /* nothing can be received; matching packets still leave the stack */
#define WINDIVERT_FLAG_WRITE_ONLY WINDIVERT_FLAG_SEND_ONLY
#define WINDIVERT_FLAG_NO_INSTALL 0x0010 /* Windows: fail if the driver is not installed */
#define WINDIVERT_FLAG_FRAGMENTS 0x0020  /* inbound fragments instead of reassembled datagrams */

typedef enum
{
    WINDIVERT_PARAM_QUEUE_LENGTH = 0, /* packets or events */
    WINDIVERT_PARAM_QUEUE_TIME = 1,   /* milliseconds */
    WINDIVERT_PARAM_QUEUE_SIZE = 2,   /* bytes */
    WINDIVERT_PARAM_VERSION_MAJOR = 3,
    WINDIVERT_PARAM_VERSION_MINOR = 4
} WINDIVERT_PARAM, *PWINDIVERT_PARAM;
#define WINDIVERT_PARAM_MAX WINDIVERT_PARAM_VERSION_MINOR

#define WINDIVERT_PARAM_QUEUE_LENGTH_DEFAULT 4096
#define WINDIVERT_PARAM_QUEUE_LENGTH_MIN 32
#define WINDIVERT_PARAM_QUEUE_LENGTH_MAX 16384
#define WINDIVERT_PARAM_QUEUE_TIME_DEFAULT 2000
#define WINDIVERT_PARAM_QUEUE_TIME_MIN 100
#define WINDIVERT_PARAM_QUEUE_TIME_MAX 16000
#define WINDIVERT_PARAM_QUEUE_SIZE_DEFAULT 4194304
#define WINDIVERT_PARAM_QUEUE_SIZE_MIN 65535
#define WINDIVERT_PARAM_QUEUE_SIZE_MAX 33554432

typedef enum
{
    WINDIVERT_SHUTDOWN_RECV = 1,
    WINDIVERT_SHUTDOWN_SEND = 2,
    WINDIVERT_SHUTDOWN_BOTH = 3
} WINDIVERT_SHUTDOWN, *PWINDIVERT_SHUTDOWN;
#define WINDIVERT_SHUTDOWN_MAX WINDIVERT_SHUTDOWN_BOTH

#define WINDIVERT_PRIORITY_HIGHEST 30000
#define WINDIVERT_PRIORITY_LOWEST (-WINDIVERT_PRIORITY_HIGHEST)
#define WINDIVERT_BATCH_MAX 0xFF         /* packets of a batch call */
#define WINDIVERT_MTU_MAX (40 + 0xFFFF)  /* bytes of the longest packet */

#define WINDIVERT_HELPER_NO_IP_CHECKSUM 1
#define WINDIVERT_HELPER_NO_ICMP_CHECKSUM 2
#define WINDIVERT_HELPER_NO_ICMPV6_CHECKSUM 4
#define WINDIVERT_HELPER_NO_TCP_CHECKSUM 8
#define WINDIVERT_HELPER_NO_UDP_CHECKSUM 16

/* ---- Addresses --------------------------------------------------------------------------------------- */

/* Layer data of NETWORK and NETWORK_FORWARD: an interface. SubIfIdx is 0 on Linux. */
typedef struct
{
    UINT32 IfIdx;
    UINT32 SubIfIdx;
} WINDIVERT_DATA_NETWORK, *PWINDIVERT_DATA_NETWORK;

/* Layer data of FLOW. Addresses: word 0 is the least significant; IPv4 is mapped (::ffff:a.b.c.d). */
typedef struct
{
    UINT64 EndpointId;
    UINT64 ParentEndpointId;
    UINT32 ProcessId;
    UINT32 LocalAddr[4];
    UINT32 RemoteAddr[4];
    UINT16 LocalPort;
    UINT16 RemotePort;
    UINT8 Protocol;
} WINDIVERT_DATA_FLOW, *PWINDIVERT_DATA_FLOW;

/* Layer data of SOCKET, of the same layout. */
typedef struct
{
    UINT64 EndpointId;
    UINT64 ParentEndpointId;
    UINT32 ProcessId;
    UINT32 LocalAddr[4];
    UINT32 RemoteAddr[4];
    UINT16 LocalPort;
    UINT16 RemotePort;
    UINT8 Protocol;
} WINDIVERT_DATA_SOCKET, *PWINDIVERT_DATA_SOCKET;

/* Layer data of REFLECT: how the reported handle was opened. */
typedef struct
{
    INT64 Timestamp;
    UINT32 ProcessId;
    WINDIVERT_LAYER Layer;
    UINT64 Flags;
    INT16 Priority;
} WINDIVERT_DATA_REFLECT, *PWINDIVERT_DATA_REFLECT;

/*
 * Facts about a packet or event besides its bytes. Timestamp counts performance-counter ticks, on Linux nanoseconds of
 * CLOCK_MONOTONIC. A received address also identifies its packet, in bytes behind the layer data: copy it as a whole.
 */
WINDIVERT_EXTENSION_ typedef struct
{
    INT64 Timestamp;
    UINT32 Layer : 8;
    UINT32 Event : 8;
    UINT32 Sniffed : 1;
    UINT32 Outbound : 1;
    UINT32 Loopback : 1;
    UINT32 Impostor : 1;
    UINT32 IPv6 : 1;
    UINT32 IPChecksum : 1;
    UINT32 TCPChecksum : 1;
    UINT32 UDPChecksum : 1;
    UINT32 Reserved1 : 8;
    UINT32 Reserved2;
    WINDIVERT_EXTENSION_ union
    {
        WINDIVERT_DATA_NETWORK Network;
        WINDIVERT_DATA_FLOW Flow;
        WINDIVERT_DATA_SOCKET Socket;
        WINDIVERT_DATA_REFLECT Reflect;
        UINT8 Reserved3[64];
    };
} WINDIVERT_ADDRESS, *PWINDIVERT_ADDRESS;

/* ---- Packet headers (network order) ------------------------------------------------------------------- */

WINDIVERT_EXTENSION_ typedef struct
{
    UINT8 HdrLength : 4; /* in units of 4 bytes */
    UINT8 Version : 4;
    UINT8 TOS;
    UINT16 Length;
    UINT16 Id;
    UINT16 FragOff0; /* see WINDIVERT_IPHDR_GET_FRAGOFF and its kin */
    UINT8 TTL;
    UINT8 Protocol;
    UINT16 Checksum;
    UINT32 SrcAddr;
    UINT32 DstAddr;
} WINDIVERT_IPHDR, *PWINDIVERT_IPHDR;

/* The fragment offset stays in network order, in units of 8 bytes; the flags are 0 or 1. */
#define WINDIVERT_IPHDR_GET_FRAGOFF(hdr) ((unsigned)(hdr)->FragOff0 & 0xFF1Fu)
#define WINDIVERT_IPHDR_GET_MF(hdr) (((hdr)->FragOff0 >> 5) & 1u)
#define WINDIVERT_IPHDR_GET_DF(hdr) (((hdr)->FragOff0 >> 6) & 1u)
#define WINDIVERT_IPHDR_GET_RESERVED(hdr) (((hdr)->FragOff0 >> 7) & 1u)

#define WINDIVERT_IPHDR_SET_BITS_(hdr, mask, bits) \
    ((void)((hdr)->FragOff0 = (UINT16)(((hdr)->FragOff0 & (UINT16)~(mask)) | ((bits) & (mask)))))
#define WINDIVERT_IPHDR_SET_FRAGOFF(hdr, val) WINDIVERT_IPHDR_SET_BITS_(hdr, 0xFF1Fu, (unsigned)(val))
#define WINDIVERT_IPHDR_SET_MF(hdr, val) WINDIVERT_IPHDR_SET_BITS_(hdr, 0x0020u, ((unsigned)(val) & 1u) << 5)
#define WINDIVERT_IPHDR_SET_DF(hdr, val) WINDIVERT_IPHDR_SET_BITS_(hdr, 0x0040u, ((unsigned)(val) & 1u) << 6)
#define WINDIVERT_IPHDR_SET_RESERVED(hdr, val) WINDIVERT_IPHDR_SET_BITS_(hdr, 0x0080u, ((unsigned)(val) & 1u) << 7)

WINDIVERT_EXTENSION_ typedef struct
{
    UINT8 TrafficClass0 : 4; /* its high half */
    UINT8 Version : 4;
    UINT8 FlowLabel0 : 4; /* its top 4 bits */
    UINT8 TrafficClass1 : 4;
    UINT16 FlowLabel1;
    UINT16 Length; /* without this header */
    UINT8 NextHdr;
    UINT8 HopLimit;
    UINT32 SrcAddr[4];
    UINT32 DstAddr[4];
} WINDIVERT_IPV6HDR, *PWINDIVERT_IPV6HDR;

/* The flow label is its top 4 bits above the 16 others in network order, as in WinDivert. */
#define WINDIVERT_IPV6HDR_GET_TRAFFICCLASS(hdr) \
    ((UINT8)(((unsigned)(hdr)->TrafficClass0 << 4) | (hdr)->TrafficClass1))
#define WINDIVERT_IPV6HDR_GET_FLOWLABEL(hdr) (((UINT32)(hdr)->FlowLabel0 << 16) | (UINT32)(hdr)->FlowLabel1)
#define WINDIVERT_IPV6HDR_SET_TRAFFICCLASS(hdr, val) \
    ((void)((hdr)->TrafficClass0 = ((unsigned)(val) >> 4) & 0xFu, (hdr)->TrafficClass1 = (unsigned)(val) & 0xFu))
#define WINDIVERT_IPV6HDR_SET_FLOWLABEL(hdr, val) \
    ((void)((hdr)->FlowLabel0 = ((UINT32)(val) >> 16) & 0xFu, (hdr)->FlowLabel1 = (UINT16)(val)))

typedef struct
{
    UINT8 Type;
    UINT8 Code;
    UINT16 Checksum;
    UINT32 Body;
} WINDIVERT_ICMPHDR, *PWINDIVERT_ICMPHDR;

typedef struct
{
    UINT8 Type;
    UINT8 Code;
    UINT16 Checksum;
    UINT32 Body;
} WINDIVERT_ICMPV6HDR, *PWINDIVERT_ICMPV6HDR;

WINDIVERT_EXTENSION_ typedef struct
{
    UINT16 SrcPort;
    UINT16 DstPort;
    UINT32 SeqNum;
    UINT32 AckNum;
    UINT16 Reserved1 : 4;
    UINT16 HdrLength : 4; /* in units of 4 bytes */
    UINT16 Fin : 1;
    UINT16 Syn : 1;
    UINT16 Rst : 1;
    UINT16 Psh : 1;
    UINT16 Ack : 1;
    UINT16 Urg : 1;
    UINT16 Reserved2 : 2;
    UINT16 Window;
    UINT16 Checksum;
    UINT16 UrgPtr;
} WINDIVERT_TCPHDR, *PWINDIVERT_TCPHDR;

typedef struct
{
    UINT16 SrcPort;
    UINT16 DstPort;
    UINT16 Length;
    UINT16 Checksum;
} WINDIVERT_UDPHDR, *PWINDIVERT_UDPHDR;

/* ---- The layouts, held to the specification at compile time -------------------------------------------- */

#define WINDIVERT_ASSERT_(name, condition) typedef char windivert_assert_##name##_[(condition) ? 1 : -1]
#define WINDIVERT_OFFSET_(name, type, member, offset) WINDIVERT_ASSERT_(name, offsetof(type, member) == (offset))

WINDIVERT_ASSERT_(address, sizeof(WINDIVERT_ADDRESS) == 80);
WINDIVERT_OFFSET_(address_reserved2, WINDIVERT_ADDRESS, Reserved2, 12);
WINDIVERT_OFFSET_(address_union, WINDIVERT_ADDRESS, Reserved3, 16);
WINDIVERT_ASSERT_(network, sizeof(WINDIVERT_DATA_NETWORK) == 8);
WINDIVERT_ASSERT_(flow, sizeof(WINDIVERT_DATA_FLOW) == 64);
WINDIVERT_OFFSET_(flow_protocol, WINDIVERT_DATA_FLOW, Protocol, 56);
WINDIVERT_ASSERT_(socket, sizeof(WINDIVERT_DATA_SOCKET) == 64);
WINDIVERT_OFFSET_(socket_protocol, WINDIVERT_DATA_SOCKET, Protocol, 56);
WINDIVERT_ASSERT_(reflect, sizeof(WINDIVERT_DATA_REFLECT) == 32);
WINDIVERT_OFFSET_(reflect_priority, WINDIVERT_DATA_REFLECT, Priority, 24);
WINDIVERT_ASSERT_(iphdr, sizeof(WINDIVERT_IPHDR) == 20);
WINDIVERT_ASSERT_(ipv6hdr, sizeof(WINDIVERT_IPV6HDR) == 40);
WINDIVERT_ASSERT_(icmphdr, sizeof(WINDIVERT_ICMPHDR) == 8);
WINDIVERT_ASSERT_(icmpv6hdr, sizeof(WINDIVERT_ICMPV6HDR) == 8);
WINDIVERT_ASSERT_(tcphdr, sizeof(WINDIVERT_TCPHDR) == 20);
WINDIVERT_ASSERT_(udphdr, sizeof(WINDIVERT_UDPHDR) == 8);

/* ---- Handles ----------------------------------------------------------------------------------------- */

/*
 * Opens a handle for the packets or events that match the filter, which is text or an object string. Matching packets
 * wait from now on. The handle belongs to the network namespace of the calling thread. Errors: 87 an invalid argument,
 * a filter that does not compile (WinDivertHelperCompileFilter gives the reason), or one that the driver would refuse;
 * 5 missing rights; 50 not possible on this system.
 *
 * The environment variable DIVERT_PASS_ON_HANG=MS makes matching packets pass while the program receives nothing
 * although a packet has waited for MS milliseconds, 100 to 3600000; DIVERT_DROP_ON_HANG=MS drops them instead.
 */
WINDIVERTEXPORT HANDLE WinDivertOpen(const char *filter, WINDIVERT_LAYER layer, INT16 priority, UINT64 flags);

/*
 * Waits for a packet or event. Each pointer may be NULL. *pRecvLen is the packet's length.
 *
 * The kernel keeps TCP in segments of up to 64 KiB: room for WINDIVERT_MTU_MAX bytes is fastest. From the first call
 * with packetLen below 65531 on, TCP comes as it is on the wire, except for handles that sniff at NETWORK_FORWARD. In
 * the environment of WinDivertOpen, DIVERT_SEGMENTS=1 makes it do so from the start, DIVERT_SEGMENTS=0 never.
 *
 * Of a packet longer than 65531 bytes, which its IP header shows, the first 65531 are received; WinDivertSend with
 * these bytes unchanged lets the whole packet go on.
 *
 * Errors: 122 the packet was longer than the buffer: its first packetLen bytes and the address are there, the rest is
 * lost, *pRecvLen is untouched; 232 shut down and drained; 995 closed during the call; 87 SEND_ONLY.
 */
WINDIVERTEXPORT BOOL WinDivertRecv(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen,
                                   WINDIVERT_ADDRESS *pAddr);

/*
 * WinDivertRecv for up to 255 packets, back to back in pPacket; one of 65531 bytes is the last. With pAddrLen,
 * *pAddrLen is the size of the array pAddr in bytes (80 to 20400); on return it is the size of the addresses received.
 * flags must be 0. With overlapped the call does not wait: FALSE with 997 means that the buffers are in use until the
 * request completes.
 */
WINDIVERTEXPORT BOOL WinDivertRecvEx(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen, UINT64 flags,
                                     WINDIVERT_ADDRESS *pAddr, UINT *pAddrLen, LPOVERLAPPED lpOverlapped);

#ifndef _WIN32
/*
 * An addition, on Linux: WinDivertRecvEx with a limit in milliseconds for its wait; 0: no wait, INFINITE: no limit.
 * pAddrLen may be NULL: then one packet. Errors: those of WinDivertRecv; 258 no packet came.
 */
WINDIVERTEXPORT BOOL WinDivertRecvTimeout(HANDLE handle, VOID *pPacket, UINT packetLen, UINT *pRecvLen,
                                          WINDIVERT_ADDRESS *pAddr, UINT *pAddrLen, DWORD milliseconds);

/*
 * An addition, on Linux: a descriptor for poll, select, epoll and event loops. It is readable while a receive call
 * would not wait: a packet or event is there, the handle is shut down and drained, or receiving fails. Wait for
 * POLLIN, then receive; do not read the descriptor. WinDivertRecvTimeout with 0 is best, as another thread may be
 * faster, or the packet too old. The caller closes the descriptor, which is independent of the handle: after
 * WinDivertClose it stays readable. From the first call on up to 64 packets are received ahead. Returns -1 on failure.
 * Errors: 6; 22; 87 SEND_ONLY.
 */
WINDIVERTEXPORT int WinDivertGetFd(HANDLE handle);
#endif

/*
 * Injects a packet. With the address of a received packet, that packet goes on, once. The caller's memory is not
 * changed: missing checksums (address bits of 0) are computed in a copy. *pSendLen may be NULL. Errors: 122 the packet
 * ends before its IP length (but a packet received so is sent if it is unchanged); 87 not an IP packet, or RECV_ONLY;
 * 232 shut down; 1232 the hop limit of an impostor packet.
 */
WINDIVERTEXPORT BOOL WinDivertSend(HANDLE handle, const VOID *pPacket, UINT packetLen, UINT *pSendLen,
                                   const WINDIVERT_ADDRESS *pAddr);

/*
 * WinDivertSend for as many packets, back to back, as there are addresses; addrLen is the addresses' size in bytes (80
 * to 20400). flags must be 0. A request with overlapped completes within the call. A malformed packet ends the call;
 * those before it are sent. Other failures do not end the call, which returns the last one.
 */
WINDIVERTEXPORT BOOL WinDivertSendEx(HANDLE handle, const VOID *pPacket, UINT packetLen, UINT *pSendLen,
                                     UINT64 flags, const WINDIVERT_ADDRESS *pAddr, UINT addrLen,
                                     LPOVERLAPPED lpOverlapped);

/*
 * Ends receiving, sending or both for good. Packets that wait can still be received. Errors: 87, 22. A signal handler
 * may call this and WinDivertClose; other calls from handlers fail with 1131.
 */
WINDIVERTEXPORT BOOL WinDivertShutdown(HANDLE handle, WINDIVERT_SHUTDOWN how);

/* Closes a handle. Packets that wait go on as if not captured; waiting calls end with 995. Errors: 6. */
WINDIVERTEXPORT BOOL WinDivertClose(HANDLE handle);

/* Sets and reads a parameter. Errors: 87 an unknown or read-only one, or a value out of its range; 22. */
WINDIVERTEXPORT BOOL WinDivertSetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 value);
WINDIVERTEXPORT BOOL WinDivertGetParam(HANDLE handle, WINDIVERT_PARAM param, UINT64 *pValue);

/* The error of the thread's last failed call. WinDivert itself has only GetLastError. */
WINDIVERTEXPORT DWORD WinDivertGetLastError(void);

/* ---- Helpers: pure functions ------------------------------------------------------------------------- */

/* A hash of the IP and transport headers; 0 if there is no whole packet. */
WINDIVERTEXPORT UINT64 WinDivertHelperHashPacket(const VOID *pPacket, UINT packetLen,
                                                 UINT64 seed WINDIVERT_DEFAULT_(0));

/*
 * Finds the headers of a packet. Each output may be NULL; pointers to absent headers are set to NULL. ppNext is the
 * part of the buffer behind the packet. FALSE, with the outputs untouched, if there is no whole packet.
 */
WINDIVERTEXPORT BOOL WinDivertHelperParsePacket(const VOID *pPacket, UINT packetLen, PWINDIVERT_IPHDR *ppIpHdr,
                                                PWINDIVERT_IPV6HDR *ppIpv6Hdr, UINT8 *pProtocol,
                                                PWINDIVERT_ICMPHDR *ppIcmpHdr, PWINDIVERT_ICMPV6HDR *ppIcmpv6Hdr,
                                                PWINDIVERT_TCPHDR *ppTcpHdr, PWINDIVERT_UDPHDR *ppUdpHdr,
                                                PVOID *ppData, UINT *pDataLen, PVOID *ppNext, UINT *pNextLen);

/* Read addresses into host order, word 0 the least significant; the output may be NULL. Error: 87. */
WINDIVERTEXPORT BOOL WinDivertHelperParseIPv4Address(const char *addrStr, UINT32 *pAddr);
WINDIVERTEXPORT BOOL WinDivertHelperParseIPv6Address(const char *addrStr, UINT32 *pAddr);

/*
 * Write addresses as text. Error: 122. As in WinDivert, a buffer with room for everything but the NUL is no error: the
 * text loses its last character.
 */
WINDIVERTEXPORT BOOL WinDivertHelperFormatIPv4Address(UINT32 addr, char *buffer, UINT bufLen);
WINDIVERTEXPORT BOOL WinDivertHelperFormatIPv6Address(const UINT32 *pAddr, char *buffer, UINT bufLen);

/*
 * Computes the checksums of a packet, except those excluded by flags (WINDIVERT_HELPER_NO_…), and sets the bits of
 * pAddr, which may be NULL, for those written. FALSE if one cannot be computed.
 */
WINDIVERTEXPORT BOOL WinDivertHelperCalcChecksums(VOID *pPacket, UINT packetLen, WINDIVERT_ADDRESS *pAddr,
                                                  UINT64 flags);

/* Lowers TTL or hop limit by one. FALSE, and no change, if it is 0 or 1 or there is no packet. */
WINDIVERTEXPORT BOOL WinDivertHelperDecrementTTL(VOID *pPacket, UINT packetLen);

/*
 * Checks a filter and, if object is not NULL, writes its object string (10255 bytes always suffice). *errorStr, which
 * belongs to the library, is the error, *errorPos its byte offset. Errors: 87, 122.
 */
WINDIVERTEXPORT BOOL WinDivertHelperCompileFilter(const char *filter, WINDIVERT_LAYER layer, char *object,
                                                  UINT objLen, const char **errorStr, UINT *errorPos);

/*
 * An addition: writes the error of a filter, in lines that show the place and the remedy, and a NUL; an empty text if
 * WinDivertOpen would accept the filter. 1024 bytes suffice for 80 columns, 4096 for any text. Errors: 87, 122.
 */
WINDIVERTEXPORT BOOL WinDivertHelperExplainFilterError(const char *filter, WINDIVERT_LAYER layer, char *buffer,
                                                       UINT bufLen);

/* Whether a packet or event matches. FALSE with error 0: it does not; FALSE with 87: it cannot be decided. */
WINDIVERTEXPORT BOOL WinDivertHelperEvalFilter(const char *filter, const VOID *pPacket, UINT packetLen,
                                               const WINDIVERT_ADDRESS *pAddr);

/* Writes a filter, text or object, as text. Errors: 87, 122. */
WINDIVERTEXPORT BOOL WinDivertHelperFormatFilter(const char *filter, WINDIVERT_LAYER layer, char *buffer,
                                                 UINT bufLen);

/* Swap bytes, always. The addresses have four words; input and output may be the same. */
WINDIVERTEXPORT UINT16 WinDivertHelperNtohs(UINT16 x);
WINDIVERTEXPORT UINT16 WinDivertHelperHtons(UINT16 x);
WINDIVERTEXPORT UINT32 WinDivertHelperNtohl(UINT32 x);
WINDIVERTEXPORT UINT32 WinDivertHelperHtonl(UINT32 x);
WINDIVERTEXPORT UINT64 WinDivertHelperNtohll(UINT64 x);
WINDIVERTEXPORT UINT64 WinDivertHelperHtonll(UINT64 x);
WINDIVERTEXPORT void WinDivertHelperNtohIPv6Address(const UINT *inAddr, UINT *outAddr);
WINDIVERTEXPORT void WinDivertHelperHtonIPv6Address(const UINT *inAddr, UINT *outAddr);
WINDIVERTEXPORT void WinDivertHelperNtohIpv6Address(const UINT *inAddr, UINT *outAddr);
WINDIVERTEXPORT void WinDivertHelperHtonIpv6Address(const UINT *inAddr, UINT *outAddr);

/* ---- Windows calls that ported programs need, where there is no Windows --------------------------------- */

/*
 * They are weak: a program that defines one of these names uses its own, and so does the library. Events are
 * eventfds; handles of WinDivertOpen can be cancelled and closed, but not waited for.
 */
#if !defined(_WIN32) && !defined(WINDIVERT_NO_WINDOWS_CALLS)
WINDIVERTEXPORT DWORD GetLastError(void);
WINDIVERTEXPORT void SetLastError(DWORD error);
WINDIVERTEXPORT HANDLE CreateEvent(void *attributes, BOOL manualReset, BOOL initialState, LPCSTR name);
WINDIVERTEXPORT BOOL SetEvent(HANDLE event);
WINDIVERTEXPORT BOOL ResetEvent(HANDLE event);
WINDIVERTEXPORT DWORD WaitForSingleObject(HANDLE event, DWORD milliseconds);
WINDIVERTEXPORT DWORD WaitForMultipleObjects(DWORD count, const HANDLE *events, BOOL all, DWORD milliseconds);
WINDIVERTEXPORT BOOL GetOverlappedResult(HANDLE handle, LPOVERLAPPED overlapped, LPDWORD transferred, BOOL wait);
WINDIVERTEXPORT BOOL CancelIoEx(HANDLE handle, LPOVERLAPPED overlapped);
WINDIVERTEXPORT BOOL CloseHandle(HANDLE handle);
#endif

#ifdef __cplusplus
}
#endif

#endif /* WINDIVERT_H */
