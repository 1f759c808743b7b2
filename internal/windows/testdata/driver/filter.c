/*
 * Filters: what the driver checks of them (windows-driver.md 6), and what they match (filter-language.md 3 and 6).
 * The random fields are checked and never match: they would need the hash of the original.
 */
#include "model.h"

#define ACCEPT 0x7FFE
#define REJECT 0x7FFF

#define N 0x01 /* layers, as 1 << layer */
#define M 0x02
#define F 0x04
#define S 0x08
#define R 0x10

enum { /* field numbers that mean something here */
	FIELD_ZERO, FIELD_INBOUND, FIELD_OUTBOUND, FIELD_IFIDX, FIELD_SUBIFIDX, FIELD_IP, FIELD_IPV6, FIELD_ICMP,
	FIELD_TCP, FIELD_UDP, FIELD_ICMPV6, FIELD_IP_FIRST, FIELD_IP_SRC = 21, FIELD_IP_DST, FIELD_IPV6_FIRST,
	FIELD_IPV6_SRC = 28, FIELD_IPV6_DST, FIELD_ICMP_FIRST, FIELD_ICMPV6_FIRST = 34, FIELD_TCP_FIRST = 38,
	FIELD_UDP_FIRST = 53, FIELD_LOOPBACK = 58, FIELD_IMPOSTOR, FIELD_PROCESS, FIELD_LOCAL_ADDR, FIELD_REMOTE_ADDR,
	FIELD_LOCAL_PORT, FIELD_REMOTE_PORT, FIELD_PROTOCOL, FIELD_ENDPOINT, FIELD_PARENT, FIELD_LAYER, FIELD_PRIORITY,
	FIELD_EVENT, FIELD_PACKET, FIELD_TCP_PAYLOAD = 74, FIELD_UDP_PAYLOAD = 77, FIELD_LENGTH = 80, FIELD_TIMESTAMP,
	FIELD_RANDOM8, FIELD_FRAGMENT = 85, FIELDS,
};

/* A sign and 128 bits, the least significant word first. */
struct value { BOOLEAN negative; ULONG w[4]; };

static int compare(const struct value *a, const struct value *b)
{
	int i;

	if (a->negative != b->negative)
		return a->negative ? -1 : 1;
	for (i = 3; i >= 0; i--)
		if (a->w[i] != b->w[i])
			return (a->w[i] < b->w[i]) != a->negative ? -1 : 1;
	return 0;
}

/* ---- Checks ---- */

#define W32 0xFFFFFFFF

/* The layers of a field, and how large its literal may be. Those with a limit of their own are in range(). */
static const struct { UCHAR layers; ULONG most[4]; } fields[FIELDS] = {
	{N|M|F|S|R, {1}}, {N|F|S, {1}}, {N|F|S, {1}}, {N|M, {W32}}, {N|M, {W32}},         /* zero ... subIfIdx */
	{N|M|F|S, {1}}, {N|M|F|S, {1}}, {N|M|F|S, {1}}, {N|M|F|S, {1}}, {N|M|F|S, {1}}, {N|M|F|S, {1}}, /* ip ... icmpv6 */
	{N|M, {15}}, {N|M, {255}}, {N|M, {65535}}, {N|M, {65535}}, {N|M, {1}}, {N|M, {1}},  /* ip.HdrLength ... MF */
	{N|M, {8191}}, {N|M, {255}}, {N|M, {255}}, {N|M, {65535}},                       /* ip.FragOff ... Checksum */
	{N|M, {W32, 0xFFFF}}, {N|M, {W32, 0xFFFF}},                                      /* ip.SrcAddr, DstAddr */
	{N|M, {255}}, {N|M, {0xFFFFF}}, {N|M, {65535}}, {N|M, {255}}, {N|M, {255}},       /* ipv6.TrafficClass ... */
	{N|M, {W32, W32, W32, W32}}, {N|M, {W32, W32, W32, W32}},                         /* ipv6.SrcAddr, DstAddr */
	{N|M, {255}}, {N|M, {255}}, {N|M, {65535}}, {N|M, {W32}},                        /* icmp */
	{N|M, {255}}, {N|M, {255}}, {N|M, {65535}}, {N|M, {W32}},                        /* icmpv6 */
	{N|M, {65535}}, {N|M, {65535}}, {N|M, {W32}}, {N|M, {W32}}, {N|M, {15}},          /* tcp.SrcPort ... HdrLength */
	{N|M, {1}}, {N|M, {1}}, {N|M, {1}}, {N|M, {1}}, {N|M, {1}}, {N|M, {1}},           /* tcp flags */
	{N|M, {65535}}, {N|M, {65535}}, {N|M, {65535}}, {N|M, {65535}},                   /* tcp.Window ... PayloadLength */
	{N|M, {65535}}, {N|M, {65535}}, {N|M, {65535}}, {N|M, {65535}}, {N|M, {65535}},   /* udp */
	{N|F|S, {W32}}, {N|M, {W32}}, {F|S|R, {W32}},                                    /* loopback, impostor, processId */
	{N|F|S, {W32, W32, W32, W32}}, {N|F|S, {W32, W32, W32, W32}},                     /* localAddr, remoteAddr */
	{N|F|S, {65535}}, {N|F|S, {65535}}, {N|F|S, {255}},                              /* localPort ... protocol */
	{F|S, {W32, W32}}, {F|S, {W32, W32}}, {R, {4}}, {R, {30000}}, {N|M|F|S|R, {9}},   /* endpointId ... event */
	{N|M, {255}}, {N|M, {65535}}, {N|M, {W32}}, {N|M, {255}}, {N|M, {65535}}, {N|M, {W32}}, /* packet, tcp.Payload */
	{N|M, {255}}, {N|M, {65535}}, {N|M, {W32}},                                      /* udp.Payload */
	{N|M, {PACKET_MAX}}, {N|M|F|S|R, {W32, 0x7FFFFFFF}},                              /* length, timestamp */
	{N|M, {255}}, {N|M, {65535}}, {N|M, {W32}}, {N|M, {1}},                           /* random, fragment */
};

