/*
 * calls.c checks calls of Windows: on Linux with libwindivert-win32, and on Windows, with the same source. It needs no
 * rights and no network but loopback.
 */
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>

#include <conio.h>
#include <iphlpapi.h>
#include <mmsystem.h>
#include <process.h>
#include <psapi.h>
#include <shlwapi.h>
#include <stdio.h>
#include <tchar.h>
#include <tlhelp32.h>

static int failed;

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            printf("%s:%d: %s is false (error %u)\n", __FILE__, __LINE__, #condition,               \
                   (unsigned)GetLastError());                                                       \
            failed = 1;                                                                             \
        }                                                                                           \
    } while (0)

#define FAILS(call, error)                \
    do {                                  \
        SetLastError(0);                  \
        CHECK(!(call));                   \
        CHECK(GetLastError() == (error)); \
    } while (0)

static void check_types(void)
{
    LARGE_INTEGER n;
    short flag = 1;

    CHECK(sizeof(LONG) == 4 && sizeof(DWORD) == 4 && sizeof(ULONG) == 4 && sizeof(WORD) == 2 && sizeof(BYTE) == 1);
    CHECK(sizeof(HANDLE) == sizeof(void *) && sizeof(DWORD_PTR) == sizeof(void *) && sizeof(ULONGLONG) == 8);
    n.QuadPart = 0x1122334455667788;
    CHECK(n.LowPart == 0x55667788 && n.HighPart == 0x11223344 && n.u.LowPart == n.LowPart);
    CHECK(MAKEWORD(2, 1) == 0x0102 && HIWORD(0x12345678) == 0x1234 && LOBYTE(0x1234) == 0x34);
    CHECK(InterlockedIncrement16(&flag) == 2 && flag == 2);
    CHECK(_tcslen(_T("text")) == 4 && _stricmp("Text", "tEXT") == 0);
}

/* ---- Events ---- */

static void check_events(void)
{
    HANDLE automatic = CreateEvent(NULL, FALSE, TRUE, NULL), manual = CreateEventA(NULL, TRUE, FALSE, NULL);
    HANDLE both[2], copy = NULL;

    CHECK(automatic != NULL && manual != NULL);
    CHECK(WaitForSingleObject(automatic, 0) == WAIT_OBJECT_0);
    CHECK(WaitForSingleObject(automatic, 0) == WAIT_TIMEOUT);
    CHECK(WaitForSingleObject(manual, 1) == WAIT_TIMEOUT);
    CHECK(SetEvent(manual));
    CHECK(WaitForSingleObject(manual, INFINITE) == WAIT_OBJECT_0);
    CHECK(WaitForSingleObject(manual, INFINITE) == WAIT_OBJECT_0);
    both[0] = automatic;
    both[1] = manual;
    CHECK(WaitForMultipleObjects(2, both, FALSE, INFINITE) == WAIT_OBJECT_0 + 1);
    CHECK(WaitForMultipleObjects(2, both, TRUE, 1) == WAIT_TIMEOUT);
    CHECK(SetEvent(automatic));
    CHECK(WaitForMultipleObjects(2, both, FALSE, INFINITE) == WAIT_OBJECT_0);
    CHECK(SetEvent(automatic));
    CHECK(WaitForMultipleObjects(2, both, TRUE, INFINITE) == WAIT_OBJECT_0);
    CHECK(WaitForSingleObject(automatic, 0) == WAIT_TIMEOUT);
    CHECK(ResetEvent(manual) && WaitForSingleObject(manual, 0) == WAIT_TIMEOUT);
    CHECK(DuplicateHandle(GetCurrentProcess(), automatic, GetCurrentProcess(), &copy, 0, FALSE, DUPLICATE_SAME_ACCESS));
    CHECK(SetEvent(copy) && WaitForSingleObject(automatic, 0) == WAIT_OBJECT_0 && CloseHandle(copy));
    CHECK(CloseHandle(automatic) && CloseHandle(manual));
    FAILS(CloseHandle(manual), ERROR_INVALID_HANDLE);
    FAILS(WaitForSingleObject(manual, 0) != WAIT_FAILED, ERROR_INVALID_HANDLE);
}

