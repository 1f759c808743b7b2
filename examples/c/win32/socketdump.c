/* socketdump.c prints the socket operations of programs; with --block it refuses them. */
#include "program.h"

int main(int argc, char **argv)
{
    BOOL block = argc > 1 && strcmp(argv[1], "--block") == 0;
    const char *filter = argc == 2 + block ? argv[1 + block] : "true", *event;
    char local[46], remote[46];
    WINDIVERT_ADDRESS address;
    HANDLE handle;

    if (argc > 2 + block)
        usage("socketdump [--block] [FILTER]");
    handle = open_handle(filter, WINDIVERT_LAYER_SOCKET, 1121,
                         WINDIVERT_FLAG_RECV_ONLY | (block ? 0 : WINDIVERT_FLAG_SNIFF));
    for (;;) {
        if (!WinDivertRecv(handle, NULL, 0, NULL, &address)) {
            warning("read an event");
            continue;
        }
        switch (address.Event) {
        case WINDIVERT_EVENT_SOCKET_BIND:
            event = "BIND";
            break;
        case WINDIVERT_EVENT_SOCKET_LISTEN:
            event = "LISTEN";
            break;
        case WINDIVERT_EVENT_SOCKET_CONNECT:
            event = "CONNECT";
            break;
        case WINDIVERT_EVENT_SOCKET_ACCEPT:
            event = "ACCEPT";
            break;
        default:
            event = "CLOSE";
        }
        coloured(address.Event == WINDIVERT_EVENT_SOCKET_CLOSE ? FOREGROUND_RED : FOREGROUND_GREEN, event);
        printf(" pid=%u program=%s local=[%s]:%u remote=[%s]:%u\n", (unsigned)address.Socket.ProcessId,
               program_of(address.Socket.ProcessId), address_text(address.Socket.LocalAddr, local),
               address.Socket.LocalPort, address_text(address.Socket.RemoteAddr, remote), address.Socket.RemotePort);
        fflush(stdout);
    }
}
