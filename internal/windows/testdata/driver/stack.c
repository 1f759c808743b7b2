/* The network stack: who sees a packet or an event, and what is sent (api.md 8, 10, 13, 14.2, 16 and 17). */
#include "model.h"

/* Puts a handle among the others, in the order in which they see packets. */
void insert_context(struct context *c)
{
	LIST_ENTRY *l = contexts.Flink;

	while (l != &contexts && CONTAINING_RECORD(l, struct context, link)->order >= c->order)
		l = l->Flink;
	InsertTailList(l, &c->link); /* before l */
}

/* Reports whether a handle's hooks see an item (windows-driver.md 9). */
static BOOLEAN attached(const struct context *c, const UCHAR *address)
{
	UCHAR event = ADDRESS_EVENT(address), bits = ADDRESS_BITS(address);
	ULONG64 needed = bits & BIT_IPV6 ? HINT_IPV6 : HINT_IP;

	switch (c->layer) {
	case LAYER_NETWORK:
		needed |= bits & BIT_OUTBOUND ? HINT_OUTBOUND : HINT_INBOUND;
		break;
	case LAYER_SOCKET:
		needed |= HINT_BIND << (event - EVENT_BIND);
		break;
	case LAYER_REFLECT:
		return TRUE;
	}
	return (c->hints & needed) == needed;
}

/* Reports whether a handle was there when a flow began, which it forgets when the flow ends. */
static BOOLEAN tracked(struct context *c, const UCHAR *address)
{
	LIST_ENTRY *l;

	if (ADDRESS_EVENT(address) == EVENT_ESTABLISHED) {
		struct item *i = c->hints & HINT_DELETED ? new_item(address, NULL, 0) : NULL;

		if (i != NULL)
			InsertTailList(&c->flows, &i->link);
		return TRUE;
	}
	for (l = c->flows.Flink; l != &c->flows; l = l->Flink) {
		struct item *i = CONTAINING_RECORD(l, struct item, link);

		if (memcmp(ADDRESS_UNION(i->address), ADDRESS_UNION(address), 64) == 0) {
			RemoveEntryList(l);
			ExFreePool(i);
			return TRUE;
		}
	}
	return FALSE;
}

static BOOLEAN sees(struct context *c, const UCHAR *address, const UCHAR *data, ULONG size)
{
	if (c->state != OPEN || c->recv_down || c->layer != ADDRESS_LAYER(address) || !attached(c, address))
		return FALSE;
	if (c->layer == LAYER_FLOW && !tracked(c, address))
		return FALSE;
	if (c->layer == LAYER_NETWORK && (ADDRESS_BITS(address) & (BIT_OUTBOUND | BIT_LOOPBACK)) == BIT_LOOPBACK)
		return FALSE;
	return matches(c, address, data, size);
}

/* Takes a packet or an event through the handles whose order is below a number, the highest first. */
void travel(UCHAR *address, const UCHAR *data, ULONG size, ULONG below)
{
	BOOLEAN is_close = ADDRESS_LAYER(address) == LAYER_SOCKET && ADDRESS_EVENT(address) == EVENT_CLOSE;
	LIST_ENTRY *l;

	for (l = contexts.Flink; l != &contexts; l = l->Flink) {
		struct context *c = CONTAINING_RECORD(l, struct context, link);

		if ((below != ABOVE_ALL && c->order >= below) || !sees(c, address, data, size))
			continue;
		if (!(c->flags & FLAG_DROP)) {
			UCHAR own[ADDRESS_SIZE];

			memcpy(own, address, sizeof own);
			ADDRESS_BITS(own) &= (UCHAR)~BIT_SNIFFED;
			if (c->flags & FLAG_SNIFF || is_close)
				ADDRESS_BITS(own) |= BIT_SNIFFED;
			enqueue(c, own, data, size);
		}
		if (!(c->flags & FLAG_SNIFF) && !is_close)
			return;
	}
	if (ADDRESS_LAYER(address) <= LAYER_FORWARD)
		keep_left(address, data, size);
}

