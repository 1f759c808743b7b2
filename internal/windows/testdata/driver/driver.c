/*
 * A stand-in for the WinDivert driver that speaks its protocol (specification: windows-driver.md) but
 * captures nothing: packets are put into its queues, and faults into its answers, by control codes of
 * its own. It exists for the tests, which run it under Wine, where a driver is a library in a user process
 * and its dispatch routines run one after the other. That is what makes reading the client's
 * memory with functions of user mode possible; on Windows this file would be no driver at all.
 */
#include <ntddk.h>
#include <string.h>

/* ---- The protocol (windows-driver.md 4 and 5) ---- */

#define POOL_TAG 0x74766944

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

#define ADDRESS_SIZE     80
#define BATCH_MAX        255
#define INSTRUCTION_SIZE 24
#define FILTER_MAX       255
#define FILTER_FLAGS     0x3FF0
#define LAYER_REFLECT    4

/* ---- The tests' own control codes: they work on any open file, initialised or not ---- */

#define TEST(n) CTL_CODE(0x12, 0x800 + (n), METHOD_BUFFERED, FILE_ANY_ACCESS)
#define TEST_RESET   TEST(0) /* all faults off, log empty */
#define TEST_QUEUE   TEST(1) /* in: address, data. Captures that packet */
#define TEST_FAIL    TEST(2) /* in: struct fault */
#define TEST_VERSION TEST(3) /* in: u64 magic, u32 major, u32 minor of the INITIALIZE answer */
#define TEST_MODE    TEST(4) /* in: u32 of the MODE_ bits */
#define TEST_LOG     TEST(5) /* out: the oldest entry of the log, which is removed; nothing if there is none */
#define TEST_COUNT   TEST(6) /* out: struct census */
#define TEST_CLIENT  TEST(7) /* in: u32 process id of the caller on the system below Wine */
#define TEST_REFLECT TEST(8) /* in: address, data. An event that every handle at REFLECT gets at its start */

#define MODE_LOOP 1 /* what is sent is captured */
#define MODE_LOG  2 /* requests are logged */

struct fault {
	ULONG code;   /* of the requests that fail */
	ULONG status; /* NT status they fail with */
	ULONG skip;   /* how many succeed first */
	ULONG count;  /* how many fail */
};

struct census {
	ULONG contexts; /* open files that are initialised */
	ULONG pending;  /* receives that wait */
	ULONG queued;   /* packets that wait */
	ULONG sends;    /* packets sent since the reset */
};

/* ---- State ---- */

enum state { CREATED, INITIALISED, OPEN, CLOSED };

struct item {
	LIST_ENTRY link;
	ULONG size;
	UCHAR address[ADDRESS_SIZE];
	UCHAR data[1];
};

struct entry { /* of the log: what TEST_LOG returns */
	LIST_ENTRY link;
	ULONG size; /* of what follows */
	ULONG code;
	UCHAR record[16];
	UCHAR data[1]; /* INITIALIZE, STARTUP: the output buffer; SEND: addresses, then packets */
};

struct context {
	LIST_ENTRY link; /* in contexts, the newest first */
	enum state state;
	ULONG layer;
	ULONG64 flags;
	ULONG64 params[5];
	BOOLEAN recv_down, send_down;
	LIST_ENTRY items;
	LIST_ENTRY irps; /* receives that wait, the oldest first */
};

static LIST_ENTRY contexts, logged, reflected;
static struct fault fault;
static struct { ULONG64 magic; ULONG major, minor; } version;
static ULONG mode, sends;

/* ---- Memory of the client ----
 *
 * Wine can read and write another process, but stops it for that, and a client that is stopped while it hands
 * a large buffer to the server does not survive it. So the system below Wine is asked first, for which
 * the client tells its process id there. */

__declspec(dllimport) HANDLE __stdcall OpenProcess(ULONG access, int inherit, ULONG pid);
__declspec(dllimport) int __stdcall CloseHandle(HANDLE h);
__declspec(dllimport) int __stdcall ReadProcessMemory(HANDLE h, const void *from, void *to, SIZE_T n, SIZE_T *done);
__declspec(dllimport) int __stdcall WriteProcessMemory(HANDLE h, void *to, const void *from, SIZE_T n, SIZE_T *done);

