/* in6addr.h: addresses, from the headers of Linux. */
#ifndef WINDIVERT_WIN32_IN6ADDR_H
#define WINDIVERT_WIN32_IN6ADDR_H

#include "winsock2.h"

#endif
