/* processes.c: processes and their properties, from pidfds and /proc. */
#include "win32.h"

#include "psapi.h"
#include "shlwapi.h"
#include "tlhelp32.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

HANDLE GetCurrentProcess(void)
{
    return (HANDLE)(intptr_t)-1;
}

DWORD GetCurrentProcessId(void)
{
    return (DWORD)getpid();
}

HANDLE OpenProcess(DWORD access, BOOL inherit, DWORD id)
{
    struct object *object;
    int fd;

    (void)access; /* the kernel decides, at each call */
    (void)inherit;
    fd = id == 0 ? (errno = EINVAL, -1) : (int)syscall(SYS_pidfd_open, (pid_t)id, 0);
    if (fd < 0) {
        SetLastError(win32_error(errno));
        return NULL;
    }
    object = (struct object *)calloc(1, sizeof(*object));
    if (object != NULL) {
        object->kind = PROCESS;
        object->refs = 1;
        object->id = (pid_t)id;
    }
    return win32_add(fd, object);
}

DWORD GetProcessId(HANDLE process)
{
    struct object *object;
    DWORD id;

    if (process == GetCurrentProcess())
        return GetCurrentProcessId();
    object = win32_get(process, PROCESS);
    if (object == NULL)
        return 0;
    id = (DWORD)object->id;
    win32_release(object);
    return id;
}

/* runs reports whether a process has not ended: until then its id is its own. */
static BOOL runs(HANDLE process)
{
    struct pollfd p = {win32_descriptor(process), POLLIN, 0};

    return process == GetCurrentProcess() || poll(&p, 1, 0) == 0;
}

BOOL TerminateProcess(HANDLE process, UINT code)
{
    if (process == GetCurrentProcess())
        _exit((int)code);
    if (GetProcessId(process) == 0)
        return FALSE;
    return syscall(SYS_pidfd_send_signal, win32_descriptor(process), SIGKILL, NULL, 0) == 0 ||
           fails(errno == ESRCH ? ERROR_ACCESS_DENIED : win32_error(errno));
}

/* Only its parent knows the code of an ended process; after a signal it is the shell's number. */
BOOL GetExitCodeProcess(HANDLE process, LPDWORD code)
{
    siginfo_t info;

    if (process != GetCurrentProcess() && GetProcessId(process) == 0)
        return FALSE;
    if (runs(process)) {
        *code = STILL_ACTIVE;
        return TRUE;
    }
    memset(&info, 0, sizeof(info));
    if (waitid((idtype_t)P_PIDFD, (id_t)win32_descriptor(process), &info, WEXITED | WNOHANG | WNOWAIT) != 0)
        return fails(ERROR_ACCESS_DENIED);
    *code = (DWORD)(info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status);
    return TRUE;
}

DWORD win32_image(pid_t id, char *path, DWORD size)
{
    char link[40], whole[4096];
    ssize_t n;

    sprintf(link, "/proc/%d/exe", (int)id);
    n = readlink(link, whole, sizeof(whole) - 1);
    if (n <= 0)
        return fails(n == 0 ? ERROR_INVALID_PARAMETER : win32_error(errno));
    if ((DWORD)n >= size)
        return fails(ERROR_INSUFFICIENT_BUFFER);
    memcpy(path, whole, (size_t)n);
    path[n] = 0;
    return (DWORD)n;
}

BOOL QueryFullProcessImageName(HANDLE process, DWORD flags, LPSTR path, PDWORD size)
{
    DWORD id = GetProcessId(process), n;

    (void)flags; /* a path has one form */
    if (id == 0)
        return FALSE;
    n = win32_image((pid_t)id, path, *size);
    if (n == 0)
        return FALSE;
    if (!runs(process))
        return fails(ERROR_INVALID_PARAMETER); /* the path may be another process's */
    *size = n;
    return TRUE;
}

DWORD GetProcessImageFileName(HANDLE process, LPSTR path, DWORD size)
{
    return QueryFullProcessImageName(process, 0, path, &size) ? size : 0;
}

DWORD GetModuleFileNameEx(HANDLE process, HMODULE module, LPSTR path, DWORD size)
{
    return module == NULL ? GetProcessImageFileName(process, path, size) : (DWORD)fails(ERROR_NOT_SUPPORTED);
}

DWORD GetModuleBaseName(HANDLE process, HMODULE module, LPSTR name, DWORD size)
{
    char path[4096];
    const char *base;

    if (GetModuleFileNameEx(process, module, path, sizeof(path)) == 0)
        return 0;
    base = PathFindFileName(path);
    if (strlen(base) >= size)
        return (DWORD)fails(ERROR_INSUFFICIENT_BUFFER);
    strcpy(name, base);
    return (DWORD)strlen(name);
}

DWORD GetModuleFileName(HMODULE module, LPSTR path, DWORD size)
{
    return module == NULL ? win32_image(getpid(), path, size) : (DWORD)fails(ERROR_NOT_SUPPORTED);
}

LPSTR PathFindFileName(LPCSTR path)
{
    const char *name = path, *p;

    for (p = path; *p != 0; p++)
        if ((*p == '/' || *p == '\\') && p[1] != 0 && p[1] != '/' && p[1] != '\\')
            name = p + 1;
    return (LPSTR)name;
}

