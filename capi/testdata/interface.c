/*
 * interface.c checks the parts of the interface that need no rights: constants, layouts, macros, helpers, and errors
 * found before the system is asked. It is C and C++.
 */
#include "check.h"

#include <stdlib.h>

/* ---- Constants (specification: api.md 1.1) ---- */

#define SAME(name, condition) WINDIVERT_ASSERT_(test_##name, condition)

SAME(layers, WINDIVERT_LAYER_NETWORK == 0 && WINDIVERT_LAYER_NETWORK_FORWARD == 1 && WINDIVERT_LAYER_FLOW == 2 &&
                 WINDIVERT_LAYER_SOCKET == 3 && WINDIVERT_LAYER_REFLECT == 4 && WINDIVERT_LAYER_MAX == 4);
SAME(events, WINDIVERT_EVENT_NETWORK_PACKET == 0 && WINDIVERT_EVENT_FLOW_ESTABLISHED == 1 &&
                 WINDIVERT_EVENT_FLOW_DELETED == 2 && WINDIVERT_EVENT_SOCKET_BIND == 3 &&
                 WINDIVERT_EVENT_SOCKET_CONNECT == 4 && WINDIVERT_EVENT_SOCKET_LISTEN == 5 &&
                 WINDIVERT_EVENT_SOCKET_ACCEPT == 6 && WINDIVERT_EVENT_SOCKET_CLOSE == 7 &&
                 WINDIVERT_EVENT_REFLECT_OPEN == 8 && WINDIVERT_EVENT_REFLECT_CLOSE == 9);
SAME(flags, WINDIVERT_FLAG_SNIFF == 1 && WINDIVERT_FLAG_DROP == 2 && WINDIVERT_FLAG_RECV_ONLY == 4 &&
                WINDIVERT_FLAG_READ_ONLY == 4 && WINDIVERT_FLAG_SEND_ONLY == 8 && WINDIVERT_FLAG_WRITE_ONLY == 8 &&
                WINDIVERT_FLAG_NO_INSTALL == 16 && WINDIVERT_FLAG_FRAGMENTS == 32);
SAME(params, WINDIVERT_PARAM_QUEUE_LENGTH == 0 && WINDIVERT_PARAM_QUEUE_TIME == 1 &&
                 WINDIVERT_PARAM_QUEUE_SIZE == 2 && WINDIVERT_PARAM_VERSION_MAJOR == 3 &&
                 WINDIVERT_PARAM_VERSION_MINOR == 4);
SAME(lengths, WINDIVERT_PARAM_QUEUE_LENGTH_DEFAULT == 4096 && WINDIVERT_PARAM_QUEUE_LENGTH_MIN == 32 &&
                  WINDIVERT_PARAM_QUEUE_LENGTH_MAX == 16384);
SAME(times, WINDIVERT_PARAM_QUEUE_TIME_DEFAULT == 2000 && WINDIVERT_PARAM_QUEUE_TIME_MIN == 100 &&
                WINDIVERT_PARAM_QUEUE_TIME_MAX == 16000);
SAME(sizes, WINDIVERT_PARAM_QUEUE_SIZE_DEFAULT == 4194304 && WINDIVERT_PARAM_QUEUE_SIZE_MIN == 65535 &&
                WINDIVERT_PARAM_QUEUE_SIZE_MAX == 33554432);
SAME(others, WINDIVERT_SHUTDOWN_RECV == 1 && WINDIVERT_SHUTDOWN_SEND == 2 && WINDIVERT_SHUTDOWN_BOTH == 3 &&
                 WINDIVERT_PRIORITY_HIGHEST == 30000 && WINDIVERT_PRIORITY_LOWEST == -30000 &&
                 WINDIVERT_BATCH_MAX == 255 && WINDIVERT_MTU_MAX == 65575);
SAME(helpers, WINDIVERT_HELPER_NO_IP_CHECKSUM == 1 && WINDIVERT_HELPER_NO_ICMP_CHECKSUM == 2 &&
                  WINDIVERT_HELPER_NO_ICMPV6_CHECKSUM == 4 && WINDIVERT_HELPER_NO_TCP_CHECKSUM == 8 &&
                  WINDIVERT_HELPER_NO_UDP_CHECKSUM == 16);

/* ---- Offsets of all members that have one (api.md 2) ---- */

#define AT(type, member, offset) SAME(type##_##member, offsetof(type, member) == (offset))
#define DATA_AT(type)           \
    AT(type, EndpointId, 0);    \
    AT(type, ParentEndpointId, 8); \
    AT(type, ProcessId, 16);    \
    AT(type, LocalAddr, 20);    \
    AT(type, RemoteAddr, 36);   \
    AT(type, LocalPort, 52);    \
    AT(type, RemotePort, 54);   \
    AT(type, Protocol, 56)

