/* mmsystem.h: the multimedia timer, which is always precise here. */
#ifndef WINDIVERT_WIN32_MMSYSTEM_H
#define WINDIVERT_WIN32_MMSYSTEM_H

#include "windows.h"

typedef UINT MMRESULT;

#define TIMERR_NOERROR 0
#define timeGetTime GetTickCount

static inline MMRESULT timeBeginPeriod(UINT milliseconds)
{
    (void)milliseconds;
    return TIMERR_NOERROR;
}

static inline MMRESULT timeEndPeriod(UINT milliseconds)
{
    (void)milliseconds;
    return TIMERR_NOERROR;
}

#endif
