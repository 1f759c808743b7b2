/* tlhelp32.h: the list of processes. */
#ifndef WINDIVERT_WIN32_TLHELP32_H
#define WINDIVERT_WIN32_TLHELP32_H

#include "windows.h"

#define TH32CS_SNAPPROCESS 2

typedef struct tagPROCESSENTRY32 {
    DWORD dwSize; /* the caller sets it */
    DWORD cntUsage;
    DWORD th32ProcessID;
    ULONG_PTR th32DefaultHeapID;
    DWORD th32ModuleID;
    DWORD cntThreads;
    DWORD th32ParentProcessID;
    LONG pcPriClassBase;
    DWORD dwFlags;
    CHAR szExeFile[MAX_PATH]; /* the name of the executable, or of the process if that is not visible */
} PROCESSENTRY32, *PPROCESSENTRY32, *LPPROCESSENTRY32;

#ifdef __cplusplus
extern "C" {
#endif

HANDLE CreateToolhelp32Snapshot(DWORD flags, DWORD process); /* of TH32CS_SNAPPROCESS only */
BOOL Process32First(HANDLE snapshot, LPPROCESSENTRY32 entry);
BOOL Process32Next(HANDLE snapshot, LPPROCESSENTRY32 entry); /* error 18: no more */

#ifdef __cplusplus
}
#endif

#endif
