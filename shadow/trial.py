"""The challenger at work: forecasts recorded refreshes, and learns from what became of them."""

from __future__ import annotations

import msgspec
import numpy as np

from extender.recording import OnlinePod, Refresh
from models.arrays import Packed
from models.habits import HOURS_A_DAY, NO_HABITS, Habits, HabitsBuilder
from models.model import Model
from models.node_groups import NodeGroup, groups_for, node_groups
from models.rolling import Forecast, Part, Progress, RollingForecast
from models.usage_store import UsageStore


class TrialProgress(msgspec.Struct, frozen=True, array_like=True):
    """What another process needs to go on from a refresh.

    time: of the refresh; forecast, expected: [N, H] of it. workloads, need: [W] what is known of
    workloads since, as in `Habits`.
    """

    time: float
    forecast: Packed
    expected: Packed
    workloads: tuple[str, ...]
    need: Packed
    rolling: Progress


class Trial:
    """A challenger that forecasts and recalibrates itself as the champion does in service.

    Args:
        model: on trial.
        progress: what an earlier process had learned with it.
    """

    def __init__(self, model: Model, progress: TrialProgress | None) -> None:
        self.model = model
        self._rolling = RollingForecast(model)
        self._habits = NO_HABITS  # of the last refresh, as the champion's
        self._newest: tuple[float, Forecast] | None = None
        if progress is not None:
            self._rolling.resume(progress.rolling)
            self._habits = _habits(progress)
            forecast = Forecast(progress.forecast.array(), progress.expected.array())
            self._newest = (progress.time, forecast)

    @property
    def version(self) -> str:
        """Of the model."""
        return self.model.version

    @property
    def forecast_until(self) -> float | None:
        """The time of the newest refresh that was forecast, None before the first."""
        return None if self._newest is None else self._newest[0]

    def progress(self) -> TrialProgress | None:
        """What another process needs to go on from here, None before the first refresh."""
        if self._newest is None:
            return None
        time, forecast = self._newest
        return TrialProgress(
            time,
            Packed.of(forecast.forecast),
            Packed.of(forecast.expected),
            tuple(self._habits.index),
            Packed.of(self._habits.need),
            self._rolling.progress(),
        )

    def forecast(self, refresh: Refresh, store: UsageStore) -> Forecast:
        """Forecasts [N, H] for a refresh, from usage as it was known then.

        Refreshes come in order. The newest may come again, also to a process that goes on from its
        progress: it has the same forecast, and nothing is learned twice.
        """
        if self._newest is None or self._newest[0] != refresh.time:
            self._newest = (refresh.time, self._compute(refresh, store))
        return self._newest[1]

    def _compute(self, refresh: Refresh, store: UsageStore) -> Forecast:
        pods = refresh.pods.values()
        groups = node_groups(refresh.nodes, pods, self._rolling.groups or groups_for(len(pods)))
        builder = HabitsBuilder([pod.workload for group in groups for pod in group.pods])
        shape = refresh.forecast.shape
        found = Forecast(np.full(shape, np.nan), np.full(shape, np.nan))
        parts = (self._part(group, refresh, store, builder) for group in groups)
        for group, forecast in zip(groups, self._rolling.refresh_groups(parts), strict=True):
            found.forecast[group.rows] = forecast.forecast
            found.expected[group.rows] = forecast.expected
        self._habits = builder.build()
        return found

    def _part(
        self,
        group: NodeGroup[OnlinePod],
        refresh: Refresh,
        store: UsageStore,
        builder: HabitsBuilder,
    ) -> Part:
        """A group as known then; what is seen of its pods goes to the builder."""
        time, workloads = refresh.usage_end, group.workloads
        usage = store.take(group.keys, time)
        builder.add(workloads, usage, time)
        needs = self._habits.needs(workloads)
        history = group.history(time, usage, refresh.allocatable, needs)
        return Part(history, group.keys, group.names)


def _habits(progress: TrialProgress) -> Habits:
    """What new pods need; at what hours workloads use CPU is not looked at here."""
    index = {name: row for row, name in enumerate(progress.workloads)}
    return Habits(index, progress.need.array(), np.zeros((len(index), HOURS_A_DAY), np.float32))