#define PROCESS_VM_ACCESS 0x0038 /* operation, read, write */

#define LINUX_PROCESS_VM_READV  310
#define LINUX_PROCESS_VM_WRITEV 311

static struct { ULONG pid, host; } client_ids; /* what TEST_CLIENT told */

static BOOLEAN host_copy(long call, ULONG host, ULONG64 address, void *buffer, SIZE_T size)
{
	struct { void *base; SIZE_T size; } here = {buffer, size}, there = {(void *)(ULONG_PTR)address, size};
	register long long r10 __asm__("r10") = (long long)&there;
	register long long r8 __asm__("r8") = 1;
	register long long r9 __asm__("r9") = 0;
	long long result;

	__asm__ volatile("syscall"
	                 : "=a"(result)
	                 : "a"((long long)call), "D"((long long)host), "S"(&here), "d"(1LL), "r"(r10), "r"(r8), "r"(r9)
	                 : "rcx", "r11", "memory");
	return result == (long long)size;
}

static BOOLEAN wine_copy(BOOLEAN write, ULONG pid, ULONG64 address, void *buffer, SIZE_T size)
{
	HANDLE h = OpenProcess(PROCESS_VM_ACCESS, 0, pid);
	SIZE_T done = 0;
	int ok;

	if (h == NULL)
		return FALSE;
	if (write)
		ok = WriteProcessMemory(h, (void *)(ULONG_PTR)address, buffer, size, &done);
	else
		ok = ReadProcessMemory(h, (const void *)(ULONG_PTR)address, buffer, size, &done);
	CloseHandle(h);
	return ok && done == size;
}

static BOOLEAN client(ULONG pid, BOOLEAN write, ULONG64 address, void *buffer, SIZE_T size)
{
	long call = write ? LINUX_PROCESS_VM_WRITEV : LINUX_PROCESS_VM_READV;

	if (client_ids.pid == pid && host_copy(call, client_ids.host, address, buffer, size))
		return TRUE;
	return wine_copy(write, pid, address, buffer, size);
}

/* ---- Requests ---- */

struct request {
	ULONG code;
	UCHAR record[16];
	UCHAR *out;
	ULONG out_size;
};

static ULONG u32(const UCHAR *p) { ULONG v; memcpy(&v, p, 4); return v; }
static ULONG64 u64(const UCHAR *p) { ULONG64 v; memcpy(&v, p, 8); return v; }

static void finish(PIRP irp, NTSTATUS status, ULONG_PTR information)
{
	irp->IoStatus.Status = status;
	irp->IoStatus.Information = information;
	IoCompleteRequest(irp, IO_NO_INCREMENT);
}

static void *allocate(SIZE_T size) { return ExAllocatePoolWithTag(NonPagedPool, size, POOL_TAG); }

static void discard(LIST_ENTRY *list)
{
	while (!IsListEmpty(list))
		ExFreePool(CONTAINING_RECORD(RemoveHeadList(list), struct item, link));
}

static void log_request(const struct request *r, const void *head, ULONG head_size)
{
	struct entry *e;

	if (!(mode & MODE_LOG))
		return;
	e = allocate(sizeof *e + head_size + r->out_size);
	if (e == NULL)
		return;
	e->size = 20 + head_size + r->out_size;
	e->code = r->code;
	memcpy(e->record, r->record, 16);
	if (head_size)
		memcpy(e->data, head, head_size);
	if (r->out_size)
		memcpy(e->data + head_size, r->out, r->out_size);
	InsertTailList(&logged, &e->link);
}

/* ---- Receiving ---- */

/* What of a waiting receive is needed later; it lies in the IRP's DriverContext. */
static ULONG irp_pid(PIRP irp) { return (ULONG)(ULONG_PTR)irp->Tail.Overlay.DriverContext[0]; }


