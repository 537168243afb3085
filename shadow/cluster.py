"""The nodes of a replay: what kube-scheduler, the extender and its ledger know of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from extender.ledger import Ledger
from extender.node_index import NodeIndex
from extender.snapshot import Reason, Snapshot
from models.arrays import Bools, Floats, Floats32, Ints
from models.habits import HOURS_A_DAY, Rhythm
from models.policy import HORIZONS, Policy
from models.reclaim import reclaimable_millicpu
from shadow.kube_scheduler import CPU, SLOTS, NodeState, Request

H = len(HORIZONS)
ORDINARY = H
"""Kind of headroom of a pod that needs ordinary CPU; 0..H-1 are the horizons of promises."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """N nodes.

    Fields:
        millicpu, memory: [N] allocatable millicores and bytes.
        joined, left: [N] seconds since the epoch from and until when each is there; None where all
            are there all the time.
        zone: [N] numbers of the nodes' zones, as in a snapshot; None where the trace names none.
    """

    names: tuple[str, ...]
    millicpu: Ints
    memory: Ints
    joined: Ints | None = None
    left: Ints | None = None
    zone: Ints | None = None

    def __len__(self) -> int:
        return len(self.names)

    def presence(self, start: int, step: int, steps: int) -> Floats:
        """The share of each step in which each node is there, [N, T].

        Args:
            start: of the first step, seconds since the epoch.
            step: seconds.
            steps: T.
        """
        if self.joined is None and self.left is None:
            return np.broadcast_to(1.0, (len(self), steps))
        first = start + np.arange(steps) * step
        begin = first if self.joined is None else np.maximum(first, self.joined[:, None])
        end = first + step
        end = end if self.left is None else np.minimum(end, self.left[:, None])
        there: Floats = np.maximum(end - begin, 0) / step
        return there


class Cluster:
    """Node state that changes as pods come and go and forecasts are refreshed.

    Where a model forecasts, online pods that start count with their requests until the next refresh
    knows better, and what they added stays until then, as in the server. Without a model a node's
    forecast is what its online pods request.

    Fields:
        forecast, expected: [N, H] cores.
        profile: [24, N] cores by hour of day; usage: [N] cores in the newest window.
        emptied: [N] millicores that could be promised with nothing on the node.
        promised: [N] millicores charged in the ledger, kept up to date.
    """

    def __init__(self, fleet: Fleet, policy: Policy, max_pods: int, *, forecasting: bool) -> None:
        self.nodes = NodeState(fleet.millicpu, fleet.memory, max_pods)
        self.ledger = Ledger()
        self.allocatable: Floats = fleet.millicpu / 1000
        self.forecast: Floats = np.zeros((len(fleet), H), order="F")
        self.expected: Floats = np.zeros((len(fleet), H), order="F")
        self.profile: Floats32 = np.zeros((HOURS_A_DAY, len(fleet)), np.float32)
        self.usage: Floats = np.full(len(fleet), np.nan)
        self.promised: Ints = np.zeros(len(fleet), np.int64)
        self._zone = fleet.zone
        self._policy = policy
        self._forecasting = forecasting
        self._index = NodeIndex((name, row) for row, name in enumerate(fleet.names))
        self.emptied = reclaimable_millicpu(self.allocatable, self.forecast, policy)[:, 0]
        self._free: Ints = self._reclaimable()
        self._outdated: set[int] = set()
        self._known: Bools = np.ones(len(fleet), bool)
        self._blocked: Ints = np.full(len(fleet), Reason.FITS, np.int64)
        self._age: Floats = np.zeros(len(fleet))
        self._snapshot: Snapshot | None = None
        self._snapshots = 0

    def add(self, row: int, request: Request, known: Floats32 | None = None) -> None:
        """An online pod starts; ``known``: its workload's profile, [24] cores."""
        self.nodes.add(row, request)
        if self._forecasting:
            added = request.millicpu
            if known is not None:
                added = math.ceil(float(known.max()) * 1000)
            self.forecast[row] += added / 1000
            self.expected[row] += added / 1000
            self.profile[:, row] += added / 1000 if known is None else known
            self._outdated.add(row)
        else:
            self._count_requests(row)

    def remove(self, row: int, request: Request) -> None:
        """An online pod ends."""
        self.nodes.remove(row, request)
        if not self._forecasting:
            self._count_requests(row)

    def promise(self, row: int, uid: str, request: Request, horizon: int, time: int) -> int:
        """Bind an offline pod as the server does: check against the ledger, then confirm.

        Returns:
            Millicores that were reclaimable there for the horizon, before any promise.

        Raises:
            RuntimeError: less is left than was decided on, which one thread cannot see.
        """
        free = int(self.free[row, horizon])
        available = max(free - int(self.promised[row]), 0)
        ask = request.extended
        if not self.ledger.reserve(uid, uid, ask, horizon, row, available, time, np.inf):
            raise RuntimeError(f"{uid} was decided on row {row}, which has {available} of {ask} m")
        self.ledger.confirm(uid, uid, ask, horizon, row, time)
        self.promised[row] += ask
        self.nodes.add(row, request)
        return free

    def release(self, row: int, uid: str, request: Request) -> None:
        """An offline pod ends or is evicted."""
        self.ledger.release(uid)
        self.promised[row] -= request.extended
        self.nodes.remove(row, request)

    def refresh(self, forecast: Floats, expected: Floats, rhythm: Rhythm) -> None:
        """Take over new forecasts, [N, H] cores, and when nodes use CPU.

        A node with a NaN has no forecast: nothing is promised on it, and online pods see it with
        its requests.
        """
        self._known = np.asarray(np.isfinite(forecast).all(axis=1))
        requested = self.nodes.requested[CPU][:, None] / 1000
        known = self._known[:, None]
        self.forecast = np.asfortranarray(np.where(known, forecast, requested))
        self.expected = np.asfortranarray(np.where(known, expected, requested))
        daily = np.where(known, forecast[:, -1:], 0) * rhythm.shape
        self.profile = np.where(known, daily, requested).T.astype(np.float32)
        self.usage = rhythm.usage
        self._free = self._reclaimable()
        self._outdated.clear()
        self._snapshot = None

    def observe(self, age: Floats) -> None:
        """Take over the age of each node's usage data, [N] seconds."""
        stale = np.where(age > self._policy.max_usage_age, Reason.STALE_USAGE, Reason.FITS)
        self._blocked = np.where(self._known, stale, Reason.NO_FORECAST).astype(np.int64)
        self._age = age
        self._snapshot = None

    @property
    def free(self) -> Ints:
        """Reclaimable millicores before promises, [N, H]."""
        if self._outdated:
            rows = np.fromiter(self._outdated, np.int64, len(self._outdated))
            self._free[rows] = reclaimable_millicpu(
                self.allocatable[rows], self.forecast[rows], self._policy
            )
            self._outdated.clear()
        return self._free

    def snapshot(self, time: int, version: str, *, offline: bool) -> Snapshot:
        """The view on which the next pod is decided, of arrays that change as pods come and go.

        What is reclaimable is brought up to date for offline pods only: online ones are ranked by
        the forecast, and a replay that fills a cluster would spend a tenth of its time on it.
        """
        free = self.free if offline else self._free
        if self._snapshot is None:
            self._snapshots += 1
            self._snapshot = Snapshot(
                self._snapshots,
                time,
                self._index,
                self.allocatable,
                self.forecast,
                self.expected,
                self.profile,
                self.usage,
                free,
                self.emptied,
                self.promised,
                self._blocked,
                self._age,
                version,
                zone=self._zone,
            )
        return self._snapshot

    def headroom(self) -> Ints:
        """The most that any node has left, [H + 1] millicores: by horizon, then ordinary CPU."""
        room = np.zeros(H + 1, np.int64)
        here = self.nodes.free[SLOTS] > 0
        left = self.free - self.promised[:, None]
        room[:H] = left[here & (self._blocked == Reason.FITS)].max(axis=0, initial=0)
        room[ORDINARY] = self.nodes.free[CPU].max(initial=0, where=here)
        return room

    def _reclaimable(self) -> Ints:
        """Of all nodes; decisions read one horizon's column, so columns lie together."""
        return np.asfortranarray(
            reclaimable_millicpu(self.allocatable, self.forecast, self._policy)
        )

    def _count_requests(self, row: int) -> None:
        requested = self.nodes.requested[CPU, row] / 1000
        self.forecast[row] = requested
        self.expected[row] = requested
        self.profile[:, row] = requested
        self._outdated.add(row)
