"""The challenger at work: forecasts recorded refreshes, and learns from what became of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extender.recording import OnlinePod, Refresh
from models.habits import Habits, HabitsBuilder
from models.history import History
from models.model import Model
from models.node_groups import NodeGroup, groups_for, node_groups
from models.rolling import Forecast, Part, Progress, RollingForecast
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
    def version(self) -> str:
        """Of the model."""
        return self.model.version

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
        pods = refresh.pods.values()
        groups = node_groups(refresh.nodes, pods, self._rolling.groups or groups_for(len(pods)))
        habits = _habits(groups, refresh, store)
        shape = refresh.forecast.shape
        found = Forecast(np.full(shape, np.nan), np.full(shape, np.nan))
        parts = (
            Part(_history(group, refresh, store, habits), group.keys, group.names)
            for group in groups
        )
        for group, forecast in zip(groups, self._rolling.refresh_groups(parts), strict=True):
            found.forecast[group.rows] = forecast.forecast
            found.expected[group.rows] = forecast.expected
        return found


def _habits(groups: Sequence[NodeGroup[OnlinePod]], refresh: Refresh, store: UsageStore) -> Habits:
    """As of this refresh; the champion has those of one before, which a restart would lose."""
    builder = HabitsBuilder([pod.workload for group in groups for pod in group.pods])
    for group in groups:
        usage = store.take(group.keys, refresh.usage_end)
        builder.add(group.workloads, usage, refresh.usage_end)
    return builder.build()


def _history(
    group: NodeGroup[OnlinePod], refresh: Refresh, store: UsageStore, habits: Habits
) -> History:
    usage = store.take(group.keys, refresh.usage_end)
    needs = habits.needs(group.workloads)
    return group.history(refresh.usage_end, usage, refresh.allocatable, needs)