static BOOLEAN fits(const struct item *i, ULONG used, ULONG size) { return i->size <= size - used; }

/* Completes a receive with what is queued: at least one packet is. (api.md 7) */
static void deliver(struct context *c, PIRP irp)
{
	const UCHAR *record = irp->AssociatedIrp.SystemBuffer;
	ULONG size = IoGetCurrentIrpStackLocation(irp)->Parameters.DeviceIoControl.OutputBufferLength;
	UCHAR *out = irp->MdlAddress ? MmGetSystemAddressForMdlSafe(irp->MdlAddress, NormalPagePriority) : NULL;
	ULONG64 addresses = u64(record), length = u64(record + 8);
	ULONG capacity = 1, used = 0, count = 0, pid = irp_pid(irp);
	NTSTATUS status = STATUS_SUCCESS;

	if (length != 0) {
		if (!client(pid, FALSE, length, &capacity, 4)) {
			finish(irp, STATUS_ACCESS_VIOLATION, 0);
			return;
		}
		capacity = min(capacity / ADDRESS_SIZE, BATCH_MAX);
	}
	while (count < capacity && !IsListEmpty(&c->items)) {
		struct item *i = CONTAINING_RECORD(c->items.Flink, struct item, link);
		ULONG n = min(i->size, size - used);

		if (!fits(i, used, size) && count > 0)
			break;
		RemoveEntryList(&i->link);
		if (n > 0)
			memcpy(out + used, i->data, n);
		if (n < i->size)
			status = STATUS_BUFFER_TOO_SMALL;
		if (addresses != 0 && !client(pid, TRUE, addresses + count * ADDRESS_SIZE, i->address,
		                              c->layer <= 1 ? 24 : ADDRESS_SIZE))
			status = STATUS_ACCESS_VIOLATION;
		ExFreePool(i);
		used += n;
		count++;
		if (status != STATUS_SUCCESS)
			break;
	}
	if (length != 0) {
		ULONG written = count * ADDRESS_SIZE;
		if (!client(pid, TRUE, length, &written, 4))
			status = STATUS_ACCESS_VIOLATION;
	}
	finish(irp, status, used);
}

static void NTAPI cancel(PDEVICE_OBJECT device, PIRP irp)
{
	IoReleaseCancelSpinLock(irp->CancelIrql);
	RemoveEntryList(&irp->Tail.Overlay.ListEntry);
	finish(irp, STATUS_CANCELLED, 0);
}

/* Takes the oldest waiting receive, NULL if there is none. */
static PIRP next_irp(struct context *c)
{
	while (!IsListEmpty(&c->irps)) {
		PIRP irp = CONTAINING_RECORD(c->irps.Flink, IRP, Tail.Overlay.ListEntry);

		if (IoSetCancelRoutine(irp, NULL) == NULL)
			return NULL; /* its cancel routine is about to run */
		RemoveEntryList(&irp->Tail.Overlay.ListEntry);
		return irp;
	}
	return NULL;
}

static void service(struct context *c)
{
	PIRP irp;

	while (!IsListEmpty(&c->items) && (irp = next_irp(c)) != NULL)
		deliver(c, irp);
	while (c->recv_down && IsListEmpty(&c->items) && (irp = next_irp(c)) != NULL)
		finish(irp, STATUS_PIPE_EMPTY, 0);
}

static NTSTATUS receive(struct context *c, PIRP irp, const struct request *r)
{
	ULONG64 addresses = u64(r->record), length = u64(r->record + 8);
	ULONG pid = (ULONG)(ULONG_PTR)PsGetCurrentProcessId(), capacity;

	if (length != 0) {
		if (!client(pid, FALSE, length, &capacity, 4))
			return STATUS_ACCESS_VIOLATION;
		if (capacity < ADDRESS_SIZE || capacity > BATCH_MAX * ADDRESS_SIZE || addresses == 0)
			return STATUS_INVALID_PARAMETER;
	}
	if (c->flags & FLAG_SEND_ONLY)
		return STATUS_INVALID_PARAMETER;
	irp->Tail.Overlay.DriverContext[0] = (void *)(ULONG_PTR)pid;
	IoMarkIrpPending(irp);
	InsertTailList(&c->irps, &irp->Tail.Overlay.ListEntry);
	IoSetCancelRoutine(irp, cancel);
	service(c);
	return STATUS_PENDING;
}

