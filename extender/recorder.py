"""Writes the recording from a thread of its own: the event loop only hands over what is immutable.

A thread that cannot keep up, or a full disk, costs recorded decisions (which are counted), never a
call's time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import structlog

from extender.recording import (
    FORMAT,
    SEGMENT,
    Encoder,
    Entry,
    Header,
    Recorded,
    Refresh,
    began,
    frame,
    segments,
)

SEGMENT_BYTES = 16 * 2**20
"""Compressed bytes after which a segment ends: what a reader looks through to find its place."""

_QUEUED = 1024
"""Decisions that wait for the thread at most, each with an array of the nodes' promises."""

_GATHER_SECONDS = 0.2
"""For how long the thread gathers entries for a frame: they compress better together."""

log = structlog.get_logger()

Item = Recorded | Callable[[], Refresh]


class Recorder:
    """One recording that grows; call `close` at the end.

    Args:
        folder: of the segments; made when absent.
        max_bytes: of all segments together; the oldest go first.
        max_age: seconds after which a segment goes.
        advertise_share: for the headers.
        dropped: called with the number of entries that could not be recorded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age: float,
        advertise_share: float,
        dropped: Callable[[int], None],
    ) -> None:
        """Raises OSError where the folder cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._header = Header(format=FORMAT, advertise_share=advertise_share)
        self._dropped = dropped
        self._queue: queue.Queue[Item | None] = queue.Queue(_QUEUED)
        self._stop = threading.Event()
        self._encoder = Encoder()
        self._file: BinaryIO | None = None
        self._refresh: Refresh | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Record a decision, or the refresh that a function makes (it runs in the thread)."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._dropped(1)

    def close(self) -> None:
        """Write what waits and close the segment."""
        self._stop.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            items = [self._queue.get()]
            self._stop.wait(_GATHER_SECONDS)
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
            ended = items[-1] is None
            batch = [item for item in items if item is not None]
            try:
                self._write(batch)
            except Exception:
                self._dropped(len(batch))
                log.exception("decisions not recorded", folder=str(self._folder))
                self._end_segment()
        self._end_segment()

    def _write(self, batch: Sequence[Item]) -> None:
        entries: list[Entry] = []
        for item in batch:
            if isinstance(item, Recorded):
                if self._file is None:
                    entries += self._begin_segment(item.time)
                entries.append(self._encoder.decision(item))
                continue
            refresh = item()
            if self._file is None:
                entries += self._begin_segment(refresh.time)
            self._refresh = refresh
            entries.append(self._encoder.refresh(refresh))
        if not entries or self._file is None:
            return
        self._file.write(frame(entries))
        self._file.flush()
        if self._file.tell() > SEGMENT_BYTES:
            self._end_segment()

    def _begin_segment(self, at: float) -> list[Entry]:
        """Open a segment; the entries with which it begins."""
        self._encoder = Encoder()
        existing = segments(self._folder)
        # Never before the last one, whatever the clock did: order of names is order of time.
        micros = int(at * 1e6)
        if existing:
            micros = max(micros, int(began(existing[-1]) * 1e6) + 1)
        self._file = (self._folder / f"{micros:020d}{SEGMENT}").open("xb")
        self._prune(at)
        entries: list[Entry] = [self._header]
        if self._refresh is not None:
            entries.append(self._encoder.refresh(self._refresh))
        return entries

    def _end_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _prune(self, now: float) -> None:
        """Remove what is too old or too much; the segment being written stays."""
        room = self._max_bytes - SEGMENT_BYTES
        for segment, newer in reversed(list(pairwise(segments(self._folder)))):
            room -= segment.stat().st_size
            if room < 0 or now - began(newer) > self._max_age:
                segment.unlink()
