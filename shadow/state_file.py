"""The live shadow's state on disk: a file replaced as a whole, and a folder beside it.

Each file is MessagePack under Zstandard, headed by what it is and a checksum. What the state refers
to is written before it, and removed after it no longer refers to it: a kill at any moment leaves a
state with all that belongs to it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa

from models.errors import ArchimedesError
from models.lock import locked
from shadow.live_state import Forecasts, LiveState
from shadow.trial import TrialProgress

_FORECASTS, _PROGRESS = ".forecasts", ".progress"

_KIND = b"archimedes shadow 2\n"
_HEAD = struct.Struct(f"<{len(_KIND)}sI")

_Content = TypeVar("_Content", bound=msgspec.Struct)


class StateFile:
    """The state at ``path``; forecasts and progress lie in the folder ``path.pending``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.with_name(path.name + ".pending")
        self._saved = b""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the state to this process: two would remove what the other's state refers to.

        Raises:
            ArchimedesError: another process has it, or it cannot be written.
        """
        _make_folder_of(self._path)
        with locked(self._path, kind="state file", user="`archimedes shadow follow`"):
            yield

    def load(self) -> LiveState:
        """The last saved state, or a new one.

        Raises:
            ArchimedesError: the file cannot be read, or is no whole state.
        """
        if not self._path.exists():
            return LiveState()
        try:
            return _opened(self._path.read_bytes(), LiveState)
        except (OSError, ValueError) as e:
            raise ArchimedesError(
                f"state file {self._path} cannot be used: {e}; name another file, or remove it to "
                "begin anew"
            ) from e

    def save(self, state: LiveState) -> None:
        """Replace the state where it has changed, then forget what nothing waits for.

        Raises:
            ArchimedesError: it cannot be written.
        """
        content = msgspec.msgpack.encode(state)
        if content == self._saved:
            return
        _replace(self._path, _sealed(content))
        self._saved = content
        kept = {self._at(pending.time, _FORECASTS) for pending in state.pending}
        kept.add(self._at(state.learned[1], _PROGRESS))
        for file in self._folder.glob("*"):
            if file not in kept:
                file.unlink()

    def keep(self, time: float, forecasts: Forecasts) -> None:
        """Write a refresh's forecasts, before a state refers to them. Raises ArchimedesError."""
        _replace(self._at(time, _FORECASTS), _sealed(msgspec.msgpack.encode(forecasts)))

    def forecasts(self, time: float) -> Forecasts:
        """The forecasts of a refresh that the state refers to. Raises ArchimedesError."""
        return self._read(self._at(time, _FORECASTS), Forecasts)

    def keep_progress(self, progress: TrialProgress) -> None:
        """Write what was learned up to a refresh, before a state refers to it.

        Raises:
            ArchimedesError: it cannot be written.
        """
        _replace(self._at(progress.time, _PROGRESS), _sealed(msgspec.msgpack.encode(progress)))

    def progress(self, time: float) -> TrialProgress:
        """What was learned up to a refresh that the state refers to. Raises ArchimedesError."""
        return self._read(self._at(time, _PROGRESS), TrialProgress)

    def _at(self, time: float, suffix: str) -> Path:
        return self._folder / f"{int(time * 1e6):020d}{suffix}"

    def _read(self, path: Path, kind: type[_Content]) -> _Content:
        try:
            return _opened(path.read_bytes(), kind)
        except (OSError, ValueError) as e:
            raise ArchimedesError(
                f"{path} belongs to state file {self._path} and cannot be used: {e}; remove both "
                "to begin anew"
            ) from e


def _sealed(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as compressed:
        compressed.write(content)
    body: bytes = stream.getvalue().to_pybytes()
    return _HEAD.pack(_KIND, zlib.crc32(body)) + body


def _opened(sealed: bytes, kind: type[_Content]) -> _Content:
    """What was sealed. Raises ValueError, which says what is wrong, and OSError."""
    if not sealed.startswith(_KIND):
        raise ValueError("it was not written by this version of the live shadow")
    body = sealed[_HEAD.size :]
    if len(sealed) < _HEAD.size or zlib.crc32(body) != _HEAD.unpack_from(sealed)[1]:
        raise ValueError("it is damaged")
    with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as content:
        return msgspec.msgpack.decode(content.read(), type=kind)


def _replace(path: Path, content: bytes) -> None:
    """Write all of a file or nothing of it, also where power fails."""
    fresh = path.with_name(path.name + ".new")
    _make_folder_of(path)
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as e:
        raise _unwritable(path, e) from e


def _make_folder_of(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(path, e) from e


def _unwritable(path: Path, error: OSError) -> ArchimedesError:
    return ArchimedesError(f"{path} cannot be written: {error.strerror}; name another --state")
