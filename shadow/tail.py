"""Reads a decision log that grows and is rotated under the reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import msgspec

from extender.decision_log import Record, decode_record
from models.errors import ArchimedesError


class Position(msgspec.Struct, frozen=True):
    """How far a log was read.

    file: digest of the file's first line, which names pod and time, so it tells files apart however
    they are called; empty before the first. offset: bytes of it that were read, all whole lines.
    """

    file: str = ""
    offset: int = 0


def follow_log(path: Path, position: Position) -> Iterator[tuple[Record, Position]]:
    """The whole lines after a position, each with the position after it.

    A log that was rotated is read to its end under its new name. One that was rotated twice since
    is gone; then what is left is read from its beginning.

    Raises:
        ArchimedesError: the log cannot be read, or a whole line of it is no record.
    """
    older = path.with_suffix(path.suffix + ".1")
    # The current file is opened first: one that is rotated meanwhile is then found twice. The other
    # way round it would be found in neither place.
    with _opened(path) as file, _opened(older) as rotated:
        current, before = _first_line(file), _first_line(rotated)
        if position.file and position.file == current:
            yield from _lines(path, file, position)
            return
        if before and before != current:
            begin = position if position.file == before else Position(before)
            yield from _lines(older, rotated, begin)
        if current:
            yield from _lines(path, file, Position(current))


def _opened(path: Path) -> BinaryIO:
    """The file, or an empty one where there is none."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return BytesIO()
    except OSError as e:
        raise ArchimedesError(f"decision log {path} cannot be read: {e.strerror}") from e


def _first_line(file: BinaryIO) -> str:
    """The digest of a file's first line; empty where there is none, or only half of it."""
    line = file.readline()
    return hashlib.sha256(line).hexdigest()[:32] if line.endswith(b"\n") else ""


def _lines(path: Path, file: BinaryIO, position: Position) -> Iterator[tuple[Record, Position]]:
    file.seek(position.offset)
    for line in file:
        if not line.endswith(b"\n"):
            return
        try:
            record = decode_record(line)
        except msgspec.DecodeError as e:
            raise ArchimedesError(
                f"decision log {path}: the line at byte {position.offset} is no record of a "
                f"decision ({e}); name the file that decision_log names"
            ) from e
        position = Position(position.file, position.offset + len(line))
        yield record, position