static BOOLEAN indexed(ULONG field) { return field >= FIELD_PACKET && field < FIELD_LENGTH; }

/* Sets what the literal of a field may be at least and at most. */
static void range(ULONG field, struct value *least, struct value *most)
{
	memset(least, 0, sizeof *least);
	most->negative = FALSE;
	memcpy(most->w, fields[field].most, sizeof most->w);
	switch (field) {
	case FIELD_IP_SRC:
	case FIELD_IP_DST:
		least->w[1] = 0xFFFF;
		break;
	case FIELD_PRIORITY:
		least->negative = TRUE;
		least->w[0] = 30000;
		break;
	case FIELD_LENGTH:
		least->w[0] = 20;
		break;
	case FIELD_TIMESTAMP:
		least->negative = TRUE;
		least->w[1] = 0x80000000;
		break;
	}
}

static BOOLEAN valid_literal(const struct instruction *i, ULONG layer)
{
	static const UCHAR first[] = {0, 0, 1, 3, 8}, last[] = {0, 0, 2, 7, 9}; /* events of a layer */
	struct value v = {(BOOLEAN)i->negative}, least, most;

	memcpy(v.w, i->arg, sizeof v.w);
	if (indexed(i->field)) {
		LONG offset = (LONG)v.w[1];

		if (v.negative || offset < -PACKET_MAX || offset > PACKET_MAX || v.w[2] || v.w[3])
			return FALSE;
		v.w[1] = 0;
	}
	if (v.negative && !(v.w[0] | v.w[1] | v.w[2] | v.w[3]))
		return FALSE;
	if (i->field == FIELD_EVENT && (v.w[0] < first[layer] || v.w[0] > last[layer]))
		return FALSE;
	range(i->field, &least, &most);
	return compare(&v, &least) >= 0 && compare(&v, &most) <= 0;
}

BOOLEAN valid_filter(const struct context *c)
{
	ULONG n;

	for (n = 0; n < c->length; n++) {
		const struct instruction *i = c->filter + n;
		ULONG targets[2] = {i->success, i->failure}, t;

		if (i->field >= FIELDS || i->operator > 5 || !(fields[i->field].layers & 1 << c->layer))
			return FALSE;
		for (t = 0; t < 2; t++)
			if (targets[t] != ACCEPT && targets[t] != REJECT && (targets[t] <= n || targets[t] >= c->length))
				return FALSE;
		if (!valid_literal(i, c->layer))
			return FALSE;
	}
	return TRUE;
}

/* ---- What a filter looks at (packets.md 1) ---- */

struct view {
	const UCHAR *address, *data, *ip, *ipv6, *icmp, *icmpv6, *tcp, *udp, *payload;
	ULONG layer, size, payload_size;
	UCHAR protocol;
	BOOLEAN fragment;
};