DATA_AT(WINDIVERT_DATA_FLOW);
DATA_AT(WINDIVERT_DATA_SOCKET);
AT(WINDIVERT_DATA_NETWORK, IfIdx, 0);
AT(WINDIVERT_DATA_NETWORK, SubIfIdx, 4);
AT(WINDIVERT_DATA_REFLECT, Timestamp, 0);
AT(WINDIVERT_DATA_REFLECT, ProcessId, 8);
AT(WINDIVERT_DATA_REFLECT, Layer, 12);
AT(WINDIVERT_DATA_REFLECT, Flags, 16);
AT(WINDIVERT_DATA_REFLECT, Priority, 24);
AT(WINDIVERT_ADDRESS, Timestamp, 0);
AT(WINDIVERT_ADDRESS, Reserved2, 12);
AT(WINDIVERT_ADDRESS, Network, 16);
AT(WINDIVERT_ADDRESS, Flow, 16);
AT(WINDIVERT_ADDRESS, Socket, 16);
AT(WINDIVERT_ADDRESS, Reflect, 16);
AT(WINDIVERT_IPHDR, TOS, 1);
AT(WINDIVERT_IPHDR, Length, 2);
AT(WINDIVERT_IPHDR, Id, 4);
AT(WINDIVERT_IPHDR, TTL, 8);
AT(WINDIVERT_IPHDR, Protocol, 9);
AT(WINDIVERT_IPHDR, Checksum, 10);
AT(WINDIVERT_IPHDR, SrcAddr, 12);
AT(WINDIVERT_IPHDR, DstAddr, 16);
AT(WINDIVERT_IPV6HDR, Length, 4);
AT(WINDIVERT_IPV6HDR, NextHdr, 6);
AT(WINDIVERT_IPV6HDR, HopLimit, 7);
AT(WINDIVERT_IPV6HDR, SrcAddr, 8);
AT(WINDIVERT_IPV6HDR, DstAddr, 24);
AT(WINDIVERT_ICMPHDR, Code, 1);
AT(WINDIVERT_ICMPHDR, Checksum, 2);
AT(WINDIVERT_ICMPHDR, Body, 4);
AT(WINDIVERT_ICMPV6HDR, Code, 1);
AT(WINDIVERT_ICMPV6HDR, Checksum, 2);
AT(WINDIVERT_ICMPV6HDR, Body, 4);
AT(WINDIVERT_TCPHDR, DstPort, 2);
AT(WINDIVERT_TCPHDR, SeqNum, 4);
AT(WINDIVERT_TCPHDR, AckNum, 8);
AT(WINDIVERT_TCPHDR, Window, 14);
AT(WINDIVERT_TCPHDR, Checksum, 16);
AT(WINDIVERT_TCPHDR, UrgPtr, 18);
AT(WINDIVERT_UDPHDR, DstPort, 2);
AT(WINDIVERT_UDPHDR, Length, 4);
AT(WINDIVERT_UDPHDR, Checksum, 6);

/* ---- Bit fields, which have no offset ---- */

static UINT32 flag_word(const WINDIVERT_ADDRESS *a)
{
    UINT32 word;

    memcpy(&word, (const char *)a + 8, sizeof(word));
    return word;
}

#define BITS(member, value, want)           \
    do {                                    \
        WINDIVERT_ADDRESS a;                \
        memset(&a, 0, sizeof(a));           \
        a.member = (value);                 \
        EQUAL(flag_word(&a), (UINT32)(want)); \
    } while (0)

static void check_flag_word(void)
{
    BITS(Layer, 0xAB, 0xAB);
    BITS(Event, 0xAB, 0xAB00);
    BITS(Sniffed, 1, 1u << 16);
    BITS(Outbound, 1, 1u << 17);
    BITS(Loopback, 1, 1u << 18);
    BITS(Impostor, 1, 1u << 19);
    BITS(IPv6, 1, 1u << 20);
    BITS(IPChecksum, 1, 1u << 21);
    BITS(TCPChecksum, 1, 1u << 22);
    BITS(UDPChecksum, 1, 1u << 23);
    BITS(Reserved1, 0xAB, 0xAB000000u);
}

