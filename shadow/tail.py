"""Reads a decision log that grows and is rotated under the reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

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
    names = {file: _first_line(file) for file in (older, path)}
    current = names[path]
    if position.file and position.file == current:
        yield from _lines(path, position)
        return
    if names[older]:
        begin = position if position.file == names[older] else Position(names[older])
        yield from _lines(older, begin)
    if current:
        yield from _lines(path, Position(current))


def _first_line(path: Path) -> str:
    """The digest of a file's first line; empty where there is none, or only half of it."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return ""
    except OSError as e:
        raise ArchimedesError(f"decision log {path} cannot be read: {e.strerror}") from e
    return hashlib.sha256(line).hexdigest()[:32] if line.endswith(b"\n") else ""


def _lines(path: Path, position: Position) -> Iterator[tuple[Record, Position]]:
    with path.open("rb") as file:
        if hashlib.sha256(file.readline()).hexdigest()[:32] != position.file:
            return  # rotated since the look: the next call finds it
        file.seek(position.offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = decode_record(line)
            except msgspec.DecodeError as e:
                raise ArchimedesError(
                    f"decision log {path}: the line at byte {file.tell() - len(line)} is no "
                    f"record of a decision ({e}); name the file that decision_log names"
                ) from e
            position = Position(position.file, position.offset + len(line))
            yield record, position