static void parse_transport(struct view *v, ULONG at)
{
	const UCHAR *p = v->data + at;
	ULONG n = v->size - at, header = 0;

	if (v->protocol == 6 && n >= 20 && p[12] >> 4 >= 5) {
		v->tcp = p;
		header = min((ULONG)(p[12] >> 4) * 4, n);
	} else if (v->protocol == 17 && n >= 8) {
		v->udp = p;
		header = 8;
	} else if (v->protocol == 1 && v->ip && n >= 8) {
		v->icmp = p;
		header = 8;
	} else if (v->protocol == 58 && v->ipv6 && n >= 8) {
		v->icmpv6 = p;
		header = 8;
	}
	v->payload = p + header;
	v->payload_size = n - header;
}

static void parse_ip(struct view *v)
{
	ULONG fragment = net16(v->data + 6);

	v->ip = v->data;
	v->protocol = v->data[9];
	v->fragment = (fragment & 0x3FFF) != 0;
	if ((fragment & 0x1FFF) == 0)
		parse_transport(v, (v->data[0] & 15) * 4);
}

static void parse_ipv6(struct view *v)
{
	ULONG at = 40, offset = 0;

	v->ipv6 = v->data;
	v->protocol = v->data[6];
	while (offset == 0 && v->size - at >= 2) {
		const UCHAR *p = v->data + at;
		ULONG length;

		switch (v->protocol) {
		case 0: case 43: case 60: case 135:
			length = (p[1] + 1) * 8;
			break;
		case 51:
			length = (p[1] + 2) * 4;
			break;
		case 44:
			length = v->fragment ? 0 : 8;
			break;
		default:
			length = 0;
		}
		if (length == 0 || length > v->size - at)
			break;
		if (v->protocol == 44) {
			v->fragment = TRUE;
			offset = net16(p + 2) & 0xFFF8;
		}
		v->protocol = p[0];
		at += length;
	}
	if (offset == 0)
		parse_transport(v, at);
}

/* Reports whether the lengths in a packet's header are right: others match no filter (api.md 14.1). */
BOOLEAN strict_packet(const UCHAR *data, ULONG size)
{
	if (size >= 20 && data[0] >> 4 == 4)
		return (data[0] & 15) >= 5 && (ULONG)(data[0] & 15) * 4 <= size && net16(data + 2) == size;
	return size >= 40 && data[0] >> 4 == 6 && net16(data + 4) + 40 == size;
}

/* ---- Fields ---- */

static BOOLEAN number(struct value *v, ULONG n) { v->w[0] = n; return TRUE; }

static BOOLEAN signed_number(struct value *v, LONG64 n)
{
	ULONG64 magnitude = n < 0 ? 0 - (ULONG64)n : (ULONG64)n;

	v->negative = n < 0;
	v->w[0] = (ULONG)magnitude;
	v->w[1] = (ULONG)(magnitude >> 32);
	return TRUE;
}

static BOOLEAN mapped(struct value *v, const UCHAR *p)
{
	v->w[0] = net32(p);
	v->w[1] = 0xFFFF;
	return TRUE;
}

static BOOLEAN address6(struct value *v, const UCHAR *p)
{
	int i;

	for (i = 0; i < 4; i++)
		v->w[3 - i] = net32(p + 4 * i);
	return TRUE;
}

static BOOLEAN ip_field(struct value *v, const UCHAR *p, ULONG n)
{
	switch (n) {
	case 0: return number(v, p[0] & 15);
	case 1: return number(v, p[1]);
	case 2: return number(v, net16(p + 2));
	case 3: return number(v, net16(p + 4));
	case 4: return number(v, p[6] >> 6 & 1);
	case 5: return number(v, p[6] >> 5 & 1);
	case 6: return number(v, net16(p + 6) & 0x1FFF);
	case 7: return number(v, p[8]);
	case 8: return number(v, p[9]);
	case 9: return number(v, net16(p + 10));
	}
	return mapped(v, p + (n == 10 ? 12 : 16));
}

static BOOLEAN ipv6_field(struct value *v, const UCHAR *p, ULONG n)
{
	switch (n) {
	case 0: return number(v, net16(p) >> 4 & 255);
	case 1: return number(v, (ULONG)p[2] << 24 | p[3] << 16 | (p[1] & 15) << 8); /* the original's slip */
	case 2: return number(v, net16(p + 4));
	case 3: return number(v, p[6]);
	case 4: return number(v, p[7]);
	}
	return address6(v, p + (n == 5 ? 8 : 24));
}

static BOOLEAN icmp_field(struct value *v, const UCHAR *p, ULONG n)
{
	return number(v, n < 2 ? p[n] : n == 2 ? net16(p + 2) : net32(p + 4));
}

