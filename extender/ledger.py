"""Who was promised how much, where: exact, in whole millicores, keyed by pod UID.

A pod's ask is charged from the filter call on: first as a hold on every node that was offered to
kube-scheduler (it has not chosen yet), then, from bind on, as a promise on the chosen node. So the
next pod's filter call, which may come before the first pod's bind, never sees the same CPU twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum

import msgspec
import numpy as np
from msgspec.structs import replace

from models.arrays import Ints
from models.policy import HORIZONS


class Stage(Enum):
    """How far an entry has come."""

    HELD = "held"
    """Charged on every offered node until bind names one or the hold expires."""
    BINDING = "binding"
    """Charged on the chosen node; the binding is being written, or nobody knows yet whether it was.
    Where an earlier try on another node is still open, that one is charged too."""
    BOUND = "bound"
    """The API server has shown the pod on the node; charged until the pod ends."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One pod's charge: millicores on each of ``rows``.

    ``made``, ``expires`` and ``dated``, at which ``expires`` was set, are seconds since the epoch.
    Only a hold is dropped when it expires. By then, it should be known what became of a binding,
    and a bound promise's horizon has passed.
    """

    uid: str
    pod: str
    millicpu: int
    horizon: int
    rows: tuple[int, ...]
    stage: Stage
    made: float
    expires: float
    dated: float


class Ledger:
    """All charges on the nodes; rows are those of the snapshot.

    Not thread-safe: the server calls it from the event loop only, without awaiting in between, and
    the replay from its single thread.
    """

    def __init__(self) -> None:
        self._open: dict[str, Entry] = {}  # held and binding: few, and looked through often
        self._bound: dict[str, Entry] = {}
        self._charged: Ints = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._open) + len(self._bound)

    def get(self, uid: str) -> Entry | None:
        """The entry of a pod, or None."""
        return self._open.get(uid) or self._bound.get(uid)

    def entries(self) -> tuple[Entry, ...]:
        """All entries, the bound ones last."""
        return (*self._open.values(), *self._bound.values())

    def charged(self, nodes: int, without: str = "", keep: bool = False) -> Ints:
        """Millicores charged on each of the first ``nodes`` rows, not counting one pod's own.

        Closed to writing. It stays so where ``keep``, else until the ledger changes.
        """
        self._grow(nodes)
        charged = self._charged[:nodes]
        own = self.get(without)
        if own is not None or keep:
            charged = charged.copy()
        if own is not None:
            charged[list(own.rows)] -= own.millicpu
        charged.flags.writeable = False
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

        A pod whose binding is open, or that is bound, keeps that entry. What kube-scheduler filters
        again after a bind of unknown fate has nothing held on other nodes: bind checks them anew.
        """
        own = self.get(uid)
        if own is not None and own.stage is not Stage.HELD:
            return
        if own is not None and (own.rows, own.millicpu) == (rows, millicpu):
            self._store(replace(own, horizon=horizon, expires=expires, dated=now))
            return
        self.release(uid)
        if rows:
            self._put(Entry(uid, pod, millicpu, horizon, rows, Stage.HELD, now, expires, now))

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
        Rows of an earlier binding whose fate is open stay charged as well, as it may still land.

        Args:
            uid, pod: the pod's UID and ``namespace/name``.
            millicpu, horizon: the ask.
            row: the chosen node.
            available: millicores free there, not counting this pod's own charge.
            now, expires: seconds since the epoch.

        Returns:
            False, with no more charged for the pod, where the ask is more than is available; for a
            bound pod, whether the row is its own.
        """
        own = self.get(uid)
        if own is not None and own.stage is Stage.BOUND:
            return own.rows == (row,)
        if millicpu > available:
            self.release_hold(uid)
            return False
        binding = own is not None and own.stage is Stage.BINDING
        still_open = own.rows if own is not None and binding else ()
        rows = (*(other for other in still_open if other != row), row)
        self.release(uid)
        self._put(Entry(uid, pod, millicpu, horizon, rows, Stage.BINDING, now, expires, now))
        return True

    def settle(self, uid: str, row: int, now: float, expires: float) -> None:
        """A binding is known to be written: charge only its row, until the watch shows the pod."""
        entry = self.get(uid)
        if entry is not None and entry.stage is Stage.BINDING:
            self._replace(entry, replace(entry, rows=(row,), expires=expires, dated=now))

    def conclude(self, uid: str, now: float, expires: float) -> None:
        """No call waits for a binding any more: where its fate is open, it is late from then on."""
        entry = self.get(uid)
        if entry is not None and entry.expires == np.inf:
            self.extend(uid, now, expires)

    def extend(self, uid: str, now: float, expires: float) -> None:
        """Wait longer for what becomes of a binding."""
        entry = self.get(uid)
        if entry is not None and entry.stage is Stage.BINDING:
            self._store(replace(entry, expires=expires, dated=now))

    def withdraw(self, uid: str, before: Entry | None) -> None:
        """A binding was refused: charge what was open before it, or nothing.

        What was open waits until it is concluded: the clock may have been set since it was dated.
        """
        entry = self.get(uid)
        if entry is not None and entry.stage is Stage.BINDING:
            self._replace(entry, before and replace(before, expires=np.inf))

    def confirm(
        self, uid: str, pod: str, millicpu: int, horizon: int, row: int, made: float
    ) -> None:
        """Record what the API server shows: the pod is on the node. What is true is not refused.

        ``horizon`` and ``made`` count only for a pod without an entry: what was decided stays.
        """
        own = self.get(uid)
        if own is not None:
            if (own.stage, own.rows, own.millicpu) == (Stage.BOUND, (row,), millicpu):
                return
            made, horizon = own.made, own.horizon
            self.release(uid)
        expires = made + HORIZONS[horizon] * 3600
        self._put(Entry(uid, pod, millicpu, horizon, (row,), Stage.BOUND, made, expires, made))

    def release(self, uid: str) -> None:
        """Give back everything charged for a pod; unknown pods are ignored."""
        entry = self._open.pop(uid, None) or self._bound.pop(uid, None)
        if entry is not None:
            self._add(entry, -entry.millicpu)

    def release_hold(self, uid: str) -> None:
        """Give back a pod's hold, but no binding or promise."""
        entry = self.get(uid)
        if entry is not None and entry.stage is Stage.HELD:
            self.release(uid)

    def expire(self, now: float) -> list[Entry]:
        """Drop holds whose time has run out, and return them."""
        late = [entry for entry in self._late(now) if entry.stage is Stage.HELD]
        for entry in late:
            self.release(entry.uid)
        return late

    def late_bindings(self, now: float) -> list[Entry]:
        """Bindings of which something should have been heard by now."""
        return [entry for entry in self._late(now) if entry.stage is Stage.BINDING]

    def bound(self) -> tuple[str, ...]:
        """UIDs of the pods with bound promises."""
        return tuple(self._bound)

    def overdue(self, uids: Iterable[str], now: float) -> list[Entry]:
        """Those of these pods' bound promises whose horizon has passed."""
        found = map(self._bound.get, uids)
        return [entry for entry in found if entry is not None and entry.expires <= now]

    def renew(self, uid: str, now: float) -> None:
        """Promise a bound pod its millicores for its horizon once more."""
        entry = self._bound[uid]
        expires = now + HORIZONS[entry.horizon] * 3600
        self._store(replace(entry, expires=expires, dated=now))

    def promised(self, nodes: int) -> Ints:
        """Millicores promised on each of the first ``nodes`` rows: what is charged but not held."""
        self._grow(nodes)
        promised = self._charged[:nodes].copy()
        for entry in self._open.values():
            if entry.stage is Stage.HELD:
                promised[list(entry.rows)] -= entry.millicpu
        return promised

    def bound_millicpu(self) -> int:
        """Millicores promised to bound pods: all that is charged but for what is still open."""
        still_open = sum(entry.millicpu * len(entry.rows) for entry in self._open.values())
        return int(self._charged.sum()) - still_open

    def shift(
        self, seconds: float, stages: Collection[Stage], is_new: Callable[[float], bool]
    ) -> None:
        """Let entries of these stages expire so much later: their clock was set, or stood still.

        ``is_new``: whether a time was read from the clock after that; what was set then stays.
        """
        for entry in self.entries():
            if entry.stage in stages:
                made = entry.made if is_new(entry.made) else entry.made + seconds
                late = 0.0 if is_new(entry.dated) else seconds
                expires, dated = entry.expires + late, entry.dated + late
                self._store(replace(entry, made=made, expires=expires, dated=dated))

    def drop_row(self, row: int, pods: Iterable[str]) -> bool:
        """Forget what is held and bound on a node that is gone; whether any binding is left there.

        ``pods``: UIDs of all that are bound to the node.

        What is bound comes back with the node. Of a binding that is not settled nobody else knows,
        so it stays charged for the case that the node returns before the watch shows the pod.
        """
        bound = [entry for uid in pods if (entry := self._bound.get(uid)) is not None]
        here = [entry for entry in (*self._open.values(), *bound) if row in entry.rows]
        for entry in here:
            if entry.stage is not Stage.BINDING:
                rest = tuple(other for other in entry.rows if other != row)
                self._replace(entry, replace(entry, rows=rest) if rest else None)
        return any(entry.stage is Stage.BINDING for entry in here)

    def has_open(self, row: int) -> bool:
        """Whether anything is held or being bound on a row."""
        return any(row in entry.rows for entry in self._open.values())

    def _replace(self, old: Entry, new: Entry | None) -> None:
        self.release(old.uid)
        if new is not None:
            self._put(new)

    def _put(self, entry: Entry) -> None:
        self._grow(max(entry.rows) + 1)
        self._store(entry)
        self._add(entry, entry.millicpu)

    def _store(self, entry: Entry) -> None:
        (self._bound if entry.stage is Stage.BOUND else self._open)[entry.uid] = entry

    def _add(self, entry: Entry, millicpu: int) -> None:
        # Most entries have one row; indexing by a list costs NumPy twenty times as much for that.
        for row in entry.rows:
            self._charged[row] += millicpu

    def _late(self, now: float) -> list[Entry]:
        return [entry for entry in self._open.values() if entry.expires <= now]

    def _grow(self, nodes: int) -> None:
        if nodes > len(self._charged):
            more = np.zeros(max(nodes - len(self._charged), len(self._charged)), np.int64)
            self._charged = np.concatenate([self._charged, more])
