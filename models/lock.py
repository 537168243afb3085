"""One process at a time on a file."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import SettingsError


@contextmanager
def locked(file: Path, *, kind: str, user: str) -> Iterator[None]:
    """Keep others off a file; the lock, ``FILE.lock`` beside it, ends with the process at latest.

    Args:
        file: need not exist, its folder must.
        kind: what the file is, as the user knows it; user: what else may be using it.

    Raises:
        SettingsError: another process has the lock, or it cannot be written.
    """
    try:
        lock = file.with_name(f"{file.name}.lock").open("w")
    except OSError as e:
        raise SettingsError(f"{kind} {file} cannot be written: {e.strerror}") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise SettingsError(f"{kind} {file} is in use by another {user}") from e
        yield