static NTSTATUS append(LIST_ENTRY *list, const UCHAR *address, const UCHAR *data, ULONG size)
{
	struct item *i = allocate(sizeof *i + size);

	if (i == NULL)
		return STATUS_INSUFFICIENT_RESOURCES;
	i->size = size;
	memcpy(i->address, address, ADDRESS_SIZE);
	memcpy(i->data, data, size);
	InsertTailList(list, &i->link);
	return STATUS_SUCCESS;
}

/* Hands a packet to the newest handle that captures, and copies to the sniffing ones before it. */
static NTSTATUS capture(const UCHAR *address, const UCHAR *data, ULONG size)
{
	LIST_ENTRY *l;
	NTSTATUS status = STATUS_NOT_FOUND;

	for (l = contexts.Flink; l != &contexts; l = l->Flink) {
		struct context *c = CONTAINING_RECORD(l, struct context, link);

		if (c->state != OPEN || c->recv_down)
			continue;
		status = STATUS_SUCCESS;
		if (!(c->flags & FLAG_DROP)) {
			status = append(&c->items, address, data, size);
			if (status != STATUS_SUCCESS)
				return status;
			service(c);
		}
		if (!(c->flags & FLAG_SNIFF))
			break;
	}
	return status;
}

/* ---- Sending (api.md 8) ---- */

static ULONG packet_length(const UCHAR *p, ULONG size, NTSTATUS *status)
{
	ULONG length;

	*status = STATUS_BUFFER_TOO_SMALL;
	if (size < 20)
		return 0;
	switch (p[0] >> 4) {
	case 4:
		length = p[2] << 8 | p[3];
		if (length < 20)
			*status = STATUS_INVALID_PARAMETER;
		if (length < 20 || length > size)
			return 0;
		break;
	case 6:
		if (size < 40)
			return 0;
		length = (p[4] << 8 | p[5]) + 40;
		if (length > size)
			return 0;
		break;
	default:
		*status = STATUS_INVALID_PARAMETER;
		return 0;
	}
	*status = STATUS_SUCCESS;
	return length;
}

static NTSTATUS inject(struct context *c, const struct request *r, ULONG_PTR *information)
{
	static UCHAR addresses[BATCH_MAX * ADDRESS_SIZE];
	ULONG64 size = u64(r->record + 8);
	ULONG count, i, used = 0, pid = (ULONG)(ULONG_PTR)PsGetCurrentProcessId();

	if (size < ADDRESS_SIZE || size > sizeof addresses || u64(r->record) == 0)
		return STATUS_INVALID_PARAMETER;
	if (!client(pid, FALSE, u64(r->record), addresses, (SIZE_T)size))
		return STATUS_ACCESS_VIOLATION;
	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	if (c->send_down)
		return STATUS_PIPE_EMPTY;
	if (c->flags & FLAG_RECV_ONLY || c->layer > 1)
		return STATUS_INVALID_PARAMETER;
	if (r->out_size == 0)
		return STATUS_BUFFER_TOO_SMALL;
	log_request(r, addresses, (ULONG)size);
	count = (ULONG)size / ADDRESS_SIZE;
	for (i = 0; i < count; i++) {
		NTSTATUS status;
		ULONG n = packet_length(r->out + used, r->out_size - used, &status);

		if (status != STATUS_SUCCESS)
			return status;
		if (mode & MODE_LOOP)
			capture(addresses + i * ADDRESS_SIZE, r->out + used, n);
		used += n;
		sends++;
	}
	*information = used;
	return STATUS_SUCCESS;
}

/* ---- The other operations ---- */

