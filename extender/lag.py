"""How late the event loop runs what is due: what every call waits for besides its own work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PROBE_SECONDS = 0.005
"""Seconds between probes. What blocks the loop for longer is always seen, shortened by this much at
most; more probes would cost more than a thousandth of a core."""


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
