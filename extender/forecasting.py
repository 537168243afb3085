"""Forecasts of a cluster's nodes: follows its pods, reads their usage, asks the champion.

It is asked by the refreshes only, one question at a time. In production it works in a process of
its own (`extender.forecast_process`), which runs what is here.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from extender.outlook import Champion, CountedPod, Outlook, PodChanges
from models.arrays import Floats
from models.errors import ArchimedesError
from models.model import Model
from models.usage_source import PrometheusSettings, UsageError, UsageSource
from models.usage_store import UsageReader, UsageStore

_READ_SECONDS = 240.0
"""Seconds after which reading waits for the next refresh. Forecasts from a part of the past are
better than none, and what is read at once is lost with a process that is taken for dead."""


class ForecastingError(ArchimedesError):
    """No forecast was made; the text says why. What is in force stays, and grows older."""


class Usage(msgspec.Struct, frozen=True, tag=True):
    """How far usage is known.

    time: seconds since the epoch up to which windows were read, 0 before the first. fresh: those at
    which the newest window with any sample ended, or -inf. pods: of how many pods it is kept.
    error: why it could not be read, or empty.
    """

    time: int = 0
    fresh: float = -math.inf
    pods: int = 0
    error: str = ""


class Forecasting(Protocol):
    """What makes the forecasts. Each method raises ForecastingError where it cannot do its part."""

    async def begin(self) -> bool:
        """Be ready for questions; whether it has to be told of all pods, as at the start."""

    async def follow(self, changes: PodChanges) -> None:
        """Hear of pods."""

    async def read_usage(self, now: float) -> Usage:
        """Read complete windows that are not known yet; ``now``: seconds since the epoch.

        The newest come first. What takes longer than minutes goes on in the next call.
        """

    async def install(
        self, model: Model | None, nodes: Sequence[str], allocatable: Floats
    ) -> Outlook | None:
        """Forecast with another model, and with that from now on; None for none.

        Where that fails, the model before stays. Arguments and result are those of `forecast`.
        """

    async def forecast(self, nodes: Sequence[str], allocatable: Floats) -> Outlook | None:
        """The outlook for N nodes with [N] allocatable cores; None without model or usage."""

    async def close(self) -> None:
        """End, whatever is under way."""


class CountedPods:
    """The pods of a cluster as far as they count in forecasts, by what is told of changes."""

    def __init__(self) -> None:
        self._pods: dict[str, CountedPod] = {}  # by UID
        self._observed: Counter[str] = Counter()  # of them, by key, those whose usage is forecast

    @property
    def observed(self) -> Collection[str]:
        """The pods whose usage is forecast, ``namespace/name``: online ones on a node."""
        return self._observed.keys()

    def counting(self) -> list[CountedPod]:
        """Those that request ordinary CPU, on a node or not."""
        return [pod for pod in self._pods.values() if pod.request or not pod.offline]

    def all(self) -> PodChanges:
        """All pods, for a table that is empty."""
        return iter(self._pods.items())

    def follow(self, changes: PodChanges) -> None:
        """Take over changes."""
        for uid, pod in changes:
            before = self._pods.pop(uid, None)
            if before is not None and _is_observed(before):
                self._observed[before.key] -= 1
                if not self._observed[before.key]:
                    del self._observed[before.key]
            if pod is not None:
                self._pods[uid] = pod
                if _is_observed(pod):
                    self._observed[pod.key] += 1


class ThreadForecasting:
    """Works in threads of this process."""

    def __init__(self, source: UsageSource | None, settings: PrometheusSettings) -> None:
        """``source``: None where there is no usage; then there is never an outlook."""
        self._source = source
        self._store = UsageStore()
        self._reader = UsageReader(source, self._store, settings)
        self._pods = CountedPods()
        self._champion: Champion | None = None

    async def begin(self) -> bool:
        """Nothing that it was told of is ever lost."""
        return False

    async def follow(self, changes: PodChanges) -> None:
        """See `Forecasting`."""
        await asyncio.to_thread(self._pods.follow, changes)

    async def read_usage(self, now: float) -> Usage:
        """See `Forecasting`."""
        error, wanted = "", self._pods.observed
        try:
            await self._reader.catch_up(now, wanted, patience=_READ_SECONDS)
        except UsageError as e:
            error = str(e)
        return Usage(self._store.time, self._store.fresh, len(wanted), error)

    async def install(
        self, model: Model | None, nodes: Sequence[str], allocatable: Floats
    ) -> Outlook | None:
        """See `Forecasting`."""
        champion = None if model is None else Champion(model)
        outlook = await self._forecast(champion, nodes, allocatable)
        replaced = [self._champion]
        self._champion = champion
        await asyncio.to_thread(replaced.clear)  # LightGBM takes milliseconds to free a model
        return outlook

    async def forecast(self, nodes: Sequence[str], allocatable: Floats) -> Outlook | None:
        """See `Forecasting`."""
        return await self._forecast(self._champion, nodes, allocatable)

    async def close(self) -> None:
        """Close what usage is read from."""
        if self._source is not None:
            await self._source.close()

    async def _forecast(
        self, champion: Champion | None, nodes: Sequence[str], allocatable: Floats
    ) -> Outlook | None:
        if champion is None or not self._store.time:
            return None
        pods = self._pods.counting()
        return await asyncio.to_thread(champion.outlook, nodes, allocatable, pods, self._store)


def _is_observed(pod: CountedPod) -> bool:
    return bool(pod.node) and not pod.offline
