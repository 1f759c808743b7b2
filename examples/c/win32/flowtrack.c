/* flowtrack.c shows the open flows that match a filter, in a table that is redrawn each second. */
#include "program.h"

enum { ROWS = 256, COLUMNS = 120 };

typedef struct FLOW {
    WINDIVERT_DATA_FLOW data;
    BOOL outbound;
    char program[21];
    struct FLOW *next;
} FLOW;

static HANDLE lock; /* guards flows */
static FLOW *flows;

static void established(const WINDIVERT_ADDRESS *address)
{
    FLOW *flow = (FLOW *)LocalAlloc(LPTR, sizeof(*flow));

    if (flow == NULL)
        fatal("out of memory");
    flow->data = address->Flow;
    flow->outbound = address->Outbound;
    strncpy(flow->program, program_of(address->Flow.ProcessId), sizeof(flow->program) - 1);
    WaitForSingleObject(lock, INFINITE);
    flow->next = flows;
    flows = flow;
    ReleaseMutex(lock);
}

static void deleted(const WINDIVERT_ADDRESS *address)
{
    FLOW **at, *flow;

    WaitForSingleObject(lock, INFINITE);
    for (at = &flows; (flow = *at) != NULL; at = &flow->next)
        if (memcmp(&flow->data, &address->Flow, sizeof(flow->data)) == 0) {
            *at = flow->next;
            LocalFree(flow);
            break;
        }
    ReleaseMutex(lock);
}

/* show prints a row, or draws it in place on a console. */
static void show(HANDLE console, SHORT row, BOOL drawn, WORD colours, const char *text)
{
    char line[COLUMNS + 1];
    COORD at;
    DWORD n;

    if (!drawn) {
        printf("%s\n", text);
        return;
    }
    _snprintf(line, sizeof(line), "%-*.*s", COLUMNS, COLUMNS, text);
    at.X = 0;
    at.Y = row;
    WriteConsoleOutputCharacterA(console, line, COLUMNS, at, &n);
    FillConsoleOutputAttribute(console, colours, COLUMNS, at, &n);
}

static DWORD WINAPI draw(LPVOID unused)
{
    HANDLE console = GetStdHandle(STD_OUTPUT_HANDLE);
    CONSOLE_SCREEN_BUFFER_INFO info;
    char local[46], remote[46], text[300];
    const FLOW *flow;
    BOOL drawn;
    SHORT row, rows;

    (void)unused;
    for (;; Sleep(1000)) {
        drawn = GetConsoleScreenBufferInfo(console, &info);
        rows = drawn ? (SHORT)(info.srWindow.Bottom - info.srWindow.Top) : (SHORT)ROWS;
        show(console, 0, drawn, BACKGROUND_GREEN, "PID        PROGRAM              FLOW");
        WaitForSingleObject(lock, INFINITE);
        for (row = 1, flow = flows; flow != NULL && row < rows; flow = flow->next, row++) {
            _snprintf(text, sizeof(text), "%-10u %-20s %s:%u %s %s:%u", (unsigned)flow->data.ProcessId, flow->program,
                      address_text(flow->data.LocalAddr, local), flow->data.LocalPort,
                      flow->outbound ? "---->" : "<----", address_text(flow->data.RemoteAddr, remote),
                      flow->data.RemotePort);
            show(console, row, drawn, PLAIN, text);
        }
        ReleaseMutex(lock);
        for (; drawn && row < rows; row++)
            show(console, row, drawn, PLAIN, "");
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv)
{
    WINDIVERT_ADDRESS address;
    HANDLE handle;

    if (argc > 2)
        usage("flowtrack [FILTER]");
    handle = open_handle(argc == 2 ? argv[1] : "true", WINDIVERT_LAYER_FLOW, 776,
                         WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY);
    lock = CreateMutex(NULL, FALSE, NULL);
    if (CreateThread(NULL, 1, draw, NULL, 0, NULL) == NULL)
        fatal("failed to start a thread (%u)", (unsigned)GetLastError());
    for (;;) {
        if (!WinDivertRecv(handle, NULL, 0, NULL, &address)) {
            warning("read an event");
            continue;
        }
        if (address.Event == WINDIVERT_EVENT_FLOW_ESTABLISHED)
            established(&address);
        else
            deleted(&address);
    }
}
