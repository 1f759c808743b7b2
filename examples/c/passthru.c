/* passthru.c sends every packet on, in batches, with several threads on one handle: the least a program can do. */
#include "console.h"

#include <pthread.h>

static HANDLE handle;
static UINT batch = 1;

static void *pass(void *unused)
{
    UINT room = batch * 1500 < WINDIVERT_MTU_MAX ? WINDIVERT_MTU_MAX : batch * 1500;
    UINT8 *packets = (UINT8 *)malloc(room);
    WINDIVERT_ADDRESS *addrs = (WINDIVERT_ADDRESS *)malloc(batch * sizeof(*addrs));

    if (packets == NULL || addrs == NULL)
        fatal("out of memory");
    for (;;) {
        UINT length, size = batch * sizeof(*addrs);

        if (!WinDivertRecvEx(handle, packets, room, &length, 0, addrs, &size, NULL))
            warning("failed to receive (%u)", GetLastError());
        else if (!WinDivertSendEx(handle, packets, length, NULL, 0, addrs, size, NULL))
            warning("failed to send (%u)", GetLastError());
    }
    return unused;
}

/* argument returns a number of the command line, or its default. */
static int argument(int argc, char **argv, int i, const char *name, int standard, int min, int max)
{
    int n = argc > i ? atoi(argv[i]) : standard;

    if (n < min || n > max)
        fatal("%s must be %d to %d", name, min, max);
    return n;
}

int main(int argc, char **argv)
{
    const char *filter = argc > 1 ? argv[1] : "true";
    int threads, priority;

    if (argc > 5) {
        fprintf(stderr, "usage: %s [FILTER [THREADS [BATCH [PRIORITY]]]]\n", argv[0]);
        return EXIT_FAILURE;
    }
    threads = argument(argc, argv, 2, "THREADS", 1, 1, 64);
    batch = (UINT)argument(argc, argv, 3, "BATCH", 1, 1, WINDIVERT_BATCH_MAX);
    priority = argument(argc, argv, 4, "PRIORITY", 0, WINDIVERT_PRIORITY_LOWEST, WINDIVERT_PRIORITY_HIGHEST);
    handle = open_or_explain(filter, WINDIVERT_LAYER_NETWORK, (INT16)priority, 0);
    while (--threads > 0) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, pass, NULL) != 0)
            fatal("failed to start a thread");
    }
    pass(NULL);
    return EXIT_SUCCESS;
}
