/* system.c: libraries, memory, messages, random numbers, and the services that do not exist. */
#include "win32.h"

#include <dlfcn.h>
#include <sys/random.h>

/* ---- Libraries ---- */

/* The libraries of Windows whose calls this library provides. */
static const char *const own[] = {"kernel32", "ntdll", "user32", "advapi32", "ws2_32", "iphlpapi", "psapi", "winmm", "msvcrt"};

/* base writes the name of a library without folders and .dll. */
static void base(const char *name, char *out, size_t size)
{
    const char *slash = strrchr(name, '/'), *back = strrchr(name, '\\');
    size_t n;

    if (back != NULL && (slash == NULL || back > slash))
        slash = back;
    snprintf(out, size, "%s", slash == NULL ? name : slash + 1);
    n = strlen(out);
    if (n > 4 && strcasecmp(out + n - 4, ".dll") == 0)
        out[n - 4] = 0;
}

HMODULE LoadLibrary(LPCSTR name)
{
    char short_[300], file[320];
    void *library = NULL;
    size_t i;

    base(name, short_, sizeof(short_));
    for (i = 0; i < ARRAYSIZE(own) && library == NULL; i++)
        if (strcasecmp(short_, own[i]) == 0)
            library = dlopen(NULL, RTLD_NOW);
    if (library == NULL && strcasecmp(short_, "WinDivert") == 0)
        library = dlopen("libwindivert.so.2", RTLD_NOW);
    if (library == NULL) {
        snprintf(file, sizeof(file), "lib%s.so", short_);
        library = dlopen(file, RTLD_NOW);
    }
    if (library == NULL)
        library = dlopen(name, RTLD_NOW);
    if (library == NULL)
        SetLastError(ERROR_MOD_NOT_FOUND);
    return library;
}

/* The caller does not own a reference, so it gets one that need not be given back: the library stays. */
HMODULE GetModuleHandle(LPCSTR name)
{
    return name == NULL ? dlopen(NULL, RTLD_NOW) : LoadLibrary(name);
}

FARPROC GetProcAddress(HMODULE module, LPCSTR name)
{
    FARPROC found;
    size_t n = strlen(name);
    char plain[300];

    *(void **)&found = dlsym(module, name);
    if (found == NULL && n > 1 && n < sizeof(plain) && name[n - 1] == 'A') { /* names with A are those without */
        memcpy(plain, name, n - 1);
        plain[n - 1] = 0;
        *(void **)&found = dlsym(module, plain);
    }
    if (found == NULL)
        SetLastError(ERROR_PROC_NOT_FOUND);
    return found;
}

BOOL FreeLibrary(HMODULE module)
{
    return (module != NULL && dlclose(module) == 0) || fails(ERROR_INVALID_HANDLE);
}

BOOL SetDllDirectory(LPCSTR path)
{
    return (path != NULL && *path == 0) || fails(ERROR_NOT_SUPPORTED);
}

BOOL SetSearchPathMode(DWORD flags)
{
    return !(flags & ~(DWORD)(BASE_SEARCH_PATH_ENABLE_SAFE_SEARCHMODE | BASE_SEARCH_PATH_PERMANENT)) ||
           fails(ERROR_INVALID_PARAMETER);
}

/* ---- Memory ---- */

HLOCAL LocalAlloc(UINT flags, SIZE_T size)
{
    void *memory = flags & LMEM_ZEROINIT ? calloc(1, size > 0 ? size : 1) : malloc(size > 0 ? size : 1);

    if (memory == NULL)
        SetLastError(ERROR_NOT_ENOUGH_MEMORY);
    return memory;
}

HLOCAL LocalFree(HLOCAL memory)
{
    free(memory);
    return NULL;
}

HANDLE GetProcessHeap(void)
{
    static char heap;

    return &heap;
}

LPVOID HeapAlloc(HANDLE heap, DWORD flags, SIZE_T size)
{
    (void)heap;
    return LocalAlloc(flags & HEAP_ZERO_MEMORY ? LMEM_ZEROINIT : 0, size);
}

