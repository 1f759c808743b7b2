/* passthru.c sends every packet on, with as many threads and as large batches as asked for. */
#include "program.h"

static HANDLE handle;
static int batch = 1;

static DWORD WINAPI pass(LPVOID unused)
{
    UINT size = batch * 1500 > WINDIVERT_MTU_MAX ? (UINT)batch * 1500 : WINDIVERT_MTU_MAX, length, addresses_length;
    UINT8 *packets = (UINT8 *)malloc(size);
    WINDIVERT_ADDRESS *addresses = (WINDIVERT_ADDRESS *)malloc((size_t)batch * sizeof(*addresses));

    (void)unused;
    if (packets == NULL || addresses == NULL)
        fatal("out of memory");
    for (;;) {
        addresses_length = (UINT)(batch * (int)sizeof(*addresses));
        if (!WinDivertRecvEx(handle, packets, size, &length, 0, addresses, &addresses_length, NULL))
            warning("read packets");
        else if (!WinDivertSendEx(handle, packets, length, NULL, 0, addresses, addresses_length, NULL))
            warning("send packets");
    }
    return 0;
}

int main(int argc, char **argv)
{
    int threads = argc > 2 ? atoi(argv[2]) : 1;

    if (argc > 4)
        usage("passthru [FILTER [THREADS [BATCH]]]");
    batch = argc > 3 ? atoi(argv[3]) : 1;
    if (threads < 1 || threads > 64 || batch < 1 || batch > WINDIVERT_BATCH_MAX)
        fatal("THREADS must be 1 to 64, BATCH 1 to 255");
    handle = open_handle(argc > 1 ? argv[1] : "true", WINDIVERT_LAYER_NETWORK, 0, 0);
    while (--threads > 0)
        if (CreateThread(NULL, 1, pass, NULL, 0, NULL) == NULL)
            fatal("failed to start a thread (%u)", (unsigned)GetLastError());
    return (int)pass(NULL);
}
