/* The queue of a handle, and receiving from it (api.md 6, 7 and 12). */
#include "model.h"

/* What an item counts beyond its data, in bytes, by layer. */
static const ULONG overheads[] = {63, 63, 119, 119, 87};

/* How much of an address is written, in bytes, by layer (api.md 2.1). */
static const ULONG address_sizes[] = {24, 24, 80, 80, 48};

static ULONG weight(const struct context *c, const struct item *i) { return i->size + overheads[c->layer]; }

static BOOLEAN has_data(const struct context *c) { return c->layer != LAYER_FLOW && c->layer != LAYER_SOCKET; }

BOOLEAN stale(const struct context *c, const struct item *i) { return now - i->since > c->params[1]; }

struct item *new_item(const UCHAR *address, const UCHAR *data, ULONG size)
{
	struct item *i = allocate(sizeof *i + size);

	if (i == NULL)
		return NULL;
	i->since = now;
	i->size = size;
	memcpy(i->address, address, ADDRESS_SIZE);
	if (size > 0)
		memcpy(i->data, data, size);
	return i;
}

void discard(LIST_ENTRY *list)
{
	while (!IsListEmpty(list))
		ExFreePool(CONTAINING_RECORD(RemoveHeadList(list), struct item, link));
}

static void drop_head(struct context *c)
{
	struct item *i = CONTAINING_RECORD(RemoveHeadList(&c->items), struct item, link);

	c->count--;
	c->bytes -= weight(c, i);
	ExFreePool(i);
}

/* Appends an item: to a receive that waits, whatever its length, else to the queue if that has room. */
void enqueue(struct context *c, const UCHAR *address, const UCHAR *data, ULONG size)
{
	struct item *i = new_item(address, data, has_data(c) ? size : 0);

	if (i == NULL)
		return;
	if (!(IsListEmpty(&c->items) && !IsListEmpty(&c->irps)) && (weight(c, i) > c->params[2] || size > PACKET_MAX)) {
		ExFreePool(i);
		return;
	}
	while (c->count > 0 && (c->bytes + weight(c, i) > c->params[2] || c->count + 1 > c->params[0]))
		drop_head(c);
	InsertTailList(&c->items, &i->link);
	c->count++;
	c->bytes += weight(c, i);
	service(c);
}

/* What of a waiting receive is needed later; it lies in the IRP's DriverContext. */
static ULONG irp_pid(PIRP irp) { return (ULONG)(ULONG_PTR)irp->Tail.Overlay.DriverContext[0]; }

/* Where a receive writes to. */
struct target {
	ULONG pid;
	UCHAR *data;
	ULONG size, used;
	ULONG64 addresses; /* may be 0 */
	ULONG capacity, count;
};

/* Writes the first item of the queue, which leaves it. */
static NTSTATUS deliver_item(struct context *c, struct target *t)
{
	struct item *i = CONTAINING_RECORD(c->items.Flink, struct item, link);
	ULONG n = min(i->size, t->size - t->used);
	NTSTATUS status = n < i->size ? STATUS_BUFFER_TOO_SMALL : STATUS_SUCCESS;

	if (has_data(c) && t->size == 0) { /* the packet is lost, and nothing tells of it */
		drop_head(c);
		return STATUS_BUFFER_TOO_SMALL;
	}
	if (n > 0)
		memcpy(t->data + t->used, i->data, n);
	if (t->addresses != 0 &&
	    !client(t->pid, TRUE, t->addresses + t->count * ADDRESS_SIZE, i->address, address_sizes[c->layer]))
		status = STATUS_ACCESS_VIOLATION;
	t->used += n;
	t->count++;
	drop_head(c);
	return status;
}

/* Reports whether a further item of the queue belongs to the batch: the first that does not, ends it. */
static BOOLEAN fits(struct context *c, const struct target *t)
{
	struct item *i = CONTAINING_RECORD(c->items.Flink, struct item, link);

	return t->count < t->capacity && i->size <= t->size - t->used && !stale(c, i);
}

/* Completes a receive with what is queued: at least one packet is. */
static void deliver(struct context *c, PIRP irp)
{
	const UCHAR *record = irp->AssociatedIrp.SystemBuffer;
	ULONG64 length = u64(record + 8);
	struct target t = {irp_pid(irp)};
	NTSTATUS status;

	t.size = IoGetCurrentIrpStackLocation(irp)->Parameters.DeviceIoControl.OutputBufferLength;
	t.data = irp->MdlAddress ? MmGetSystemAddressForMdlSafe(irp->MdlAddress, NormalPagePriority) : NULL;
	t.addresses = u64(record);
	t.capacity = 1;
	if (length != 0) {
		if (!client(t.pid, FALSE, length, &t.capacity, 4)) {
			finish(irp, STATUS_ACCESS_VIOLATION, 0);
			return;
		}
		t.capacity = min(t.capacity / ADDRESS_SIZE, BATCH_MAX);
	}
	status = deliver_item(c, &t);
	while (NT_SUCCESS(status) && !IsListEmpty(&c->items) && fits(c, &t))
		status = deliver_item(c, &t);
	if (length != 0 && t.count > 0) {
		ULONG written = t.count * ADDRESS_SIZE;
		if (!client(t.pid, TRUE, length, &written, 4))
			status = STATUS_ACCESS_VIOLATION;
	}
	finish(irp, status, t.used);
}

static void NTAPI cancel(PDEVICE_OBJECT device, PIRP irp)
{
	IoReleaseCancelSpinLock(irp->CancelIrql);
	RemoveEntryList(&irp->Tail.Overlay.ListEntry);
	finish(irp, STATUS_CANCELLED, 0);
}

/* Takes the oldest waiting receive, NULL if there is none. */
PIRP next_irp(struct context *c)
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

/* Serves receives. Nothing but this drops what has waited too long: there is no timer. */
void service(struct context *c)
{
	PIRP irp;

	while (!IsListEmpty(&c->items) && stale(c, CONTAINING_RECORD(c->items.Flink, struct item, link)))
		drop_head(c);
	while (!IsListEmpty(&c->items) && (irp = next_irp(c)) != NULL)
		deliver(c, irp);
	while (c->recv_down && IsListEmpty(&c->items) && (irp = next_irp(c)) != NULL)
		finish(irp, STATUS_PIPE_EMPTY, 0);
}

NTSTATUS receive(struct context *c, PIRP irp, const struct request *r)
{
	ULONG64 addresses = u64(r->record), length = u64(r->record + 8);
	ULONG capacity;
	UCHAR probe[ADDRESS_SIZE];

	if (length != 0) {
		if (!client(r->pid, FALSE, length, &capacity, 4))
			return STATUS_ACCESS_VIOLATION;
		if (capacity < ADDRESS_SIZE || capacity > BATCH_MAX * ADDRESS_SIZE || addresses == 0)
			return STATUS_INVALID_PARAMETER;
	}
	if (addresses != 0 && !client(r->pid, FALSE, addresses, probe, sizeof probe))
		return STATUS_ACCESS_VIOLATION;
	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	if (c->flags & FLAG_SEND_ONLY)
		return STATUS_INVALID_PARAMETER;
	IoMarkIrpPending(irp);
	InsertTailList(&c->irps, &irp->Tail.Overlay.ListEntry);
	IoSetCancelRoutine(irp, cancel);
	service(c);
	return STATUS_PENDING;
}