static BOOLEAN tcp_field(struct value *v, const UCHAR *p, ULONG n, ULONG payload)
{
	switch (n) {
	case 0: return number(v, net16(p));
	case 1: return number(v, net16(p + 2));
	case 2: return number(v, net32(p + 4));
	case 3: return number(v, net32(p + 8));
	case 4: return number(v, p[12] >> 4);
	case 11: return number(v, net16(p + 14));
	case 12: return number(v, net16(p + 16));
	case 13: return number(v, net16(p + 18));
	case 14: return number(v, payload);
	}
	return number(v, p[13] >> (10 - n) & 1); /* 5 to 10: Urg to Fin, bits 5 to 0 */
}

/* An element of 1, 2 or 4 bytes; an offset below 0 is from the end. */
static BOOLEAN element(struct value *v, const UCHAR *p, ULONG size, LONG offset, ULONG width)
{
	LONG64 at = offset < 0 ? (LONG64)size + offset : offset;

	if (p == NULL || at < 0 || at + width > size)
		return FALSE;
	p += at;
	return number(v, width == 1 ? p[0] : width == 2 ? net16(p) : net32(p));
}

static ULONG port_of(const struct view *v, BOOLEAN source)
{
	const UCHAR *p = v->tcp ? v->tcp : v->udp;

	if (p != NULL)
		return net16(p + (source ? 0 : 2));
	p = v->icmp ? v->icmp : v->icmpv6;
	return p != NULL && source ? p[0] : 0;
}

/* localAddr to protocol of a packet. */
static BOOLEAN end_field(struct value *v, const struct view *w, ULONG field)
{
	BOOLEAN outbound = (ADDRESS_BITS(w->address) & BIT_OUTBOUND) != 0;
	BOOLEAN source = (field == FIELD_LOCAL_ADDR || field == FIELD_LOCAL_PORT) == outbound;

	if (field == FIELD_PROTOCOL)
		return number(v, w->protocol);
	if (field == FIELD_LOCAL_PORT || field == FIELD_REMOTE_PORT)
		return number(v, port_of(w, source));
	return w->ip ? mapped(v, w->ip + (source ? 12 : 16)) : address6(v, w->ipv6 + (source ? 8 : 24));
}

/* Fields of the layers FLOW and SOCKET, from the 64 bytes of the address (api.md 2.1). */
static BOOLEAN flow_field(struct value *v, const struct view *w, ULONG field)
{
	const UCHAR *u = ADDRESS_UNION(w->address);

	switch (field) {
	case FIELD_PROCESS: return number(v, u32(u + 16));
	case FIELD_LOCAL_ADDR: memcpy(v->w, u + 20, 16); return TRUE;
	case FIELD_REMOTE_ADDR: memcpy(v->w, u + 36, 16); return TRUE;
	case FIELD_LOCAL_PORT: return number(v, *(const USHORT *)(u + 52));
	case FIELD_REMOTE_PORT: return number(v, *(const USHORT *)(u + 54));
	case FIELD_PROTOCOL: return number(v, u[56]);
	case FIELD_ENDPOINT: memcpy(v->w, u, 8); return TRUE;
	case FIELD_PARENT: memcpy(v->w, u + 8, 8); return TRUE;
	}
	return FALSE;
}

static BOOLEAN reflect_field(struct value *v, const struct view *w, ULONG field)
{
	const UCHAR *u = ADDRESS_UNION(w->address);

	switch (field) {
	case FIELD_PROCESS: return number(v, u32(u + 8));
	case FIELD_LAYER: return number(v, u32(u + 12));
	case FIELD_PRIORITY: return signed_number(v, *(const SHORT *)(u + 24));
	}
	return FALSE;
}

/* Whether an item is of a protocol. At FLOW and SOCKET ip and ipv6 are always false (driver-2.2.2.md 3.6). */
static BOOLEAN protocol_field(struct value *v, const struct view *w, ULONG field)
{
	const UCHAR *headers[] = {w->ip, w->ipv6, w->icmp, w->tcp, w->udp, w->icmpv6};
	static const UCHAR numbers[] = {0, 0, 1, 6, 17, 58};
	BOOLEAN ipv6 = (ADDRESS_BITS(w->address) & BIT_IPV6) != 0;
	ULONG n = field - FIELD_IP;

	if (w->layer <= LAYER_FORWARD)
		return number(v, headers[n] != NULL);
	if (n < 2 || (field == FIELD_ICMP && ipv6) || (field == FIELD_ICMPV6 && !ipv6))
		return number(v, 0);
	return number(v, ADDRESS_UNION(w->address)[56] == numbers[n]);
}

