/* What the tests ask for: packets, faults, the log and the counters. */
#include "model.h"

struct fault fault;
struct census tally;
struct test_version version;
ULONG64 now = 1000000;
ULONG mode;

struct entry { /* of the log: what TEST_LOG returns from code on */
	LIST_ENTRY link;
	ULONG size; /* of what follows */
	ULONG code;
	UCHAR record[16];
	UCHAR data[1]; /* INITIALIZE, STARTUP: the output buffer; SEND: addresses, then packets */
};

static LIST_ENTRY logged = {&logged, &logged}, left = {&left, &left}, held = {&held, &held};

/* ---- Faults ---- */

/* Reports whether a request of a code is to fail in a way, which then counts. */
BOOLEAN fails(ULONG code, enum how how)
{
	if (fault.code != code || fault.how != how || fault.count == 0)
		return FALSE;
	if (fault.skip > 0) {
		fault.skip--;
		return FALSE;
	}
	fault.count--;
	return TRUE;
}

static void NTAPI cancel_held(PDEVICE_OBJECT device, PIRP irp)
{
	IoReleaseCancelSpinLock(irp->CancelIrql);
	RemoveEntryList(&irp->Tail.Overlay.ListEntry);
	tally.held--;
	finish(irp, STATUS_CANCELLED, 0);
}

/* Keeps a request, which is marked pending, until it is released or cancelled. */
void hold(PIRP irp)
{
	InsertTailList(&held, &irp->Tail.Overlay.ListEntry);
	tally.held++;
	IoSetCancelRoutine(irp, cancel_held);
}

static void release(void)
{
	while (!IsListEmpty(&held)) {
		PIRP irp = CONTAINING_RECORD(held.Flink, IRP, Tail.Overlay.ListEntry);

		if (IoSetCancelRoutine(irp, NULL) == NULL)
			return; /* its cancel routine is about to run */
		RemoveEntryList(&irp->Tail.Overlay.ListEntry);
		tally.held--;
		operate_held(irp);
	}
}

/* ---- What the tests read ---- */

void log_request(const struct request *r, const void *head, ULONG head_size)
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

/* Notes a packet that no handle has kept. */
void keep_left(const UCHAR *address, const UCHAR *data, ULONG size)
{
	static BOOLEAN looping; /* what comes back and leaves again, is gone */
	UCHAR again[ADDRESS_SIZE];

	if (mode & MODE_LOOP && !looping) {
		looping = TRUE;
		memcpy(again, address, sizeof again);
		travel(again, data, size, ABOVE_ALL);
		looping = FALSE;
		return;
	}
	tally.left++;
	if (mode & MODE_KEEP) {
		struct item *i = new_item(address, data, size);

		if (i != NULL)
			InsertTailList(&left, &i->link);
	}
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

static NTSTATUS next_left(UCHAR *out, ULONG size, ULONG_PTR *information)
{
	struct item *i;

	if (IsListEmpty(&left))
		return STATUS_SUCCESS;
	i = CONTAINING_RECORD(left.Flink, struct item, link);
	if (ADDRESS_SIZE + i->size > size)
		return STATUS_BUFFER_TOO_SMALL;
	RemoveEntryList(&i->link);
	memcpy(out, i->address, ADDRESS_SIZE);
	memcpy(out + ADDRESS_SIZE, i->data, i->size);
	*information = ADDRESS_SIZE + i->size;
	ExFreePool(i);
	return STATUS_SUCCESS;
}

static ULONG length_of(const LIST_ENTRY *list)
{
	const LIST_ENTRY *l;
	ULONG n = 0;

	for (l = list->Flink; l != list; l = l->Flink)
		n++;
	return n;
}

static void take_census(struct census *out)
{
	LIST_ENTRY *l;

	*out = tally;
	for (l = contexts.Flink; l != &contexts; l = l->Flink) {
		struct context *c = CONTAINING_RECORD(l, struct context, link);

		if (c->state == INITIALISED || c->state == OPEN)
			out->contexts++;
		out->pending += length_of(&c->irps);
		out->queued += c->count;
	}
}

void reset(void)
{
	release();
	memset(&fault, 0, sizeof fault);
	version.magic = MAGIC_DRIVER;
	version.major = version.minor = 2;
	mode = MODE_LOG;
	tally.sends = tally.left = 0;
	discard(&logged); /* an entry begins like an item */
	discard(&left);
}

/* ---- The control codes ---- */

/* Copies what a control code sets, if it has the right size. */
static NTSTATUS set(void *what, ULONG size, const UCHAR *buffer, ULONG in)
{
	if (in != size)
		return STATUS_INVALID_PARAMETER;
	memcpy(what, buffer, size);
	return STATUS_SUCCESS;
}

NTSTATUS test(const struct request *r, UCHAR *buffer, ULONG in, ULONG out, ULONG_PTR *information)
{
	ULONG word = 0;
	NTSTATUS status;

	switch (r->code) {
	case TEST_RESET:
		reset();
		return STATUS_SUCCESS;
	case TEST_CAPTURE:
		if (in < ADDRESS_SIZE)
			return STATUS_INVALID_PARAMETER;
		travel(buffer, buffer + ADDRESS_SIZE, in - ADDRESS_SIZE, ABOVE_ALL);
		return STATUS_SUCCESS;
	case TEST_FAIL:
		return set(&fault, sizeof fault, buffer, in);
	case TEST_VERSION:
		return set(&version, sizeof version, buffer, in);
	case TEST_MODE:
		return set(&mode, sizeof mode, buffer, in);
	case TEST_CLIENT:
		status = set(&word, sizeof word, buffer, in);
		tell_client(r->pid, word);
		return status;
	case TEST_CLOCK:
		status = set(&word, sizeof word, buffer, in);
		now += word;
		return status;
	case TEST_RELEASE:
		release();
		return STATUS_SUCCESS;
	case TEST_LOG:
		return next_entry(buffer, out, information);
	case TEST_LEFT:
		return next_left(buffer, out, information);
	case TEST_COUNT:
		if (out != sizeof(struct census))
			return STATUS_INVALID_PARAMETER;
		take_census((struct census *)buffer);
		*information = out;
		return STATUS_SUCCESS;
	}
	return STATUS_INVALID_DEVICE_REQUEST;
}
