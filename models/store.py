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
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

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


class _Manifest(msgspec.Struct, frozen=True):
    """Of a manifest, the other files: the SHA-256 (hex) of each by its name."""

    files: dict[str, str] = {}


def manifest_digest(folder: Path) -> str:
    """SHA-256 (hex) of a model folder's manifest.

    Raises:
        ArtifactError: there is no readable manifest.
    """
    try:
        return _sha256(folder / MANIFEST)
    except OSError as e:
        raise ArtifactError(f"{folder} is not a model: its {MANIFEST} cannot be read ({e})") from e


def copies(directory: Path) -> list[Path]:
    """The versions in a store, the one that was asked for most recently first."""
    folders = [path.parent for path in directory.glob(f"[0-9]*/{MANIFEST}")]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


def find(directory: Path, version: str, digest: str) -> Path | None:
    """The copy of a version, which thereby is the one that was asked for last.

    None where there is none with this manifest, or where it cannot be read or was damaged.
    """
    folder = directory / version
    try:
        if manifest_digest(folder) != digest or not _is_whole(folder):
            return None
    except (ArtifactError, OSError, msgspec.DecodeError):
        return None
    with suppress(OSError):  # another user's copy may be read, and serves as well
        os.utime(folder)
    return folder


def install(
    directory: Path,
    version: str,
    digest: str,
    fetch: Callable[[Path], Path],
    check: Callable[[Path], None],
) -> Path:
    """Put a version into a store: all of it, checked, or nothing.

    A copy that `find` finds is kept. Whoever reads the store meanwhile never sees half a version.

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
        os.utime(fresh)  # a download may keep the times of what it copies
        target = directory / version
        if target.exists():
            target.rename(scratch / "replaced")
        fresh.rename(target)
        return target
    finally:
        shutil.rmtree(scratch)


def _is_whole(folder: Path) -> bool:
    """Whether a version's files are those of its manifest."""
    files = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Manifest).files
    return {path.name for path in folder.iterdir()} == {MANIFEST, *files} and all(
        _sha256(folder / name) == digest for name, digest in files.items()
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time; what a killed one left behind is removed."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in directory.glob(".pull-*"):
            shutil.rmtree(leftover)
        yield
