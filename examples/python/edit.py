#!/usr/bin/env python3
"""Change the contents of UDP datagrams on their way, with libwindivert through ctypes.

usage: edit.py FILTER OLD NEW [LIBRARY]

Packets that match the filter are diverted; OLD, wherever it stands in their payload, is replaced by NEW, which must
be as long; and the packets go on.
"""

import ctypes
import sys

WINDIVERT_MTU_MAX = 40 + 0xFFFF
WINDIVERT_LAYER_NETWORK = 0
INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value


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


def load(path):
    """Load the library and declare the functions in use."""
    lib = ctypes.CDLL(path)
    pointer, uint = ctypes.c_void_p, ctypes.c_uint
    lib.WinDivertOpen.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int16, ctypes.c_uint64]
    lib.WinDivertOpen.restype = pointer
    lib.WinDivertRecv.argtypes = [pointer, pointer, uint, ctypes.POINTER(uint), ctypes.POINTER(Address)]
    lib.WinDivertSend.argtypes = [pointer, pointer, uint, ctypes.POINTER(uint), ctypes.POINTER(Address)]
    lib.WinDivertHelperParsePacket.argtypes = [pointer, uint] + [pointer] * 11
    lib.WinDivertGetLastError.restype = ctypes.c_uint32
    return lib


def payload_of(lib, packet, length):
    """Return where the payload of the packet begins and ends."""
    data, size = ctypes.c_void_p(), ctypes.c_uint(0)
    lib.WinDivertHelperParsePacket(
        packet, length, *[None] * 7, ctypes.byref(data), ctypes.byref(size), None, None
    )
    start = data.value - ctypes.addressof(packet) if data.value else 0
    return start, start + size.value


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    old, new = sys.argv[2].encode(), sys.argv[3].encode()
    if len(old) != len(new):
        sys.exit("error: OLD and NEW must be equally long")
    lib = load(sys.argv[4] if len(sys.argv) > 4 else "libwindivert.so")
    handle = lib.WinDivertOpen(sys.argv[1].encode(), WINDIVERT_LAYER_NETWORK, 0, 0)
    if handle == INVALID_HANDLE_VALUE:
        sys.exit(f"error: failed to open the handle ({lib.WinDivertGetLastError()})")
    print("diverting", flush=True)
    packet = ctypes.create_string_buffer(WINDIVERT_MTU_MAX)
    length, address = ctypes.c_uint(), Address()
    while lib.WinDivertRecv(handle, packet, len(packet), ctypes.byref(length), ctypes.byref(address)):
        start, end = payload_of(lib, packet, length.value)
        packet[start:end] = packet[start:end].replace(old, new)
        address.IPChecksum = address.UDPChecksum = 0  # have them computed
        if not lib.WinDivertSend(handle, packet, length.value, None, ctypes.byref(address)):
            print(f"warning: failed to send ({lib.WinDivertGetLastError()})", file=sys.stderr)


if __name__ == "__main__":
    main()
