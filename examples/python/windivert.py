"""The part of libwindivert that the examples use, through ctypes: handles of the layer NETWORK.

A receive call that waits inside the library would keep Python from running its handler of control-C. So receiving is
an overlapped request here, and Python waits for its event: with select, or in the event loop of asyncio. A handle also has
a descriptor, fileno(), that is readable while something is there for recv_now(): for select, or an event loop's add_reader.
"""

import asyncio
import contextlib
import ctypes
import os
import select

WINDIVERT_MTU_MAX = 40 + 0xFFFF
WINDIVERT_LAYER_NETWORK = 0
INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value
WAIT_TIMEOUT = 258
ERROR_IO_PENDING = 997


class Address(ctypes.Structure):
    """WINDIVERT_ADDRESS; the layer data is that of the layer NETWORK."""

    _fields_ = [
        ("Timestamp", ctypes.c_int64),
        ("Layer", ctypes.c_uint32, 8),
        ("Event", ctypes.c_uint32, 8),
        ("Sniffed", ctypes.c_uint32, 1),
        ("Outbound", ctypes.c_uint32, 1),
        ("Loopback", ctypes.c_uint32, 1),
        ("Impostor", ctypes.c_uint32, 1),
        ("IPv6", ctypes.c_uint32, 1),
        ("IPChecksum", ctypes.c_uint32, 1),
        ("TCPChecksum", ctypes.c_uint32, 1),
        ("UDPChecksum", ctypes.c_uint32, 1),
        ("Reserved1", ctypes.c_uint32, 8),
        ("Reserved2", ctypes.c_uint32),
        ("IfIdx", ctypes.c_uint32),
        ("SubIfIdx", ctypes.c_uint32),
        ("Reserved3", ctypes.c_uint8 * 56),
    ]


class Overlapped(ctypes.Structure):
    """OVERLAPPED. The DWORD of ctypes.wintypes has 8 bytes on Linux, that of Windows has 4."""

    _fields_ = [
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", ctypes.c_uint32),
        ("OffsetHigh", ctypes.c_uint32),
        ("hEvent", ctypes.c_void_p),
    ]


def load(path="libwindivert.so.2"):
    """Load the library and declare the functions in use."""
    lib = ctypes.CDLL(path)
    pointer, uint = ctypes.c_void_p, ctypes.c_uint
    lib.WinDivertOpen.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int16, ctypes.c_uint64]
    lib.WinDivertOpen.restype = pointer
    lib.WinDivertRecvEx.argtypes = [pointer, pointer, uint, pointer, ctypes.c_uint64] + [pointer] * 3
    lib.WinDivertRecvTimeout.argtypes = [pointer, pointer, uint] + [pointer] * 3 + [ctypes.c_uint32]
    lib.WinDivertGetFd.argtypes = [pointer]
    lib.WinDivertSend.argtypes = [pointer, pointer, uint, pointer, ctypes.POINTER(Address)]
    lib.WinDivertClose.argtypes = [pointer]
    lib.WinDivertHelperParsePacket.argtypes = [pointer, uint] + [pointer] * 11
    lib.WinDivertGetLastError.restype = ctypes.c_uint32
    lib.CancelIoEx.argtypes = [pointer, pointer]
    lib.GetOverlappedResult.argtypes = [pointer, pointer, pointer, ctypes.c_int]
    return lib


class Handle:
    """A handle of the layer NETWORK, for one thread or task at a time. It closes at the end of a with statement."""

    def __init__(self, lib, filter_, priority=0, flags=0):
        self.lib = lib
        self.handle = lib.WinDivertOpen(filter_.encode(), WINDIVERT_LAYER_NETWORK, priority, flags)
        if self.handle == INVALID_HANDLE_VALUE:
            raise OSError(f"failed to open the handle ({lib.WinDivertGetLastError()})")
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.buffer = ctypes.create_string_buffer(WINDIVERT_MTU_MAX)
        self.address = Address()
        self.overlapped = Overlapped(hEvent=self.event)
        self.descriptor = None

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.lib.WinDivertClose(self.handle)
        os.close(self.event)
        if self.descriptor is not None:
            os.close(self.descriptor)

    def _fail(self):
        raise OSError(f"failed to receive ({self.lib.WinDivertGetLastError()})")

    def _begin(self):
        """Make a request. True: it is pending."""
        request = ctypes.byref(self.overlapped)
        address = ctypes.byref(self.address)
        if self.lib.WinDivertRecvEx(self.handle, self.buffer, len(self.buffer), None, 0, address, None, request):
            return False
        if self.lib.WinDivertGetLastError() != ERROR_IO_PENDING:
            self._fail()
        return True

    def _end(self):
        """Return the result of a request: a packet, and the address to send it with."""
        length = ctypes.c_uint32()
        if not self.lib.GetOverlappedResult(self.handle, ctypes.byref(self.overlapped), ctypes.byref(length), True):
            self._fail()
        address = Address.from_buffer_copy(self.address)
        return bytearray(self.buffer.raw[: length.value]), address

    def _cancel(self):
        """Cancel the request, and wait until its memory is no longer written to."""
        self.lib.CancelIoEx(self.handle, ctypes.byref(self.overlapped))
        with contextlib.suppress(OSError):
            packet, address = self._end()
            self.send(packet, address)  # it came meanwhile

    def recv(self):
        """Wait for a packet. Signals interrupt the wait: control-C raises KeyboardInterrupt."""
        if self._begin():
            try:
                select.select([self.event], [], [])
            except BaseException:
                self._cancel()
                raise
        return self._end()

    async def arecv(self):
        """The same for asyncio: other tasks run meanwhile, and the task may be cancelled."""
        if self._begin():
            loop, ready = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self.event, ready.set)
            try:
                await ready.wait()
            except BaseException:
                self._cancel()
                raise
            finally:
                loop.remove_reader(self.event)
        return self._end()

    def fileno(self):
        """A descriptor that is readable while recv_now has a packet, or an error to raise. It lives as long as the handle."""
        if self.descriptor is None:
            descriptor = self.lib.WinDivertGetFd(self.handle)
            if descriptor < 0:
                raise OSError(f"failed to get a descriptor ({self.lib.WinDivertGetLastError()})")
            self.descriptor = descriptor
        return self.descriptor

    def recv_now(self):
        """Return a packet with its address, None if no packet is there."""
        length = ctypes.c_uint32()
        if not self.lib.WinDivertRecvTimeout(
            self.handle, self.buffer, len(self.buffer), ctypes.byref(length), ctypes.byref(self.address), None, 0
        ):
            if self.lib.WinDivertGetLastError() == WAIT_TIMEOUT:
                return None
            self._fail()
        return bytearray(self.buffer.raw[: length.value]), Address.from_buffer_copy(self.address)

    def send(self, packet, address):
        """Send a packet, a bytearray. False: it was not sent."""
        memory = (ctypes.c_char * len(packet)).from_buffer(packet)
        return bool(self.lib.WinDivertSend(self.handle, memory, len(packet), None, ctypes.byref(address)))

    def payload(self, packet):
        """Return where the payload of a packet begins and ends."""
        memory = (ctypes.c_char * len(packet)).from_buffer(packet)
        data, size = ctypes.c_void_p(), ctypes.c_uint32(0)
        out = [None] * 7 + [ctypes.byref(data), ctypes.byref(size), None, None]
        self.lib.WinDivertHelperParsePacket(memory, len(packet), *out)
        start = data.value - ctypes.addressof(memory) if data.value else 0
        return start, start + size.value
