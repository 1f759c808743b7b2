/*
 * windows.h: the part of Windows that programs of WinDivert use, on Linux. See docs/c-interface.md, "Programs with
 * windows.h".
 *
 * LONG and DWORD have 32 bits, as on Windows, and are int and unsigned int: print them with %d and %u. WCHAR is
 * wchar_t, of 32 bits. Text is UTF-8; names without A or W mean those with A. Every waitable handle is a descriptor
 * for poll(2), and any such descriptor is a handle: (HANDLE)(uintptr_t)fd.
 */
#ifndef WINDIVERT_WIN32_WINDOWS_H
#define WINDIVERT_WIN32_WINDOWS_H

#ifdef _WIN32
#error "this windows.h is for Linux: Windows has its own"
#endif
#if defined(UNICODE) || defined(_UNICODE)
#error "windivert-win32 has no wide characters: compile without UNICODE and _UNICODE; text is UTF-8"
#endif

/* With -std=c99 and its kin, parts of POSIX that the headers need are missing unless this precedes all other headers. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1
#endif

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <wchar.h>

#if defined(__GLIBC__) && !defined(__USE_MISC)
#error "compile with -D_DEFAULT_SOURCE, as pkg-config --cflags windivert-win32 says, or with -std=gnu99 and later, or include windows.h first"
#endif

/* ---- Words of declarations -------------------------------------------------------------------------------- */

#define WINAPI
#define WINAPIV
#define APIENTRY
#define CALLBACK
#define NTAPI
#define PASCAL
#define FAR
#define NEAR
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#ifndef __cdecl
#define __cdecl
#define __stdcall
#define __fastcall
#define _cdecl
#define _stdcall
#endif
#define __declspec(x)
#define __forceinline static inline __attribute__((always_inline))
#define __int8 char
#define __int16 short
#define __int32 int
#define __int64 long long
#define DECLSPEC_NORETURN __attribute__((noreturn))
#define UNREFERENCED_PARAMETER(x) ((void)(x))

/* ---- Types. windivert.h has already defined some if it came first ------------------------------------- */

#if !defined(WINDIVERT_H) || defined(WINDIVERT_NO_WINDOWS_TYPES)
typedef void VOID;
typedef int BOOL;
typedef char CHAR;
typedef int INT;
typedef unsigned int UINT;
typedef int8_t INT8;
typedef int16_t INT16;
typedef int32_t INT32;
typedef int64_t INT64;
typedef uint8_t UINT8;
typedef uint16_t UINT16;
typedef uint32_t UINT32;
typedef uint64_t UINT64;
typedef uint32_t DWORD;
typedef uintptr_t ULONG_PTR;
typedef void *PVOID;
typedef void *LPVOID;
typedef BOOL *PBOOL;
typedef CHAR *PCHAR;
typedef UINT *PUINT;
typedef UINT8 *PUINT8;
typedef UINT16 *PUINT16;
typedef UINT32 *PUINT32;
typedef UINT64 *PUINT64;
typedef INT64 *PINT64;
typedef DWORD *PDWORD;
typedef DWORD *LPDWORD;
typedef const char *LPCSTR;
typedef void *HANDLE;
typedef HANDLE *PHANDLE;

__extension__ typedef struct _OVERLAPPED {
    ULONG_PTR Internal;
    ULONG_PTR InternalHigh;
    __extension__ union {
        __extension__ struct {
            DWORD Offset;
            DWORD OffsetHigh;
        };
        PVOID Pointer;
    };
    HANDLE hEvent;
} OVERLAPPED, *LPOVERLAPPED;
#endif

/* From here on windivert.h must not define its own. */
#ifndef WINDIVERT_NO_WINDOWS_TYPES
#define WINDIVERT_NO_WINDOWS_TYPES
#endif
#ifndef WINDIVERT_NO_WINDOWS_CALLS
#define WINDIVERT_NO_WINDOWS_CALLS
#endif

