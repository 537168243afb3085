"""The extender as its own process, measured from inside, for `bench.load`.

It is the production server (`extender.app.production_parts`) but for three things: its refreshes'
clock runs fast, so that a usage window ends every few seconds; it changes models when it gets
SIGUSR1; and it keeps a journal of what it did when: refreshes, model swaps, late wake-ups of the
event loop, garbage collections. Times are of the system's monotonic clock, which the caller's
process shares.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Literal, ParamSpec

import msgspec

from bench.rig import proc
from extender.app import Parts, Server, production_parts, run
from extender.champion import ModelStatus
from extender.settings import load_settings
from extender.telemetry import configure_logs
from models.artifact import load_model
from models.model import Model

SPEED = 15.0
"""Seconds of the refreshes' clock in a real one: a window of 300 s ends every 20 s."""

_WORTH_NOTING = 0.001
"""Seconds of lag or of garbage collection from which on they are written down."""

What = Literal["refresh", "swap", "lag", "gc"]
Given = ParamSpec("Given")


class Span(msgspec.Struct, frozen=True):
    """Something that the server did, from when to when (monotonic seconds).

    own: seconds of a core: of a lag, those of the loop's thread, which for the rest waited for the
    interpreter or for a core; of a refresh or a swap, those of the process and its child.
    """

    what: What
    start: float
    stop: float
    own: float = 0.0


class Journal:
    """Writes spans, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._collecting = 0.0
        self._computed = 0.0

    def note(self, what: What, start: float, own: float = 0.0) -> None:
        """Write down what ends now."""
        self._write(Span(what, start, time.monotonic(), own))

    def _write(self, span: Span) -> None:
        self._file.write(msgspec.json.encode(span) + b"\n")

    def lag(self, seconds: float) -> None:
        """What the loop's probe reports, in the loop's thread."""
        before, self._computed = self._computed, time.thread_time()
        if seconds > _WORTH_NOTING:
            own = min(self._computed - before, seconds)
            self.note("lag", time.monotonic() - seconds, own)

    def collected(self, phase: str, _: dict[str, int]) -> None:
        """What the garbage collector reports."""
        if phase == "start":
            self._collecting = time.monotonic()
        elif time.monotonic() - self._collecting > _WORTH_NOTING:
            self.note("gc", self._collecting)

    def timed(
        self, what: What, call: Callable[Given, Coroutine[None, None, None]]
    ) -> Callable[Given, Coroutine[None, None, None]]:
        """The call, written down each time."""

        async def timed(*args: Given.args, **named: Given.kwargs) -> None:
            computed = await asyncio.to_thread(_computed)  # elsewhere, as it takes milliseconds
            began = time.monotonic()
            await call(*args, **named)
            span = began, time.monotonic()
            self._write(Span(what, *span, await asyncio.to_thread(_computed) - computed))

        return timed


def _computed() -> float:
    """Seconds of a core that this process and its children have used."""
    return sum(map(proc.cpu_seconds, proc.family(os.getpid())))


def read_journal(path: Path) -> list[Span]:
    """What the server wrote down."""
    decoder = msgspec.json.Decoder(Span)
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    return [decoder.decode(line) for line in complete.splitlines()]


class SwappedModels:
    """Loads one of several versions in turn whenever SIGUSR1 comes, as a new champion is loaded."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._turn = 0
        self._asked = False
        self._status = ModelStatus("none", "", "nothing was loaded yet")

    @property
    def status(self) -> ModelStatus:
        """What serves."""
        return self._status

    async def initial(self) -> tuple[Model | None, ModelStatus]:
        """The first version."""
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "_asked", True))
        return await self._load(), self._status

    async def poll(self) -> Model | None:
        """The next version, where it was asked for."""
        if not self._asked:
            return None
        self._asked = False
        return await self._load()

    async def _load(self) -> Model:
        folder = self._folders[self._turn % len(self._folders)]
        self._turn += 1
        model = await asyncio.to_thread(load_model, folder, folder.name)
        self._status = ModelStatus("champion", model.version)
        return model


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    settings = load_settings(options.settings)
    configure_logs(settings.log_level)
    began = time.time()
    parts: Parts = replace(
        production_parts(settings),
        models=SwappedModels(options.models),
    )
    journal = Journal(options.journal)
    gc.callbacks.append(journal.collected)
    server = Server(parts)
    server.telemetry.loop_lag.observe = journal.lag  # type: ignore[method-assign, assignment]
    refresher = server.refresher
    refresher._clock = lambda: began + (time.time() - began) * SPEED  # noqa: SLF001
    refresher.refresh = journal.timed("refresh", refresher.refresh)  # type: ignore[method-assign]
    refresher.install = journal.timed("swap", refresher.install)  # type: ignore[method-assign]
    run(server)


if __name__ == "__main__":
    main()
