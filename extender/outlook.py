"""What the champion says about every node: the computation behind a refresh, without waiting."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from extender.ask import PodFacts
from extender.state import Capture
from models.arrays import Floats, Ints
from models.grid import WINDOW
from models.habits import (
    NO_HABITS,
    Habits,
    HabitsBuilder,
    Rhythm,
    no_rhythm,
    node_shapes,
)
from models.history import build_history
from models.model import Model
from models.policy import HORIZONS
from models.rolling import Forecast, RollingForecast
from models.usage_store import UsageStore

_PODS_PER_GROUP = 16_384
"""Pods whose week is unpacked at a time: 130 MB, several times over while it is aggregated."""

_LONG_RUNNING = 3 * WINDOW
"""Seconds after which a running pod must have been observed: a window, and scrapes that lag."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """A refresh's result for N nodes.

    newest: [N] seconds since the epoch at which a node's newest usage window ended.
    """

    forecast: Forecast
    newest: Floats
    rhythm: Rhythm


class Champion:
    """A model at work on this cluster.

    Nodes are split into fixed groups, each with a rolling forecast of its own, so that memory is
    bounded by a group's history and not by the cluster's. The first outlook says how many: a model
    may be installed before any pod was listed.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._groups: list[RollingForecast] = []
        self._habits = NO_HABITS  # of the last refresh: groups share workloads

    def outlook(self, capture: Capture, store: UsageStore) -> Outlook:
        """Forecast all nodes from what the store knows; takes seconds, so it runs in a thread."""
        result = unknown(len(capture.nodes))
        if not self._groups:
            groups = max(math.ceil(len(capture.pods) / _PODS_PER_GROUP), 1)
            self._groups = [RollingForecast(self.model) for _ in range(groups)]
        group = np.array([zlib.crc32(n.encode()) % len(self._groups) for n in capture.nodes])
        row = {name: at for at, name in enumerate(capture.nodes)}
        members: list[list[PodFacts]] = [[] for _ in self._groups]
        for pod in capture.pods:
            at = row.get(pod.node)
            if at is not None and (pod.request or not pod.offline):
                members[group[at]].append(pod)
        builder = HabitsBuilder([pod.workload for part in members for pod in part])
        for at, rolling in enumerate(self._groups):
            nodes = np.flatnonzero(group == at)
            if len(nodes):
                part = _group_outlook(
                    rolling,
                    store,
                    members[at],
                    [capture.nodes[node] for node in nodes],
                    capture.allocatable[nodes],
                    self._habits,
                    builder,
                )
                result.forecast.forecast[nodes] = part.forecast.forecast
                result.forecast.expected[nodes] = part.forecast.expected
                result.newest[nodes] = part.newest
                result.rhythm.usage[nodes] = part.rhythm.usage
                result.rhythm.shape[nodes] = part.rhythm.shape
        self._habits = builder.build()
        return replace(result, rhythm=replace(result.rhythm, habits=self._habits))


def unknown(nodes: int) -> Outlook:
    """The outlook where nothing is known: NaN everywhere, so nothing is promised."""
    shape = (nodes, len(HORIZONS))
    return Outlook(
        Forecast(np.full(shape, np.nan), np.full(shape, np.nan)),
        np.full(nodes, -np.inf),
        no_rhythm(nodes),
    )


def _group_outlook(
    rolling: RollingForecast,
    store: UsageStore,
    pods: Sequence[PodFacts],
    nodes: Sequence[str],
    allocatable: Floats,
    habits: Habits,
    builder: HabitsBuilder,
) -> Outlook:
    """Forecast a group's nodes; new pods of workloads with known ``habits`` count with these.

    What is seen of its pods goes to the ``builder``.
    """
    row = {name: at for at, name in enumerate(nodes)}
    node = np.array([row[pod.node] for pod in pods], np.int64)
    keys = [pod.key for pod in pods]
    usage = store.take(keys)
    request = np.array([pod.request for pod in pods], np.float64)
    workloads = [pod.workload for pod in pods]
    builder.add(workloads, usage, store.time)
    history = build_history(store.time, usage, request, np.arange(len(pods)), node, allocatable)
    history = history.counting(habits.needs(workloads))
    forecast = rolling.refresh(history, keys, nodes)
    newest = np.nan_to_num(usage[:, -1]).astype(np.float64)
    used = np.bincount(node, weights=newest, minlength=len(nodes)).astype(np.float64)
    rhythm = Rhythm(used, node_shapes(history), habits)
    return Outlook(forecast, _newest(pods, node, len(nodes), store), rhythm)


def _newest(pods: Sequence[PodFacts], node: Ints, nodes: int, store: UsageStore) -> Floats:
    """When each node's newest usage window ended, [N] seconds since the epoch.

    A node is as fresh as its most recently observed pod. Where no pod has run for long enough to
    be observed, the requests of all of them count, so there is nothing to wait for and the node is
    as fresh as the source. A node whose long-running pods are never observed is never fresh.
    """
    patience = store.time - _LONG_RUNNING
    awaited = np.array([not pod.offline and pod.started < patience for pod in pods], np.bool_)
    observed = np.full(nodes, -np.inf)
    np.maximum.at(observed, node, store.newest([pod.key for pod in pods]))
    waiting = np.bincount(node[awaited], minlength=nodes) > 0
    return np.where(waiting, observed, np.maximum(observed, store.fresh))
