/*
 * windivertctl.c lists the open handles, watches handles open and close, or kills the processes that have handles
 * open. It selects handles by a filter of the layer REFLECT.
 */
#include "process.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/types.h>

enum { MAX_OBJECT = 12288, MAX_TEXT = 30000 };

enum mode { LIST, WATCH, KILL, MODES };

static const char *const mode_names[MODES] = {"list", "watch", "kill"};

static const char *const layer_names[] = {"NETWORK", "NETWORK_FORWARD", "FLOW", "SOCKET", "REFLECT", "???"};

static const struct {
    UINT64 flag;
    const char *name;
} flag_names[] = {
    {WINDIVERT_FLAG_SNIFF, "SNIFF"},         {WINDIVERT_FLAG_DROP, "DROP"},
    {WINDIVERT_FLAG_RECV_ONLY, "RECV_ONLY"}, {WINDIVERT_FLAG_SEND_ONLY, "SEND_ONLY"},
    {WINDIVERT_FLAG_NO_INSTALL, "NO_INSTALL"}, {WINDIVERT_FLAG_FRAGMENTS, "FRAGMENTS"},
};

static void print_flags(UINT64 flags)
{
    const char *separator = "";
    size_t i;

    printf(" flags=%s", flags == 0 ? "0" : "");
    for (i = 0; i < sizeof(flag_names) / sizeof(flag_names[0]); i++)
        if (flags & flag_names[i].flag) {
            printf("%s%s", separator, flag_names[i].name);
            separator = "|";
        }
}

/* print_handle prints a handle, with its filter as text. object is its filter as received. */
static void print_handle(const char *word, enum colour colour, const WINDIVERT_DATA_REFLECT *h, const char *object,
                         INT64 start)
{
    static char text[MAX_TEXT];

    set_colour(colour);
    printf("%s", word);
    set_colour(PLAIN);
    printf(" time=%.3fs pid=%u exe=%s layer=%s", (double)(h->Timestamp - start) / 1e9, h->ProcessId,
           image_path(h->ProcessId), layer_names[(unsigned)h->Layer > WINDIVERT_LAYER_MAX ? 5 : h->Layer]);
    print_flags(h->Flags);
    printf(" priority=%d filter=\"%s\"\n", h->Priority,
           WinDivertHelperFormatFilter(object, h->Layer, text, sizeof(text)) ? text : object);
    fflush(stdout);
}

/* end_process ends a process at once. It ignores numbers that mean several processes to kill(2). */
static void end_process(UINT32 pid)
{
    if (pid == 0 || pid > INT_MAX)
        warning("%u is no process", pid);
    else if (kill((pid_t)pid, SIGKILL) != 0 && errno != ESRCH) /* it may have had several handles */
        warning("failed to kill %u: %s", pid, strerror(errno));
}

static enum mode mode_of(const char *name)
{
    int i = 0;

    while (i < MODES && strcmp(name, mode_names[i]) != 0)
        i++;
    return (enum mode)i;
}

/* reported prints an event, and applies the mode to the handle's process. */
static void reported(enum mode mode, const WINDIVERT_ADDRESS *addr, const char *object, INT64 start)
{
    if (addr->Event == WINDIVERT_EVENT_REFLECT_OPEN)
        print_handle(mode == KILL ? "KILL" : "OPEN", mode == KILL ? RED : GREEN, &addr->Reflect, object, start);
    else if (mode == WATCH)
        print_handle("CLOSE", RED, &addr->Reflect, object, start);
    if (mode == KILL && addr->Event == WINDIVERT_EVENT_REFLECT_OPEN)
        end_process(addr->Reflect.ProcessId);
}

int main(int argc, char **argv)
{
    static char object[MAX_OBJECT];
    enum mode mode = argc == 2 || argc == 3 ? mode_of(argv[1]) : MODES;
    INT64 start = ticks();
    WINDIVERT_ADDRESS addr;
    HANDLE handle;

    if (mode == MODES) {
        fprintf(stderr, "usage: %s list|watch|kill [FILTER]\n", argv[0]);
        return EXIT_FAILURE;
    }
    handle = open_or_explain(argc == 3 ? argv[2] : "true", WINDIVERT_LAYER_REFLECT, -333,
                             WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY |
                                 (mode == WATCH ? 0 : WINDIVERT_FLAG_NO_INSTALL));
    /* A handle that is shut down at once still reports the open handles, and then ends. */
    if (mode != WATCH && !WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH))
        fatal("failed to shut the handle down (%u)", GetLastError());
    longest_queue(handle);
    while (WinDivertRecv(handle, object, sizeof(object), NULL, &addr))
        reported(mode, &addr, object, start);
    if (GetLastError() != ERROR_NO_DATA)
        fatal("failed to receive (%u)", GetLastError());
    WinDivertClose(handle);
    return EXIT_SUCCESS;
}