static void check_headers(void)
{
    UINT8 bytes[40];
    PWINDIVERT_IPHDR ip = (PWINDIVERT_IPHDR)bytes;
    PWINDIVERT_IPV6HDR ipv6 = (PWINDIVERT_IPV6HDR)bytes;
    PWINDIVERT_TCPHDR tcp = (PWINDIVERT_TCPHDR)bytes;

    memset(bytes, 0, sizeof(bytes));
    ip->Version = 4, ip->HdrLength = 5;
    EQUAL(bytes[0], 0x45);
    bytes[6] = 0xA3, bytes[7] = 0x45; /* reserved and MF, offset 0x345 */
    EQUAL(WINDIVERT_IPHDR_GET_FRAGOFF(ip), 0x4503);
    EQUAL(WinDivertHelperNtohs(WINDIVERT_IPHDR_GET_FRAGOFF(ip)), 0x345);
    EQUAL(WINDIVERT_IPHDR_GET_RESERVED(ip), 1);
    EQUAL(WINDIVERT_IPHDR_GET_DF(ip), 0);
    EQUAL(WINDIVERT_IPHDR_GET_MF(ip), 1);
    WINDIVERT_IPHDR_SET_DF(ip, 3); /* bit 0 counts */
    WINDIVERT_IPHDR_SET_MF(ip, 2);
    WINDIVERT_IPHDR_SET_RESERVED(ip, 0);
    EQUAL(bytes[6], 0x43);
    WINDIVERT_IPHDR_SET_FRAGOFF(ip, WinDivertHelperHtons(0xFABC)); /* flags stay */
    EQUAL(bytes[6], 0x5A);
    EQUAL(bytes[7], 0xBC);

    memset(bytes, 0, sizeof(bytes));
    ipv6->Version = 6;
    WINDIVERT_IPV6HDR_SET_TRAFFICCLASS(ipv6, 0x12);
    EQUAL(bytes[0], 0x61);
    EQUAL(bytes[1], 0x20);
    EQUAL(WINDIVERT_IPV6HDR_GET_TRAFFICCLASS(ipv6), 0x12);
    WINDIVERT_IPV6HDR_SET_FLOWLABEL(ipv6, 0x34567);
    EQUAL(bytes[1], 0x23);
    EQUAL(bytes[2], 0x67);
    EQUAL(bytes[3], 0x45);
    EQUAL(WINDIVERT_IPV6HDR_GET_FLOWLABEL(ipv6), 0x34567);

    memset(bytes, 0, sizeof(bytes));
    tcp->Reserved1 = 1, tcp->HdrLength = 5;
    EQUAL(bytes[12], 0x51);
#define TCP_BIT(member, want) bytes[13] = 0, tcp->member = 1; EQUAL(bytes[13], want)
    TCP_BIT(Fin, 1);
    TCP_BIT(Syn, 2);
    TCP_BIT(Rst, 4);
    TCP_BIT(Psh, 8);
    TCP_BIT(Ack, 16);
    TCP_BIT(Urg, 32);
    bytes[13] = 0, tcp->Reserved2 = 3;
    EQUAL(bytes[13], 0xC0);
}

/* ---- Helpers: questions that the vectors leave out (api.md 21) ---- */

static void check_byte_order(void)
{
    UINT words[4] = {0x00010203u, 0x04050607u, 0x08090A0Bu, 0x0C0D0E0Fu}, swapped[4];
    const UINT want[4] = {0x0F0E0D0Cu, 0x0B0A0908u, 0x07060504u, 0x03020100u};

    EQUAL(WinDivertHelperNtohs(0x1234), 0x3412);
    EQUAL(WinDivertHelperHtons(0x1234), 0x3412);
    EQUAL(WinDivertHelperNtohl(0x12345678), 0x78563412);
    EQUAL(WinDivertHelperHtonl(0x12345678), 0x78563412);
    CHECK(WinDivertHelperNtohll(UINT64_C(0x0123456789ABCDEF)) == UINT64_C(0xEFCDAB8967452301));
    CHECK(WinDivertHelperHtonll(UINT64_C(0x0123456789ABCDEF)) == UINT64_C(0xEFCDAB8967452301));
    WinDivertHelperNtohIPv6Address(words, swapped);
    CHECK(memcmp(swapped, want, sizeof(want)) == 0);
    WinDivertHelperHtonIPv6Address(words, swapped);
    CHECK(memcmp(swapped, want, sizeof(want)) == 0);
    WinDivertHelperNtohIpv6Address(swapped, swapped);
    CHECK(memcmp(swapped, words, sizeof(words)) == 0);
    WinDivertHelperHtonIpv6Address(swapped, swapped);
    CHECK(memcmp(swapped, want, sizeof(want)) == 0);
}

static UINT8 syn[44] = {0x45, 0, 0, 0x2c, 0x1c, 0x46, 0x40, 0, 0x40, 6, 0x50, 0x7b, 10, 1, 2, 3, 192, 0, 2, 7, 0xc0, 0, 0,
                        0x50, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 2, 0xfa, 0xf0, 0x0a, 0xd4, 0, 0, 2, 4, 5, 0xb4};

/* check_untouched: an incomplete packet gives no results; all outputs stay unchanged (packets.md 1.3). */
static void check_untouched(const UINT8 *packet, UINT length)
{
    struct {
        PWINDIVERT_IPHDR ip;
        PWINDIVERT_IPV6HDR ipv6;
        PWINDIVERT_ICMPHDR icmp;
        PWINDIVERT_ICMPV6HDR icmpv6;
        PWINDIVERT_TCPHDR tcp;
        PWINDIVERT_UDPHDR udp;
        PVOID data, next;
        UINT data_length, next_length;
        UINT8 protocol;
    } out, before;

    memset(&out, 0xA5, sizeof(out));
    memcpy(&before, &out, sizeof(out));
    CHECK(!WinDivertHelperParsePacket(packet, length, &out.ip, &out.ipv6, &out.protocol, &out.icmp, &out.icmpv6,
                                      &out.tcp, &out.udp, &out.data, &out.data_length, &out.next, &out.next_length));
    CHECK(memcmp(&before, &out, sizeof(out)) == 0);
}

