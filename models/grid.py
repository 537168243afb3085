"""Usage of many pods on one time axis of 5-minute windows, with real gaps."""

from __future__ import annotations

from dataclasses import dataclass

from models.arrays import Floats, Floats32, Ints

WINDOW = 300
"""Seconds of one usage window. A window is named by its start and covers [start, start + 300)."""

HOUR = 3600 // WINDOW
"""Windows in an hour."""

DAY = 24 * HOUR
"""Windows in a day."""

WEEK = 7 * DAY
"""Windows in a week: the longest past that any forecaster looks at."""


@dataclass(frozen=True, slots=True)
class UsageGrid:
    """The usage of P pods in T windows.

    ``cpu[p, w]`` is the mean usage in cores of pod ``p`` in the window that starts at
    ``start + w * WINDOW`` (seconds since the epoch, UTC); NaN where it was not observed.
    ``cpu_max`` is the highest minute of the same window, or None where the source has none.
    ``born`` and ``gone`` are seconds since the epoch: the pod exists in [born, gone).
    """

    start: int
    cpu: Floats32
    cpu_max: Floats32 | None
    pods: tuple[str, ...]
    workloads: tuple[str, ...]
    request: Floats
    born: Ints
    gone: Ints

    @property
    def windows(self) -> int:
        """How many windows the grid has."""
        return int(self.cpu.shape[1])

    @property
    def end(self) -> int:
        """Seconds since the epoch at which the last window is complete."""
        return self.start + self.windows * WINDOW

    def column(self, time: int) -> int:
        """The window that starts at ``time``, which may lie outside the grid."""
        return (time - self.start) // WINDOW