/* ---- Threads, mutexes, semaphores ---- */

static HANDLE mutex, semaphore;
static volatile LONG counter, workers;
static int guarded;

static DWORD WINAPI work(LPVOID parameter)
{
    int i;

    InterlockedIncrement(&workers);
    for (i = 0; i < 200; i++) {
        CHECK(WaitForSingleObject(mutex, INFINITE) == WAIT_OBJECT_0);
        CHECK(WaitForSingleObject(mutex, INFINITE) == WAIT_OBJECT_0); /* mutexes are recursive */
        guarded++;
        CHECK(ReleaseMutex(mutex));
        CHECK(ReleaseMutex(mutex));
        InterlockedExchangeAdd(&counter, 2);
    }
    return (DWORD)(DWORD_PTR)parameter;
}

static DWORD WINAPI leave_locked(LPVOID parameter)
{
    CHECK(WaitForSingleObject(mutex, INFINITE) == WAIT_OBJECT_0);
    if (parameter == NULL)
        ExitThread(77);
    return 0;
}

static DWORD WINAPI hold(LPVOID release)
{
    CHECK(WaitForSingleObject(mutex, INFINITE) == WAIT_OBJECT_0);
    CHECK(SetEvent(semaphore)); /* semaphore is an event here: this thread holds the mutex now */
    CHECK(WaitForSingleObject((HANDLE)release, INFINITE) == WAIT_OBJECT_0);
    CHECK(ReleaseMutex(mutex));
    return 0;
}

static void check_threads(void)
{
    enum { THREADS = 8 };
    HANDLE threads[THREADS], release = CreateEvent(NULL, TRUE, FALSE, NULL);
    DWORD id = 0, code = 0;
    int i;

    mutex = CreateMutexA(NULL, TRUE, NULL);
    for (i = 0; i < THREADS; i++) {
        threads[i] = CreateThread(NULL, 0, work, (LPVOID)(DWORD_PTR)(100 + i), 0, &id);
        CHECK(threads[i] != NULL && id != 0 && id != GetCurrentThreadId());
    }
    CHECK(WaitForMultipleObjects(THREADS, threads, FALSE, 1) == WAIT_TIMEOUT); /* none gets the mutex */
    CHECK(GetExitCodeThread(threads[0], &code) && code == STILL_ACTIVE);
    CHECK(ReleaseMutex(mutex));
    FAILS(ReleaseMutex(mutex), ERROR_NOT_OWNER);
    CHECK(WaitForMultipleObjects(THREADS, threads, TRUE, INFINITE) == WAIT_OBJECT_0);
    for (i = 0; i < THREADS; i++) {
        CHECK(GetExitCodeThread(threads[i], &code) && code == 100u + (DWORD)i);
        CHECK(CloseHandle(threads[i]));
    }
    CHECK(guarded == 200 * THREADS && counter == 2 * guarded && workers == THREADS);

    /* A thread that ends with a mutex abandons it. */
    threads[0] = CreateThread(NULL, 0, leave_locked, NULL, 0, NULL);
    CHECK(WaitForSingleObject(threads[0], INFINITE) == WAIT_OBJECT_0);
    CHECK(GetExitCodeThread(threads[0], &code) && code == 77);
    CHECK(WaitForSingleObject(mutex, 0) == WAIT_ABANDONED);
    CHECK(ReleaseMutex(mutex) && CloseHandle(threads[0]));

    /* A mutex that another thread holds is waited for, and then obtained. */
    semaphore = CreateEvent(NULL, FALSE, FALSE, NULL);
    threads[0] = CreateThread(NULL, 65536, hold, release, CREATE_SUSPENDED, NULL);
    CHECK(WaitForSingleObject(semaphore, 20) == WAIT_TIMEOUT);
    CHECK(ResumeThread(threads[0]) == 1);
    CHECK(WaitForSingleObject(semaphore, INFINITE) == WAIT_OBJECT_0);
    CHECK(WaitForSingleObject(mutex, 1) == WAIT_TIMEOUT);
    CHECK(SetEvent(release));
    CHECK(WaitForSingleObject(mutex, INFINITE) == WAIT_OBJECT_0);
    CHECK(ReleaseMutex(mutex));
    CHECK(WaitForSingleObject(threads[0], INFINITE) == WAIT_OBJECT_0);
    CHECK(CloseHandle(threads[0]) && CloseHandle(semaphore) && CloseHandle(release) && CloseHandle(mutex));
}