typedef unsigned char UCHAR, BYTE, BOOLEAN;
typedef short SHORT;
typedef unsigned short USHORT, WORD;
typedef int32_t LONG, LONG32, HRESULT, NTSTATUS;
typedef uint32_t ULONG, ULONG32, DWORD32;
typedef int64_t LONGLONG, LONG64;
typedef uint64_t ULONGLONG, ULONG64, DWORD64, DWORDLONG;
typedef float FLOAT;
typedef intptr_t INT_PTR, LONG_PTR, SSIZE_T;
typedef uintptr_t UINT_PTR, DWORD_PTR, SIZE_T;
typedef wchar_t WCHAR;
typedef char TCHAR;
typedef UCHAR *PUCHAR;
typedef BYTE *PBYTE, *LPBYTE;
typedef BOOLEAN *PBOOLEAN;
typedef BOOL *LPBOOL;
typedef SHORT *PSHORT;
typedef USHORT *PUSHORT;
typedef WORD *PWORD, *LPWORD;
typedef int *PINT, *LPINT;
typedef LONG *PLONG, *LPLONG;
typedef ULONG *PULONG;
typedef LONGLONG *PLONGLONG;
typedef ULONGLONG *PULONGLONG;
typedef SIZE_T *PSIZE_T;
typedef ULONG_PTR *PULONG_PTR;
typedef DWORD_PTR *PDWORD_PTR;
typedef INT8 *PINT8;
typedef INT16 *PINT16;
typedef INT32 *PINT32;
typedef const void *LPCVOID, *PCVOID;
typedef char *LPSTR, *PSTR, *LPTSTR, *PTSTR;
typedef const char *PCSTR, *LPCTSTR, *PCTSTR;
typedef WCHAR *LPWSTR, *PWSTR;
typedef const WCHAR *LPCWSTR, *PCWSTR;
typedef HANDLE *LPHANDLE;
typedef OVERLAPPED *POVERLAPPED;
typedef HANDLE HINSTANCE, HMODULE, HLOCAL, HGLOBAL, HWND, SC_HANDLE, SERVICE_STATUS_HANDLE;
typedef DWORD ACCESS_MASK, LCID;
typedef intptr_t (*FARPROC)(void);

__extension__ typedef union _LARGE_INTEGER {
    __extension__ struct {
        DWORD LowPart;
        LONG HighPart;
    };
    struct {
        DWORD LowPart;
        LONG HighPart;
    } u;
    LONGLONG QuadPart;
} LARGE_INTEGER, *PLARGE_INTEGER;

__extension__ typedef union _ULARGE_INTEGER {
    __extension__ struct {
        DWORD LowPart;
        DWORD HighPart;
    };
    struct {
        DWORD LowPart;
        DWORD HighPart;
    } u;
    ULONGLONG QuadPart;
} ULARGE_INTEGER, *PULARGE_INTEGER;

typedef struct _SECURITY_ATTRIBUTES {
    DWORD nLength;
    LPVOID lpSecurityDescriptor;
    BOOL bInheritHandle;
} SECURITY_ATTRIBUTES, *PSECURITY_ATTRIBUTES, *LPSECURITY_ATTRIBUTES;

#ifndef TRUE
#define TRUE 1
#define FALSE 0
#endif
#ifndef INVALID_HANDLE_VALUE
#define INVALID_HANDLE_VALUE ((HANDLE)(intptr_t)-1)
#endif
#ifndef INFINITE
#define INFINITE 0xFFFFFFFFu
#endif
#define MAX_PATH 260
#define MAXDWORD 0xFFFFFFFFu

#define TEXT(text) text
#define LOBYTE(w) ((BYTE)((DWORD_PTR)(w) & 0xFF))
#define HIBYTE(w) ((BYTE)((DWORD_PTR)(w) >> 8 & 0xFF))
#define LOWORD(l) ((WORD)((DWORD_PTR)(l) & 0xFFFF))
#define HIWORD(l) ((WORD)((DWORD_PTR)(l) >> 16 & 0xFFFF))
#define MAKEWORD(low, high) ((WORD)((BYTE)(low) | (WORD)((BYTE)(high) << 8)))
#define MAKELONG(low, high) ((LONG)((WORD)(low) | (DWORD)(WORD)(high) << 16))
#define ARRAYSIZE(a) (sizeof(a) / sizeof((a)[0]))
#define _countof(a) ARRAYSIZE(a)
#define ZeroMemory(p, n) memset((p), 0, (n))
#define SecureZeroMemory(p, n) explicit_bzero((p), (n))
#define FillMemory(p, n, c) memset((p), (c), (n))
#define CopyMemory(d, s, n) memcpy((d), (s), (n))
#define MoveMemory(d, s, n) memmove((d), (s), (n))
#define RtlZeroMemory ZeroMemory
#define RtlCopyMemory CopyMemory
#if !defined(__cplusplus) && !defined(NOMINMAX)
#ifndef min
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))
#endif
#endif

/* ---- Error numbers: those of windivert.h, and those of the calls here ------------------------------------- */

