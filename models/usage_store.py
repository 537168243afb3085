"""A week of the pods' usage in memory: what the forecasts are made from."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from models.arrays import Bools, Floats, Floats32, Ints
from models.grid import DAY, WEEK, WINDOW
from models.usage_source import PrometheusSettings, UsageBlock, UsageError, UsageSource

_BLOCK = 1024
"""Rows that are allocated at a time: 8 MB."""

_GRACE = 3600 // WINDOW
"""Windows for which a pod's row outlives it: a StatefulSet's pod comes back under its name."""

_SAMPLES_PER_QUERY = 2_000_000
"""Samples that one query may return: about 60 MB of JSON, and few enough for a server's limits."""

_READ_AGAIN = 2
"""Windows before the newest that are asked for again, for samples that arrived late."""

_LEAST = 1800 // WINDOW
"""Windows that are asked for together, also where they could not be read: of a bad one's neighbours
few are lost, and after an outage of the server there are not too many queries."""


class UsageStore:
    """Usage of pods by ``namespace/name`` in the last week; older windows are overwritten.

    Column ``w % WEEK`` holds the window number ``w`` (its start divided by 300). Not thread-safe:
    its one user works on it from one thread at a time.
    """

    def __init__(self) -> None:
        self._blocks: list[Floats32] = []
        self._row: dict[str, int] = {}
        self._vacant: list[int] = []
        self._last = np.zeros(0, np.int64)  # newest observed window number by row, -1 for none
        self._seen = np.zeros(0, np.int64)  # newest window number in which the pod existed, by row
        self._stop = 0  # one more than the newest window number that was read
        self._fresh = -1  # newest window number in which any pod of the cluster was observed

    def __len__(self) -> int:
        return len(self._row)

    @property
    def time(self) -> int:
        """Seconds since the epoch up to which windows were read; 0 before the first."""
        return self._stop * WINDOW

    @property
    def fresh(self) -> float:
        """Seconds since the epoch at which the newest window with any sample ended, or -inf."""
        return (self._fresh + 1) * WINDOW if self._fresh >= 0 else -np.inf

    def clear(self) -> None:
        """Forget all usage; the pods stay known."""
        for block in self._blocks:
            block[:] = np.nan
        self._last[:] = -1
        self._seen[:] = 0
        self._stop, self._fresh = 0, -1

    def write(self, block: UsageBlock, pods: Collection[str]) -> None:
        """Take over the usage of those pods that are wanted; what is no usage becomes a gap.

        Windows may be read again: what was observed then counts, a gap erases nothing. Windows
        older than a week are left out.

        Args:
            block: what was read.
            pods: the pods whose usage matters, ``namespace/name``.
        """
        first, windows = block.start // WINDOW, block.cpu.shape[1]
        self._advance(first + windows)
        oldest = max(self._stop - WEEK - first, 0)
        numbers = np.arange(first + oldest, first + windows)
        if len(numbers) == 0:
            return
        cpu = block.cpu[:, oldest:]
        observed: Bools = np.isfinite(cpu) & (cpu >= 0)
        any_window = np.count_nonzero(observed, axis=0) > 0
        any_pod = np.count_nonzero(observed, axis=1) > 0
        if any_window.any():
            self._fresh = max(self._fresh, int(numbers[any_window].max()))
        wanted = [at for at, name in enumerate(block.pods) if any_pod[at] and name in pods]
        rows = np.array([self._row_of(block.pods[at]) for at in wanted], np.int64)
        cpu, observed = cpu[wanted], observed[wanted]
        newest = numbers[-1] - np.argmax(observed[:, ::-1], axis=1)
        self._last[rows] = np.maximum(self._last[rows], newest)
        for stored, own in self._by_block(rows):
            cells = np.ix_(rows[own] % _BLOCK, numbers % WEEK)
            stored[cells] = np.where(observed[own], cpu[own], stored[cells])

    def forget(self, pods: Collection[str]) -> None:
        """Let go of pods that are not among those that exist, an hour after they were last seen."""
        gone = []
        for name, row in self._row.items():
            if name in pods:
                self._seen[row] = self._stop
            elif self._stop - self._seen[row] > _GRACE:
                gone.append(name)
        for name in gone:
            row = self._row.pop(name)
            self._blocks[row // _BLOCK][row % _BLOCK] = np.nan
            self._vacant.append(row)

    def take(self, pods: Sequence[str], end: int | None = None) -> Floats32:
        """Usage of pods in cores, [P, WEEK], oldest window first, NaN where not observed.

        Args:
            pods: ``namespace/name``.
            end: seconds since the epoch at which the last column ends, `time` by default. What
                lies after `time` is not known yet, what lies more than a week before it no longer.
        """
        taken = np.full((len(pods), WEEK), np.nan, np.float32)
        rows = self._rows_of(pods)
        stop = self._stop if end is None else end // WINDOW
        kept = np.arange(max(stop, self._stop) - WEEK, min(stop, self._stop))  # window numbers
        first = max(self._stop - stop, 0)
        for stored, own in self._by_block(rows):
            taken[own, first : first + len(kept)] = stored[np.ix_(rows[own] % _BLOCK, kept % WEEK)]
        return taken

    def newest(self, pods: Sequence[str]) -> Floats:
        """Seconds since the epoch at which each pod's newest observed window ended, -inf for none.

        Shape [P].
        """
        rows = self._rows_of(pods)
        last = np.where(rows >= 0, np.append(self._last, -1)[rows], -1)
        return np.where(last >= 0, (last + 1.0) * WINDOW, -np.inf)

    def _by_block(self, rows: Ints) -> Iterator[tuple[Floats32, Ints]]:
        """Each block that holds some of the rows, with their positions; row -1 is in none."""
        blocks = rows // _BLOCK
        for at in np.unique(blocks[rows >= 0]):
            yield self._blocks[at], np.flatnonzero(blocks == at)

    def _rows_of(self, pods: Sequence[str]) -> Ints:
        return np.array([self._row.get(name, -1) for name in pods], np.int64)

    def _advance(self, stop: int) -> None:
        """Make room for windows before number ``stop``: their columns held the week before."""
        if stop <= self._stop:
            return
        fresh = np.arange(max(self._stop, stop - WEEK), stop) % WEEK
        for block in self._blocks:
            block[:, fresh] = np.nan
        self._stop = stop

    def _row_of(self, name: str) -> int:
        row = self._row.get(name)
        if row is None:
            if not self._vacant:
                self._add_block()
            row = self._row[name] = self._vacant.pop()
            self._last[row], self._seen[row] = -1, self._stop
        return row

    def _add_block(self) -> None:
        start = len(self._last)
        self._blocks.append(np.full((_BLOCK, WEEK), np.nan, np.float32))
        self._last = np.append(self._last, np.full(_BLOCK, -1))
        self._seen = np.append(self._seen, np.zeros(_BLOCK, np.int64))
        self._vacant = list(range(start + _BLOCK - 1, start - 1, -1))


class UsageReader:
    """Keeps a store up to date: first the past, newest part first, then each new window."""

    def __init__(
        self, source: UsageSource | None, store: UsageStore, settings: PrometheusSettings
    ) -> None:
        self._source = source
        self._store = store
        self._windows = min(settings.history_days * DAY, WEEK)
        self._delay = settings.delay_seconds
        self._planned = 0  # one more than the newest window number that was ever asked for
        self._missing: deque[tuple[int, int]] = deque()

    async def catch_up(
        self, now: float, pods: Collection[str], known: int = 0, *, patience: float = np.inf
    ) -> None:
        """Read every complete window that is not known yet.

        Args:
            now: seconds since the epoch.
            pods: whose usage matters, ``namespace/name``.
            known: seconds since the epoch up to which others knew usage: read whatever ``now`` is.
            patience: seconds after which no further query begins; the next call goes on.

        Raises:
            UsageError: a query failed. What it asked for is asked for again in the next call, after
                the newest windows and in two halves, so that one bad stretch of the past holds up
                nothing else, and little beside it is missing.
        """
        if self._source is None:
            return
        stop = max(int((now - self._delay) // WINDOW), known // WINDOW)
        self._plan(stop, max(len(pods), 1))
        try:
            await self._read_missing(self._source, pods, patience)
        finally:  # a stretch may be bad for days, in which pods come and go
            await asyncio.to_thread(self._store.forget, pods)

    async def _read_missing(
        self, source: UsageSource, pods: Collection[str], patience: float
    ) -> None:
        clock = asyncio.get_running_loop().time
        until = clock() + patience
        while self._missing and clock() < until:
            first, windows = self._missing.popleft()
            try:
                block = await source.read(first * WINDOW, windows)
            except UsageError:
                self._missing.extend(_halves(first, windows))
                raise
            await asyncio.to_thread(self._store.write, block, pods)

    def _plan(self, stop: int, pods: int) -> None:
        """Add what lies between the newest window that was asked for and ``stop``."""
        oldest = stop - self._windows
        if stop < self._planned - _READ_AGAIN:
            self._store.clear()  # the clock was ahead: of what it made newest there is nothing
            self._planned = 0
        if self._planned == 0:
            self._missing.clear()
        self._missing = deque(span for span in self._missing if sum(span) > oldest)
        if stop <= self._planned:
            return
        first = max(self._planned - _READ_AGAIN, oldest)
        # Reverses them: the newest comes first.
        self._missing.extendleft(query_spans(first, stop, pods))
        self._planned = stop


def _halves(first: int, windows: int) -> list[tuple[int, int]]:
    """A span in two, the newer one first; as it is where these would be shorter than `_LEAST`."""
    half = windows // 2
    if half < _LEAST:
        return [(first, windows)]
    return [(first + half, windows - half), (first, half)]


def query_spans(first: int, stop: int, pods: int) -> list[tuple[int, int]]:
    """The windows number ``first`` to ``stop`` in the parts that one query each may ask for.

    Args:
        first: number of the first window.
        stop: one more than that of the last.
        pods: how many pods a query returns, about; at least 1.

    Returns:
        For each part its first window's number, and how many windows it has.
    """
    size = max(min(_SAMPLES_PER_QUERY // pods, DAY), 1)
    return [(at, min(size, stop - at)) for at in range(first, stop, size)]
