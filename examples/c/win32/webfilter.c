/*
 * webfilter.c blocks requests of HTTP. An entry is "domain" or "domain/path": it blocks the hosts that end with the domain
 * and the paths that begin with the path. Browsers see a page that says so; the server's connection is reset.
 */
#include "program.h"

static const char page[] = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html\r\n\r\n"
                           "<!doctype html>\n<html><head><title>Blocked</title></head><body><h1>This address is blocked.</h1>"
                           "</body></html>\n";

enum { LONGEST = 1024 };

/* request reads the host and the path of a request that begins with the payload. */
static BOOL request(const char *data, UINT length, char *host, char *path)
{
    const char *end = data + length, *at, *stop;
    size_t n;

    if (length < 25)
        return FALSE;
    at = memcmp(data, "GET /", 5) == 0 ? data + 5 : memcmp(data, "POST /", 6) == 0 ? data + 6 : NULL;
    if (at == NULL)
        return FALSE;
    for (stop = at; stop < end && *stop != ' '; stop++)
        ;
    n = (size_t)(stop - at);
    if (n >= LONGEST)
        n = LONGEST - 1;
    memcpy(path, at, n);
    path[n] = 0;
    for (at = stop; at + 8 < end && memcmp(at, "\r\nHost: ", 8) != 0; at++)
        ;
    if (at + 8 >= end)
        return FALSE;
    at += 8;
    for (stop = at; stop < end && *stop != '\r'; stop++)
        ;
    n = (size_t)(stop - at);
    if (stop == end || n == 0 || n >= LONGEST)
        return FALSE;
    memcpy(host, at, n);
    host[host[n - 1] == '.' ? n - 1 : n] = 0;
    return TRUE;
}

static BOOL blocked(const char *entry, const char *host, const char *path)
{
    const char *slash = strchr(entry, '/');
    size_t domain = slash == NULL ? strlen(entry) : (size_t)(slash - entry), n = strlen(host);

    return n >= domain && memcmp(host + n - domain, entry, domain) == 0 &&
           (n == domain || host[n - domain - 1] == '.') && (slash == NULL || strncmp(path, slash + 1, strlen(slash + 1)) == 0);
}

/* refuse resets the connection to the server, and gives the browser the page. */
static void refuse(HANDLE handle, const WINDIVERT_IPHDR *ip, const WINDIVERT_TCPHDR *tcp, UINT length,
                   const WINDIVERT_ADDRESS *received)
{
    struct {
        TCP_PACKET headers;
        char text[sizeof(page) - 1];
    } answer;
    WINDIVERT_ADDRESS there = *received, back = *received;
    TCP_PACKET end;

    tcp_packet(&end, ip, tcp, FALSE, 0);
    end.tcp.Rst = 1;
    end.tcp.SeqNum = tcp->SeqNum;
    end.tcp.AckNum = tcp->AckNum;
    send_packet(handle, &end, sizeof(end), &there);

    back.Outbound = !back.Outbound;
    tcp_packet(&answer.headers, ip, tcp, TRUE, sizeof(answer.text));
    answer.headers.tcp.Psh = 1;
    answer.headers.tcp.SeqNum = tcp->AckNum;
    answer.headers.tcp.AckNum = htonl(ntohl(tcp->SeqNum) + length);
    answer.headers.tcp.Window = htons(1024);
    memcpy(answer.text, page, sizeof(answer.text));
    send_packet(handle, &answer, sizeof(answer), &back);

    tcp_packet(&end, ip, tcp, TRUE, 0);
    end.tcp.Fin = 1;
    end.tcp.SeqNum = htonl(ntohl(tcp->AckNum) + (UINT32)sizeof(answer.text));
    end.tcp.AckNum = answer.headers.tcp.AckNum;
    send_packet(handle, &end, sizeof(end), &back);
}

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    char host[LONGEST], path[LONGEST];
    WINDIVERT_ADDRESS address;
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_TCPHDR tcp;
    HANDLE handle;
    UINT length, n;
    PVOID data;
    int i;

    if (argc < 2)
        usage("webfilter ENTRY...");
    handle = open_handle("outbound && !loopback && ip && tcp.DstPort == 80 && tcp.PayloadLength > 0",
                         WINDIVERT_LAYER_NETWORK, 404, 0);
    for (;;) {
        if (!WinDivertRecv(handle, packet, sizeof(packet), &length, &address)) {
            warning("read a packet");
            continue;
        }
        i = argc;
        if (WinDivertHelperParsePacket(packet, length, &ip, NULL, NULL, NULL, NULL, &tcp, NULL, &data, &n, NULL, NULL) &&
            ip != NULL && tcp != NULL && data != NULL && request((const char *)data, n, host, path)) {
            for (i = 1; i < argc && !blocked(argv[i], host, path); i++)
                ;
            printf("URL %s/%s: ", host, path);
            coloured(i < argc ? FOREGROUND_RED : FOREGROUND_GREEN, i < argc ? "BLOCKED!" : "allowed");
            printf("\n");
            fflush(stdout);
        }
        if (i < argc)
            refuse(handle, ip, tcp, n, &address);
        else if (!WinDivertSend(handle, packet, length, NULL, &address))
            warning("send a packet");
    }
}
