/* windivertctl.c lists the open handles, watches them, ends their processes, or removes the driver. */
#include "program.h"

#include <winsvc.h>

/* end ends a process. */
static void end(DWORD pid)
{
    HANDLE process = OpenProcess(PROCESS_TERMINATE, FALSE, pid);

    if (process == NULL || !TerminateProcess(process, 0))
        warning("end a process");
    if (process != NULL)
        CloseHandle(process);
}

static void uninstall(void)
{
    SC_HANDLE manager = OpenSCManagerA(NULL, NULL, SC_MANAGER_CONNECT);
    SC_HANDLE service = manager == NULL ? NULL : OpenServiceA(manager, "WinDivert", SERVICE_ALL_ACCESS);
    SERVICE_STATUS status;

    if (service == NULL && GetLastError() != ERROR_SERVICE_DOES_NOT_EXIST)
        warning("open the service");
    else if (service != NULL && !ControlService(service, SERVICE_CONTROL_STOP, &status))
        warning("stop the service");
    else
        printf("%s\n", service == NULL ? "no driver is installed" : "UNINSTALL WinDivert");
    if (service != NULL)
        CloseServiceHandle(service);
    if (manager != NULL)
        CloseServiceHandle(manager);
}

int main(int argc, char **argv)
{
    static const char *const layers[] = {"NETWORK", "NETWORK_FORWARD", "FLOW", "SOCKET", "REFLECT"};
    const char *mode = argc > 1 ? argv[1] : "", *word;
    static char object[30000], filter[30000];
    BOOL watch = strcmp(mode, "watch") == 0, kill_ = strcmp(mode, "kill") == 0, remove_ = strcmp(mode, "uninstall") == 0;
    WINDIVERT_ADDRESS address;
    HANDLE handle;
    UINT length;

    if (argc < 2 || argc > 3 || (!watch && !kill_ && !remove_ && strcmp(mode, "list") != 0))
        usage("windivertctl list|watch|kill|uninstall [FILTER]");
    handle = open_handle(argc == 3 ? argv[2] : "true", WINDIVERT_LAYER_REFLECT, -333,
                         WINDIVERT_FLAG_SNIFF | WINDIVERT_FLAG_RECV_ONLY | (watch ? 0 : WINDIVERT_FLAG_NO_INSTALL));
    if (!watch && !WinDivertShutdown(handle, WINDIVERT_SHUTDOWN_BOTH))
        fatal("failed to shut the handle down (%u)", (unsigned)GetLastError());
    while (WinDivertRecv(handle, object, sizeof(object), &length, &address)) {
        word = address.Event == WINDIVERT_EVENT_REFLECT_CLOSE ? "CLOSE" : kill_ || remove_ ? "KILL" : "OPEN";
        if (!watch && address.Event == WINDIVERT_EVENT_REFLECT_CLOSE)
            continue;
        if (!WinDivertHelperFormatFilter(object, (WINDIVERT_LAYER)address.Reflect.Layer, filter, sizeof(filter)))
            strcpy(filter, object);
        coloured(FOREGROUND_GREEN, word);
        printf(" pid=%u exe=%s layer=%s priority=%d filter=\"%s\"\n", (unsigned)address.Reflect.ProcessId,
               program_of(address.Reflect.ProcessId),
               (unsigned)address.Reflect.Layer < ARRAYSIZE(layers) ? layers[address.Reflect.Layer] : "???",
               address.Reflect.Priority, filter);
        fflush(stdout);
        if (kill_ || remove_)
            end(address.Reflect.ProcessId);
    }
    if (GetLastError() != ERROR_NO_DATA)
        warning("read an event");
    WinDivertClose(handle);
    if (remove_)
        uninstall();
    return 0;
}
