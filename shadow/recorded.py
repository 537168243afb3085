"""Finds the recording's entries of logged decisions, in the order in which both were written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from extender.recording import Decoder, Recorded, Refresh, began, read_frames, segments
from models.errors import ArchimedesError


class RecordedStream:
    """A recording from some time on; it may grow meanwhile.

    Args:
        folder: of the recording.
        since: seconds since the epoch from which entries matter; the segment that holds that time
            is read from its beginning.
    """

    def __init__(self, folder: Path, since: float) -> None:
        self._folder = folder
        self._since = since
        self._segment: Path | None = None
        self._offset = 0
        self._decoder = Decoder()
        self._ahead: list[Refresh | Recorded] = []
        self._cut = 0
        self._is_cut = False

    def until(self, time: float, uid: str) -> Iterator[Refresh | Recorded]:
        """The refreshes up to a decision, and then what it was made on, where that is recorded.

        Args:
            time, uid: of the decision; later calls ask for later decisions.
        """
        while entry := self._peek():
            if isinstance(entry, Recorded) and entry.time > time:
                return
            self._ahead.pop()
            if isinstance(entry, Refresh):
                yield entry
            elif entry.time == time and entry.uid == uid:
                yield entry
                return

    @property
    def cut(self) -> int:
        """Segments that were not read to their end, as a half-written or damaged frame is there."""
        return self._cut + self._is_cut

    def _peek(self) -> Refresh | Recorded | None:
        while not self._ahead:
            batch = self._read()
            if batch is None:
                return None
            self._ahead = batch[::-1]
        return self._ahead[-1]

    def _read(self) -> list[Refresh | Recorded] | None:
        """The next frame's entries, of the next segment where one has ended."""
        if self._segment is None and not self._advance():
            return None
        for batch in self._frames():
            return batch
        if not self._later():
            return None
        for batch in self._frames():  # written between the look at it and its successor's begin
            return batch
        return self._read() if self._advance() else None

    def _frames(self) -> Iterator[list[Refresh | Recorded]]:
        assert self._segment is not None  # noqa: S101 - `_read` has chosen one
        try:
            with self._segment.open("rb") as file:
                file.seek(self._offset)
                for batch in read_frames(file):
                    self._offset = file.tell()
                    yield [found for entry in batch if (found := self._decoder.add(entry))]
                # Now: what the extender adds from here on is no part of a frame that was cut.
                self._is_cut = os.fstat(file.fileno()).st_size > self._offset
        except FileNotFoundError:
            return  # removed by age while we were away
        except msgspec.DecodeError as e:
            raise ArchimedesError(
                f"recording {self._segment} is not of this version ({e}); remove the segments that "
                "the extender wrote before it was replaced"
            ) from e

    def _advance(self) -> bool:
        """Go to the next segment; whether there is one."""
        found = segments(self._folder)
        if self._segment is None:
            before = [segment for segment in found if began(segment) <= self._since]
            found = (before[-1:] or found[:1]) if found else []
        else:
            found = self._later()
        if not found:
            return False
        self._cut += self._is_cut
        self._segment, self._offset, self._decoder = found[0], 0, Decoder()
        self._is_cut = False
        return True

    def _later(self) -> list[Path]:
        """The segments after the present one."""
        present = "" if self._segment is None else self._segment.name
        return [segment for segment in segments(self._folder) if segment.name > present]
