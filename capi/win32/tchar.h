/* tchar.h: text is char. */
#ifndef WINDIVERT_WIN32_TCHAR_H
#define WINDIVERT_WIN32_TCHAR_H

#include "windows.h"

#define _T(text) text
#define _TEXT(text) text
#define _tmain main
#define _tprintf printf
#define _ftprintf fprintf
#define _stprintf sprintf
#define _sntprintf snprintf
#define _tcslen strlen
#define _tcscmp strcmp
#define _tcsicmp strcasecmp
#define _tcscpy strcpy
#define _tcsncpy strncpy
#define _tcschr strchr
#define _tcsrchr strrchr
#define _tcsstr strstr
#define _tstoi atoi
#define _ttoi atoi

#endif
