/* winsvc.h: services, from windows.h. */
#ifndef WINDIVERT_WIN32_WINSVC_H
#define WINDIVERT_WIN32_WINSVC_H

#include "windows.h"

#endif
