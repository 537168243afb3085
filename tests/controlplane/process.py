"""Child processes that cannot outlive the tests, free ports, and waiting with a time limit."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from .errors import ProcessError

T = TypeVar("T")

_LOG_TAIL_LINES = 15
# Below the range from which the kernel takes ports for outgoing connections (32768 and up), so
# that none of the many connections made meanwhile sits on a port between choosing and using it.
_PORTS = range(20_000, 32_000)
_given_ports: set[int] = set()
# Not the shared generator: a test run that seeds it would give each worker the same ports.
_choose = random.SystemRandom()


def free_port() -> int:
    """Return a TCP port that nothing on loopback uses and that was not returned before."""
    for _ in range(1_000):
        port = _choose.choice(_PORTS)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            # As servers do it: a port whose old connections linger is free to listen on.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise ProcessError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def wait_until(
    predicate: Callable[[], T], timeout: float, what: str, *, interval: float = 0.1
) -> T:
    """Call `predicate` every `interval` seconds and return its first true result.

    Raises TimeoutError naming `what` and the last result after `timeout` seconds. Errors of the
    predicate are passed on: what may fail for a while must say so by a false result.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s still not: {what} (last seen: {result!r})")
        time.sleep(interval)


class Process:
    """A running program, in a process group of its own, its output in `RUN_DIR/NAME.log`.

    It dies with the *thread* that started it (that is how Linux counts): start it from the main
    thread, not from a worker of a pool.
    """

    def __init__(self, name: str, command: Sequence[str | Path], run_dir: Path) -> None:
        self.name = name
        self.log = run_dir / f"{name}.log"
        with self.log.open("ab") as output:  # a restart goes on in the same log
            self._child = subprocess.Popen(
                [*_dying_with_parent(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C reaches pytest only, which then stops us
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._child.pid

    def wait_ready(self, probe: Callable[[], bool], timeout: float) -> None:
        """Return once `probe` is true. Raises ProcessError, at once when the program has ended."""

        def ready() -> bool:
            code = self._child.poll()
            if code is not None:
                raise ProcessError(f"{self.name} ended with code {code}:\n{self.log_tail()}")
            return probe()

        try:
            wait_until(ready, timeout, f"{self.name} is ready")
        except TimeoutError as e:
            raise ProcessError(f"{e}; the end of its log:\n{self.log_tail()}") from e

    def stop(self, grace: float = 1.0) -> None:
        """End the whole group: SIGTERM, then after `grace` seconds SIGKILL. May be repeated."""
        if self._child.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace)
        self._signal(signal.SIGKILL)  # also what the program itself may have left behind
        self._child.wait(timeout=10)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the whole group from running while the block lasts; it keeps its sockets."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def children(pid: int) -> dict[int, str]:
    """The command lines of the processes that one has started and that run still, by their ids."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(stat.parent.name)] = command
    return found


def _dying_with_parent() -> list[str]:
    # util-linux's setpriv asks the kernel to kill the program when we die, however that comes
    # about, and becomes the program. Where it is missing, `stop` is all there is. We may die even
    # before it asks: then the shell finds another parent, and ends.
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    only_if_we_live = '[ "$PPID" = "$0" ] && exec "$@"'
    return [setpriv, "--pdeathsig", "KILL", "--", "sh", "-c", only_if_we_live, str(os.getpid())]
