/* inaddr.h: addresses, which Linux has. */
#ifndef WINDIVERT_WIN32_INADDR_H
#define WINDIVERT_WIN32_INADDR_H

#include "winsock2.h"

#endif