static void check_semaphores(void)
{
    HANDLE both[2];
    LONG before = -1;

    both[0] = CreateSemaphore(NULL, 2, 3, NULL);
    both[1] = CreateEvent(NULL, FALSE, FALSE, NULL);
    CHECK(WaitForMultipleObjects(2, both, TRUE, 1) == WAIT_TIMEOUT); /* and takes nothing */
    CHECK(WaitForSingleObject(both[0], 0) == WAIT_OBJECT_0 && WaitForSingleObject(both[0], 0) == WAIT_OBJECT_0);
    CHECK(WaitForSingleObject(both[0], 0) == WAIT_TIMEOUT);
    CHECK(ReleaseSemaphore(both[0], 2, &before) && before == 0);
    CHECK(ReleaseSemaphore(both[0], 1, &before) && before == 2);
    FAILS(ReleaseSemaphore(both[0], 1, NULL), ERROR_TOO_MANY_POSTS);
    CHECK(SetEvent(both[1]) && WaitForMultipleObjects(2, both, TRUE, 0) == WAIT_OBJECT_0);
    CHECK(CloseHandle(both[0]) && CloseHandle(both[1]));
    FAILS(CreateSemaphore(NULL, 2, 1, NULL) != NULL, ERROR_INVALID_PARAMETER);
}

static CRITICAL_SECTION section;
static CONDITION_VARIABLE condition;
static int ready;

static unsigned __stdcall announce(void *parameter)
{
    EnterCriticalSection(&section);
    EnterCriticalSection(&section);
    ready = *(int *)parameter;
    LeaveCriticalSection(&section);
    LeaveCriticalSection(&section);
    WakeAllConditionVariable(&condition);
    _endthreadex(5);
    return 0;
}

static void check_sections(void)
{
    unsigned id = 0;
    int value = 9;
    DWORD code = 0;
    HANDLE thread;
    SRWLOCK lock = SRWLOCK_INIT;

    InitializeCriticalSection(&section);
    InitializeConditionVariable(&condition);
    EnterCriticalSection(&section);
    CHECK(TryEnterCriticalSection(&section));
    LeaveCriticalSection(&section);
    FAILS(SleepConditionVariableCS(&condition, &section, 1), ERROR_TIMEOUT);
    thread = (HANDLE)_beginthreadex(NULL, 0, announce, &value, 0, &id);
    CHECK(thread != NULL && id != 0);
    while (ready == 0)
        CHECK(SleepConditionVariableCS(&condition, &section, INFINITE));
    CHECK(ready == 9);
    LeaveCriticalSection(&section);
    CHECK(WaitForSingleObject(thread, INFINITE) == WAIT_OBJECT_0 && GetExitCodeThread(thread, &code) && code == 5);
    CHECK(CloseHandle(thread));
    DeleteCriticalSection(&section);
    AcquireSRWLockShared(&lock);
    AcquireSRWLockShared(&lock);
    ReleaseSRWLockShared(&lock);
    ReleaseSRWLockShared(&lock);
    AcquireSRWLockExclusive(&lock);
    ReleaseSRWLockExclusive(&lock);
}

/* ---- Time ---- */

