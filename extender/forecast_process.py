"""Forecasts made in a process of their own: the event loop shares no interpreter with them.

A child that ends, for whatever reason, fails the question that it was asked. With the next one
another child begins, with the same model; it is told of all pods and reads usage anew.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from extender.forecast_channel import (
    Begin,
    Channel,
    ChannelClosedError,
    Follow,
    Install,
    PackedModel,
    Predict,
    ReadUsage,
    answers,
    pieces,
    receive_answer,
    receive_outlook,
)
from extender.forecasting import ForecastingError, Usage
from extender.outlook import Outlook, PodChanges
from models.arrays import Floats
from models.artifact import pack_model
from models.model import Model
from models.usage_source import PrometheusSettings

_ENDING_SECONDS = 2.0
_SILENT_SECONDS = 120.0
"""Seconds after which a child that says nothing is taken for dead; it may wait for a core."""

_ANSWER_SECONDS = 1800.0
"""Seconds after which a child that says that it works is, too. A forecast takes seconds; usage is
read for minutes at a time, and the last query may take `prometheus.timeout_seconds`."""

T = TypeVar("T")


class ProcessForecasting:
    """Asks a child process, which runs `extender.forecasting.ThreadForecasting`."""

    def __init__(self, settings: PrometheusSettings, log_level: str) -> None:
        self._settings = settings
        self._log_level = log_level
        self._model: PackedModel | None = None
        self._child: _Child | None = None
        self._new = False  # whether the child was told of no pods yet

    @property
    def pid(self) -> int | None:
        """Of the child; None where there is none."""
        return None if self._child is None else self._child.process.pid

    async def begin(self) -> bool:
        """Start a child where there is none; see `extender.forecasting.Forecasting`."""
        if self._child is None:
            begin = Begin(self._settings, self._log_level, self._model, _SILENT_SECONDS)
            try:
                self._child = await asyncio.to_thread(_Child, begin)
            except OSError as e:
                raise ForecastingError(f"no process that makes forecasts could begin: {e}") from e
            self._new = True
        return self._new

    async def follow(self, changes: PodChanges) -> None:
        """See `extender.forecasting.Forecasting`."""
        await self._ask(lambda child: child.follow(changes))
        self._new = False

    async def read_usage(self, now: float) -> Usage:
        """See `extender.forecasting.Forecasting`."""
        return await self._ask(lambda child: child.read_usage(now))

    async def install(
        self, model: Model | None, nodes: Sequence[str], allocatable: Floats
    ) -> Outlook | None:
        """See `extender.forecasting.Forecasting`."""
        packed = None
        if model is not None:
            packed = PackedModel(model.version, await asyncio.to_thread(pack_model, model))
        outlook = await self._ask(lambda child: child.outlook(Install(packed, nodes), allocatable))
        self._model = packed
        return outlook

    async def forecast(self, nodes: Sequence[str], allocatable: Floats) -> Outlook | None:
        """See `extender.forecasting.Forecasting`."""
        return await self._ask(lambda child: child.outlook(Predict(nodes), allocatable))

    async def close(self) -> None:
        """End the child, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.end)

    async def _ask(self, question: Callable[[_Child], T]) -> T:
        """Ask the child in a thread; raises ForecastingError where it does not answer.

        Where anything else goes wrong the child goes, as nobody knows what it will say next.
        """
        child = self._child
        if child is None:
            raise ForecastingError("no process makes forecasts")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.to_thread(question, child)
        except ForecastingError:
            raise
        except BaseException as e:
            self._child = None
            status = await asyncio.to_thread(child.end)
            if not isinstance(e, ChannelClosedError | TimeoutError):
                raise
            late = isinstance(e, TimeoutError) or isinstance(e.__cause__, TimeoutError)
            ended = "did not answer in time and was ended" if late else "ended"
            raise ForecastingError(
                f"the process that makes forecasts {ended} (status {status}); another one begins"
            ) from e


class _Child:
    """One process. Its methods wait, and raise ChannelClosedError where it is gone."""

    def __init__(self, begin: Begin) -> None:
        """Raises OSError where it cannot be started."""
        own, its = socket.socketpair()
        own.settimeout(begin.silent_seconds)
        self._channel = Channel(own, answers)
        command = [sys.executable, "-m", "extender.forecast_child", str(its.fileno())]
        try:
            with its:
                self.process = subprocess.Popen(command, pass_fds=[its.fileno()])
        except OSError:
            self._channel.close()
            raise
        try:
            self._channel.send(begin)
        except ChannelClosedError as e:
            raise OSError(f"it ended at once (status {self.end()})") from e

    def follow(self, changes: PodChanges) -> None:
        for some in pieces(changes):
            self._channel.send(Follow(some))

    def read_usage(self, now: float) -> Usage:
        self._channel.send(ReadUsage(now))
        usage, _ = receive_answer(self._channel)
        assert isinstance(usage, Usage)  # noqa: S101 - the only answer there is
        return usage

    def outlook(self, question: Install | Predict, allocatable: Floats) -> Outlook | None:
        self._channel.send(question, allocatable)
        return receive_outlook(self._channel)

    def end(self) -> int:
        """End it, whatever it does, and return its status."""
        self._channel.close()
        try:
            return self.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