static NTSTATUS initialise(struct context *c, struct request *r, ULONG_PTR *information)
{
	ULONG64 flags = u64(r->record + 8);
	ULONG bits;

	if (c->state != CREATED)
		return STATUS_INVALID_DEVICE_STATE;
	if (r->out_size != 64 || u64(r->out) != MAGIC_CLIENT || u32(r->out + 8) < 2)
		return STATUS_INVALID_PARAMETER;
	bits = u32(r->out + 16);
	log_request(r, NULL, 0);
	if ((bits != 32 && bits != 64) || u32(r->record) > LAYER_REFLECT || u32(r->record + 4) > 60000)
		return STATUS_INVALID_PARAMETER;
	if ((flags & ~(ULONG64)FLAG_ALL) || (flags & 3) == 3 || (flags & 12) == 12)
		return STATUS_INVALID_PARAMETER;
	c->layer = u32(r->record);
	c->flags = flags;
	if ((c->layer == 2 || c->layer == 4) && (flags & 5) != 5)
		return STATUS_INVALID_PARAMETER;
	if (c->layer == 3 && !(flags & FLAG_RECV_ONLY))
		return STATUS_INVALID_PARAMETER;
	memcpy(r->out, &version, 16);
	bits = 64;
	memcpy(r->out + 16, &bits, 4);
	c->state = INITIALISED;
	*information = 64;
	return STATUS_SUCCESS;
}

static NTSTATUS start(struct context *c, const struct request *r)
{
	ULONG count = r->out_size / INSTRUCTION_SIZE;
	LIST_ENTRY *l;

	if (c->state != INITIALISED)
		return STATUS_INVALID_DEVICE_STATE;
	c->state = OPEN;
	log_request(r, NULL, 0);
	if (u64(r->record) & ~(ULONG64)FILTER_FLAGS || r->out_size % INSTRUCTION_SIZE || count < 1 || count > FILTER_MAX)
		return STATUS_INVALID_PARAMETER;
	for (l = reflected.Flink; c->layer == LAYER_REFLECT && l != &reflected; l = l->Flink) {
		const struct item *i = CONTAINING_RECORD(l, struct item, link);
		NTSTATUS status = append(&c->items, i->address, i->data, i->size);

		if (status != STATUS_SUCCESS)
			return status;
	}
	return STATUS_SUCCESS;
}

static NTSTATUS shut_down(struct context *c, const struct request *r)
{
	ULONG how = u32(r->record);

	if (how < 1 || how > 3)
		return STATUS_INVALID_PARAMETER;
	log_request(r, NULL, 0);
	c->recv_down |= (how & 1) != 0;
	c->send_down |= (how & 2) != 0;
	service(c);
	return STATUS_SUCCESS;
}

static NTSTATUS set_param(struct context *c, const struct request *r)
{
	static const ULONG64 least[] = {32, 100, 65535}, most[] = {16384, 16000, 33554432};
	ULONG64 value = u64(r->record);
	ULONG param = u32(r->record + 8);

	log_request(r, NULL, 0);
	if (param > 2 || value < least[param] || value > most[param])
		return STATUS_INVALID_PARAMETER;
	c->params[param] = value;
	return STATUS_SUCCESS;
}

static NTSTATUS get_param(struct context *c, const struct request *r, ULONG_PTR *information)
{
	ULONG param = u32(r->record);

	if (param > 4 || r->out_size != 8)
		return STATUS_INVALID_PARAMETER;
	memcpy(r->out, &c->params[param], 8);
	*information = 8;
	return STATUS_SUCCESS;
}

static BOOLEAN fails(ULONG code)
{
	if (fault.code != code || fault.count == 0)
		return FALSE;
	if (fault.skip > 0) {
		fault.skip--;
		return FALSE;
	}
	fault.count--;
	return TRUE;
}

