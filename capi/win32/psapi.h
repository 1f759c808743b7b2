/* psapi.h: the programs of processes. */
#ifndef WINDIVERT_WIN32_PSAPI_H
#define WINDIVERT_WIN32_PSAPI_H

#include "windows.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The path of the executable and its length; 0 if it is not visible or does not fit. */
DWORD GetProcessImageFileName(HANDLE process, LPSTR path, DWORD size);
DWORD GetModuleFileNameEx(HANDLE process, HMODULE module, LPSTR path, DWORD size); /* module must be NULL */
DWORD GetModuleBaseName(HANDLE process, HMODULE module, LPSTR name, DWORD size);   /* likewise */
#define GetProcessImageFileNameA GetProcessImageFileName
#define K32GetProcessImageFileNameA GetProcessImageFileName
#define GetModuleFileNameExA GetModuleFileNameEx
#define GetModuleBaseNameA GetModuleBaseName

#ifdef __cplusplus
}
#endif

#endif
