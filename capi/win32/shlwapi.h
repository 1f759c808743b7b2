/* shlwapi.h: names in paths. */
#ifndef WINDIVERT_WIN32_SHLWAPI_H
#define WINDIVERT_WIN32_SHLWAPI_H

#include "windows.h"

#ifdef __cplusplus
extern "C" {
#endif

LPSTR PathFindFileName(LPCSTR path); /* the part behind the last slash or backslash, if there is one */
#define PathFindFileNameA PathFindFileName

#ifdef __cplusplus
}
#endif

#endif