LPVOID HeapReAlloc(HANDLE heap, DWORD flags, LPVOID memory, SIZE_T size)
{
    (void)heap;
    if (flags & HEAP_ZERO_MEMORY) { /* the new part would have to be zero, and the old size is unknown */
        SetLastError(ERROR_NOT_SUPPORTED);
        return NULL;
    }
    return realloc(memory, size > 0 ? size : 1);
}

BOOL HeapFree(HANDLE heap, DWORD flags, LPVOID memory)
{
    (void)heap;
    (void)flags;
    free(memory);
    return TRUE;
}

/* ---- Messages ---- */

static const struct {
    DWORD error;
    const char *text;
} messages[] = {
    {ERROR_SUCCESS, "There was no error."},
    {ERROR_INVALID_FUNCTION, "There is no such function."},
    {ERROR_FILE_NOT_FOUND, "There is no such file."},
    {ERROR_PATH_NOT_FOUND, "There is no such path."},
    {ERROR_TOO_MANY_OPEN_FILES, "Too many files are open."},
    {ERROR_ACCESS_DENIED, "Access is denied; diverting needs CAP_NET_ADMIN."},
    {ERROR_INVALID_HANDLE, "The handle is not valid."},
    {ERROR_NOT_ENOUGH_MEMORY, "There is not enough memory."},
    {ERROR_NO_MORE_FILES, "There are no more entries."},
    {ERROR_BAD_COMMAND, "The handle is closing."},
    {ERROR_GEN_FAILURE, "The system has refused the request."},
    {ERROR_NOT_SUPPORTED, "The request is not supported here."},
    {ERROR_INVALID_PARAMETER, "A parameter is wrong."},
    {ERROR_BROKEN_PIPE, "The other end of the pipe is closed."},
    {ERROR_INSUFFICIENT_BUFFER, "The buffer is too small."},
    {ERROR_MOD_NOT_FOUND, "The library was not found."},
    {ERROR_PROC_NOT_FOUND, "The library has no such function."},
    {ERROR_ALREADY_EXISTS, "It exists already."},
    {ERROR_NO_DATA, "The handle is shut down."},
    {ERROR_NOT_OWNER, "The mutex belongs to another thread."},
    {ERROR_OPERATION_ABORTED, "The request was cancelled, or its handle closed."},
    {ERROR_IO_INCOMPLETE, "The request is not complete."},
    {ERROR_IO_PENDING, "The request waits."},
    {ERROR_NOACCESS, "A pointer is NULL."},
    {ERROR_SERVICE_DOES_NOT_EXIST, "There is no such service."},
    {ERROR_FAILED_SERVICE_CONTROLLER_CONNECT, "The program was not started as a service."},
    {ERROR_POSSIBLE_DEADLOCK, "A signal handler cannot make this call."},
    {ERROR_DEVICE_NOT_CONNECTED, "Another program has removed the rules of the handle."},
    {ERROR_NOT_FOUND, "There is no such element."},
    {ERROR_HOST_UNREACHABLE, "The host is out of reach: the hop limit is used up."},
    {ERROR_NO_SYSTEM_RESOURCES, "The system has no resources left."},
    {ERROR_TIMEOUT, "The time is up."},
    {WSAEWOULDBLOCK, "The operation would have to wait."},
    {WSAEADDRINUSE, "The address is in use."},
    {WSAEADDRNOTAVAIL, "The address is not one of this machine."},
    {WSAENETUNREACH, "The network is out of reach."},
    {WSAECONNABORTED, "The connection was aborted."},
    {WSAECONNRESET, "The other end has reset the connection."},
    {WSAENOTCONN, "The socket is not connected."},
    {WSAETIMEDOUT, "The connection has timed out."},
    {WSAECONNREFUSED, "The connection was refused."},
    {WSAEHOSTUNREACH, "The host is out of reach."},
};