static NTSTATUS operate(struct context *c, PIRP irp, struct request *r, ULONG_PTR *information)
{
	if (fails(r->code))
		return (NTSTATUS)fault.status;
	switch (r->code) {
	case IOCTL_INITIALIZE:
		return initialise(c, r, information);
	case IOCTL_STARTUP:
		return start(c, r);
	case IOCTL_SEND:
		return inject(c, r, information);
	}
	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	switch (r->code) {
	case IOCTL_RECV:
		return receive(c, irp, r);
	case IOCTL_SET_PARAM:
		return set_param(c, r);
	case IOCTL_GET_PARAM:
		return get_param(c, r, information);
	case IOCTL_SHUTDOWN:
		return shut_down(c, r);
	}
	return STATUS_INVALID_DEVICE_REQUEST;
}

/* ---- The tests' operations ---- */

static ULONG length_of(const LIST_ENTRY *list)
{
	const LIST_ENTRY *l;
	ULONG n = 0;

	for (l = list->Flink; l != list; l = l->Flink)
		n++;
	return n;
}

static void reset(void)
{
	memset(&fault, 0, sizeof fault);
	version.magic = MAGIC_DRIVER;
	version.major = version.minor = 2;
	mode = MODE_LOG;
	sends = 0;
	discard(&logged); /* an entry begins like an item */
	discard(&reflected);
}

static void take_census(struct census *out)
{
	LIST_ENTRY *l;

	memset(out, 0, sizeof *out);
	for (l = contexts.Flink; l != &contexts; l = l->Flink) {
		struct context *c = CONTAINING_RECORD(l, struct context, link);

		if (c->state == INITIALISED || c->state == OPEN)
			out->contexts++;
		out->pending += length_of(&c->irps);
		out->queued += length_of(&c->items);
	}
	out->sends = sends;
}

static NTSTATUS next_entry(UCHAR *out, ULONG size, ULONG_PTR *information)
{
	struct entry *e;

	if (IsListEmpty(&logged))
		return STATUS_SUCCESS;
	e = CONTAINING_RECORD(logged.Flink, struct entry, link);
	if (e->size > size)
		return STATUS_BUFFER_TOO_SMALL;
	RemoveEntryList(&e->link);
	memcpy(out, &e->code, e->size);
	*information = e->size;
	ExFreePool(e);
	return STATUS_SUCCESS;
}

static NTSTATUS test(ULONG code, UCHAR *buffer, ULONG in, ULONG out, ULONG_PTR *information)
{
	switch (code) {
	case TEST_RESET:
		reset();
		return STATUS_SUCCESS;
	case TEST_QUEUE:
		if (in < ADDRESS_SIZE)
			return STATUS_INVALID_PARAMETER;
		return capture(buffer, buffer + ADDRESS_SIZE, in - ADDRESS_SIZE);
	case TEST_FAIL:
		if (in != sizeof fault)
			return STATUS_INVALID_PARAMETER;
		memcpy(&fault, buffer, sizeof fault);
		return STATUS_SUCCESS;
	case TEST_VERSION:
		if (in != 16)
			return STATUS_INVALID_PARAMETER;
		memcpy(&version, buffer, 16);
		return STATUS_SUCCESS;
	case TEST_MODE:
		if (in != 4)
			return STATUS_INVALID_PARAMETER;
		mode = u32(buffer);
		return STATUS_SUCCESS;
	case TEST_CLIENT:
		if (in != 4)
			return STATUS_INVALID_PARAMETER;
		client_ids.pid = (ULONG)(ULONG_PTR)PsGetCurrentProcessId();
		client_ids.host = u32(buffer);
		return STATUS_SUCCESS;
	case TEST_REFLECT:
		if (in < ADDRESS_SIZE)
			return STATUS_INVALID_PARAMETER;
		return append(&reflected, buffer, buffer + ADDRESS_SIZE, in - ADDRESS_SIZE);
	case TEST_LOG:
		return next_entry(buffer, out, information);
	case TEST_COUNT:
		if (out != sizeof(struct census))
			return STATUS_INVALID_PARAMETER;
		take_census((struct census *)buffer);
		*information = out;
		return STATUS_SUCCESS;
	}
	return STATUS_INVALID_DEVICE_REQUEST;
}

/* ---- Dispatch ---- */

