"""Who was promised how much, where: exact, in whole millicores, keyed by pod UID.

A pod's ask is charged from the filter call on: first as a hold on every node that was offered to
kube-scheduler (it has not chosen yet), then, from bind on, as a promise on the chosen node. So the
next pod's filter call, which may come before the first pod's bind, never sees the same CPU twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from models.arrays import Ints


class Stage(Enum):
    """How far an entry has come."""

    HELD = "held"
    """Charged on every offered node until bind names one or the hold expires."""
    BINDING = "binding"
    """Charged on the chosen node; the binding is being written."""
    BOUND = "bound"
    """The API server has shown the pod on the node; charged until the pod ends."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One pod's charge: millicores on each of ``rows``.

    ``made`` and ``expires`` are seconds since the epoch; only holds and bindings expire.
    """

    uid: str
    pod: str
    millicpu: int
    horizon: int
    rows: tuple[int, ...]
    stage: Stage
    made: float
    expires: float


class Ledger:
    """All charges on the nodes; rows are those of the snapshot.

    Not thread-safe: the server calls it from the event loop only, without awaiting in between, and
    the replay from its single thread.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._charged: Ints = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, uid: str) -> Entry | None:
        """The entry of a pod, or None."""
        return self._entries.get(uid)

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order in which they were made."""
        return tuple(self._entries.values())

    def charged(self, nodes: int, without: str = "") -> Ints:
        """Millicores charged on each of the first ``nodes`` rows, not counting one pod's own."""
        self._grow(nodes)
        charged = self._charged[:nodes].copy()
        own = self._entries.get(without)
        if own is not None:
            charged[list(own.rows)] -= own.millicpu
        return charged

    def hold(
        self,
        uid: str,
        pod: str,
        millicpu: int,
        horizon: int,
        rows: tuple[int, ...],
        now: float,
        expires: float,
    ) -> None:
        """Charge a pod on every row that was offered; replaces its earlier hold.

        A pod whose binding is under way, or that is bound, keeps that entry: kube-scheduler does
        not filter such a pod again, so the call is a late repeat.
        """
        own = self._entries.get(uid)
        if own is not None and own.stage is not Stage.HELD:
            return
        if own is not None and (own.rows, own.millicpu) == (rows, millicpu):
            self._entries[uid] = replace(own, horizon=horizon, expires=expires)
            return
        self.release(uid)
        if rows:
            self._put(Entry(uid, pod, millicpu, horizon, rows, Stage.HELD, now, expires))

    def reserve(
        self,
        uid: str,
        pod: str,
        millicpu: int,
        horizon: int,
        row: int,
        available: int,
        now: float,
        expires: float,
    ) -> bool:
        """Turn a pod's hold into a charge on one row, if it still fits there.

        A bound pod keeps its entry: what the API server has shown is not undone by a late repeat.

        Args:
            uid, pod: the pod's UID and ``namespace/name``.
            millicpu, horizon: the ask.
            row: the chosen node.
            available: millicores free there, not counting this pod's own charge.
            now, expires: seconds since the epoch.

        Returns:
            False, with nothing charged for the pod, where the ask is more than is available; for a
            bound pod, whether the row is its own.
        """
        own = self._entries.get(uid)
        if own is not None and own.stage is Stage.BOUND:
            return own.rows == (row,)
        self.release(uid)
        if millicpu > available:
            return False
        self._put(Entry(uid, pod, millicpu, horizon, (row,), Stage.BINDING, now, expires))
        return True

    def confirm(
        self, uid: str, pod: str, millicpu: int, horizon: int, row: int, now: float
    ) -> None:
        """Record what the API server shows: the pod is on the node. What is true is not refused."""
        own = self._entries.get(uid)
        made = own.made if own is not None else now
        charge = (Stage.BOUND, (row,), millicpu)
        if own is not None and (own.stage, own.rows, own.millicpu) == charge:
            return
        self.release(uid)
        self._put(Entry(uid, pod, millicpu, horizon, (row,), Stage.BOUND, made, np.inf))

    def release(self, uid: str) -> None:
        """Give back everything charged for a pod; unknown pods are ignored."""
        entry = self._entries.pop(uid, None)
        if entry is not None:
            self._charged[list(entry.rows)] -= entry.millicpu

    def release_hold(self, uid: str) -> None:
        """Give back a pod's hold, but no binding or promise."""
        entry = self._entries.get(uid)
        if entry is not None and entry.stage is Stage.HELD:
            self.release(uid)

    def release_binding(self, uid: str) -> None:
        """Give back the charge of a binding that failed, but not what is bound."""
        entry = self._entries.get(uid)
        if entry is not None and entry.stage is Stage.BINDING:
            self.release(uid)

    def extend(self, uid: str, expires: float) -> None:
        """Let a binding that was written wait longer for its watch event."""
        entry = self._entries.get(uid)
        if entry is not None and entry.stage is Stage.BINDING:
            self._entries[uid] = replace(entry, expires=expires)

    def expire(self, now: float) -> list[Entry]:
        """Drop holds and bindings whose time has run out, and return them."""
        late = [entry for entry in self._entries.values() if entry.expires <= now]
        for entry in late:
            self.release(entry.uid)
        return late

    def drop_row(self, row: int) -> None:
        """Forget all charges on a node that is gone."""
        for entry in [e for e in self._entries.values() if row in e.rows]:
            self.release(entry.uid)
            rest = tuple(r for r in entry.rows if r != row)
            if rest:
                self._put(replace(entry, rows=rest))

    def _put(self, entry: Entry) -> None:
        self._grow(max(entry.rows) + 1)
        self._entries[entry.uid] = entry
        self._charged[list(entry.rows)] += entry.millicpu

    def _grow(self, nodes: int) -> None:
        if nodes > len(self._charged):
            grown = np.zeros(max(nodes, 2 * len(self._charged)), np.int64)
            grown[: len(self._charged)] = self._charged
            self._charged = grown
