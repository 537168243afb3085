"""How late the event loop runs what is due, and how long work lets others go first."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PROBE_SECONDS = 0.005
"""Seconds between probes. What blocks the loop for longer is always seen, shortened by this much at
most; more probes would cost more than a thousandth of a core."""

TURN_SECONDS = 0.0005
"""Seconds for which work that comes in quantity keeps the event loop: a call needs two or three
turns, so this adds about a millisecond to it at most. Shorter turns would spend more on turning."""

NICENESS = 5
"""By how much threads beside the event loop are nicer: where both want the last core, they get a
quarter of it. Were they nicer still, one that holds the interpreter would wait too long for a core
itself, and the loop with it."""


class Turns:
    """For work of many small steps: whatever else waits for the event loop gets its turn."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock``: seconds, finer than the loop's own, which stands still within a turn."""
        self._clock = clock
        self._end = clock() + TURN_SECONDS

    async def give_way(self) -> None:
        """Call it between two steps: lets others go first once this turn's time has run out."""
        if self._clock() >= self._end:
            await asyncio.sleep(0)
            self._end = self._clock() + TURN_SECONDS


def background_threads() -> ThreadPoolExecutor:
    """Threads for what takes long, such as files, that leave the cores to the event loop."""
    return ThreadPoolExecutor(thread_name_prefix="background", initializer=_be_nice)


def _be_nice() -> None:
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


async def probe_lag(clock: Callable[[], float], observe: Callable[[float], None]) -> None:
    """Report, for ever, by how many seconds each of the probe's wake-ups is late.

    Args:
        clock: seconds, monotonic, finer than the loop's own, which stands still within a turn.
        observe: takes the seconds.
    """
    while True:
        began = clock()
        await asyncio.sleep(PROBE_SECONDS)
        observe(max(clock() - began - PROBE_SECONDS, 0.0))
