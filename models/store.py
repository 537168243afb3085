"""Model versions on disk: what keeps a scheduler serving while MLflow is down.

A store is a folder that holds one folder per version. This module never imports MLflow, so the
serving path may use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import ArtifactError

MODEL_NAME = "archimedes"
"""The registered model; each of its versions is one artifact folder."""

ALIASES = ("champion", "challenger", "previous")
"""Serving now, on trial, the one to roll back to."""

DIGEST_TAG = "archimedes.manifest_sha256"
"""Tag of a version with the SHA-256 of its ``manifest.json``, which in turn hashes every file."""

DEFAULT_TRACKING_URI = "sqlite:///archimedes.db"
"""A file in the working directory: a registry that needs no server."""

KEPT_COPIES = 5
"""Versions that stay on disk: enough to step back several promotions, a few megabytes each."""

MANIFEST = "manifest.json"


def manifest_digest(folder: Path) -> str:
    """SHA-256 (hex) of a model folder's manifest.

    Raises:
        ArtifactError: there is no readable manifest.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as e:
        raise ArtifactError(f"{folder} is not a model: its {MANIFEST} cannot be read ({e})") from e


def copies(directory: Path) -> list[Path]:
    """The versions in a store, the one that was asked for most recently first."""
    folders = [path.parent for path in directory.glob(f"[0-9]*/{MANIFEST}")]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


def find(directory: Path, version: str, digest: str) -> Path | None:
    """The copy of a version, or None where there is none with this manifest."""
    folder = directory / version
    if (folder / MANIFEST).is_file() and manifest_digest(folder) == digest:
        return folder
    return None


def install(
    directory: Path,
    version: str,
    digest: str,
    fetch: Callable[[Path], Path],
    check: Callable[[Path], None],
) -> Path:
    """Put a version into a store: all of it, checked, or nothing.

    A copy with the same manifest is kept and only marked as the most recent. Whoever reads the
    store meanwhile never sees half a version.

    Args:
        directory: the store; made when absent.
        version: the registry's number, the name of the folder.
        digest: what `manifest_digest` must be.
        fetch: downloads the version into the (new, empty) folder it is given, returns where in it.
        check: raises ArtifactError where the downloaded folder must not serve.

    Returns:
        The version's folder.

    Raises:
        ArtifactError: the manifest is not the registered one, or ``check`` refused it.
        OSError: the store cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        target = find(directory, version, digest)
        if target is None:
            target = _replace(directory, version, digest, fetch, check)
        os.utime(target)
        for old in copies(directory)[KEPT_COPIES:]:
            shutil.rmtree(old)
    return target


def _replace(
    directory: Path,
    version: str,
    digest: str,
    fetch: Callable[[Path], Path],
    check: Callable[[Path], None],
) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix=".pull-", dir=directory))
    try:
        fresh = fetch(scratch)
        if manifest_digest(fresh) != digest:
            raise ArtifactError(
                f"version {version} is not what was registered: its {MANIFEST} was changed; "
                "train it again, or roll back"
            )
        check(fresh)
        target = directory / version
        if target.exists():
            target.rename(scratch / "replaced")
        fresh.rename(target)
        return target
    finally:
        shutil.rmtree(scratch)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time; what a killed one left behind is removed."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in directory.glob(".pull-*"):
            shutil.rmtree(leftover)
        yield
