"""Lines at the end of a file. What cannot be written is counted, and stops nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import structlog

_TAIL = 64 << 20
"""Bytes at a file's end among which its last whole line ends. A record is a few kilobytes, but one
that names 10,000 nodes has two megabytes."""

_BLOCK = 1 << 20
"""Bytes that are looked through at once, from the end on."""

_BEGIN = b'{"kind":'
"""With which each line begins."""

log = structlog.get_logger()


class LogFile:
    """A file of lines that is rotated by size; one predecessor is kept.

    A disk that is full, or a folder that is gone, must not fail a call or lose an event of a watch:
    lines are counted as lost then, and each `flush` tries again.
    """

    def __init__(self, path: Path, max_bytes: int, lost: Callable[[int], None]) -> None:
        """Open it, and go on where a whole line ends.

        Args:
            path: of the file; its folder is made.
            max_bytes: size at which it is rotated.
            lost: is told how many lines are missing in the file.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._lost = lost
        self._unsafe = 0  # lines since the last one of which it is known that it was written
        self._failing = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = _open(path)

    def write(self, line: bytes) -> None:
        """Add a line, without its end; the operating system gets it with the next `flush`."""
        if self._file is None:
            self._lost(1)
            return
        self._unsafe += 1
        try:
            self._file.write(line + b"\n")
            if self._file.tell() > self._max_bytes:
                self._rotate(self._file)
        except OSError as e:
            self._give_up(e)

    def flush(self) -> None:
        """Hand what is buffered to the operating system; open the file again where that failed."""
        try:
            if self._file is None:
                self._file = _open(self._path)
            self._file.flush()
        except OSError as e:
            self._give_up(e)
            return
        if self._failing and self._unsafe:
            log.info("decision log is written again", path=str(self._path))
            self._failing = False
        self._unsafe = 0

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self, full: IO[bytes]) -> None:
        full.close()
        self._unsafe = 0
        self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
        self._file = _open(self._path)

    def _give_up(self, error: OSError) -> None:
        """Until the next `flush`."""
        if not self._failing:
            log.warning("decision log cannot be written", path=str(self._path), error=str(error))
        self._failing = True
        self._lost(self._unsafe)
        self._unsafe = 0
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it tries to write what it could not
                file.close()


def _open(path: Path) -> IO[bytes]:
    """The file, to be written from the end of its last whole line on.

    Raises:
        OSError: it cannot be opened, or is not a log, of which nothing must be cut off.
    """
    file = path.open("ab")
    try:
        _cut_half_line(path, file.tell())
    except OSError:
        file.close()
        raise
    return file


def _cut_half_line(path: Path, size: int) -> None:
    with path.open("rb") as file:
        end = _end_of_lines(file, size)
        file.seek(end)
        half = file.read(len(_BEGIN))
    if not half.startswith(_BEGIN[: len(half)]):
        raise OSError(errno.EINVAL, "it ends in a line that is no record's, so it is another file")
    if half:
        os.truncate(path, end)


def _end_of_lines(file: IO[bytes], size: int) -> int:
    """Where the last whole line ends; where the search ends, if there is none."""
    least = max(size - _TAIL, 0)
    while size > least:
        start = max(size - _BLOCK, least)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return least
