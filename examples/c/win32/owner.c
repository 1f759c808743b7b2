/*
 * owner.c is the part of a proxy that decides by program: for each new connection to a port it looks up the process
 * in the table of connections, and redirects those of one program to another port of the server.
 */
#include "program.h"

#include <iphlpapi.h>

static u_short from, to;
static BOOL redirected[0x10000]; /* by the client's port */

/* owner_of returns the process of a connection by its local port, 0 if it is not found. */
static DWORD owner_of(UINT32 address, UINT16 local_port)
{
    PMIB_TCPTABLE_OWNER_PID table = NULL;
    DWORD size = 0, pid = 0, i, error;

    while ((error = GetExtendedTcpTable(table, &size, FALSE, AF_INET, TCP_TABLE_OWNER_PID_ALL, 0)) ==
           ERROR_INSUFFICIENT_BUFFER) {
        free(table);
        table = (PMIB_TCPTABLE_OWNER_PID)malloc(size);
        if (table == NULL)
            fatal("out of memory");
    }
    for (i = 0; error == NO_ERROR && i < table->dwNumEntries && pid == 0; i++)
        if (table->table[i].dwLocalPort == local_port && table->table[i].dwLocalAddr == address)
            pid = table->table[i].dwOwningPid;
    free(table);
    return pid;
}

/* decide looks up the owner of a new connection. */
static void decide(const WINDIVERT_IPHDR *ip, const WINDIVERT_TCPHDR *tcp, const char *program)
{
    DWORD pid = owner_of(ip->SrcAddr, tcp->SrcPort);
    const char *name = pid == 0 ? "???" : program_of(pid);

    redirected[ntohs(tcp->SrcPort)] = _stricmp(name, program) == 0;
    printf("%s pid=%u %s\n", name, (unsigned)pid, redirected[ntohs(tcp->SrcPort)] ? "redirected" : "direct");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static UINT8 packet[WINDIVERT_MTU_MAX];
    WINDIVERT_ADDRESS address;
    PWINDIVERT_IPHDR ip;
    PWINDIVERT_TCPHDR tcp;
    char filter[200];
    HANDLE handle;
    UINT length;

    if (argc != 4)
        usage("owner PORT TO PROGRAM");
    from = (u_short)atoi(argv[1]);
    to = (u_short)atoi(argv[2]);
    _snprintf(filter, sizeof(filter), "ip and ((outbound and tcp.DstPort == %u) or (inbound and tcp.SrcPort == %u))", from, to);
    handle = open_handle(filter, WINDIVERT_LAYER_NETWORK, 0, 0);
    for (;;) {
        if (!WinDivertRecv(handle, packet, sizeof(packet), &length, &address)) {
            warning("read a packet");
            continue;
        }
        if (!WinDivertHelperParsePacket(packet, length, &ip, NULL, NULL, NULL, NULL, &tcp, NULL, NULL, NULL, NULL, NULL) ||
            ip == NULL || tcp == NULL)
            continue;
        if (address.Outbound && tcp->Syn && !tcp->Ack)
            decide(ip, tcp, argv[3]);
        if (address.Outbound && redirected[ntohs(tcp->SrcPort)])
            tcp->DstPort = htons(to);
        else if (!address.Outbound && redirected[ntohs(tcp->DstPort)])
            tcp->SrcPort = htons(from);
        send_packet(handle, packet, length, &address);
    }
}
