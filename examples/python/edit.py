#!/usr/bin/env python3
"""Change the contents of UDP datagrams on their way, with libwindivert through ctypes.

usage: edit.py FILTER OLD NEW [LIBRARY]

It diverts packets that match the filter, replaces every OLD in their payload with NEW, which must have the same
length, and sends the packets on. Control-C ends it.
"""

import sys

import windivert


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    old, new = sys.argv[2].encode(), sys.argv[3].encode()
    if len(old) != len(new):
        sys.exit("error: OLD and NEW must be equally long")
    with windivert.Handle(windivert.load(*sys.argv[4:]), sys.argv[1]) as handle:
        print("diverting", flush=True)
        while True:
            packet, address = handle.recv()
            start, end = handle.payload(packet)
            packet[start:end] = packet[start:end].replace(old, new)
            address.IPChecksum = address.UDPChecksum = 0  # have them computed
            if not handle.send(packet, address):
                print("warning: failed to send", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted")