static void check_time(void)
{
    LARGE_INTEGER frequency, from, to;
    ULONGLONG ticks = GetTickCount64();
    DWORD start = timeGetTime();
    FILETIME file;
    SYSTEMTIME now;
    ULARGE_INTEGER n;

    CHECK(QueryPerformanceFrequency(&frequency) && QueryPerformanceCounter(&from));
    Sleep(30);
    CHECK(QueryPerformanceCounter(&to));
    CHECK((to.QuadPart - from.QuadPart) * 1000 / frequency.QuadPart >= 25);
    CHECK(GetTickCount64() - ticks >= 10 && timeGetTime() - start >= 10);
    GetSystemTimeAsFileTime(&file);
    GetSystemTime(&now);
    n.LowPart = file.dwLowDateTime;
    n.HighPart = file.dwHighDateTime;
    CHECK((DWORD)(n.QuadPart / 315569520000000ull) + 1601 - now.wYear + 1 <= 2 && now.wMonth >= 1 && now.wMonth <= 12);
}

/* ---- Processes ---- */

static void check_processes(const char *program)
{
    char path[4096] = "", path2[4096] = "";
    DWORD size = sizeof(path), code = 0;
    HANDLE self = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION | SYNCHRONIZE, FALSE, GetCurrentProcessId()), list;
    PROCESSENTRY32 entry;
    BOOL found = FALSE;

    CHECK(self != NULL);
    CHECK(GetProcessId(self) == GetCurrentProcessId());
    CHECK(QueryFullProcessImageNameA(self, 0, path, &size) && size == strlen(path));
    CHECK(_stricmp(PathFindFileNameA(path), program) == 0);
    CHECK(GetProcessImageFileNameA(self, path2, sizeof(path2)) == strlen(path2));
    CHECK(_stricmp(PathFindFileNameA(path2), program) == 0);
    CHECK(GetModuleFileNameA(NULL, path2, sizeof(path2)) == strlen(path2) && _stricmp(path, path2) == 0);
    size = 3;
    FAILS(QueryFullProcessImageNameA(self, 0, path, &size), ERROR_INSUFFICIENT_BUFFER);
    CHECK(GetExitCodeProcess(self, &code) && code == STILL_ACTIVE);
    CHECK(WaitForSingleObject(self, 0) == WAIT_TIMEOUT);
    CHECK(CloseHandle(self));
    FAILS(OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, FALSE, 0x3FFFFFF0) != NULL, ERROR_INVALID_PARAMETER);

    list = CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0);
    CHECK(list != INVALID_HANDLE_VALUE);
    memset(&entry, 0, sizeof(entry));
    FAILS(Process32First(list, &entry), ERROR_INSUFFICIENT_BUFFER); /* dwSize is not set */
    entry.dwSize = sizeof(entry);
    CHECK(Process32First(list, &entry));
    do
        if (entry.th32ProcessID == GetCurrentProcessId()) {
            found = TRUE;
            CHECK(_stricmp(entry.szExeFile, program) == 0 && entry.cntThreads >= 1);
        }
    while (Process32Next(list, &entry));
    CHECK(GetLastError() == ERROR_NO_MORE_FILES && found);
    CHECK(CloseHandle(list));
}

/* ---- Sockets and their tables ---- */

