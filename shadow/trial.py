"""The challenger at work: forecasts recorded refreshes, and learns from what became of them."""

from __future__ import annotations

import numpy as np

from extender.recording import Refresh
from models.habits import HabitsBuilder
from models.history import build_history
from models.model import Model
from models.rolling import Forecast, Progress, RollingForecast
from models.usage_store import UsageStore


class Trial:
    """A challenger that recalibrates itself as the champion does in service.

    Args:
        model: on trial.
        progress: what an earlier process had learned with it.
    """

    def __init__(self, model: Model, progress: Progress | None) -> None:
        self.model = model
        self._rolling = RollingForecast(model)
        self._newest: tuple[float, Forecast] | None = None
        if progress is not None:
            self._rolling.resume(progress)

    @property
    def forecast_until(self) -> float | None:
        """The time of the newest refresh that was forecast here, None before the first."""
        return None if self._newest is None else self._newest[0]

    def progress(self) -> Progress:
        """What another process needs to go on from here."""
        return self._rolling.progress()

    def forecast(self, refresh: Refresh, store: UsageStore) -> Forecast:
        """Forecasts [N, H] for a refresh, from usage as it was known then.

        Refreshes come in order. The newest may come again, also to a process that goes on from its
        progress: it has the same forecast, and nothing is learned twice.
        """
        if self._newest is None or self._newest[0] != refresh.time:
            self._newest = (refresh.time, self._compute(refresh, store))
        return self._newest[1]

    def _compute(self, refresh: Refresh, store: UsageStore) -> Forecast:
        row = {name: at for at, name in enumerate(refresh.nodes)}
        pods = [pod for pod in refresh.pods.values() if pod.node in row]
        keys, workloads = [pod.key for pod in pods], [pod.workload for pod in pods]
        usage = store.take(keys, refresh.usage_end)
        # As of this refresh; the champion has those of one before, which a restart would lose.
        habits = HabitsBuilder(workloads)
        habits.add(workloads, usage, refresh.usage_end)
        history = build_history(
            refresh.usage_end,
            usage,
            np.array([pod.request for pod in pods], np.float64),
            np.arange(len(pods)),
            np.array([row[pod.node] for pod in pods], np.int64),
            refresh.allocatable,
        ).counting(habits.build().needs(workloads))
        return self._rolling.refresh(history, keys, refresh.nodes)
