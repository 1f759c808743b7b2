#!/usr/bin/env python3
"""Count packets by filter, with asyncio: one task for each of several handles, one event loop that waits for all.

usage: count.py LIBRARY FILTER...

The packets go on. The counts are printed whenever no packet waits. Control-C ends it.
"""

import asyncio
import contextlib
import signal
import sys

import windivert


async def count(handle, filter_):
    loop, ready, packets = asyncio.get_running_loop(), asyncio.Event(), 0
    loop.add_reader(handle, ready.set)
    try:
        while True:
            ready.clear()
            while received := handle.recv_now():
                packets += 1
                handle.send(*received)
            if packets:
                print(f"{packets} {filter_}", flush=True)
            await ready.wait()
    finally:
        loop.remove_reader(handle)


async def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    stop, lib = asyncio.Event(), windivert.load(sys.argv[1])
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    with contextlib.ExitStack() as handles:
        tasks = [
            asyncio.create_task(count(handles.enter_context(windivert.Handle(lib, filter_)), filter_))
            for filter_ in sys.argv[2:]
        ]
        print("diverting", flush=True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # it has failed
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print("interrupted")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OSError as error:
        sys.exit(f"error: {error}")