BOOL SetPriorityClass(HANDLE process, DWORD priorityClass)
{
    static const struct {
        DWORD class_;
        int nice;
    } classes[] = {
        {IDLE_PRIORITY_CLASS, 19},           {BELOW_NORMAL_PRIORITY_CLASS, 5}, {NORMAL_PRIORITY_CLASS, 0},
        {ABOVE_NORMAL_PRIORITY_CLASS, -5},   {HIGH_PRIORITY_CLASS, -10},       {REALTIME_PRIORITY_CLASS, -20},
    };
    DWORD id = GetProcessId(process);
    size_t i;

    if (id == 0)
        return FALSE;
    for (i = 0; i < ARRAYSIZE(classes); i++)
        if (classes[i].class_ == priorityClass)
            return setpriority(PRIO_PROCESS, id, classes[i].nice) == 0 || fails(win32_error(errno));
    return fails(ERROR_INVALID_PARAMETER);
}

void ExitProcess(UINT code)
{
    exit((int)code);
}

/* fit copies a text; if the buffer is too small it returns the size needed, NUL included. */
static DWORD fit(const char *text, LPSTR buffer, DWORD size)
{
    DWORD n = (DWORD)strlen(text);

    if (n >= size)
        return n + 1;
    memcpy(buffer, text, n + 1);
    return n;
}

DWORD GetEnvironmentVariable(LPCSTR name, LPSTR value, DWORD size)
{
    const char *found = getenv(name);

    return found == NULL ? (DWORD)fails(ERROR_ENVVAR_NOT_FOUND) : fit(found, value, size);
}

DWORD GetCurrentDirectory(DWORD size, LPSTR path)
{
    char whole[4096];

    return getcwd(whole, sizeof(whole)) == NULL ? (DWORD)fails(win32_error(errno)) : fit(whole, path, size);
}

void GetSystemInfo(LPSYSTEM_INFO info)
{
    memset(info, 0, sizeof(*info));
    info->dwPageSize = info->dwAllocationGranularity = (DWORD)sysconf(_SC_PAGESIZE);
    info->dwNumberOfProcessors = (DWORD)sysconf(_SC_NPROCESSORS_ONLN);
}

/* ---- The list of processes: a file in memory ------------------------------------------------------------------------ */

/* describe fills in a process and returns FALSE for an ended one. */
static BOOL describe(DWORD id, LPPROCESSENTRY32 entry)
{
    char path[4096], line[200];
    unsigned n;
    FILE *f;

    memset(entry, 0, sizeof(*entry));
    entry->dwSize = sizeof(*entry);
    entry->th32ProcessID = id;
    sprintf(path, "/proc/%u/status", id);
    f = fopen(path, "re");
    if (f == NULL)
        return FALSE;
    while (fgets(line, sizeof(line), f) != NULL) {
        if (sscanf(line, "PPid: %u", &n) == 1)
            entry->th32ParentProcessID = n;
        else if (sscanf(line, "Threads: %u", &n) == 1)
            entry->cntThreads = n;
        else if (strncmp(line, "Name:\t", 6) == 0)
            snprintf(entry->szExeFile, sizeof(entry->szExeFile), "%.*s", (int)strcspn(line + 6, "\n"), line + 6);
    }
    fclose(f);
    if (win32_image((pid_t)id, path, sizeof(path)) > 0)
        snprintf(entry->szExeFile, sizeof(entry->szExeFile), "%s", PathFindFileName(path));
    return TRUE;
}

HANDLE CreateToolhelp32Snapshot(DWORD flags, DWORD process)
{
    PROCESSENTRY32 entry;
    struct dirent *e;
    BOOL whole = TRUE;
    DIR *processes;
    int fd;

    (void)process;
    if (flags != TH32CS_SNAPPROCESS) {
        SetLastError(ERROR_NOT_SUPPORTED);
        return INVALID_HANDLE_VALUE;
    }
    processes = opendir("/proc");
    fd = processes == NULL ? -1 : memfd_create("processes", MFD_CLOEXEC);
    while (fd >= 0 && whole && (e = readdir(processes)) != NULL)
        if (atoi(e->d_name) > 0 && describe((DWORD)atoi(e->d_name), &entry))
            whole = write(fd, &entry, sizeof(entry)) == (ssize_t)sizeof(entry);
    if (fd < 0 || !whole) {
        SetLastError(win32_error(errno));
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    if (processes != NULL)
        closedir(processes);
    return fd < 0 ? INVALID_HANDLE_VALUE : (HANDLE)(uintptr_t)fd;
}

BOOL Process32Next(HANDLE snapshot, LPPROCESSENTRY32 entry)
{
    PROCESSENTRY32 next;
    ssize_t n;

    if (entry == NULL || entry->dwSize < sizeof(*entry))
        return fails(entry == NULL ? ERROR_INVALID_PARAMETER : ERROR_INSUFFICIENT_BUFFER);
    n = read(win32_descriptor(snapshot), &next, sizeof(next));
    if (n < 0)
        return fails(ERROR_INVALID_HANDLE);
    if (n != (ssize_t)sizeof(next))
        return fails(ERROR_NO_MORE_FILES);
    *entry = next;
    return TRUE;
}

BOOL Process32First(HANDLE snapshot, LPPROCESSENTRY32 entry)
{
    if (lseek(win32_descriptor(snapshot), 0, SEEK_SET) != 0)
        return fails(ERROR_INVALID_HANDLE);
    return Process32Next(snapshot, entry);
}
