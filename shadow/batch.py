"""What is new in a log and its recording, in the order in which it happened, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from extender.decision_log import Decision, Record
from extender.recording import Recorded, Refresh
from shadow.recorded import RecordedStream
from shadow.tail import Position, follow_log

LINES = 500
"""Log lines of one batch; each decision holds arrays until it is scored."""

REFRESHES = 24
"""Refreshes of one batch: two hours. Each holds all pods."""

UNRECORDED_SECONDS = 30.0
"""For how long a decision's recording is awaited: the recorder writes several times a second."""

Event = Refresh | Record | tuple[Decision, Recorded]


@dataclass(slots=True)
class Batch:
    """New events.

    position: in the log, after them. time: of the newest event. full: whether there may be more.
    """

    position: Position
    time: float
    events: list[Event] = field(default_factory=list)
    full: bool = False

    @property
    def refreshes(self) -> list[Refresh]:
        """The refreshes among the events."""
        return [event for event in self.events if isinstance(event, Refresh)]


class BatchReader:
    """Reads a decision log and the recording beside it.

    Args:
        log, recording: the file, and the folder.
        refreshed: time of the newest refresh that the reader has had; it gets that one again.
    """

    def __init__(self, log: Path, recording: Path, refreshed: float) -> None:
        self._log = log
        self._stream = RecordedStream(recording, refreshed)
        self._since = refreshed
        self._begun = False

    def read(self, position: Position, time: float, now: float) -> Batch:
        """The events after a position in the log and what was read of the recording.

        A decision whose recording is not there yet ends them, unless it has had its time.

        Args:
            position: in the log; time: of the newest event until then; now: epoch seconds.

        Raises:
            ArchimedesError: the log cannot be read.
        """
        batch = Batch(position, time)
        if not self._begun:
            self._see(batch, self._since, "")
            self._begun = True
        if batch.full:
            return batch
        for record, after in islice(follow_log(self._log, position), LINES):
            event: Event = record
            if isinstance(record, Decision):
                found = self._see(batch, record.time, record.uid)
                awaited = found is None and now - record.time < UNRECORDED_SECONDS
                if batch.full or awaited:
                    return batch
                event = record if found is None else (record, found)
            batch.events.append(event)
            batch.position, batch.time = after, max(batch.time, record.time)
        if len(batch.events) - len(batch.refreshes) == LINES:
            batch.full = True
        else:  # a decision that is so old and not in the log will never be there
            self._see(batch, now - UNRECORDED_SECONDS, "")
        return batch

    def _see(self, batch: Batch, time: float, uid: str) -> Recorded | None:
        """Add refreshes up to a decision; what that was made on, where it is recorded."""
        for entry in self._stream.until(time, uid):
            if isinstance(entry, Recorded):
                return entry
            if entry.time >= self._since:
                batch.events.append(entry)
                batch.time = max(batch.time, entry.time)
                if len(batch.refreshes) == REFRESHES:
                    batch.full = True
                    return None
        return None
