/*
 * streamdump.c prints the data of TCP connections to a port. It reflects them to its own proxy:
 * the program's packets to server:PORT come back as if the server connected to the proxy, which connects
 * to the server by way of another port that stands for PORT.
 */
#include "program.h"

enum { BUFFER = 8192, SHOWN = 65 };

static u_short port, proxy_port = 34010, other_port = 43010;
static HANDLE printing;

/* rewrite redirects a packet. */
static void rewrite(PWINDIVERT_IPHDR ip, PWINDIVERT_TCPHDR tcp, WINDIVERT_ADDRESS *address)
{
    UINT32 swap = ip->DstAddr;
    BOOL reflect = FALSE;

    if (address->Outbound && tcp->DstPort == htons(port)) {
        tcp->DstPort = htons(proxy_port);
        reflect = TRUE;
    } else if (address->Outbound && tcp->SrcPort == htons(proxy_port)) {
        tcp->SrcPort = htons(port);
        reflect = TRUE;
    } else if (address->Outbound && tcp->DstPort == htons(other_port))
        tcp->DstPort = htons(port);
    else if (!address->Outbound && tcp->SrcPort == htons(port))
        tcp->SrcPort = htons(other_port);
    if (reflect) {
        ip->DstAddr = ip->SrcAddr;
        ip->SrcAddr = swap;
        address->Outbound = FALSE;
    }
}

typedef struct {
    SOCKET from, to;
    BOOL to_server;
} WAY;

static void print_data(const char *data, int n, BOOL to_server)
{
    char text[SHOWN + 1];
    int i;

    for (i = 0; i < n && i < SHOWN; i++)
        text[i] = data[i] >= ' ' && data[i] < 127 ? data[i] : '.';
    text[i] = 0;
    WaitForSingleObject(printing, INFINITE);
    printf("[%04d] ", n);
    coloured(to_server ? FOREGROUND_GREEN : FOREGROUND_RED, text);
    printf("%s\n", n > SHOWN ? "..." : "");
    fflush(stdout);
    ReleaseMutex(printing);
}

/* copy passes on the data of one direction, until its end. */
static DWORD WINAPI copy(LPVOID way_)
{
    WAY *way = (WAY *)way_;
    char data[BUFFER];
    int n, sent;

    while ((n = (int)recv(way->from, data, sizeof(data), 0)) > 0) {
        print_data(data, n, way->to_server);
        for (sent = 0; sent < n;) {
            int m = (int)send(way->to, data + sent, n - sent, 0);

            if (m <= 0) {
                shutdown(way->from, SD_BOTH);
                shutdown(way->to, SD_BOTH);
                return 1;
            }
            sent += m;
        }
    }
    shutdown(way->to, SD_SEND);
    return 0;
}

/* serve connects a client's connection to its server. */
static DWORD WINAPI serve(LPVOID client_)
{
    WAY there, back;
    struct sockaddr_in peer;
    int n = sizeof(peer);
    HANDLE thread;

    there.from = back.to = (SOCKET)(UINT_PTR)client_;
    there.to = back.from = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    there.to_server = TRUE;
    back.to_server = FALSE;
    if (getpeername(there.from, (struct sockaddr *)&peer, &n) != 0)
        warning("get the address of a client");
    peer.sin_port = htons(other_port);
    if (connect(there.to, (struct sockaddr *)&peer, sizeof(peer)) != 0)
        fprintf(stderr, "warning: failed to connect (%d)\n", WSAGetLastError());
    else if ((thread = CreateThread(NULL, 1, copy, &there, 0, NULL)) != NULL) {
        copy(&back);
        WaitForSingleObject(thread, INFINITE);
        CloseHandle(thread);
    }
    closesocket(there.from);
    closesocket(there.to);
    return 0;
}

static DWORD WINAPI proxy(LPVOID listener_)
{
    SOCKET listener = (SOCKET)(UINT_PTR)listener_, client;
    HANDLE thread;

    for (;;) {
        client = accept(listener, NULL, (int *)NULL);
        if (client == INVALID_SOCKET)
            fatal("failed to accept (%d)", WSAGetLastError());
        thread = CreateThread(NULL, 1, serve, (LPVOID)(UINT_PTR)client, 0, NULL);
        if (thread == NULL)
            closesocket(client);
        else
            CloseHandle(thread);
    }
    return 0;
}

static void start_proxy(void)
{
    SOCKET listener = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    struct sockaddr_in any;
    int on = 1;

    memset(&any, 0, sizeof(any));
    any.sin_family = AF_INET;
    any.sin_port = htons(proxy_port);
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, (const char *)&on, sizeof(on)) != 0 ||
        bind(listener, (struct sockaddr *)&any, sizeof(any)) != 0 || listen(listener, 16) != 0)
        fatal("failed to listen (%d)", WSAGetLastError());
    if (CreateThread(NULL, 1, proxy, (LPVOID)(UINT_PTR)listener, 0, NULL) == NULL)
        fatal("failed to start a thread (%u)", (unsigned)GetLastError());
}

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    char filter[256];
    WINDIVERT_ADDRESS address;
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_TCPHDR tcp;
    WSADATA data;
    HANDLE handle;
    UINT length;

    if (argc != 2 || atoi(argv[1]) < 1 || atoi(argv[1]) > 0xFFFF)
        usage("streamdump PORT");
    port = (u_short)atoi(argv[1]);
    proxy_port = (u_short)(proxy_port + (port == proxy_port));
    other_port = (u_short)(other_port + (port == other_port));
    if (WSAStartup(MAKEWORD(2, 2), &data) != 0)
        fatal("failed to start Winsock");
    printing = CreateMutex(NULL, FALSE, NULL);
    _snprintf(filter, sizeof(filter), "ip and !loopback and (tcp.DstPort == %u or tcp.DstPort == %u or tcp.DstPort == %u or "
              "tcp.SrcPort == %u or tcp.SrcPort == %u or tcp.SrcPort == %u)",
              port, proxy_port, other_port, port, proxy_port, other_port);
    handle = open_handle(filter, WINDIVERT_LAYER_NETWORK, 123, 0);
    start_proxy();
    for (;;) {
        if (!WinDivertRecv(handle, packet, sizeof(packet), &length, &address)) {
            warning("read a packet");
            continue;
        }
        if (WinDivertHelperParsePacket(packet, length, &ip, NULL, NULL, NULL, NULL, &tcp, NULL, NULL, NULL, NULL, NULL) &&
            ip != NULL && tcp != NULL) {
            rewrite(ip, tcp, &address);
            send_packet(handle, packet, length, &address);
        }
    }
}
