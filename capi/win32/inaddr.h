/* inaddr.h: addresses, from the headers of Linux. */
#ifndef WINDIVERT_WIN32_INADDR_H
#define WINDIVERT_WIN32_INADDR_H

#include "winsock2.h"

#endif