#ifndef ERROR_SUCCESS
#define ERROR_SUCCESS 0
#endif
#define NO_ERROR 0
#ifndef ERROR_INVALID_FUNCTION
#define ERROR_INVALID_FUNCTION 1
#endif
#ifndef ERROR_FILE_NOT_FOUND
#define ERROR_FILE_NOT_FOUND 2
#endif
#define ERROR_PATH_NOT_FOUND 3
#define ERROR_TOO_MANY_OPEN_FILES 4
#ifndef ERROR_ACCESS_DENIED
#define ERROR_ACCESS_DENIED 5
#endif
#ifndef ERROR_INVALID_HANDLE
#define ERROR_INVALID_HANDLE 6
#endif
#define ERROR_NOT_ENOUGH_MEMORY 8
#define ERROR_OUTOFMEMORY 14
#define ERROR_NO_MORE_FILES 18
#ifndef ERROR_BAD_COMMAND
#define ERROR_BAD_COMMAND 22
#endif
#define ERROR_WRITE_FAULT 29
#define ERROR_READ_FAULT 30
#ifndef ERROR_GEN_FAILURE
#define ERROR_GEN_FAILURE 31
#endif
#ifndef ERROR_NOT_SUPPORTED
#define ERROR_NOT_SUPPORTED 50
#endif
#ifndef ERROR_INVALID_PARAMETER
#define ERROR_INVALID_PARAMETER 87
#endif
#define ERROR_BROKEN_PIPE 109
#ifndef ERROR_INSUFFICIENT_BUFFER
#define ERROR_INSUFFICIENT_BUFFER 122
#endif
#define ERROR_MOD_NOT_FOUND 126
#define ERROR_PROC_NOT_FOUND 127
#define ERROR_ALREADY_EXISTS 183
#define ERROR_ENVVAR_NOT_FOUND 203
#ifndef ERROR_NO_DATA
#define ERROR_NO_DATA 232
#endif
#define ERROR_MORE_DATA 234
#define ERROR_NOT_OWNER 288
#define ERROR_TOO_MANY_POSTS 298
#define ERROR_MR_MID_NOT_FOUND 317
#ifndef ERROR_INVALID_IMAGE_HASH
#define ERROR_INVALID_IMAGE_HASH 577
#endif
#ifndef ERROR_DRIVER_FAILED_PRIOR_UNLOAD
#define ERROR_DRIVER_FAILED_PRIOR_UNLOAD 654
#endif
#ifndef ERROR_OPERATION_ABORTED
#define ERROR_OPERATION_ABORTED 995
#endif
#ifndef ERROR_IO_INCOMPLETE
#define ERROR_IO_INCOMPLETE 996
#endif
#ifndef ERROR_IO_PENDING
#define ERROR_IO_PENDING 997
#endif
#ifndef ERROR_NOACCESS
#define ERROR_NOACCESS 998
#endif
#define ERROR_SERVICE_REQUEST_TIMEOUT 1053
#define ERROR_SERVICE_ALREADY_RUNNING 1056
#define ERROR_SERVICE_DISABLED 1058
#ifndef ERROR_SERVICE_DOES_NOT_EXIST
#define ERROR_SERVICE_DOES_NOT_EXIST 1060
#endif
#define ERROR_SERVICE_NOT_ACTIVE 1062
#define ERROR_FAILED_SERVICE_CONTROLLER_CONNECT 1063
#define ERROR_SERVICE_MARKED_FOR_DELETE 1072
#define ERROR_SERVICE_EXISTS 1073
#ifndef ERROR_POSSIBLE_DEADLOCK
#define ERROR_POSSIBLE_DEADLOCK 1131
#endif
#ifndef ERROR_DEVICE_NOT_CONNECTED
#define ERROR_DEVICE_NOT_CONNECTED 1167
#endif
#ifndef ERROR_NOT_FOUND
#define ERROR_NOT_FOUND 1168
#endif
#ifndef ERROR_HOST_UNREACHABLE
#define ERROR_HOST_UNREACHABLE 1232
#endif
#ifndef ERROR_DRIVER_BLOCKED
#define ERROR_DRIVER_BLOCKED 1275
#endif
#ifndef ERROR_NO_SYSTEM_RESOURCES
#define ERROR_NO_SYSTEM_RESOURCES 1450
#endif
#define ERROR_TIMEOUT 1460
#ifndef EPT_S_NOT_REGISTERED
#define EPT_S_NOT_REGISTERED 1753
#endif