static void check_packets(void)
{
    PWINDIVERT_TCPHDR tcp = NULL;
    UINT8 copy[sizeof(syn)];
    WINDIVERT_ADDRESS addr;

    CHECK(WinDivertHelperHashPacket(syn, sizeof(syn), 0) == UINT64_C(0x5ed9432262fe2c5b));
    EQUAL(WinDivertHelperHashPacket(syn, sizeof(syn) - 1, 0), 0);
    EQUAL(WinDivertHelperHashPacket(NULL, 0, 0), 0);
#ifdef __cplusplus
    CHECK(WinDivertHelperHashPacket(syn, sizeof(syn)) == UINT64_C(0x5ed9432262fe2c5b));
#endif

    /* Failures leave the last error alone, and the outputs. */
    SetLastError(12345);
    CHECK(WinDivertHelperParsePacket(syn, sizeof(syn), NULL, NULL, NULL, NULL, NULL, &tcp, NULL, NULL, NULL, NULL, NULL));
    CHECK((UINT8 *)tcp == syn + 20);
    check_untouched(syn, 43);
    check_untouched(syn, 19);
    check_untouched(NULL, 44);
    CHECK(!WinDivertHelperCalcChecksums(NULL, 40, NULL, 0));
    CHECK(!WinDivertHelperDecrementTTL(NULL, 40));
    EQUAL(GetLastError(), 12345);

    memcpy(copy, syn, sizeof(syn));
    memset(copy + 10, 0, 2);
    memset(copy + 36, 0, 2);
    memset(&addr, 0xFF, sizeof(addr));
    addr.IPChecksum = addr.TCPChecksum = addr.UDPChecksum = 0;
    CHECK(WinDivertHelperCalcChecksums(copy, sizeof(copy), &addr, 0));
    CHECK(memcmp(copy, syn, sizeof(syn)) == 0);
    EQUAL(flag_word(&addr), 0xFF7FFFFFu);
    CHECK(addr.Reserved3[63] == 0xFF && addr.Reserved2 == 0xFFFFFFFFu && addr.Timestamp == -1);
    CHECK(WinDivertHelperDecrementTTL(copy, sizeof(copy)));
    EQUAL(copy[8], 0x3f);
    EQUAL(copy[10], 0x51);
}

