"""What the champion says about every node: the computation behind a refresh, without waiting."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from extender.ask import PodFacts
from models.arrays import Floats
from models.grid import WINDOW
from models.habits import (
    NO_HABITS,
    HabitsBuilder,
    Rhythm,
    no_rhythm,
    node_shapes,
)
from models.model import Model
from models.node_groups import NodeGroup, groups_for, node_groups
from models.policy import HORIZONS
from models.rolling import Forecast, Part, RollingForecast
from models.usage_store import UsageStore

_LONG_RUNNING = 3 * WINDOW
"""Seconds after which a running pod must have been observed: a window, and scrapes that lag."""


class CountedPod(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a forecast needs to know of a pod; the fields are those of `extender.ask.PodFacts`."""

    key: str
    node: str
    workload: str
    offline: bool
    request: float
    started: float


PodChanges = Iterator[tuple[str, CountedPod | None]]
"""Pods by UID that are new or have changed, and None for each that is gone."""


def counted(changes: Mapping[str, PodFacts | None]) -> PodChanges:
    """What a capture found to be changed, as forecasts see it, one pod at a time."""
    for uid, pod in changes.items():
        yield uid, None if pod is None else _counted(pod)


def _counted(pod: PodFacts) -> CountedPod:
    return CountedPod(pod.key, pod.node, pod.workload, pod.offline, pod.request, pod.started)


@dataclass(frozen=True, slots=True)
class Outlook:
    """A refresh's result for N nodes.

    usage_end: seconds since the epoch up to which usage was known, 0 before any was.
    newest: [N] those at which a node's newest usage window ended.
    """

    usage_end: int
    forecast: Forecast
    newest: Floats
    rhythm: Rhythm


class Champion:
    """A model at work on this cluster.

    The first outlook says into how many groups the nodes are split: a model may be installed before
    any pod was listed.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._rolling = RollingForecast(model)
        self._habits = NO_HABITS  # of the last refresh: groups share workloads

    def outlook(
        self,
        nodes: Sequence[str],
        allocatable: Floats,
        pods: Collection[CountedPod],
        store: UsageStore,
    ) -> Outlook:
        """Forecast all nodes from what the store knows; takes seconds, so it runs in a thread.

        Args:
            nodes: N names.
            allocatable: [N] cores.
            pods: all that request ordinary CPU, bound to a node or not.
            store: the pods' usage.
        """
        result = unknown(len(nodes), store.time)
        groups = node_groups(nodes, pods, self._rolling.groups or groups_for(len(pods)))
        builder = HabitsBuilder([pod.workload for group in groups for pod in group.pods])
        parts = (self._part(group, allocatable, store, builder, result) for group in groups)
        for group, forecast in zip(groups, self._rolling.refresh_groups(parts), strict=True):
            result.forecast.forecast[group.rows] = forecast.forecast
            result.forecast.expected[group.rows] = forecast.expected
        self._habits = builder.build()
        return replace(result, rhythm=replace(result.rhythm, habits=self._habits))

    def _part(
        self,
        group: NodeGroup[CountedPod],
        allocatable: Floats,
        store: UsageStore,
        builder: HabitsBuilder,
        result: Outlook,
    ) -> Part:
        """A group as known now; what else is seen of it goes to the builder and the result."""
        keys, workloads = group.keys, group.workloads
        usage = store.take(keys)
        builder.add(workloads, usage, store.time)
        needs = self._habits.needs(workloads)
        history = group.history(store.time, usage, allocatable, needs)
        result.rhythm.usage[group.rows] = history.newest
        result.rhythm.shape[group.rows] = node_shapes(history)
        result.newest[group.rows] = _newest(group, store.newest(keys), store)
        return Part(history, keys, group.names)


def unknown(nodes: int, usage_end: int = 0) -> Outlook:
    """The outlook where nothing is forecast: NaN everywhere, so nothing is promised."""
    shape = (nodes, len(HORIZONS))
    return Outlook(
        usage_end,
        Forecast(np.full(shape, np.nan), np.full(shape, np.nan)),
        np.full(nodes, -np.inf),
        no_rhythm(nodes),
    )


def _newest(group: NodeGroup[CountedPod], observed: Floats, store: UsageStore) -> Floats:
    """When each node's newest usage window ended, [N] seconds since the epoch; its pods', [P].

    A node is as fresh as its most recently observed pod. Where no pod has run for long enough to
    be observed, the requests of all of them count, so there is nothing to wait for and the node is
    as fresh as the source. A node whose long-running pods are never observed is never fresh.
    """
    patience, nodes = store.time - _LONG_RUNNING, len(group.names)
    awaited = np.array([not pod.offline and pod.started < patience for pod in group.pods], np.bool_)
    newest = np.full(nodes, -np.inf)
    np.maximum.at(newest, group.node, observed)
    waiting = np.bincount(group.node[awaited], minlength=nodes) > 0
    return np.where(waiting, newest, np.maximum(newest, store.fresh))
