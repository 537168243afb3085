"""What a process has learned that no API server knows, in a file for the next process."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from extender import homes, runs


class Learned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long workloads run, and the nodes that their pods have left, by workload."""

    runs: runs.Record = {}
    homes: homes.Record = {}


_decoder = msgspec.json.Decoder(Learned)


def load_learned(path: Path) -> Learned:
    """What an earlier process saved; nothing where there is no file.

    Raises:
        OSError, ValueError: the file cannot be read, or is not such a record.
    """
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return Learned()


def save_learned(learned: Learned, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(msgspec.json.encode(learned))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
