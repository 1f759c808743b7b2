/*
 * flowtrack.c shows the open flows that match a filter, the newest first, with their processes. On a terminal it draws a
 * screen each second; elsewhere it prints one table after the other.
 */
#include "process.h"

#include <pthread.h>
#include <sys/ioctl.h>

enum { MAX_ROWS = 256, NAME_WIDTH = 20 };

/* An open flow. */
struct flow {
    WINDIVERT_DATA_FLOW data;
    BOOL outbound;
    char program[NAME_WIDTH + 1]; /* looked up at once: a process may end before its flows do */
    struct flow *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards flows */
static struct flow *flows;

static void established(const WINDIVERT_ADDRESS *addr)
{
    struct flow *f = (struct flow *)malloc(sizeof(*f));

    if (f == NULL)
        fatal("out of memory");
    f->data = addr->Flow;
    f->outbound = addr->Outbound;
    snprintf(f->program, sizeof(f->program), "%.*s", NAME_WIDTH, image_name(addr->Flow.ProcessId));
    pthread_mutex_lock(&lock);
    f->next = flows;
    flows = f;
    pthread_mutex_unlock(&lock);
}

static void deleted(const WINDIVERT_ADDRESS *addr)
{
    struct flow **at, *f;

    pthread_mutex_lock(&lock);
    for (at = &flows; (f = *at) != NULL; at = &f->next)
        if (memcmp(&f->data, &addr->Flow, sizeof(f->data)) == 0) {
            *at = f->next;
            free(f);
            break;
        }
    pthread_mutex_unlock(&lock);
}

static void print_flow(const struct flow *f)
{
    char local[ADDRESS_SIZE], remote[ADDRESS_SIZE];

    printf("%-10u %-*s %-6s %s:%u %s %s:%u\n", f->data.ProcessId, NAME_WIDTH, f->program,
           protocol_name(f->data.Protocol), format_address(f->data.LocalAddr, local), f->data.LocalPort,
           f->outbound ? "---->" : "<----", format_address(f->data.RemoteAddr, remote), f->data.RemotePort);
}

/* screen_rows is the number of flows that fit on the terminal. */
static int screen_rows(void)
{
    struct winsize size;

    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < 3 || size.ws_row > MAX_ROWS)
        return MAX_ROWS;
    return size.ws_row - 2; /* the header, and the line of the cursor */
}

static void draw(void)
{
    const struct flow *f;
    int rows = screen_rows();

    if (isatty(STDOUT_FILENO))
        printf("\033[H\033[2J\033[7m");
    printf("%-10s %-*s %-6s %s", "PID", NAME_WIDTH, "PROGRAM", "PROT", "FLOW");
    set_colour(PLAIN);
    printf("\n");
    pthread_mutex_lock(&lock);
    for (f = flows; f != NULL; f = f->next)
        if (--rows > 0 || f->next == NULL)
            print_flow(f);
        else {
            printf("...\n");
            break;
        }
    pthread_mutex_unlock(&lock);
    fflush(stdout);
}

static void *redraw(void *unused)
{
    for (;;) {
        draw();
        sleep(1);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    HANDLE handle;

    if (argc > 2) {
        fprintf(stderr, "usage: %s [FILTER]\n", argv[0]);
        return EXIT_FAILURE;
    }
    handle = open_or_explain(argc == 2 ? argv[1] : "true", WINDIVERT_LAYER_FLOW, 776,
                             WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
    if (pthread_create(&thread, NULL, redraw, NULL) != 0)
        fatal("failed to start a thread");
    for (;;) {
        WINDIVERT_ADDRESS addr;

        if (!WinDivertRecv(handle, NULL, 0, NULL, &addr))
            fatal("failed to receive (%u)", GetLastError());
        if (addr.Event == WINDIVERT_EVENT_FLOW_ESTABLISHED)
            established(&addr);
        else if (addr.Event == WINDIVERT_EVENT_FLOW_DELETED)
            deleted(&addr);
    }
}
