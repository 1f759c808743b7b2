/*
 * vectors.c answers requests about the helpers, so that test vectors can be run through the C interface. A request is
 * a line of words; texts and bytes are in hex, "-" is NULL. Each gets a line in reply.
 */
#include "windivert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINE = 1 << 20, MAX_TEXT = 1 << 18 };

static char line[MAX_LINE];

/* A value of a request: bytes with a NUL behind them. */
struct value {
    UINT8 *bytes; /* NULL for "-" */
    UINT length;
};

static struct value next(void)
{
    struct value v = {NULL, 0};
    const char *word = strtok(NULL, " \n");
    size_t i, n;

    if (word == NULL)
        exit(2);
    if (strcmp(word, "-") == 0)
        return v;
    if (*word == '=') /* may be empty */
        word++;
    n = strlen(word) / 2;
    v.bytes = (UINT8 *)malloc(n + 1);
    for (i = 0; i < n; i++) {
        unsigned byte;
        if (sscanf(word + 2 * i, "%2x", &byte) != 1)
            exit(2);
        v.bytes[i] = (UINT8)byte;
    }
    v.bytes[n] = 0;
    v.length = (UINT)n;
    return v;
}

static UINT64 number(int base)
{
    const char *word = strtok(NULL, " \n");

    return word == NULL ? (exit(2), 0) : strtoull(word, NULL, base);
}

static void print_hex(const void *bytes, size_t n)
{
    size_t i;

    printf(" =");
    for (i = 0; i < n; i++)
        printf("%02x", ((const UINT8 *)bytes)[i]);
}

/*
 * check_buffers checks the rules for buffers on a function that writes text: one byte less than needed loses the last
 * character, without an error; less is error 122, with the prefix that fits.
 */
static const char *check_buffers(BOOL (*write)(const struct value *, UINT64, char *, UINT), const struct value *v,
                                 UINT64 layer, const char *text)
{
    UINT n = (UINT)strlen(text), length;
    char *buffer = (char *)malloc(n + 2);
    const char *wrong = NULL;

    for (length = 0; length <= n + 1 && wrong == NULL; length += (length + 4 < n) ? n / 3 + 1 : 1) {
        BOOL ok;

        memset(buffer, 0x55, n + 2);
        SetLastError(7);
        ok = write(v, layer, buffer, length);
        if (ok != (length >= n && length > 0))
            wrong = "result";
        else if (!ok && GetLastError() != ERROR_INSUFFICIENT_BUFFER)
            wrong = "error";
        else if (length > 0 && (strncmp(buffer, text, length - 1) != 0 || buffer[length <= n ? length - 1 : n] != 0))
            wrong = "contents";
        else if (buffer[length <= n ? length : n + 1] != 0x55)
            wrong = "overrun";
    }
    free(buffer);
    return wrong;
}

static BOOL write_object(const struct value *v, UINT64 layer, char *buffer, UINT length)
{
    return WinDivertHelperCompileFilter((char *)v->bytes, (WINDIVERT_LAYER)layer, buffer, length, NULL, NULL);
}

static BOOL write_text(const struct value *v, UINT64 layer, char *buffer, UINT length)
{
    return WinDivertHelperFormatFilter((char *)v->bytes, (WINDIVERT_LAYER)layer, buffer, length);
}

static BOOL write_address(const struct value *v, UINT64 family, char *buffer, UINT length)
{
    UINT32 words[4];

    memcpy(words, v->bytes, v->length);
    if (family == 4)
        return WinDivertHelperFormatIPv4Address(WinDivertHelperNtohl(words[0]), buffer, length);
    WinDivertHelperNtohIPv6Address((UINT *)words, (UINT *)words);
    return WinDivertHelperFormatIPv6Address(words, buffer, length);
}

static char text[MAX_TEXT];

static void answer_text(BOOL (*write)(const struct value *, UINT64, char *, UINT), const struct value *v, UINT64 layer)
{
    const char *wrong;

    if (!write(v, layer, text, sizeof(text))) {
        printf("error %u", GetLastError());
        return;
    }
    wrong = check_buffers(write, v, layer, text);
    if (wrong != NULL)
        printf("wrong %s", wrong);
    else {
        printf("ok");
        print_hex(text, strlen(text));
    }
}

static void compile(void)
{
    UINT64 layer = number(10);
    struct value filter = next();
    const char *error = NULL;
    UINT position = 77;

    if (WinDivertHelperCompileFilter((char *)filter.bytes, (WINDIVERT_LAYER)layer, NULL, 0, &error, &position) &&
        error != NULL && position == 0)
        answer_text(write_object, &filter, layer);
    else {
        printf("error %u", position);
        print_hex(error, strlen(error));
        if (GetLastError() != ERROR_INVALID_PARAMETER)
            printf(" last error %u", GetLastError());
    }
    free(filter.bytes);
}

