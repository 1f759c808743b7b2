"""A program that calls WinDivert through ctypes as on Windows, in the way of pydivert: MODE FILTER OLD NEW, on the path of
onlinux.py. It changes payloads, with receive calls that wait, or with overlapped ones in asyncio.
"""

import onlinux  # isort: skip  # all that is not of Windows

import asyncio
import functools
import sys
from ctypes import POINTER, GetLastError, Structure, WinDLL, WinError, byref, c_char, c_char_p, c_int, c_int16
from ctypes import c_int64, c_uint, c_uint32, c_uint64, c_void_p, sizeof, windll
from ctypes.wintypes import DWORD, HANDLE


class Overlapped(Structure):
    _fields_ = [("Internal", c_void_p), ("InternalHigh", c_void_p), ("Offset", DWORD), ("OffsetHigh", DWORD), ("hEvent", HANDLE)]


class Address(Structure):
    _fields_ = [("Timestamp", c_int64), ("Bits", c_uint32), ("Reserved", c_uint32), ("Data", c_uint32 * 16)]


assert sizeof(Overlapped) == 32 and sizeof(Address) == 80

FUNCTIONS = {
    "WinDivertOpen": ([c_char_p, c_int, c_int16, c_uint64], HANDLE),
    "WinDivertRecv": ([HANDLE, c_void_p, c_uint, POINTER(c_uint), POINTER(Address)], c_int),
    "WinDivertRecvEx": (
        [HANDLE, c_void_p, c_uint, POINTER(c_uint), c_uint64, POINTER(Address), POINTER(c_uint), POINTER(Overlapped)],
        c_int,
    ),
    "WinDivertSend": ([HANDLE, c_void_p, c_uint, POINTER(c_uint), POINTER(Address)], c_int),
    "WinDivertHelperCalcChecksums": ([c_void_p, c_uint, c_void_p, c_uint64], c_int),
    "WinDivertClose": ([HANDLE], c_int),
}


def raises(f):
    @functools.wraps(f)
    def call(*args):
        result = f(*args)
        failed = result == HANDLE(-1).value if f.__name__ == "WinDivertOpen" else not result
        if failed and GetLastError() != 997:
            error = WinError(code=GetLastError())
            windll.kernel32.SetLastError(0)
            raise error
        return result

    return call


dll = WinDLL("C:\\somewhere\\WinDivert64.dll")
w = {}
for name, (arguments, result) in FUNCTIONS.items():
    function = getattr(dll, name)
    function.argtypes, function.restype = arguments, result
    w[name] = raises(function)


def changed(handle, packet, length, address, old, new):
    data = bytes(packet[: length.value]).replace(old, new)
    buffer = (c_char * len(data)).from_buffer_copy(data)
    w["WinDivertHelperCalcChecksums"](buffer, len(data), byref(address), 0)
    w["WinDivertSend"](handle, buffer, len(data), None, byref(address))


def wait(handle, old, new):
    packet, length, address = (c_char * 1500)(), c_uint(), Address()
    while True:
        w["WinDivertRecv"](handle, packet, 1500, byref(length), byref(address))
        changed(handle, packet, length, address, old, new)


async def overlapped(handle, old, new):
    loop, kernel32 = asyncio.get_running_loop(), windll.kernel32
    packet, length, address = (c_char * 1500)(), c_uint(), Address()
    while True:
        request = Overlapped(hEvent=kernel32.CreateEventW(None, True, False, None))
        try:
            if not w["WinDivertRecvEx"](handle, packet, 1500, byref(length), 0, byref(address), None, byref(request)):
                while await loop.run_in_executor(None, kernel32.WaitForSingleObject, request.hEvent, 50):
                    pass
                if not kernel32.GetOverlappedResult(handle, byref(request), byref(length), False):
                    raise WinError()
            changed(handle, packet, length, address, old, new)
        finally:
            kernel32.CancelIoEx(handle, byref(request))
            kernel32.GetOverlappedResult(handle, byref(request), byref(length), True)
            kernel32.CloseHandle(request.hEvent)


def main():
    mode, text, old, new = sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode(), sys.argv[4].encode()
    try:
        w["WinDivertOpen"](b"no filter", 0, 0, 0)
        sys.exit("a wrong filter is none")
    except OSError as error:
        if error.winerror != 87:
            sys.exit(f"a wrong filter is error {error.winerror}")
    handle = w["WinDivertOpen"](text, 0, 0, 0)
    print("diverting", flush=True)
    try:
        if mode == "wait":
            wait(handle, old, new)
        else:
            asyncio.run(overlapped(handle, old, new))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    w["WinDivertClose"](handle)


main()