static void check_tcp_table(u_short port, u_short client_port)
{
    DWORD size = 0, error, i, listeners = 0, connections = 0;
    PMIB_TCPTABLE_OWNER_PID table = NULL;

    while ((error = GetExtendedTcpTable(table, &size, TRUE, AF_INET, TCP_TABLE_OWNER_PID_ALL, 0)) ==
           ERROR_INSUFFICIENT_BUFFER) {
        free(table);
        table = (PMIB_TCPTABLE_OWNER_PID)malloc(size);
    }
    CHECK(error == NO_ERROR && table != NULL);
    for (i = 0; table != NULL && i < table->dwNumEntries; i++) {
        MIB_TCPROW_OWNER_PID *row = &table->table[i];

        if (row->dwOwningPid != GetCurrentProcessId() || row->dwLocalAddr != htonl(INADDR_LOOPBACK))
            continue;
        if (row->dwLocalPort == port && row->dwState == MIB_TCP_STATE_LISTEN)
            listeners++;
        if (row->dwLocalPort == client_port && row->dwRemotePort == port && row->dwState == MIB_TCP_STATE_ESTAB)
            connections++;
    }
    CHECK(listeners == 1 && connections == 1);
    free(table);
    CHECK(GetExtendedTcpTable(NULL, &size, TRUE, 12345, TCP_TABLE_OWNER_PID_ALL, 0) == ERROR_INVALID_PARAMETER);
    size = 0;
    CHECK(GetExtendedTcpTable(NULL, &size, FALSE, AF_INET6, TCP_TABLE_OWNER_PID_LISTENER, 0) ==
          ERROR_INSUFFICIENT_BUFFER);
}

static void check_udp_table(void)
{
    SOCKET s = socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP);
    struct sockaddr_in6 a;
    int n = sizeof(a);
    DWORD size = 0, error, i, found = 0;
    PMIB_UDP6TABLE_OWNER_PID table = NULL;

    memset(&a, 0, sizeof(a));
    a.sin6_family = AF_INET6;
    a.sin6_addr = in6addr_loopback;
    if (s == INVALID_SOCKET || bind(s, (struct sockaddr *)&a, sizeof(a)) != 0) {
        printf("no IPv6: %d\n", WSAGetLastError());
        return;
    }
    CHECK(getsockname(s, (struct sockaddr *)&a, &n) == 0);
    while ((error = GetExtendedUdpTable(table, &size, FALSE, AF_INET6, UDP_TABLE_OWNER_PID, 0)) ==
           ERROR_INSUFFICIENT_BUFFER) {
        free(table);
        table = (PMIB_UDP6TABLE_OWNER_PID)malloc(size);
    }
    CHECK(error == NO_ERROR && table != NULL);
    for (i = 0; table != NULL && i < table->dwNumEntries; i++)
        if (table->table[i].dwLocalPort == a.sin6_port && table->table[i].dwOwningPid == GetCurrentProcessId() &&
            memcmp(table->table[i].ucLocalAddr, &a.sin6_addr, 16) == 0)
            found++;
    CHECK(found == 1);
    free(table);
    closesocket(s);
}

static void check_sockets(void)
{
    WSADATA data;
    struct sockaddr_in a, b;
    int n = sizeof(a), i;
    DWORD timeout = 30;
    SOCKET l, client, server;
    u_long on = 1;
    char text[10];

    CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0 && data.wVersion == MAKEWORD(2, 2));
    l = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    memset(&a, 0, sizeof(a));
    a.sin_family = AF_INET;
    CHECK(inet_pton(AF_INET, "127.0.0.1", &a.sin_addr) == 1);
    CHECK(l != INVALID_SOCKET && bind(l, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(l, 4) == 0);
    CHECK(getsockname(l, (struct sockaddr *)&a, &n) == 0 && n == sizeof(a));
    client = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    CHECK(connect(client, (struct sockaddr *)&a, sizeof(a)) == 0);
    n = sizeof(b);
    server = accept(l, (struct sockaddr *)&b, &n);
    CHECK(server != INVALID_SOCKET && b.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    check_tcp_table(a.sin_port, b.sin_port);

    CHECK(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, (const char *)&timeout, sizeof(timeout)) == 0);
    CHECK(recv(server, text, sizeof(text), 0) == SOCKET_ERROR);
    CHECK(WSAGetLastError() == WSAETIMEDOUT || WSAGetLastError() == WSAEWOULDBLOCK);
    CHECK(ioctlsocket(server, FIONBIO, &on) == 0);
    CHECK(recv(server, text, sizeof(text), 0) == SOCKET_ERROR && WSAGetLastError() == WSAEWOULDBLOCK);
    CHECK(send(client, "hello", 5, 0) == 5);
    for (i = 0; i < 100 && recv(server, text, sizeof(text), 0) != 5; i++)
        Sleep(1);
    CHECK(memcmp(text, "hello", 5) == 0);
    CHECK(shutdown(server, SD_SEND) == 0 && closesocket(server) == 0 && closesocket(l) == 0);
    for (i = 0; i < 100 && send(client, text, 1, 0) == 1; i++)
        Sleep(1); /* a broken connection is an error, and does not end the process */
    CHECK(WSAGetLastError() == WSAECONNRESET || WSAGetLastError() == WSAECONNABORTED);
    CHECK(closesocket(client) == 0);
    CHECK(connect(INVALID_SOCKET, (struct sockaddr *)&a, sizeof(a)) == SOCKET_ERROR && WSAGetLastError() == WSAENOTSOCK);
    check_udp_table();
    CHECK(WSACleanup() == 0);
}

