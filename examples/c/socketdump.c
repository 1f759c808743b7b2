/* socketdump.c prints the socket operations of programs. With --block it refuses them. */
#include "process.h"

static const struct {
    const char *name;
    enum colour colour;
} events[] = {
    {"BIND", GREEN}, {"CONNECT", GREEN}, {"LISTEN", GREEN}, {"ACCEPT", GREEN}, {"CLOSE", RED}, {"???", BLUE},
};

static void print_event(UINT32 event)
{
    UINT32 i = event - WINDIVERT_EVENT_SOCKET_BIND; /* huge for an event of another layer */

    if (i > 5)
        i = 5;
    set_colour(events[i].colour);
    printf("%s", events[i].name);
    set_colour(PLAIN);
}

/* print_side prints one end of a socket, if it has one yet. */
static void print_side(const char *name, const UINT32 *addr, UINT16 port)
{
    char text[ADDRESS_SIZE];

    if (strcmp(format_address(addr, text), "::") != 0 || port != 0)
        printf(" %s=[%s]:%u", name, text, port);
}

static void print_address(const WINDIVERT_ADDRESS *addr)
{
    const WINDIVERT_DATA_SOCKET *s = &addr->Socket;

    print_event(addr->Event);
    printf(" pid=%u program=%s endpoint=%llu parent=%llu protocol=%s", s->ProcessId, image_name(s->ProcessId),
           (unsigned long long)s->EndpointId, (unsigned long long)s->ParentEndpointId, protocol_name(s->Protocol));
    print_side("local", s->LocalAddr, s->LocalPort);
    print_side("remote", s->RemoteAddr, s->RemotePort);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    BOOL block = argc > 1 && strcmp(argv[1], "--block") == 0;
    HANDLE handle;

    if (argc > 2 + block) {
        fprintf(stderr, "usage: %s [--block] [FILTER]\n", argv[0]);
        return EXIT_FAILURE;
    }
    handle = open_or_explain(argc == 2 + block ? argv[1 + block] : "true", WINDIVERT_LAYER_SOCKET, 1121,
                             WINDIVERT_FLAG_RECV_ONLY | (block ? 0 : WINDIVERT_FLAG_SNIFF));
    for (;;) {
        WINDIVERT_ADDRESS addr;

        if (!WinDivertRecv(handle, NULL, 0, NULL, &addr))
            fatal("failed to receive (%u)", GetLastError());
        print_address(&addr);
    }
}
