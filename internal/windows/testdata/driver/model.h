/*
 * A stand-in for the WinDivert driver, version 2.2.2: its protocol, its queues, its priorities, its filters and its
 * events (specification: windows-driver.md, api.md, driver-2.2.2.md). What it lacks is a network: the tests hand it
 * packets and events, and read what leaves, by control codes of its own. It exists for the tests, which run it
 * under Wine, where a driver is a library in a user process and its dispatch routines run one after the other.
 * That is what makes reading the client's memory with functions of user mode possible, and locks needless; on
 * Windows this would be no driver at all.
 *
 * Not modelled: checksums (packets travel with those they have), chains of buffers, the marks that Windows puts on
 * fragments, and time, which stands still until a test moves it.
 */
#ifndef MODEL_H
#define MODEL_H

#include <ntddk.h>
#include <string.h>

/* ---- The protocol (windows-driver.md 4 and 5) ---- */

#define IOCTL_INITIALIZE 0x0012E486
#define IOCTL_STARTUP    0x0012E489
#define IOCTL_RECV       0x0012648E
#define IOCTL_SEND       0x0012E491
#define IOCTL_SET_PARAM  0x0012E495
#define IOCTL_GET_PARAM  0x0012649A
#define IOCTL_SHUTDOWN   0x0012E49D

#define MAGIC_CLIENT 0x4C4C447669645724ULL
#define MAGIC_DRIVER 0x5359537669645723ULL

#define FLAG_SNIFF     0x01
#define FLAG_DROP      0x02
#define FLAG_RECV_ONLY 0x04
#define FLAG_SEND_ONLY 0x08
#define FLAG_ALL       0x3F

enum { LAYER_NETWORK, LAYER_FORWARD, LAYER_FLOW, LAYER_SOCKET, LAYER_REFLECT };

enum {
	EVENT_PACKET, EVENT_ESTABLISHED, EVENT_DELETED, EVENT_BIND, EVENT_CONNECT,
	EVENT_LISTEN, EVENT_ACCEPT, EVENT_CLOSE, EVENT_REFLECT_OPEN, EVENT_REFLECT_CLOSE,
};

/* Filter flags: what a filter may match (filter-object.md 3). */
#define HINT_INBOUND  0x0010
#define HINT_OUTBOUND 0x0020
#define HINT_IP       0x0040
#define HINT_IPV6     0x0080
#define HINT_DELETED  0x0100
#define HINT_BIND     0x0200 /* CONNECT, LISTEN, ACCEPT and CLOSE follow */
#define HINTS_ALL     0x3FF0

#define ADDRESS_SIZE     80
#define BATCH_MAX        255
#define PACKET_MAX       65575
#define INSTRUCTION_SIZE 24
#define FILTER_MAX       255
#define OBJECT_MAX       12288

/* The flag word of an address, at byte 8 (api.md 2.1). */
#define ADDRESS_LAYER(a)  ((a)[8])
#define ADDRESS_EVENT(a)  ((a)[9])
#define ADDRESS_BITS(a)   ((a)[10])
#define ADDRESS_UNION(a)  ((a) + 16)
#define BIT_SNIFFED  0x01
#define BIT_OUTBOUND 0x02
#define BIT_LOOPBACK 0x04
#define BIT_IMPOSTOR 0x08
#define BIT_IPV6     0x10

/* STATUS_HOPLIMIT_EXCEEDED is 0xC000A012, which Wine 8 does not know; this is error 1232 in its generic form. */
#define STATUS_HOPLIMIT ((NTSTATUS)0xC00104D0)

/* ---- The tests' own control codes: they work on any open file, initialised or not ---- */

#define TEST(n) CTL_CODE(0x12, 0x800 + (n), METHOD_BUFFERED, FILE_ANY_ACCESS)
#define TEST_RESET   TEST(0) /* faults off, held requests and log gone, what left forgotten */
#define TEST_CAPTURE TEST(1) /* in: address, data. The network has that packet or event */
#define TEST_FAIL    TEST(2) /* in: struct fault */
#define TEST_VERSION TEST(3) /* in: u64 magic, u32 major, u32 minor of the INITIALIZE answer */
#define TEST_MODE    TEST(4) /* in: u32 of the MODE_ bits */
#define TEST_LOG     TEST(5) /* out: the oldest entry of the log, which is removed; nothing if there is none */
#define TEST_COUNT   TEST(6) /* out: struct census */
#define TEST_CLIENT  TEST(7) /* in: u32 process id of the caller on the system below Wine */
#define TEST_CLOCK   TEST(8) /* in: u32 milliseconds that pass */
#define TEST_RELEASE TEST(9) /* the requests that are held go on */
#define TEST_LEFT    TEST(10) /* out: address, data of what left first, which is forgotten; nothing if nothing did */

#define MODE_LOOP    1 /* what leaves comes back, as the network's */
#define MODE_LOG     2 /* requests are logged */
#define MODE_AT_ONCE 4 /* requests complete within their call; the framework of the real driver lets none */
#define MODE_KEEP    8 /* what leaves is kept for TEST_LEFT */