#ifdef __cplusplus
extern "C" {
#endif

DWORD GetLastError(void);
void SetLastError(DWORD error);

/* ---- Handles and waiting ------------------------------------------------------------------------------------ */

#ifndef WAIT_OBJECT_0
#define WAIT_OBJECT_0 0u
#define WAIT_TIMEOUT 258u
#define WAIT_FAILED 0xFFFFFFFFu
#endif
#define WAIT_ABANDONED 0x80u
#define WAIT_ABANDONED_0 0x80u
#ifndef MAXIMUM_WAIT_OBJECTS
#define MAXIMUM_WAIT_OBJECTS 64
#endif
#ifndef STATUS_PENDING
#define STATUS_PENDING 0x00000103u
#endif
#define STILL_ACTIVE STATUS_PENDING
#ifndef HasOverlappedIoCompleted
#define HasOverlappedIoCompleted(ov) (*(volatile ULONG_PTR *)&(ov)->Internal != STATUS_PENDING)
#endif
#define DUPLICATE_CLOSE_SOURCE 1
#define DUPLICATE_SAME_ACCESS 2

BOOL CloseHandle(HANDLE handle);
BOOL DuplicateHandle(HANDLE fromProcess, HANDLE handle, HANDLE toProcess, LPHANDLE copy, DWORD access, BOOL inherit,
                     DWORD options); /* within this process */
DWORD WaitForSingleObject(HANDLE handle, DWORD milliseconds);
DWORD WaitForMultipleObjects(DWORD count, const HANDLE *handles, BOOL all, DWORD milliseconds);

/* A name is refused with error 50: objects are private to this process. */
HANDLE CreateEvent(void *attributes, BOOL manualReset, BOOL initialState, LPCSTR name);
BOOL SetEvent(HANDLE event);
BOOL ResetEvent(HANDLE event);
HANDLE CreateMutex(LPSECURITY_ATTRIBUTES attributes, BOOL owned, LPCSTR name);
BOOL ReleaseMutex(HANDLE mutex);
HANDLE CreateSemaphore(LPSECURITY_ATTRIBUTES attributes, LONG initial, LONG maximum, LPCSTR name);
BOOL ReleaseSemaphore(HANDLE semaphore, LONG count, LPLONG previous);
#define CreateEventA CreateEvent
#define CreateMutexA CreateMutex
#define CreateSemaphoreA CreateSemaphore

BOOL GetOverlappedResult(HANDLE handle, LPOVERLAPPED overlapped, LPDWORD transferred, BOOL wait);
BOOL CancelIoEx(HANDLE handle, LPOVERLAPPED overlapped);

/* For descriptors and the standard handles. overlapped must be NULL. */
BOOL ReadFile(HANDLE file, LPVOID buffer, DWORD size, LPDWORD done, LPOVERLAPPED overlapped);
BOOL WriteFile(HANDLE file, LPCVOID buffer, DWORD size, LPDWORD done, LPOVERLAPPED overlapped);

/* ---- Threads ---------------------------------------------------------------------------------------------- */

typedef DWORD (*LPTHREAD_START_ROUTINE)(LPVOID);
typedef LPTHREAD_START_ROUTINE PTHREAD_START_ROUTINE;

#define CREATE_SUSPENDED 4
#define STACK_SIZE_PARAM_IS_A_RESERVATION 0x10000
#define THREAD_PRIORITY_IDLE (-15)
#define THREAD_PRIORITY_LOWEST (-2)
#define THREAD_PRIORITY_BELOW_NORMAL (-1)
#define THREAD_PRIORITY_NORMAL 0
#define THREAD_PRIORITY_ABOVE_NORMAL 1
#define THREAD_PRIORITY_HIGHEST 2
#define THREAD_PRIORITY_TIME_CRITICAL 15

HANDLE CreateThread(LPSECURITY_ATTRIBUTES attributes, SIZE_T stack, LPTHREAD_START_ROUTINE start, LPVOID parameter,
                    DWORD flags, LPDWORD id);
DWORD ResumeThread(HANDLE thread); /* only one created suspended */
DECLSPEC_NORETURN void ExitThread(DWORD code);
BOOL GetExitCodeThread(HANDLE thread, LPDWORD code);
BOOL TerminateThread(HANDLE thread, DWORD code); /* error 50: Linux cannot end one thread alone */
HANDLE GetCurrentThread(void);
DWORD GetCurrentThreadId(void);
BOOL SetThreadPriority(HANDLE thread, int priority); /* as a nice value */
BOOL SwitchToThread(void);
void Sleep(DWORD milliseconds);

typedef struct {
    pthread_mutex_t mutex;
} CRITICAL_SECTION, *PCRITICAL_SECTION, *LPCRITICAL_SECTION;

void InitializeCriticalSection(LPCRITICAL_SECTION section);
BOOL InitializeCriticalSectionAndSpinCount(LPCRITICAL_SECTION section, DWORD spin);
void EnterCriticalSection(LPCRITICAL_SECTION section);
BOOL TryEnterCriticalSection(LPCRITICAL_SECTION section);
void LeaveCriticalSection(LPCRITICAL_SECTION section);
void DeleteCriticalSection(LPCRITICAL_SECTION section);

typedef struct {
    pthread_rwlock_t lock;
} SRWLOCK, *PSRWLOCK;
#define SRWLOCK_INIT {PTHREAD_RWLOCK_INITIALIZER}

void InitializeSRWLock(PSRWLOCK lock);
void AcquireSRWLockExclusive(PSRWLOCK lock);
void AcquireSRWLockShared(PSRWLOCK lock);
void ReleaseSRWLockExclusive(PSRWLOCK lock);
void ReleaseSRWLockShared(PSRWLOCK lock);

typedef struct {
    pthread_cond_t condition;
} CONDITION_VARIABLE, *PCONDITION_VARIABLE;
#define CONDITION_VARIABLE_INIT {PTHREAD_COND_INITIALIZER}

void InitializeConditionVariable(PCONDITION_VARIABLE condition);
BOOL SleepConditionVariableCS(PCONDITION_VARIABLE condition, LPCRITICAL_SECTION section, DWORD milliseconds);
void WakeConditionVariable(PCONDITION_VARIABLE condition);
void WakeAllConditionVariable(PCONDITION_VARIABLE condition);

#define InterlockedIncrement(p) __atomic_add_fetch((p), 1, __ATOMIC_SEQ_CST)
#define InterlockedDecrement(p) __atomic_sub_fetch((p), 1, __ATOMIC_SEQ_CST)
#define InterlockedExchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define InterlockedExchangeAdd(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define InterlockedAnd(p, v) __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
#define InterlockedOr(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define InterlockedCompareExchange(p, v, old) __sync_val_compare_and_swap((p), (old), (v))
#define InterlockedIncrement16 InterlockedIncrement
#define InterlockedDecrement16 InterlockedDecrement
#define InterlockedExchange16 InterlockedExchange
#define InterlockedExchangeAdd16 InterlockedExchangeAdd
#define InterlockedAnd16 InterlockedAnd
#define InterlockedOr16 InterlockedOr
#define InterlockedCompareExchange16 InterlockedCompareExchange
#define InterlockedIncrement64 InterlockedIncrement
#define InterlockedDecrement64 InterlockedDecrement
#define InterlockedExchange64 InterlockedExchange
#define InterlockedExchangeAdd64 InterlockedExchangeAdd
#define InterlockedCompareExchange64 InterlockedCompareExchange
#define InterlockedExchangePointer InterlockedExchange
#define InterlockedCompareExchangePointer InterlockedCompareExchange
#define MemoryBarrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* ---- Time. The performance counter is the clock of WINDIVERT_ADDRESS.Timestamp ----------------------------- */

typedef struct _FILETIME {
    DWORD dwLowDateTime;
    DWORD dwHighDateTime;
} FILETIME, *PFILETIME, *LPFILETIME;

typedef struct _SYSTEMTIME {
    WORD wYear, wMonth, wDayOfWeek, wDay, wHour, wMinute, wSecond, wMilliseconds;
} SYSTEMTIME, *PSYSTEMTIME, *LPSYSTEMTIME;

BOOL QueryPerformanceCounter(PLARGE_INTEGER count);
BOOL QueryPerformanceFrequency(PLARGE_INTEGER frequency);
DWORD GetTickCount(void);
ULONGLONG GetTickCount64(void);
void GetSystemTimeAsFileTime(LPFILETIME time);
void GetSystemTime(LPSYSTEMTIME time);
void GetLocalTime(LPSYSTEMTIME time);

/* ---- Processes. An id is a pid ------------------------------------------------------------------------------ */

#define PROCESS_TERMINATE 0x0001
#define PROCESS_VM_READ 0x0010
#define PROCESS_QUERY_INFORMATION 0x0400
#define PROCESS_QUERY_LIMITED_INFORMATION 0x1000
#define SYNCHRONIZE 0x00100000
#define PROCESS_ALL_ACCESS 0x001FFFFF
#define PROCESS_NAME_NATIVE 1
#define IDLE_PRIORITY_CLASS 0x40
#define BELOW_NORMAL_PRIORITY_CLASS 0x4000
#define NORMAL_PRIORITY_CLASS 0x20
#define ABOVE_NORMAL_PRIORITY_CLASS 0x8000
#define HIGH_PRIORITY_CLASS 0x80
#define REALTIME_PRIORITY_CLASS 0x100

HANDLE GetCurrentProcess(void);
DWORD GetCurrentProcessId(void);
HANDLE OpenProcess(DWORD access, BOOL inherit, DWORD id);
DWORD GetProcessId(HANDLE process);
BOOL TerminateProcess(HANDLE process, UINT code); /* another process ends by SIGKILL */
BOOL GetExitCodeProcess(HANDLE process, LPDWORD code);
BOOL QueryFullProcessImageName(HANDLE process, DWORD flags, LPSTR path, PDWORD size);
DWORD GetModuleFileName(HMODULE module, LPSTR path, DWORD size); /* of the program: module must be NULL */
BOOL SetPriorityClass(HANDLE process, DWORD priorityClass);
DECLSPEC_NORETURN void ExitProcess(UINT code);
DWORD GetEnvironmentVariable(LPCSTR name, LPSTR value, DWORD size);
DWORD GetCurrentDirectory(DWORD size, LPSTR path);
#define QueryFullProcessImageNameA QueryFullProcessImageName
#define GetModuleFileNameA GetModuleFileName
#define GetEnvironmentVariableA GetEnvironmentVariable
#define GetCurrentDirectoryA GetCurrentDirectory

typedef struct _SYSTEM_INFO {
    DWORD dwPageSize;
    DWORD dwNumberOfProcessors;
    DWORD dwAllocationGranularity;
} SYSTEM_INFO, *LPSYSTEM_INFO;

void GetSystemInfo(LPSYSTEM_INFO info);

/* ---- Libraries: name.dll is libname.so, and those of Windows are the program itself ------------------------- */

HMODULE LoadLibrary(LPCSTR name);
HMODULE GetModuleHandle(LPCSTR name);
FARPROC GetProcAddress(HMODULE module, LPCSTR name);
BOOL FreeLibrary(HMODULE module);

/* The current folder is never searched for libraries: path must be "", and flags ask for nothing more. */
#define BASE_SEARCH_PATH_ENABLE_SAFE_SEARCHMODE 0x0001
#define BASE_SEARCH_PATH_PERMANENT 0x8000
BOOL SetDllDirectory(LPCSTR path);
BOOL SetSearchPathMode(DWORD flags);
#define SetDllDirectoryA SetDllDirectory
#define LoadLibraryA LoadLibrary
#define GetModuleHandleA GetModuleHandle

/* ---- Memory ------------------------------------------------------------------------------------------------- */

#define LMEM_FIXED 0
#define LMEM_ZEROINIT 0x40
#define LPTR 0x40
#define GMEM_FIXED 0
#define GMEM_ZEROINIT 0x40
#define GPTR 0x40
#define HEAP_ZERO_MEMORY 8

HLOCAL LocalAlloc(UINT flags, SIZE_T size);
HLOCAL LocalFree(HLOCAL memory); /* NULL */
#define GlobalAlloc LocalAlloc
#define GlobalFree LocalFree
HANDLE GetProcessHeap(void);
LPVOID HeapAlloc(HANDLE heap, DWORD flags, SIZE_T size);
LPVOID HeapReAlloc(HANDLE heap, DWORD flags, LPVOID memory, SIZE_T size);
BOOL HeapFree(HANDLE heap, DWORD flags, LPVOID memory);

/* ---- Messages ----------------------------------------------------------------------------------------------- */

#define FORMAT_MESSAGE_ALLOCATE_BUFFER 0x100
#define FORMAT_MESSAGE_IGNORE_INSERTS 0x200
#define FORMAT_MESSAGE_FROM_STRING 0x400
#define FORMAT_MESSAGE_FROM_HMODULE 0x800
#define FORMAT_MESSAGE_FROM_SYSTEM 0x1000
#define FORMAT_MESSAGE_MAX_WIDTH_MASK 0xFF
#define LANG_NEUTRAL 0
#define LANG_ENGLISH 9
#define SUBLANG_DEFAULT 1
#define MAKELANGID(primary, sub) ((WORD)((WORD)(sub) << 10 | (WORD)(primary)))

/* The text of an error number (FORMAT_MESSAGE_FROM_SYSTEM). Numbers without one give 0 and error 317. */
DWORD FormatMessage(DWORD flags, LPCVOID source, DWORD message, DWORD language, LPSTR buffer, DWORD size,
                    va_list *arguments);
#define FormatMessageA FormatMessage
void OutputDebugString(LPCSTR text); /* standard error */
#define OutputDebugStringA OutputDebugString
#define DebugBreak() ((void)raise(SIGTRAP))

/* ---- The console: an ANSI terminal. Where there is none, calls that only draw succeed and do nothing --------- */

#define STD_INPUT_HANDLE ((DWORD)-10)
#define STD_OUTPUT_HANDLE ((DWORD)-11)
#define STD_ERROR_HANDLE ((DWORD)-12)
#define FOREGROUND_BLUE 0x01
#define FOREGROUND_GREEN 0x02
#define FOREGROUND_RED 0x04
#define FOREGROUND_INTENSITY 0x08
#define BACKGROUND_BLUE 0x10
#define BACKGROUND_GREEN 0x20
#define BACKGROUND_RED 0x40
#define BACKGROUND_INTENSITY 0x80
#define COMMON_LVB_REVERSE_VIDEO 0x4000
#define COMMON_LVB_UNDERSCORE 0x8000
#define ENABLE_PROCESSED_INPUT 0x0001
#define ENABLE_LINE_INPUT 0x0002
#define ENABLE_ECHO_INPUT 0x0004
#define ENABLE_PROCESSED_OUTPUT 0x0001
#define ENABLE_WRAP_AT_EOL_OUTPUT 0x0002
#define ENABLE_VIRTUAL_TERMINAL_PROCESSING 0x0004
#define CP_ACP 0
#define CP_UTF8 65001

typedef struct _COORD {
    SHORT X, Y;
} COORD, *PCOORD;

typedef struct _SMALL_RECT {
    SHORT Left, Top, Right, Bottom;
} SMALL_RECT, *PSMALL_RECT;

typedef struct _CONSOLE_SCREEN_BUFFER_INFO {
    COORD dwSize;
    COORD dwCursorPosition; /* as last set */
    WORD wAttributes;
    SMALL_RECT srWindow;
    COORD dwMaximumWindowSize;
} CONSOLE_SCREEN_BUFFER_INFO, *PCONSOLE_SCREEN_BUFFER_INFO;

typedef struct _CONSOLE_CURSOR_INFO {
    DWORD dwSize;
    BOOL bVisible;
} CONSOLE_CURSOR_INFO, *PCONSOLE_CURSOR_INFO;

typedef struct _CHAR_INFO {
    union {
        WCHAR UnicodeChar;
        CHAR AsciiChar;
    } Char;
    WORD Attributes;
} CHAR_INFO, *PCHAR_INFO;

HANDLE GetStdHandle(DWORD which);
BOOL GetConsoleMode(HANDLE console, LPDWORD mode);
BOOL SetConsoleMode(HANDLE console, DWORD mode);
BOOL GetConsoleScreenBufferInfo(HANDLE console, PCONSOLE_SCREEN_BUFFER_INFO info);
BOOL SetConsoleTextAttribute(HANDLE console, WORD attributes);
BOOL SetConsoleCursorPosition(HANDLE console, COORD position);
BOOL SetConsoleCursorInfo(HANDLE console, const CONSOLE_CURSOR_INFO *info);
BOOL SetConsoleTitle(LPCSTR title);
BOOL SetConsoleOutputCP(UINT page); /* no effect: text is UTF-8 */
UINT GetConsoleOutputCP(void);
BOOL FillConsoleOutputCharacter(HANDLE console, CHAR c, DWORD count, COORD at, LPDWORD written);
/* Affects only text written with the calls here; other text keeps its colours. */
BOOL FillConsoleOutputAttribute(HANDLE console, WORD attributes, DWORD count, COORD at, LPDWORD written);
BOOL WriteConsoleOutputCharacter(HANDLE console, LPCSTR text, DWORD count, COORD at, LPDWORD written);
BOOL WriteConsoleOutput(HANDLE console, const CHAR_INFO *cells, COORD size, COORD from, PSMALL_RECT region);
BOOL WriteConsole(HANDLE console, const void *text, DWORD count, LPDWORD written, LPVOID reserved);
#define SetConsoleTitleA SetConsoleTitle
#define FillConsoleOutputCharacterA FillConsoleOutputCharacter
#define WriteConsoleOutputCharacterA WriteConsoleOutputCharacter
#define WriteConsoleOutputA WriteConsoleOutput
#define WriteConsoleA WriteConsole

/* SIGINT, SIGQUIT, SIGHUP and SIGTERM, in this order except for 3 and 4. SIGTERM is CTRL_SHUTDOWN_EVENT. */
#define CTRL_C_EVENT 0
#define CTRL_BREAK_EVENT 1
#define CTRL_CLOSE_EVENT 2
#define CTRL_LOGOFF_EVENT 5
#define CTRL_SHUTDOWN_EVENT 6
#ifndef SIGBREAK
#define SIGBREAK SIGQUIT
#endif

typedef BOOL (*PHANDLER_ROUTINE)(DWORD);

/* Handlers run on a thread of their own. If none returns TRUE the signal ends the process. */
BOOL SetConsoleCtrlHandler(PHANDLER_ROUTINE handler, BOOL add);
BOOL GenerateConsoleCtrlEvent(DWORD event, DWORD group);

/* ---- Services: there are none ---------------------------------------------------------------------------------- */

#define SC_MANAGER_CONNECT 0x0001
#define SC_MANAGER_CREATE_SERVICE 0x0002
#define SC_MANAGER_ALL_ACCESS 0xF003F
#define SERVICE_ALL_ACCESS 0xF01FF
#define SERVICE_QUERY_STATUS 0x0004
#define SERVICE_START 0x0010
#define SERVICE_STOP 0x0020
#define SERVICE_KERNEL_DRIVER 0x01
#define SERVICE_WIN32_OWN_PROCESS 0x10
#define SERVICE_AUTO_START 2
#define SERVICE_DEMAND_START 3
#define SERVICE_ERROR_NORMAL 1
#define SERVICE_CONTROL_STOP 1
#define SERVICE_CONTROL_INTERROGATE 4
#define SERVICE_CONTROL_SHUTDOWN 5
#define SERVICE_STOPPED 1
#define SERVICE_START_PENDING 2
#define SERVICE_STOP_PENDING 3
#define SERVICE_RUNNING 4
#define SERVICE_ACCEPT_STOP 1
#define SERVICE_ACCEPT_SHUTDOWN 4

typedef struct _SERVICE_STATUS {
    DWORD dwServiceType, dwCurrentState, dwControlsAccepted, dwWin32ExitCode, dwServiceSpecificExitCode, dwCheckPoint,
        dwWaitHint;
} SERVICE_STATUS, *LPSERVICE_STATUS;

typedef void (*LPSERVICE_MAIN_FUNCTION)(DWORD, LPSTR *);
typedef void (*LPHANDLER_FUNCTION)(DWORD);

typedef struct _SERVICE_TABLE_ENTRY {
    LPSTR lpServiceName;
    LPSERVICE_MAIN_FUNCTION lpServiceProc;
} SERVICE_TABLE_ENTRY, *LPSERVICE_TABLE_ENTRY;
#define SERVICE_TABLE_ENTRYA SERVICE_TABLE_ENTRY

SC_HANDLE OpenSCManager(LPCSTR machine, LPCSTR database, DWORD access);
SC_HANDLE OpenService(SC_HANDLE manager, LPCSTR name, DWORD access); /* error 1060 */
SC_HANDLE CreateService(SC_HANDLE manager, LPCSTR name, LPCSTR display, DWORD access, DWORD type, DWORD start,
                        DWORD control, LPCSTR path, LPCSTR group, LPDWORD tag, LPCSTR dependencies, LPCSTR user,
                        LPCSTR password); /* error 50 */
BOOL StartService(SC_HANDLE service, DWORD count, LPCSTR *arguments);
BOOL ControlService(SC_HANDLE service, DWORD control, LPSERVICE_STATUS status);
BOOL QueryServiceStatus(SC_HANDLE service, LPSERVICE_STATUS status);
BOOL DeleteService(SC_HANDLE service);
BOOL CloseServiceHandle(SC_HANDLE handle);
BOOL StartServiceCtrlDispatcher(const SERVICE_TABLE_ENTRY *table); /* error 1063: started from a console */
SERVICE_STATUS_HANDLE RegisterServiceCtrlHandler(LPCSTR name, LPHANDLER_FUNCTION handler);
BOOL SetServiceStatus(SERVICE_STATUS_HANDLE handle, LPSERVICE_STATUS status);
#define OpenSCManagerA OpenSCManager
#define OpenServiceA OpenService
#define CreateServiceA CreateService
#define StartServiceA StartService
#define StartServiceCtrlDispatcherA StartServiceCtrlDispatcher
#define RegisterServiceCtrlHandlerA RegisterServiceCtrlHandler

/* ---- The C library of Windows ----------------------------------------------------------------------------------- */

int rand_s(unsigned int *value);
#define _stricmp strcasecmp
#define stricmp strcasecmp
#define _strnicmp strncasecmp
#define strnicmp strncasecmp
#define lstrcmpi strcasecmp
#define lstrcmpiA strcasecmp
#define lstrlenA(s) ((int)strlen(s))
#define lstrlen lstrlenA
#define _strdup strdup
#define _snprintf snprintf
#define _vsnprintf vsnprintf
#define _atoi64 atoll
#define _strtoui64 strtoull
#define _getpid getpid
#define strtok_s strtok_r

#ifdef __cplusplus
}
#endif

#ifndef WIN32_LEAN_AND_MEAN
#include "mmsystem.h"
#include "winsock2.h"
#endif

#endif