/* Sends a packet of a handle on, past the handles that are not below it. */
static void pass_on(struct context *c, UCHAR *address, const UCHAR *data, ULONG size)
{
	UCHAR own[ADDRESS_SIZE];

	memcpy(own, address, sizeof own);
	ADDRESS_LAYER(own) = (UCHAR)c->layer;
	ADDRESS_EVENT(own) = EVENT_PACKET;
	ADDRESS_BITS(own) &= (UCHAR)~(BIT_SNIFFED | BIT_IPV6);
	if (data[0] >> 4 == 6)
		ADDRESS_BITS(own) |= BIT_IPV6;
	travel(own, data, size, c->order);
}

/* Counts down the hops of an impostor, and reports whether it may go on. */
static BOOLEAN hop(const UCHAR *address, UCHAR *data)
{
	UCHAR *hops = data[0] >> 4 == 6 ? data + 7 : data + 8;

	if (!(ADDRESS_BITS(address) & BIT_IMPOSTOR))
		return TRUE;
	if (*hops <= 1)
		return FALSE;
	--*hops;
	return TRUE;
}

/* What waits at the close goes on, unless it is a copy, an event or too old (api.md 10). */
void put_back(struct context *c)
{
	while (!IsListEmpty(&c->items)) {
		struct item *i = CONTAINING_RECORD(RemoveHeadList(&c->items), struct item, link);

		if (c->layer <= LAYER_FORWARD && !(c->flags & FLAG_SNIFF) && !stale(c, i) && hop(i->address, i->data))
			pass_on(c, i->address, i->data, i->size);
		ExFreePool(i);
	}
}

/* Returns the length of the packet at p, as 2.2.2 takes it from its header (driver-2.2.2.md 1.2). */
static ULONG packet_length(const UCHAR *p, ULONG size, NTSTATUS *status)
{
	ULONG length;

	*status = STATUS_BUFFER_TOO_SMALL;
	if (size < 20)
		return 0;
	switch (p[0] >> 4) {
	case 4:
		length = net16(p + 2);
		if (length == 0)
			*status = STATUS_INSUFFICIENT_RESOURCES; /* an empty allocation fails */
		if (length == 0 || length > size)
			return 0;
		break;
	case 6:
		if (size < 40)
			return 0;
		length = net16(p + 4) + 40;
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

static NTSTATUS slot_fault(ULONG slot, enum how how)
{
	if (fault.slot != slot || !fails(IOCTL_SEND, how))
		return STATUS_SUCCESS;
	return (NTSTATUS)fault.status;
}

/* Injects the packets of a batch. Of soft errors the last counts, and all bytes are told; a hard one ends it. */
static NTSTATUS inject_batch(struct context *c, const struct request *r, UCHAR *addresses, ULONG count, ULONG_PTR *information)
{
	NTSTATUS status, soft = STATUS_SUCCESS;
	ULONG i, used = 0;

	for (i = 0; i < count; i++) {
		UCHAR *address = addresses + i * ADDRESS_SIZE, *data = r->out + used;
		ULONG n = packet_length(data, r->out_size - used, &status);

		if (status == STATUS_SUCCESS)
			status = slot_fault(i, SLOT_HARD);
		if (status != STATUS_SUCCESS)
			return status;
		used += n;
		status = slot_fault(i, SLOT_SOFT);
		if (status == STATUS_SUCCESS && !hop(address, data))
			status = STATUS_HOPLIMIT;
		if (status != STATUS_SUCCESS) {
			soft = status;
			continue;
		}
		tally.sends++;
		pass_on(c, address, data, n);
	}
	*information = used;
	return soft;
}

NTSTATUS inject(struct context *c, const struct request *r, ULONG_PTR *information)
{
	static UCHAR addresses[BATCH_MAX * ADDRESS_SIZE];
	ULONG64 size = u64(r->record + 8);

	if (size < ADDRESS_SIZE || size > sizeof addresses || u64(r->record) == 0)
		return STATUS_INVALID_PARAMETER;
	if (!client(r->pid, FALSE, u64(r->record), addresses, (SIZE_T)size))
		return STATUS_ACCESS_VIOLATION;
	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	if (c->send_down)
		return STATUS_PIPE_EMPTY;
	if (c->flags & FLAG_RECV_ONLY || c->layer > LAYER_FORWARD)
		return STATUS_INVALID_PARAMETER;
	if (r->out_size == 0)
		return STATUS_BUFFER_TOO_SMALL;
	log_request(r, addresses, (ULONG)size);
	return inject_batch(c, r, addresses, (ULONG)size / ADDRESS_SIZE, information);
}