/* Where a request fails. */
enum how {
	INSTEAD,   /* it is not carried out */
	AFTER,     /* it is carried out, and its bytes are told */
	HELD,      /* it does not fail, but waits for TEST_RELEASE or for being cancelled */
	SLOT_SOFT, /* SEND: a packet is refused, those behind it go out (api.md 8) */
	SLOT_HARD, /* SEND: a packet ends the call, those before it are out */
};

struct fault {
	ULONG code;   /* of the requests that fail */
	ULONG status; /* NT status they fail with */
	ULONG skip;   /* how many succeed first */
	ULONG count;  /* how many fail */
	ULONG how;
	ULONG slot;   /* SLOT_: which packet of the batch, from 0 */
};

struct census {
	ULONG contexts; /* open files that are initialised */
	ULONG pending;  /* receives that wait */
	ULONG queued;   /* packets and events that wait */
	ULONG sends;    /* packets sent since the reset */
	ULONG held;     /* requests that are held */
	ULONG left;     /* packets that left since the reset, sent ones or not */
};

/* ---- State ---- */

enum state { CREATED, INITIALISED, OPEN, CLOSED };

/* An item of a queue, and an entry of a list that the tests read. */
struct item {
	LIST_ENTRY link;
	ULONG64 since; /* of the clock */
	ULONG size;
	UCHAR address[ADDRESS_SIZE];
	UCHAR data[1];
};

struct instruction { /* filter-object.md 1 */
	ULONG field : 11, operator : 5, success : 16;
	ULONG failure : 16, negative : 1, reserved : 15;
	ULONG arg[4];
};

struct context {
	LIST_ENTRY link; /* in contexts, the highest order first */
	enum state state;
	ULONG pid;
	ULONG layer;
	SHORT priority;
	ULONG order; /* (priority + 30000) << 16 | openings (api.md 13) */
	ULONG64 flags;
	ULONG64 hints;
	ULONG64 opened; /* of the clock */
	ULONG64 params[5];
	BOOLEAN recv_down, send_down;
	LIST_ENTRY items;
	ULONG count, bytes; /* of items, with their headers */
	LIST_ENTRY flows;   /* items: those established while the handle is open */
	LIST_ENTRY irps;    /* receives that wait, the oldest first */
	ULONG length;       /* of the filter */
	struct instruction filter[FILTER_MAX];
};

struct request {
	ULONG code, pid;
	UCHAR record[16];
	UCHAR *out;
	ULONG out_size;
};

extern LIST_ENTRY contexts;
extern struct fault fault;
extern struct census tally; /* sends, held and left are kept here */
extern ULONG64 now;         /* milliseconds */
extern ULONG mode;

static inline ULONG u32(const UCHAR *p) { ULONG v; memcpy(&v, p, 4); return v; }
static inline ULONG64 u64(const UCHAR *p) { ULONG64 v; memcpy(&v, p, 8); return v; }
static inline USHORT net16(const UCHAR *p) { return (USHORT)(p[0] << 8 | p[1]); }
static inline ULONG net32(const UCHAR *p) { return (ULONG)net16(p) << 16 | net16(p + 2); }

/* driver.c */
void *allocate(SIZE_T size);
void finish(PIRP irp, NTSTATUS status, ULONG_PTR information);
void operate_held(PIRP irp);

/* tests.c */
struct test_version { ULONG64 magic; ULONG major, minor; };
extern struct test_version version;
NTSTATUS test(const struct request *r, UCHAR *buffer, ULONG in, ULONG out, ULONG_PTR *information);
void reset(void);
BOOLEAN fails(ULONG code, enum how how);
void hold(PIRP irp);
void log_request(const struct request *r, const void *head, ULONG head_size);
void keep_left(const UCHAR *address, const UCHAR *data, ULONG size);

/* client.c */
void tell_client(ULONG pid, ULONG host);
BOOLEAN client(ULONG pid, BOOLEAN write, ULONG64 address, void *buffer, SIZE_T size);

/* filter.c */
BOOLEAN valid_filter(const struct context *c);
BOOLEAN matches(const struct context *c, const UCHAR *address, const UCHAR *data, ULONG size);
BOOLEAN strict_packet(const UCHAR *data, ULONG size);

/* queue.c */
struct item *new_item(const UCHAR *address, const UCHAR *data, ULONG size);
void discard(LIST_ENTRY *list);
void enqueue(struct context *c, const UCHAR *address, const UCHAR *data, ULONG size);
BOOLEAN stale(const struct context *c, const struct item *i);
void service(struct context *c);
NTSTATUS receive(struct context *c, PIRP irp, const struct request *r);
PIRP next_irp(struct context *c);

/* stack.c */
#define ABOVE_ALL 0xFFFFFFFF
void insert_context(struct context *c);
void travel(UCHAR *address, const UCHAR *data, ULONG size, ULONG below);
NTSTATUS inject(struct context *c, const struct request *r, ULONG_PTR *information);
void put_back(struct context *c);

/* reflect.c */
void reflect_replay(struct context *c);
void reflect_event(const struct context *c, UCHAR event);

#endif