/* What an address says whatever the layer. */
static BOOLEAN common_field(struct value *v, const struct view *w, ULONG field)
{
	UCHAR bits = ADDRESS_BITS(w->address);

	switch (field) {
	case FIELD_ZERO: return number(v, 0);
	case FIELD_INBOUND: return number(v, !(bits & BIT_OUTBOUND));
	case FIELD_OUTBOUND: return number(v, (bits & BIT_OUTBOUND) != 0);
	case FIELD_IFIDX: return number(v, u32(ADDRESS_UNION(w->address)));
	case FIELD_SUBIFIDX: return number(v, u32(ADDRESS_UNION(w->address) + 4));
	case FIELD_LOOPBACK: return number(v, (bits & BIT_LOOPBACK) != 0);
	case FIELD_IMPOSTOR: return number(v, (bits & BIT_IMPOSTOR) != 0);
	case FIELD_EVENT: return number(v, ADDRESS_EVENT(w->address));
	case FIELD_LENGTH: return number(v, w->size);
	case FIELD_TIMESTAMP: return signed_number(v, (LONG64)u64(w->address));
	case FIELD_FRAGMENT: return number(v, w->fragment);
	}
	return FALSE;
}

static BOOLEAN header_field(struct value *v, const struct view *w, const struct instruction *i)
{
	ULONG f = i->field;
	LONG offset = (LONG)i->arg[1];

	if (indexed(f)) {
		ULONG width = 1 << (f - FIELD_PACKET) % 3;

		if (f < FIELD_TCP_PAYLOAD)
			return element(v, w->data, w->size, offset, width);
		return (f < FIELD_UDP_PAYLOAD ? w->tcp : w->udp) != NULL && element(v, w->payload, w->payload_size, offset, width);
	}
	if (f >= FIELD_UDP_FIRST)
		return w->udp && number(v, f == FIELD_UDP_FIRST + 4 ? w->payload_size : net16(w->udp + 2 * (f - FIELD_UDP_FIRST)));
	if (f >= FIELD_TCP_FIRST)
		return w->tcp && tcp_field(v, w->tcp, f - FIELD_TCP_FIRST, w->payload_size);
	if (f >= FIELD_ICMPV6_FIRST)
		return w->icmpv6 && icmp_field(v, w->icmpv6, f - FIELD_ICMPV6_FIRST);
	if (f >= FIELD_ICMP_FIRST)
		return w->icmp && icmp_field(v, w->icmp, f - FIELD_ICMP_FIRST);
	if (f >= FIELD_IPV6_FIRST)
		return w->ipv6 && ipv6_field(v, w->ipv6, f - FIELD_IPV6_FIRST);
	return w->ip && ip_field(v, w->ip, f - FIELD_IP_FIRST);
}

/* Sets the value of an instruction's field, and reports whether there is one. */
static BOOLEAN value_of(struct value *v, const struct view *w, const struct instruction *i)
{
	ULONG f = i->field;

	memset(v, 0, sizeof *v);
	if (f >= FIELD_IP && f <= FIELD_ICMPV6)
		return protocol_field(v, w, f);
	if (indexed(f) || (f >= FIELD_IP_FIRST && f < FIELD_LOOPBACK))
		return header_field(v, w, i);
	if (f >= FIELD_PROCESS && f <= FIELD_PRIORITY)
		return w->layer == LAYER_REFLECT ? reflect_field(v, w, f) : w->layer >= LAYER_FLOW ? flow_field(v, w, f) : end_field(v, w, f);
	return common_field(v, w, f);
}

static BOOLEAN holds(const struct view *w, const struct instruction *i)
{
	struct value v, literal = {(BOOLEAN)i->negative};
	int order;

	if (!value_of(&v, w, i))
		return FALSE;
	memcpy(literal.w, i->arg, sizeof literal.w);
	if (indexed(i->field))
		literal.w[1] = 0;
	order = compare(&v, &literal);
	switch (i->operator) {
	case 0: return order == 0;
	case 1: return order != 0;
	case 2: return order < 0;
	case 3: return order <= 0;
	case 4: return order > 0;
	}
	return order >= 0;
}

BOOLEAN matches(const struct context *c, const UCHAR *address, const UCHAR *data, ULONG size)
{
	struct view w = {.address = address, .data = data, .layer = c->layer, .size = size};
	ULONG at = 0;

	if (c->layer <= LAYER_FORWARD) {
		if (!strict_packet(data, size))
			return FALSE;
		if (data[0] >> 4 == 4)
			parse_ip(&w);
		else
			parse_ipv6(&w);
	}
	while (at < c->length)
		at = holds(&w, c->filter + at) ? c->filter[at].success : c->filter[at].failure;
	return at == ACCEPT;
}