/* ---- The rest ---- */

static void check_system(void)
{
    char text[300], *own = NULL;
    unsigned int first = 0, i;
    HMODULE kernel = LoadLibraryA("kernel32.dll");
    DWORD n = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, ERROR_ACCESS_DENIED, 0,
                             text, sizeof(text), NULL);
    void *memory;

    CHECK(n == strlen(text) && n > 10 && strstr(text, "ccess") != NULL);
    CHECK(FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_ALLOCATE_BUFFER | FORMAT_MESSAGE_IGNORE_INSERTS, NULL,
                         ERROR_INVALID_PARAMETER, 0, (LPSTR)&own, 0, NULL) > 0);
    CHECK(own != NULL && strlen(own) > 5 && LocalFree(own) == NULL);
    FAILS(FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, 0x2FFFFFFF, 0, text, sizeof(text),
                         NULL), ERROR_MR_MID_NOT_FOUND);
    CHECK(kernel != NULL && GetProcAddress(kernel, "GetTickCount64") != NULL);
    FAILS(GetProcAddress(kernel, "NoSuchCall") != NULL, ERROR_PROC_NOT_FOUND);
    CHECK(FreeLibrary(kernel));
    FAILS(LoadLibraryA("nosuchlibrary.dll") != NULL, ERROR_MOD_NOT_FOUND);
    memory = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, 100);
    CHECK(memory != NULL && ((char *)memory)[99] == 0 && HeapFree(GetProcessHeap(), 0, memory));
    for (i = 0; i < 3 && first == 0; i++)
        CHECK(rand_s(&first) == 0);
    CHECK(first != 0);
    CHECK(SetDllDirectoryA("") && SetSearchPathMode(BASE_SEARCH_PATH_ENABLE_SAFE_SEARCHMODE));
    FAILS(GetEnvironmentVariableA("NO_SUCH_VARIABLE", text, sizeof(text)) != 0, ERROR_ENVVAR_NOT_FOUND);
}

static void check_services(void)
{
    SERVICE_STATUS status;
    SC_HANDLE manager = OpenSCManagerA(NULL, NULL, SC_MANAGER_CONNECT);

    CHECK(manager != NULL);
    FAILS(OpenServiceA(manager, "WinDivertThatIsNot", SERVICE_QUERY_STATUS) != NULL, ERROR_SERVICE_DOES_NOT_EXIST);
    FAILS(QueryServiceStatus(NULL, &status), ERROR_INVALID_HANDLE);
    CHECK(CloseServiceHandle(manager));
}

static HANDLE told;
static DWORD handler_thread;

static BOOL WINAPI first_handler(DWORD event)
{
    CHECK(event == CTRL_C_EVENT);
    handler_thread = GetCurrentThreadId();
    printf("a handler\n"); /* safe: handlers run on their own thread */
    CHECK(SetEvent(told));
    return TRUE;
}

static BOOL WINAPI second_handler(DWORD event)
{
    return event != CTRL_C_EVENT;
}

