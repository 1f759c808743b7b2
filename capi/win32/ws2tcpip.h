/* ws2tcpip.h: addresses and names, from the headers of Linux through winsock2.h. */
#ifndef WINDIVERT_WIN32_WS2TCPIP_H
#define WINDIVERT_WIN32_WS2TCPIP_H

#include "winsock2.h"

#define InetNtop inet_ntop
#define InetNtopA inet_ntop
#define InetPton inet_pton
#define InetPtonA inet_pton

#endif