static void check_addresses(void)
{
    UINT32 addr[4] = {0x01020304u, 0xFFFFu, 0, 0};
    char text[16] = "unchanged";

    FAILS(WinDivertHelperParseIPv4Address(NULL, addr), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperParseIPv4Address("1.2.3", addr), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperParseIPv6Address(NULL, addr), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperParseIPv6Address("::1::", addr), ERROR_INVALID_PARAMETER, EINVAL);
    EQUAL(addr[0], 0x01020304u); /* untouched */
    /* Quirk: the part before an IPv4 address is checked even if the result is not wanted. */
    FAILS(WinDivertHelperParseIPv6Address("1::1.2.3.4", NULL), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertHelperParseIPv6Address("::ffff:1.2.3.4", NULL));
    SUCCEEDS(WinDivertHelperParseIPv6Address("1::2", NULL));
    SUCCEEDS(WinDivertHelperParseIPv4Address("4.3.2.1", NULL));
    SUCCEEDS(WinDivertHelperParseIPv4Address("4.3.2.1", addr + 2));
    EQUAL(addr[2], 0x04030201u);
    addr[2] = 0;
    SUCCEEDS(WinDivertHelperFormatIPv6Address(addr, text, sizeof(text)));
    CHECK(strcmp(text, "1.2.3.4") == 0);
    SUCCEEDS(WinDivertHelperFormatIPv4Address(addr[0], text, 7)); /* quirk: the last character is lost */
    CHECK(strcmp(text, "1.2.3.") == 0);
    FAILS(WinDivertHelperFormatIPv4Address(addr[0], text, 6), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    CHECK(strcmp(text, "1.2.3") == 0);
    SUCCEEDS(WinDivertHelperFormatIPv4Address(addr[0], text, 8));
    CHECK(strcmp(text, "1.2.3.4") == 0);
    FAILS(WinDivertHelperFormatIPv4Address(addr[0], text, 0), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    CHECK(strcmp(text, "1.2.3.4") == 0);
    SUCCEEDS(WinDivertHelperFormatIPv6Address(addr, text, 7)); /* the same quirk */
    CHECK(strcmp(text, "1.2.3.") == 0);
    FAILS(WinDivertHelperFormatIPv6Address(addr, text, 6), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    CHECK(strcmp(text, "1.2.3") == 0);
    FAILS(WinDivertHelperFormatIPv4Address(addr[0], NULL, 20), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertHelperFormatIPv6Address(addr, NULL, 20), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertHelperFormatIPv6Address(NULL, text, 16), ERROR_INVALID_PARAMETER, EINVAL);
}

/* many returns a filter of n tests, to be freed. */
static char *many(int n)
{
    char *filter = (char *)calloc(n, 32), *at = filter;
    int i;

    for (i = 0; i < n; i++)
        at += sprintf(at, "%stcp.SrcPort == %d", i > 0 ? " or " : "", i + 1);
    return filter;
}

static void check_filters(void)
{
    WINDIVERT_ADDRESS addr;
    const char *error = "unchanged";
    UINT position = 12345;
    char buffer[10255], cut[20], *filter;

    FAILS(WinDivertHelperCompileFilter(NULL, WINDIVERT_LAYER_NETWORK, buffer, sizeof(buffer), &error, &position),
          ERROR_INVALID_PARAMETER, EINVAL);
    CHECK(strcmp(error, "unchanged") == 0 && position == 12345);
    FAILS(WinDivertHelperCompileFilter("tcp and", WINDIVERT_LAYER_NETWORK, NULL, 0, &error, &position),
          ERROR_INVALID_PARAMETER, EINVAL);
    CHECK(strcmp(error, "unchanged") != 0);
    EQUAL(position, 7);
    FAILS(WinDivertHelperCompileFilter("tcp", WINDIVERT_LAYER_NETWORK, buffer, 5, &error, &position),
          ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    CHECK(strcmp(buffer, "@Win") == 0 && position == 0 && strstr(error, "buffer") != NULL);
    CHECK(WinDivertHelperCompileFilter("true", WINDIVERT_LAYER_NETWORK, buffer, sizeof(buffer), &error, &position));
    EQUAL(GetLastError(), 0); /* set on entry */
    CHECK(strcmp(buffer, "@WinDiv_WX_WWWWAA") == 0);
    CHECK(WinDivertHelperCompileFilter("true", WINDIVERT_LAYER_NETWORK, cut, 17, NULL, NULL)); /* quirk: no NUL fits */
    CHECK(strcmp(cut, "@WinDiv_WX_WWWWA") == 0);
    FAILS(WinDivertHelperCompileFilter("true", WINDIVERT_LAYER_NETWORK, cut, 16, NULL, NULL), ERROR_INSUFFICIENT_BUFFER,
          EMSGSIZE);
    CHECK(strcmp(cut, "@WinDiv_WX_WWWW") == 0);
    CHECK(WinDivertHelperCompileFilter(buffer, WINDIVERT_LAYER_NETWORK, NULL, 0, &error, &position));
    CHECK(position == 0 && error != NULL);
    /* Any number of a layer is accepted, but such a layer has no fields. */
    CHECK(WinDivertHelperCompileFilter("true", (WINDIVERT_LAYER)5, buffer, sizeof(buffer), NULL, NULL));
    CHECK(!WinDivertHelperCompileFilter("tcp", (WINDIVERT_LAYER)5, NULL, 0, &error, NULL));
    CHECK(!WinDivertHelperCompileFilter("tcp", (WINDIVERT_LAYER)-1, NULL, 0, &error, NULL));
    filter = many(256);
    CHECK(WinDivertHelperCompileFilter(filter, WINDIVERT_LAYER_NETWORK, buffer, sizeof(buffer), NULL, NULL));
    CHECK(strcmp(buffer, "@WinDiv_WW") == 0);
    free(filter);
    /* Quirk: that succeeds, but no reader accepts the result. */
    FAILS(WinDivertHelperCompileFilter(buffer, WINDIVERT_LAYER_NETWORK, NULL, 0, NULL, NULL), ERROR_INVALID_PARAMETER,
          EINVAL);
    FAILS(WinDivertHelperFormatFilter(buffer, WINDIVERT_LAYER_NETWORK, cut, sizeof(cut)), ERROR_INVALID_PARAMETER,
          EINVAL);
    memset(&addr, 0, sizeof(addr));
    FAILS(WinDivertHelperEvalFilter(buffer, syn, sizeof(syn), &addr), ERROR_INVALID_PARAMETER, EINVAL);
    filter = many(257);
    CHECK(!WinDivertHelperCompileFilter(filter, WINDIVERT_LAYER_NETWORK, NULL, 0, NULL, NULL));
    free(filter);

    FAILS(WinDivertHelperFormatFilter(NULL, WINDIVERT_LAYER_NETWORK, buffer, 10), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperFormatFilter("tcp", WINDIVERT_LAYER_NETWORK, NULL, 10), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperFormatFilter("tcp or", WINDIVERT_LAYER_NETWORK, buffer, 10), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperFormatFilter("tcp", WINDIVERT_LAYER_NETWORK, buffer, 0), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    FAILS(WinDivertHelperFormatFilter("tcp", WINDIVERT_LAYER_NETWORK, buffer, 2), ERROR_INSUFFICIENT_BUFFER, EMSGSIZE);
    CHECK(strcmp(buffer, "t") == 0);
    SUCCEEDS(WinDivertHelperFormatFilter("tcp", WINDIVERT_LAYER_NETWORK, buffer, 3)); /* quirk: no NUL fits */
    CHECK(strcmp(buffer, "tc") == 0);
    SUCCEEDS(WinDivertHelperFormatFilter("tcp", WINDIVERT_LAYER_NETWORK, buffer, 4));
    CHECK(strcmp(buffer, "tcp") == 0);
    /* The original returns TRUE here, as it skips udp. The specification recommends FALSE. */
    FAILS(WinDivertHelperFormatFilter("tcp and udp", WINDIVERT_LAYER_NETWORK, buffer, 8), ERROR_INSUFFICIENT_BUFFER,
          EMSGSIZE);
    CHECK(strcmp(buffer, "tcp and") == 0);
    SUCCEEDS(WinDivertHelperFormatFilter("event == 1", WINDIVERT_LAYER_FLOW, buffer, sizeof(buffer)));
    CHECK(strcmp(buffer, "event = ESTABLISHED") == 0);
    CHECK(WinDivertHelperCompileFilter("event == 1", WINDIVERT_LAYER_FLOW, buffer, sizeof(buffer), NULL, NULL));
    SUCCEEDS(WinDivertHelperFormatFilter(buffer, (WINDIVERT_LAYER)200, buffer, sizeof(buffer)));
    CHECK(strcmp(buffer, "event = 1") == 0);

    memset(&addr, 0, sizeof(addr));
    FAILS(WinDivertHelperEvalFilter(NULL, syn, sizeof(syn), &addr), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperEvalFilter("tcp", syn, sizeof(syn), NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperEvalFilter("tcp", NULL, 44, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperEvalFilter("tcp", syn, 19, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperEvalFilter("tcp and", syn, sizeof(syn), &addr), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertHelperEvalFilter("tcp.Syn and tcp.DstPort == 80", syn, sizeof(syn), &addr));
    SUCCEEDS(WinDivertHelperEvalFilter("tcp.Syn", syn, 40, &addr)); /* a truncated packet is no error here */
    SetLastError(12345);
    CHECK(!WinDivertHelperEvalFilter("udp", syn, sizeof(syn), &addr));
    EQUAL(GetLastError(), 0);
    addr.IPv6 = 1;
    FAILS(WinDivertHelperEvalFilter("tcp", syn, sizeof(syn), &addr), ERROR_INVALID_PARAMETER, EINVAL);
    addr.Layer = 5;
    FAILS(WinDivertHelperEvalFilter("true", NULL, 0, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    addr.Layer = WINDIVERT_LAYER_FLOW, addr.Event = WINDIVERT_EVENT_FLOW_DELETED;
    FAILS(WinDivertHelperEvalFilter("true", syn, 0, &addr), ERROR_INVALID_PARAMETER, EINVAL);
    SUCCEEDS(WinDivertHelperEvalFilter("event == DELETED", NULL, 0, &addr));
    addr.Layer = WINDIVERT_LAYER_REFLECT, addr.Event = WINDIVERT_EVENT_REFLECT_OPEN;
    SUCCEEDS(WinDivertHelperEvalFilter("event == OPEN", syn, 3, &addr));
}

/* ---- The dialect, an addition ---- */

static void check_dialect(void)
{
    const char *set = "tcp.DstPort in {80, 443}";
    WINDIVERT_ADDRESS addr;
    char buffer[100];

    memset(&addr, 0, sizeof(addr));
    CHECK(!WinDivertHelperCompileFilter(set, WINDIVERT_LAYER_NETWORK, NULL, 0, NULL, NULL));
    setenv("DIVERT_DIALECT", "extended", 1);
    CHECK(WinDivertHelperCompileFilter(set, WINDIVERT_LAYER_NETWORK, buffer, sizeof(buffer), NULL, NULL));
    CHECK(WinDivertHelperEvalFilter(set, syn, sizeof(syn), &addr));
    CHECK(WinDivertHelperFormatFilter(set, WINDIVERT_LAYER_NETWORK, buffer, sizeof(buffer)));
    CHECK(strcmp(buffer, set) == 0);
    setenv("DIVERT_DIALECT", "strict", 1);
    CHECK(!WinDivertHelperFormatFilter(set, WINDIVERT_LAYER_NETWORK, buffer, sizeof(buffer)));
    unsetenv("DIVERT_DIALECT");
}

/* WinDivertHelperExplainFilterError, an addition. */
static void check_explanations(void)
{
    char text[4096];

    CHECK(WinDivertHelperExplainFilterError("tcp.Synn", WINDIVERT_LAYER_NETWORK, text, sizeof(text)));
    CHECK(strstr(text, "  tcp.Synn\n  ^^^^^^^^\n") == text && strstr(text, "did you mean tcp.Syn?") != NULL);
    CHECK(WinDivertHelperExplainFilterError("tcp.Syn", WINDIVERT_LAYER_NETWORK, text, sizeof(text)) && text[0] == 0);
    FAILS(WinDivertHelperExplainFilterError("tcp.Synn", WINDIVERT_LAYER_NETWORK, text, 5), ERROR_INSUFFICIENT_BUFFER,
          EMSGSIZE);
    CHECK(strcmp(text, "  tc") == 0);
    FAILS(WinDivertHelperExplainFilterError(NULL, WINDIVERT_LAYER_NETWORK, text, 5), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertHelperExplainFilterError("tcp", WINDIVERT_LAYER_NETWORK, NULL, 5), ERROR_INVALID_PARAMETER, EINVAL);
}

SAME(fragment_offset, sizeof(WINDIVERT_IPHDR_GET_FRAGOFF((WINDIVERT_IPHDR *)0)) == sizeof(int) &&
                          sizeof(WINDIVERT_IPHDR_GET_MF((WINDIVERT_IPHDR *)0)) == sizeof(int));

/* ---- Open, and calls on invalid handles ---- */

static void refuses(const char *filter, int layer, INT16 priority, UINT64 flags)
{
    SetLastError(12345);
    errno = 0;
    CHECK(WinDivertOpen(filter, (WINDIVERT_LAYER)layer, priority, flags) == INVALID_HANDLE_VALUE);
    EQUAL(GetLastError(), ERROR_INVALID_PARAMETER);
    EQUAL(errno, EINVAL);
}

/* Filters that compile but that the original's driver refuses (api.md 5.1). */
static void check_driver_refusals(void)
{
    static const struct {
        const char *filter;
        WINDIVERT_LAYER layer;
        UINT64 flags;
    } rows[] = {
        {"ip.TOS == 300", WINDIVERT_LAYER_NETWORK, 0},
        {"event == 5", WINDIVERT_LAYER_NETWORK, 0},
        {"event", WINDIVERT_LAYER_FLOW, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY},
        {"tcp.SeqNum > -1", WINDIVERT_LAYER_NETWORK, 0},
        {"icmp.Body == 0x100000000", WINDIVERT_LAYER_NETWORK, 0},
        {"timestamp > -0", WINDIVERT_LAYER_NETWORK, 0},
        {"loopback == -0", WINDIVERT_LAYER_NETWORK, 0},
        {"@WinDiv_WX_1yYWLXA", WINDIVERT_LAYER_NETWORK, 0},
    };
    size_t i;
    char *filter;

    for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        refuses(rows[i].filter, rows[i].layer, 0, rows[i].flags);
    filter = many(256);
    CHECK(WinDivertHelperCompileFilter(filter, WINDIVERT_LAYER_NETWORK, NULL, 0, NULL, NULL));
    refuses(filter, WINDIVERT_LAYER_NETWORK, 0, 0);
    free(filter);
}

static void check_open(void)
{
    static const struct {
        WINDIVERT_LAYER layer;
        UINT64 flags;
    } illegal[] = {
        {WINDIVERT_LAYER_FLOW, 0},
        {WINDIVERT_LAYER_FLOW, WINDIVERT_FLAG_SNIFF},
        {WINDIVERT_LAYER_FLOW, WINDIVERT_FLAG_RECV_ONLY},
        {WINDIVERT_LAYER_SOCKET, 0},
        {WINDIVERT_LAYER_SOCKET, WINDIVERT_FLAG_DROP},
        {WINDIVERT_LAYER_REFLECT, 0},
        {WINDIVERT_LAYER_REFLECT, WINDIVERT_FLAG_DROP | WINDIVERT_FLAG_RECV_ONLY},
    };
    size_t i;

    refuses(NULL, WINDIVERT_LAYER_NETWORK, 0, 0);
    refuses("", WINDIVERT_LAYER_NETWORK, 0, 0);
    refuses("tcp and", WINDIVERT_LAYER_NETWORK, 0, 0);
    refuses("@WinDiv_WW", WINDIVERT_LAYER_NETWORK, 0, 0); /* the object of 256 tests */
    refuses("true", 5, 0, 0);
    refuses("true", -1, 0, 0);
    refuses("true", WINDIVERT_LAYER_NETWORK, 30001, 0);
    refuses("true", WINDIVERT_LAYER_NETWORK, -30001, 0);
    refuses("true", WINDIVERT_LAYER_NETWORK, 0, 0x40);
    refuses("true", WINDIVERT_LAYER_NETWORK, 0, UINT64_C(1) << 63);
    refuses("true", WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_DROP);
    refuses("true", WINDIVERT_LAYER_NETWORK, 0, WINDIVERT_FLAG_RECV_ONLY | WINDIVERT_FLAG_SEND_ONLY);
    for (i = 0; i < sizeof(illegal) / sizeof(illegal[0]); i++)
        refuses("true", illegal[i].layer, 0, illegal[i].flags);
    check_driver_refusals();
}

static void check_no_handle(HANDLE handle)
{
    WINDIVERT_ADDRESS addr;
    UINT8 packet[100];
    UINT64 value;
    UINT length;

    memset(&addr, 0, sizeof(addr));
    FAILS(WinDivertRecv(handle, packet, sizeof(packet), &length, &addr), ERROR_INVALID_HANDLE, EBADF);
    FAILS(WinDivertRecvEx(handle, packet, sizeof(packet), &length, 0, &addr, NULL, NULL), ERROR_INVALID_HANDLE, EBADF);
    FAILS(WinDivertRecvEx(handle, packet, sizeof(packet), &length, 1, &addr, NULL, NULL), ERROR_INVALID_PARAMETER,
          EINVAL); /* the library checks flags before the handle */
    FAILS(WinDivertSend(handle, syn, sizeof(syn), &length, &addr), ERROR_INVALID_HANDLE, EBADF);
    FAILS(WinDivertSendEx(handle, syn, sizeof(syn), &length, 1, &addr, 80, NULL), ERROR_INVALID_PARAMETER, EINVAL);
    FAILS(WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH), ERROR_INVALID_HANDLE, EBADF);
    FAILS(WinDivertSetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, 100), ERROR_INVALID_HANDLE, EBADF);
    FAILS(WinDivertGetParam(handle, WINDIVERT_PARAM_QUEUE_LENGTH, &value), ERROR_INVALID_HANDLE, EBADF);
    FAILS(CancelIoEx(handle, NULL), ERROR_INVALID_HANDLE, EBADF);
    FAILS(WinDivertClose(handle), ERROR_INVALID_HANDLE, EBADF);
}

/* ---- Events ---- */

static void check_events(void)
{
    HANDLE manual = CreateEvent(NULL, TRUE, FALSE, NULL), self = CreateEvent(NULL, FALSE, TRUE, NULL);
    HANDLE both[2];

    CHECK(manual != NULL && self != NULL);
    both[0] = manual, both[1] = self;
    EQUAL(WaitForSingleObject(manual, 0), WAIT_TIMEOUT);
    EQUAL(WaitForMultipleObjects(2, both, TRUE, 5), WAIT_TIMEOUT);
    EQUAL(WaitForMultipleObjects(2, both, FALSE, INFINITE), WAIT_OBJECT_0 + 1); /* which resets it */
    EQUAL(WaitForMultipleObjects(2, both, FALSE, 5), WAIT_TIMEOUT);
    SUCCEEDS(SetEvent(manual));
    SUCCEEDS(SetEvent(manual));
    SUCCEEDS(SetEvent(self));
    EQUAL(WaitForMultipleObjects(2, both, TRUE, INFINITE), WAIT_OBJECT_0);
    EQUAL(WaitForSingleObject(self, 0), WAIT_TIMEOUT);
    EQUAL(WaitForSingleObject(manual, 0), WAIT_OBJECT_0); /* stays set */
    SUCCEEDS(ResetEvent(manual));
    EQUAL(WaitForSingleObject(manual, 0), WAIT_TIMEOUT);
    SUCCEEDS(ResetEvent(manual));
    SUCCEEDS(CloseHandle(manual));
    SUCCEEDS(CloseHandle(self));
    FAILS(SetEvent(manual), ERROR_INVALID_HANDLE, EBADF);
    FAILS(ResetEvent(NULL), ERROR_INVALID_HANDLE, EBADF);
    FAILS(CloseHandle(INVALID_HANDLE_VALUE), ERROR_INVALID_HANDLE, EBADF);
    EQUAL(WaitForSingleObject(manual, 0), WAIT_FAILED);
    EQUAL(WaitForSingleObject(INVALID_HANDLE_VALUE, 0), WAIT_FAILED);
    EQUAL(WaitForMultipleObjects(0, both, FALSE, 0), WAIT_FAILED);
    CHECK(CreateEvent(NULL, TRUE, FALSE, "name") == NULL);
    EQUAL(GetLastError(), ERROR_NOT_SUPPORTED);
    FAILS(GetOverlappedResult(NULL, NULL, NULL, FALSE), ERROR_INVALID_PARAMETER, EINVAL);
}

int main(void)
{
    check_flag_word();
    check_headers();
    check_byte_order();
    check_packets();
    check_addresses();
    check_filters();
    check_explanations();
    check_dialect();
    check_open();
    check_no_handle(INVALID_HANDLE_VALUE);
    check_no_handle(NULL);
    check_no_handle((HANDLE)(uintptr_t)0x40000000);
    check_events();
    return failures();
}