DWORD FormatMessage(DWORD flags, LPCVOID source, DWORD message, DWORD language, LPSTR buffer, DWORD size,
                    va_list *arguments)
{
    const char *end = flags & FORMAT_MESSAGE_MAX_WIDTH_MASK ? " " : "\r\n";
    char *out = buffer;
    size_t i, n;

    (void)source;
    (void)language;
    (void)arguments; /* no message has inserts */
    if (!(flags & FORMAT_MESSAGE_FROM_SYSTEM) || buffer == NULL)
        return (DWORD)fails(buffer == NULL ? ERROR_INVALID_PARAMETER : ERROR_NOT_SUPPORTED);
    for (i = 0; i < ARRAYSIZE(messages) && messages[i].error != message; i++)
        ;
    if (i == ARRAYSIZE(messages))
        return (DWORD)fails(ERROR_MR_MID_NOT_FOUND);
    n = strlen(messages[i].text) + strlen(end);
    if (flags & FORMAT_MESSAGE_ALLOCATE_BUFFER) {
        size = size > n + 1 ? size : (DWORD)n + 1;
        out = (char *)LocalAlloc(0, size);
        if (out == NULL)
            return 0;
        *(char **)(void *)buffer = out;
    }
    if (n >= size)
        return (DWORD)fails(ERROR_INSUFFICIENT_BUFFER);
    sprintf(out, "%s%s", messages[i].text, end);
    return (DWORD)n;
}

void OutputDebugString(LPCSTR text)
{
    fputs(text, stderr);
}

int rand_s(unsigned int *value)
{
    if (value == NULL)
        return EINVAL;
    return getrandom(value, sizeof(*value), 0) == (ssize_t)sizeof(*value) ? 0 : errno;
}

/* ---- Services ---- */

static char manager;

SC_HANDLE OpenSCManager(LPCSTR machine, LPCSTR database, DWORD access)
{
    (void)machine;
    (void)database;
    (void)access;
    return &manager;
}

static SC_HANDLE no_service(SC_HANDLE m, DWORD error)
{
    SetLastError(m == &manager ? error : ERROR_INVALID_HANDLE);
    return NULL;
}

SC_HANDLE OpenService(SC_HANDLE m, LPCSTR name, DWORD access)
{
    (void)name;
    (void)access;
    return no_service(m, ERROR_SERVICE_DOES_NOT_EXIST);
}

SC_HANDLE CreateService(SC_HANDLE m, LPCSTR name, LPCSTR display, DWORD access, DWORD type, DWORD start, DWORD control,
                        LPCSTR path, LPCSTR group, LPDWORD tag, LPCSTR dependencies, LPCSTR user, LPCSTR password)
{
    (void)name, (void)display, (void)access, (void)type, (void)start, (void)control, (void)path, (void)group, (void)tag;
    (void)dependencies, (void)user, (void)password;
    return no_service(m, ERROR_NOT_SUPPORTED);
}

BOOL StartService(SC_HANDLE service, DWORD count, LPCSTR *arguments)
{
    (void)service, (void)count, (void)arguments;
    return fails(ERROR_INVALID_HANDLE);
}

BOOL ControlService(SC_HANDLE service, DWORD control, LPSERVICE_STATUS status)
{
    (void)service, (void)control, (void)status;
    return fails(ERROR_INVALID_HANDLE);
}

BOOL QueryServiceStatus(SC_HANDLE service, LPSERVICE_STATUS status)
{
    (void)service, (void)status;
    return fails(ERROR_INVALID_HANDLE);
}

BOOL DeleteService(SC_HANDLE service)
{
    (void)service;
    return fails(ERROR_INVALID_HANDLE);
}

BOOL CloseServiceHandle(SC_HANDLE handle)
{
    return handle == &manager || fails(ERROR_INVALID_HANDLE);
}

BOOL StartServiceCtrlDispatcher(const SERVICE_TABLE_ENTRY *table)
{
    (void)table;
    return fails(ERROR_FAILED_SERVICE_CONTROLLER_CONNECT);
}

SERVICE_STATUS_HANDLE RegisterServiceCtrlHandler(LPCSTR name, LPHANDLER_FUNCTION handler)
{
    (void)name, (void)handler;
    return no_service(&manager, ERROR_SERVICE_DOES_NOT_EXIST);
}

BOOL SetServiceStatus(SERVICE_STATUS_HANDLE handle, LPSERVICE_STATUS status)
{
    (void)handle, (void)status;
    return fails(ERROR_INVALID_HANDLE);
}
