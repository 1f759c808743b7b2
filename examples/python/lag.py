#!/usr/bin/env python3
"""Delay packets, with asyncio: a task for each packet that waits.

usage: lag.py FILTER SECONDS [LIBRARY]

Control-C ends it; packets that wait are sent first.
"""

import asyncio
import signal
import sys

import windivert


async def later(handle, packet, address, stop, seconds):
    """Send a packet after its time, or when the program ends."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except asyncio.TimeoutError:
        pass
    handle.send(packet, address)


async def receive(handle, tasks, stop, seconds):
    while True:
        packet, address = await handle.arecv()
        task = asyncio.create_task(later(handle, packet, address, stop, seconds))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    stop, tasks = asyncio.Event(), set()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    with windivert.Handle(windivert.load(*sys.argv[3:]), sys.argv[1]) as handle:
        receiver = asyncio.create_task(receive(handle, tasks, stop, float(sys.argv[2])))
        print("diverting", flush=True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([receiver, stopping], return_when=asyncio.FIRST_COMPLETED)
        if receiver.done():
            receiver.result()  # it has failed
        receiver.cancel()
        stop.set()
        print(f"sending {len(tasks)} packets", flush=True)
        await asyncio.gather(receiver, *tasks, return_exceptions=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OSError as error:
        sys.exit(f"error: {error}")
