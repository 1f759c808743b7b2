"""Makes ctypes look as it does on Windows to pydivert, and to other programs that call WinDivert through ctypes:

import onlinux  # first
import pydivert

The library is libwindivert.so.2, or the file that WINDIVERT_LIBRARY names. Control-C interrupts a waiting
receive call. Use it with versions of pydivert that support only WinDivert; others support Linux themselves.
"""

import ctypes
import ctypes.wintypes
import errno
import os
import select
import types

path = os.environ.get("WINDIVERT_LIBRARY", "libwindivert.so.2")
library = ctypes.CDLL(path)
WAIT_TIMEOUT, WAIT_FAILED, INFINITE = 258, 0xFFFFFFFF, 0xFFFFFFFF
ERRNO = {2: errno.ENOENT, 5: errno.EACCES, 6: errno.EBADF, 8: errno.ENOMEM}  # others are EINVAL, as on Windows

# On Linux these have 8 bytes, which makes OVERLAPPED too long.
for name in ("DWORD", "ULONG", "COLORREF", "LCTYPE", "LGRPID"):
    setattr(ctypes.wintypes, name, ctypes.c_uint32)
for name in ("LONG", "HRESULT", "SCODE"):
    setattr(ctypes.wintypes, name, ctypes.c_int32)
for name in ("LPDWORD", "PDWORD", "PULONG", "PLONG", "LPLONG"):
    setattr(ctypes.wintypes, name, ctypes.POINTER(ctypes.c_uint32))

library.WinDivertGetLastError.restype = ctypes.c_uint32
library.WinDivertGetFd.argtypes = [ctypes.c_void_p]
library.WinDivertRecvTimeout.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint] + [ctypes.c_void_p] * 3 + [ctypes.c_uint32]
library.WinDivertClose.argtypes = [ctypes.c_void_p]
library.CreateEvent.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
library.CreateEvent.restype = ctypes.c_void_p
library.GetOverlappedResult.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int]
library.CancelIoEx.argtypes = [ctypes.c_void_p] * 2
for name in ("SetEvent", "ResetEvent"):
    getattr(library, name).argtypes = [ctypes.c_void_p]


def win_error(code=None, text=None):
    """WinError: an OSError with a winerror."""
    if code is None:
        code = library.WinDivertGetLastError()
    error = OSError(ERRNO.get(code, errno.EINVAL), text or f"Windows error {code}")
    error.winerror = code
    return error


def wait_for(handle, milliseconds):
    """WaitForSingleObject, which signals interrupt."""
    poll = select.poll()
    poll.register(getattr(handle, "value", handle), select.POLLIN)
    return 0 if poll.poll(None if milliseconds in (-1, INFINITE) else milliseconds) else WAIT_TIMEOUT


def close_handle(handle):
    """CloseHandle of an event, which is a descriptor."""
    os.close(getattr(handle, "value", handle))
    return 1


class WinDLL(ctypes.CDLL):
    """Loads libwindivert for WinDivert.dll, under any of its names."""

    def __init__(self, name, *args, **keywords):
        ours = os.path.basename(str(name).replace("\\", "/")).lower().startswith("windivert")
        super().__init__(path if ours else name, *args, **keywords)
        if ours:
            descriptors = {}  # of the handles that received, readable while a packet waits

            def receive(handle, packet, size, length, address):
                handle = getattr(handle, "value", handle)
                fd = descriptors.get(handle)
                if fd is None:
                    fd = library.WinDivertGetFd(handle)
                    if fd < 0:
                        return 0
                    descriptors[handle] = fd
                while True:
                    select.select([fd], [], [])
                    if library.WinDivertRecvTimeout(handle, packet, size, length, address, None, 0):
                        return 1
                    if library.WinDivertGetLastError() != WAIT_TIMEOUT:
                        return 0

            def close(handle):
                handle = getattr(handle, "value", handle)
                fd = descriptors.pop(handle, None)
                if fd is not None:
                    os.close(fd)
                return library.WinDivertClose(handle)

            receive.__name__, close.__name__ = "WinDivertRecv", "WinDivertClose"
            self.WinDivertRecv, self.WinDivertClose = receive, close


kernel32 = types.SimpleNamespace(
    CreateEventA=library.CreateEvent,
    CreateEventW=lambda security, manual, initial, name: library.CreateEvent(None, manual, initial, None),
    SetEvent=library.SetEvent,
    ResetEvent=library.ResetEvent,
    WaitForSingleObject=wait_for,
    CloseHandle=close_handle,
    GetOverlappedResult=library.GetOverlappedResult,
    CancelIoEx=library.CancelIoEx,
    GetLastError=library.WinDivertGetLastError,
    SetLastError=library.SetLastError,
)
ctypes.WinDLL, ctypes.WinError = WinDLL, win_error
ctypes.GetLastError = ctypes.get_last_error = library.WinDivertGetLastError
ctypes.windll = types.SimpleNamespace(kernel32=kernel32, LoadLibrary=WinDLL)
