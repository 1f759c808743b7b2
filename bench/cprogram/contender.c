/*
 * A contender that uses the C interface: it receives packets in batches and sends them on unchanged. It takes the
 * filter, the size of a batch and the number of threads as arguments, tells its usage as a line of JSON when it is ready and once for each
 * line that it reads, and ends with its standard input.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <windivert.h>

static HANDLE handle;
static UINT batch;
static atomic_ullong handled;
static atomic_uint failed; /* the error of the loop; 0: none */

static void *loop(void *unused)
{
    UINT size = batch * WINDIVERT_MTU_MAX, length, addrs;
    char *packets = malloc(size);
    WINDIVERT_ADDRESS *addr = calloc(batch, sizeof *addr);

    (void)unused;
    while (packets && addr) {
        addrs = batch * sizeof *addr;
        if (!WinDivertRecvEx(handle, packets, size, &length, 0, addr, &addrs, NULL)) {
            if (GetLastError() != ERROR_NO_DATA)
                failed = GetLastError();
            break;
        }
        handled += addrs / sizeof *addr; /* before a packet can arrive anywhere */
        if (!WinDivertSendEx(handle, packets, length, NULL, 0, addr, addrs, NULL)) {
            failed = GetLastError();
            break;
        }
    }
    free(packets);
    free(addr);
    return NULL;
}

static long long nanoseconds(const struct timeval *t)
{
    return t->tv_sec * 1000000000LL + t->tv_usec * 1000LL;
}

static void tell(const char *error, UINT code)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    printf("{\"CPU\":%lld,\"Handled\":%llu", nanoseconds(&u.ru_utime) + nanoseconds(&u.ru_stime), (unsigned long long)handled);
    if (code == ERROR_ACCESS_DENIED)
        printf(",\"Unavailable\":\"%s: error %u\"", error, code);
    else if (code)
        printf(",\"Error\":\"%s: error %u\"", error, code);
    printf("}\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    enum { MOST = 64 };
    char line[64];
    pthread_t thread[MOST];
    int threads = argc == 4 ? atoi(argv[3]) : 0, i;

    if (threads < 1 || threads > MOST)
        return 2;
    batch = (UINT)atoi(argv[2]);
    handle = WinDivertOpen(argv[1], WINDIVERT_LAYER_NETWORK, 0, 0);
    if (handle == INVALID_HANDLE_VALUE) {
        tell("open", GetLastError());
        return 0;
    }
    for (i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, loop, NULL))
            return 1;
    do
        tell("the loop has ended", failed);
    while (fgets(line, sizeof line, stdin));
    WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_RECV);
    for (i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    WinDivertClose(handle);
    return 0;
}
