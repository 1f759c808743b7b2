/* The layer REFLECT: who opens and closes handles, and with which filter (api.md 18, filter-object.md 4). */
#include "model.h"

struct text { ULONG size; UCHAR bytes[OBJECT_MAX]; };

static void put(struct text *t, char c)
{
	if (t->size < sizeof t->bytes - 1)
		t->bytes[t->size++] = (UCHAR)c;
}

static char digit(ULONG d, BOOLEAN last)
{
	static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+=";

	return digits[last ? 32 + d : d];
}

/* Base 32, the last digit from an alphabet of its own. */
static void put_number(struct text *t, ULONG n)
{
	int shift = 30;

	while (shift > 0 && n >> shift == 0)
		shift -= 5;
	for (; shift > 0; shift -= 5)
		put(t, digit(n >> shift & 31, FALSE));
	put(t, digit(n & 31, TRUE));
}

static void put_target(struct text *t, ULONG target)
{
	if (target >= 0x7FFE) {
		put(t, target == 0x7FFE ? 'A' : 'X');
		return;
	}
	put(t, 'L');
	put_number(t, target);
}

static void put_instruction(struct text *t, const struct instruction *i)
{
	ULONG words = 0, w;

	put(t, '_');
	put_number(t, i->field);
	put_number(t, i->operator);
	put_number(t, i->negative);
	put_number(t, i->arg[0]);
	if (i->field == 28 || i->field == 29 || i->field == 61 || i->field == 62)
		words = 3;
	else if (i->field == 66 || i->field == 67 || i->field == 81)
		words = 1;
	for (w = 1; w <= words; w++)
		put_number(t, i->arg[w]);
	if (i->field >= 71 && i->field <= 79)
		put_number(t, (ULONG)((LONG)i->arg[1] + 65535));
	put_target(t, i->success);
	put_target(t, i->failure);
}

static void object(struct text *t, const struct context *c)
{
	const char *magic = "@WinDiv_";
	ULONG n;

	t->size = 0;
	while (*magic)
		put(t, *magic++);
	put_number(t, 0);
	put_number(t, c->length);
	for (n = 0; n < c->length; n++)
		put_instruction(t, c->filter + n);
	t->bytes[t->size++] = 0;
}

/* Tells a REFLECT handle of an event of another. */
static void tell(struct context *reflect, const struct context *c, UCHAR event)
{
	static struct text t;
	UCHAR address[ADDRESS_SIZE] = {0}, *u = ADDRESS_UNION(address);
	ULONG flags = (ULONG)c->flags;

	if (reflect->state != OPEN || reflect->recv_down)
		return;
	memcpy(address, &now, 8);
	ADDRESS_LAYER(address) = LAYER_REFLECT;
	ADDRESS_EVENT(address) = event;
	ADDRESS_BITS(address) = BIT_SNIFFED;
	memcpy(u, &c->opened, 8);
	memcpy(u + 8, &c->pid, 4);
	memcpy(u + 12, &c->layer, 4);
	memcpy(u + 16, &flags, 4);
	memcpy(u + 24, &c->priority, 2);
	object(&t, c);
	if (matches(reflect, address, t.bytes, t.size))
		enqueue(reflect, address, t.bytes, t.size);
}

/* The handles that are open already come first. */
void reflect_replay(struct context *c)
{
	LIST_ENTRY *l;

	for (l = contexts.Flink; l != &contexts; l = l->Flink) {
		const struct context *other = CONTAINING_RECORD(l, struct context, link);

		if (other->state == OPEN && other->layer != LAYER_REFLECT)
			tell(c, other, EVENT_REFLECT_OPEN);
	}
}

void reflect_event(const struct context *c, UCHAR event)
{
	LIST_ENTRY *l;

	if (c->layer == LAYER_REFLECT)
		return;
	for (l = contexts.Flink; l != &contexts; l = l->Flink) {
		struct context *other = CONTAINING_RECORD(l, struct context, link);

		if (other->layer == LAYER_REFLECT)
			tell(other, c, event);
	}
}