static NTSTATUS NTAPI control(PDEVICE_OBJECT device, PIRP irp)
{
	PIO_STACK_LOCATION stack = IoGetCurrentIrpStackLocation(irp);
	struct context *c = stack->FileObject->FsContext;
	ULONG code = stack->Parameters.DeviceIoControl.IoControlCode;
	ULONG in = stack->Parameters.DeviceIoControl.InputBufferLength;
	ULONG out = stack->Parameters.DeviceIoControl.OutputBufferLength;
	ULONG_PTR information = 0;
	NTSTATUS status;

	if ((code & 3) == METHOD_BUFFERED) {
		status = test(code, irp->AssociatedIrp.SystemBuffer, in, out, &information);
	} else if (in < 16) {
		status = STATUS_INVALID_PARAMETER;
	} else {
		struct request r = {code};

		memcpy(r.record, irp->AssociatedIrp.SystemBuffer, 16);
		if (irp->MdlAddress != NULL) {
			r.out = MmGetSystemAddressForMdlSafe(irp->MdlAddress, NormalPagePriority);
			r.out_size = out;
		}
		status = operate(c, irp, &r, &information);
	}
	if (status != STATUS_PENDING)
		finish(irp, status, information);
	return status;
}

static NTSTATUS NTAPI create(PDEVICE_OBJECT device, PIRP irp)
{
	struct context *c = allocate(sizeof *c);

	if (c == NULL) {
		finish(irp, STATUS_INSUFFICIENT_RESOURCES, 0);
		return STATUS_INSUFFICIENT_RESOURCES;
	}
	memset(c, 0, sizeof *c);
	c->params[0] = 4096;
	c->params[1] = 2000;
	c->params[2] = 4194304;
	c->params[3] = c->params[4] = 2;
	InitializeListHead(&c->items);
	InitializeListHead(&c->irps);
	InsertHeadList(&contexts, &c->link);
	IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext = c;
	finish(irp, STATUS_SUCCESS, 0);
	return STATUS_SUCCESS;
}

static NTSTATUS NTAPI cleanup(PDEVICE_OBJECT device, PIRP irp)
{
	struct context *c = IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext;
	PIRP waiting;

	c->state = CLOSED;
	while ((waiting = next_irp(c)) != NULL)
		finish(waiting, STATUS_CANCELLED, 0);
	finish(irp, STATUS_SUCCESS, 0);
	return STATUS_SUCCESS;
}

static NTSTATUS NTAPI close(PDEVICE_OBJECT device, PIRP irp)
{
	struct context *c = IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext;

	discard(&c->items);
	RemoveEntryList(&c->link);
	ExFreePool(c);
	finish(irp, STATUS_SUCCESS, 0);
	return STATUS_SUCCESS;
}

static void NTAPI unload(PDRIVER_OBJECT driver)
{
	UNICODE_STRING link;

	RtlInitUnicodeString(&link, L"\\??\\WinDivert");
	IoDeleteSymbolicLink(&link);
	IoDeleteDevice(driver->DeviceObject);
}

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT driver, PUNICODE_STRING path)
{
	UNICODE_STRING name, link;
	PDEVICE_OBJECT device;
	NTSTATUS status;

	InitializeListHead(&contexts);
	InitializeListHead(&logged);
	InitializeListHead(&reflected);
	reset();
	RtlInitUnicodeString(&name, L"\\Device\\WinDivert");
	RtlInitUnicodeString(&link, L"\\??\\WinDivert");
	status = IoCreateDevice(driver, 0, &name, 0x12, 0, FALSE, &device);
	if (!NT_SUCCESS(status))
		return status;
	status = IoCreateSymbolicLink(&link, &name);
	if (!NT_SUCCESS(status)) {
		IoDeleteDevice(device);
		return status;
	}
	driver->MajorFunction[IRP_MJ_CREATE] = create;
	driver->MajorFunction[IRP_MJ_CLEANUP] = cleanup;
	driver->MajorFunction[IRP_MJ_CLOSE] = close;
	driver->MajorFunction[IRP_MJ_DEVICE_CONTROL] = control;
	driver->DriverUnload = unload;
	return STATUS_SUCCESS;
}
