"""The extender as its own process, measured from inside: python -m bench.rig.server SETTINGS JOURNAL.

It is the production server (`extender.app.production_parts`) but for three things: its clock runs
fast, so that a usage window ends every few seconds; it changes models when it gets SIGUSR1; and it
keeps a journal of what it did when: refreshes, model swaps, late wake-ups of the event loop, garbage
collections. Times are of the system's monotonic clock, which the caller's process shares.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, ParamSpec

import msgspec

from extender.app import Parts, Server, production_parts, run
from extender.champion import ModelStatus
from extender.settings import load_settings
from extender.telemetry import configure_logs
from models.artifact import load_model
from models.model import Model

SPEED = 15.0
"""Seconds of the server's clock in a real one: a window of 300 s ends every 20 s."""

_WORTH_NOTING = 0.001
"""Seconds of lag or of garbage collection from which on they are written down."""

Given = ParamSpec("Given")


class Span(msgspec.Struct, frozen=True):
    """Something that the server did, from when to when (monotonic seconds)."""

    what: Literal["refresh", "swap", "lag", "gc"]
    start: float
    stop: float


class Journal:
    """Writes spans, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._collecting = 0.0

    def note(self, what: Literal["refresh", "swap", "lag", "gc"], start: float) -> None:
        """Write down what ends now."""
        self._file.write(msgspec.json.encode(Span(what, start, time.monotonic())) + b"\n")

    def lag(self, seconds: float) -> None:
        """What the loop's probe reports."""
        if seconds > _WORTH_NOTING:
            self.note("lag", time.monotonic() - seconds)

    def collected(self, phase: str, _: dict[str, int]) -> None:
        """What the garbage collector reports."""
        if phase == "start":
            self._collecting = time.monotonic()
        elif time.monotonic() - self._collecting > _WORTH_NOTING:
            self.note("gc", self._collecting)

    def timed(
        self, what: Literal["refresh", "swap"], call: Callable[Given, Awaitable[None]]
    ) -> Callable[Given, Awaitable[None]]:
        """The call, written down each time."""

        async def timed(*args: Given.args, **named: Given.kwargs) -> None:
            began = time.monotonic()
            await call(*args, **named)
            self.note(what, began)

        return timed


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
        clock=lambda: began + (time.time() - began) * SPEED,
        models=SwappedModels(options.models),
    )
    journal = Journal(options.journal)
    gc.callbacks.append(journal.collected)
    server = Server(parts)
    server.telemetry.loop_lag.observe = journal.lag  # type: ignore[method-assign, assignment]
    refresher = server.refresher
    refresher.refresh = journal.timed("refresh", refresher.refresh)  # type: ignore[method-assign]
    refresher.install = journal.timed("swap", refresher.install)  # type: ignore[method-assign]
    run(server)


if __name__ == "__main__":
    main()
