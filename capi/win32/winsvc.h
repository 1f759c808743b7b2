/* winsvc.h: services, which windows.h has. */
#ifndef WINDIVERT_WIN32_WINSVC_H
#define WINDIVERT_WIN32_WINSVC_H

#include "windows.h"

#endif