static void check_control(void)
{
    told = CreateEvent(NULL, FALSE, FALSE, NULL);
    CHECK(SetConsoleCtrlHandler(first_handler, TRUE) && SetConsoleCtrlHandler(second_handler, TRUE));
    CHECK(GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0));
    CHECK(WaitForSingleObject(told, 20000) == WAIT_OBJECT_0);
    CHECK(handler_thread != 0 && handler_thread != GetCurrentThreadId());
    CHECK(SetConsoleCtrlHandler(second_handler, FALSE));
    FAILS(SetConsoleCtrlHandler(second_handler, FALSE), ERROR_INVALID_PARAMETER);
}

static void check_console(void)
{
    HANDLE out = GetStdHandle(STD_OUTPUT_HANDLE);
    DWORD mode, n = 0;

    CHECK(out != INVALID_HANDLE_VALUE && out != NULL);
    CHECK(!GetConsoleMode(out, &mode)); /* the tests read the output */
    CHECK(WriteFile(out, "written\n", 8, &n, NULL) && n == 8);
}

#ifndef _WIN32

/* Features of Linux only: descriptors are handles, objects have no names, and drawing does nothing without a terminal. */
static void check_linux(void)
{
    COORD at = {0, 0};
    HANDLE out = GetStdHandle(STD_OUTPUT_HANDLE), mine;
    int ends[2];
    char b;

    CHECK(pipe(ends) == 0);
    CHECK(WaitForSingleObject((HANDLE)(uintptr_t)ends[0], 0) == WAIT_TIMEOUT);
    CHECK(write(ends[1], "x", 1) == 1);
    CHECK(WaitForSingleObject((HANDLE)(uintptr_t)ends[0], INFINITE) == WAIT_OBJECT_0 && read(ends[0], &b, 1) == 1);
    CHECK(CloseHandle((HANDLE)(uintptr_t)ends[0]) && CloseHandle((HANDLE)(uintptr_t)ends[1]));
    FAILS(CreateMutex(NULL, FALSE, "name") != NULL, ERROR_NOT_SUPPORTED);
    CHECK(SetConsoleTextAttribute(out, FOREGROUND_RED) && SetConsoleCursorPosition(out, at));
    CHECK(FillConsoleOutputCharacter(out, ' ', 10, at, NULL));
    FAILS(TerminateThread(GetCurrentThread(), 0), ERROR_NOT_SUPPORTED);
    CHECK(SetThreadPriority(GetCurrentThread(), THREAD_PRIORITY_BELOW_NORMAL));
    mine = LoadLibraryA("WinDivert.dll");
    CHECK(mine == NULL || GetProcAddress(mine, "WinDivertOpen") != NULL); /* NULL: WinDivert is not installed */
}

/* Another process is waited for and ended. */
static void check_other(void)
{
    DWORD code = 0;
    HANDLE child;
    pid_t id = fork();

    if (id == 0)
        for (;;)
            pause();
    child = OpenProcess(PROCESS_TERMINATE, FALSE, (DWORD)id);
    CHECK(child != NULL && WaitForSingleObject(child, 0) == WAIT_TIMEOUT);
    CHECK(TerminateProcess(child, 1));
    CHECK(WaitForSingleObject(child, 20000) == WAIT_OBJECT_0);
    CHECK(GetExitCodeProcess(child, &code) && code == 128 + SIGKILL);
    CHECK(CloseHandle(child));
}

#endif

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc < 2)
        return 2;
#ifndef _WIN32
    check_other(); /* before there are threads */
    check_linux();
#endif
    check_types();
    check_events();
    check_threads();
    check_semaphores();
    check_sections();
    check_time();
    check_processes(argv[1]);
    check_sockets();
    check_system();
    check_services();
    check_console();
    check_control();
    if (argc > 2) { /* no handler: the process ends */
        CHECK(SetConsoleCtrlHandler(first_handler, FALSE));
        CHECK(GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0));
        Sleep(20000);
        return 3;
    }
    printf("done\n");
    return failed;
}