static void format(void)
{
    UINT64 layer = number(10);
    struct value filter = next();

    answer_text(write_text, &filter, layer);
    free(filter.bytes);
}

static void eval(void)
{
    struct value filter = next(), packet = next(), addr = next();
    WINDIVERT_ADDRESS a;
    BOOL match;

    memcpy(&a, addr.bytes, sizeof(a));
    SetLastError(7);
    match = WinDivertHelperEvalFilter((char *)filter.bytes, packet.bytes, packet.length, &a);
    printf("%d %u", match, GetLastError());
    free(filter.bytes), free(packet.bytes), free(addr.bytes);
}

static void checksum(void)
{
    struct value packet = next(), addr = next();
    UINT64 flags = number(10);
    WINDIVERT_ADDRESS a;

    if (addr.bytes != NULL)
        memcpy(&a, addr.bytes, sizeof(a));
    printf("%d", WinDivertHelperCalcChecksums(packet.bytes, packet.length, addr.bytes == NULL ? NULL : &a, flags));
    print_hex(packet.bytes, packet.length);
    if (addr.bytes != NULL)
        print_hex(&a, sizeof(a));
    free(packet.bytes), free(addr.bytes);
}

static void hash(void)
{
    struct value packet = next();
    UINT64 seed = number(16);

    printf("%016llx", (unsigned long long)WinDivertHelperHashPacket(packet.bytes, packet.length, seed));
    free(packet.bytes);
}

static void ttl(void)
{
    struct value packet = next();

    printf("%d", WinDivertHelperDecrementTTL(packet.bytes, packet.length));
    print_hex(packet.bytes, packet.length);
    free(packet.bytes);
}

static void print_offset(const struct value *packet, const void *p)
{
    if (p == NULL)
        printf(" -1");
    else
        printf(" %d", (int)((const UINT8 *)p - packet->bytes));
}

static void parse(void)
{
    struct value v = next();
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_IPV6HDR ipv6;
    PWINDIVERT_ICMPHDR icmp;
    PWINDIVERT_ICMPV6HDR icmpv6;
    PWINDIVERT_TCPHDR tcp;
    PWINDIVERT_UDPHDR udp;
    PVOID data, next_packet;
    UINT data_length, next_length;
    UINT8 protocol;

    if (!WinDivertHelperParsePacket(v.bytes, v.length, &ip, &ipv6, &protocol, &icmp, &icmpv6, &tcp, &udp, &data,
                                    &data_length, &next_packet, &next_length))
        printf("0");
    else {
        printf("1");
        print_offset(&v, ip), print_offset(&v, ipv6), print_offset(&v, icmp), print_offset(&v, icmpv6);
        print_offset(&v, tcp), print_offset(&v, udp), print_offset(&v, data), print_offset(&v, next_packet);
        printf(" %u %u %u", protocol, data_length, next_length);
        if (!WinDivertHelperParsePacket(v.bytes, v.length, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                        NULL))
            printf(" fails without outputs");
    }
    free(v.bytes);
}

static void parse_address(void)
{
    UINT64 family = number(10);
    struct value v = next();
    UINT32 words[4];
    BOOL ok, checked;

    SetLastError(7);
    ok = (family == 4 ? WinDivertHelperParseIPv4Address : WinDivertHelperParseIPv6Address)((char *)v.bytes, words);
    checked = (family == 4 ? WinDivertHelperParseIPv4Address : WinDivertHelperParseIPv6Address)((char *)v.bytes, NULL);
    if (checked != ok)
        printf("wrong: without output %d", checked);
    else if (!ok)
        printf("error %u", GetLastError());
    else if (family == 4) {
        words[0] = WinDivertHelperHtonl(words[0]);
        printf("ok");
        print_hex(words, 4);
    } else {
        WinDivertHelperHtonIPv6Address((UINT *)words, (UINT *)words);
        printf("ok");
        print_hex(words, 16);
    }
    free(v.bytes);
}

static void format_address(void)
{
    UINT64 family = number(10);
    struct value v = next();

    answer_text(write_address, &v, family);
    free(v.bytes);
}

static const struct {
    const char *name;
    void (*answer)(void);
} requests[] = {
    {"compile", compile}, {"format", format},       {"eval", eval},
    {"hash", hash},       {"checksum", checksum},   {"ttl", ttl},
    {"parse", parse},     {"parseaddr", parse_address}, {"formataddr", format_address},
};

int main(void)
{
    size_t i;

    while (fgets(line, sizeof(line), stdin) != NULL) {
        const char *name = strtok(line, " \n");

        for (i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
            if (name != NULL && strcmp(requests[i].name, name) == 0)
                requests[i].answer();
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
