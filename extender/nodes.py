"""The node arrays behind the state: one row a node, published as immutable views.

Only `extender.state.State` holds a table. Changing a node marks its row; the next view recomputes
the marked rows into fresh copies, so that views that were handed out stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TypeVar

import numpy as np

from extender.snapshot import Reason
from models.arrays import Bools, Floats, Floats32, Ints
from models.habits import HOURS
from models.kube.quantity import QuantityError, cores, whole
from models.kube.types import Metadata, Node, NodeStatus, version_of
from models.policy import HORIZONS, Policy
from models.reclaim import reclaimable_millicpu
from models.rolling import Forecast

_ROW = np.dtype(
    [
        ("allocatable", np.float64),  # cores
        ("ceiling", np.int64),  # millicores that are promised at most
        ("known", np.bool_),  # whether there is a forecast
        ("forecast", np.float64, (len(HORIZONS),)),  # cores, of the last refresh
        ("expected", np.float64, (len(HORIZONS),)),
        ("shape", np.float32, (HOURS,)),  # usage by hour of day as a share of the highest hour's
        ("usage", np.float64),  # cores, of the newest window
        ("newest", np.float64),  # seconds since the epoch: end of the newest usage window
        ("requested", np.int64),  # millicores that the node's pods request
        ("added", np.int64),  # millicores for pods that the forecast does not know
        ("raised", np.float32, (HOURS,)),  # cores by hour of day, for the same pods
        ("captured", np.int64),  # of the added millicores, those that the next forecast knows
        ("captured_raised", np.float32, (HOURS,)),
    ]
)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the extender keeps of a node's object.

    allocatable: cores. advertised: millicores of the reclaimed resource in the node's status, None
    where there is none. version: its resourceVersion, 0 where there is none.
    """

    name: str
    allocatable: float
    advertised: int | None
    version: int


@dataclass(frozen=True, slots=True)
class View:
    """The derived arrays of one moment; names, shapes and units as in `extender.snapshot.Snapshot`.

    newest: [N] seconds since the epoch. ``blocked`` and ``usage_age`` were computed at ``since``,
    for ``lost`` (the API server is silent). They are used until ``until``: before another node's
    usage becomes stale, and for a second at most.
    """

    id: int
    index: Mapping[str, int]
    allocatable: Floats
    forecast: Floats
    expected: Floats
    profile: Floats32
    usage: Floats
    free: Ints
    emptied: Ints
    newest: Floats
    blocked: Ints
    usage_age: Floats
    since: float = np.inf
    until: float = -np.inf
    lost: bool = False


def node_facts(node: Node, resource: str) -> NodeFacts:
    """Read a node; what is missing or malformed counts as nothing."""
    metadata, status = node.metadata or Metadata(), node.status or NodeStatus()
    allocatable = status.allocatable or {}
    amounts = {str((of or {}).get(resource, "")) for of in (allocatable, status.capacity)}
    try:
        cpu = cores(str(allocatable.get("cpu", "0")))
    except QuantityError:
        cpu = 0.0
    try:
        advertised = whole(amounts.pop()) if len(amounts) == 1 else None
    except QuantityError:
        advertised = None
    return NodeFacts(metadata.name or "", cpu, advertised, version_of(metadata))


class NodeTable:
    """Nodes by row; the row of a node that is gone is used again, once nothing needs it."""

    def __init__(self, advertise_share: float) -> None:
        self._share = advertise_share
        self._capacity = np.zeros(64, _ROW)
        self._rows = self._capacity[:0]
        self._index: dict[str, int] = {}
        self._published_index: dict[str, int] = {}
        self._vacant: list[int] = []
        self._parked: dict[str, int] = {}
        self._unadvertised: dict[str, int] = {}
        self._changed: set[int] = set()
        self._view: View | None = None
        self._policy: Policy | None = None

    def __len__(self) -> int:
        return len(self._index)

    def row(self, name: str) -> int | None:
        """The row of a node, or None."""
        return self._index.get(name)

    def last_row(self, name: str) -> int | None:
        """The row of a node, also of one that is gone and whose row is parked, or None."""
        return self._index.get(name, self._parked.get(name))

    def names(self) -> tuple[str, ...]:
        """The nodes' names."""
        return tuple(self._index)

    def capture(self) -> tuple[tuple[str, ...], Floats]:
        """Names and allocatable cores, [N], to forecast for, with all that was added so far."""
        self._rows["captured"] = self._rows["added"]
        self._rows["captured_raised"] = self._rows["raised"]
        rows = np.fromiter(self._index.values(), np.int64, len(self._index))
        return self.names(), self._rows["allocatable"][rows]

    def unadvertised(self) -> dict[str, int]:
        """Nodes whose status does not advertise their ceiling, with that ceiling."""
        return dict(self._unadvertised)

    def put(self, node: NodeFacts) -> int | None:
        """Add or change a node; returns its row where it is new."""
        known_row = self._index.get(node.name)
        row = self._take_row(node.name) if known_row is None else known_row
        ceiling = int(node.allocatable * 1000 * self._share + 1e-6)
        if known_row is None or self._rows["allocatable"][row] != node.allocatable:
            self._rows["allocatable"][row] = node.allocatable
            self._rows["ceiling"][row] = ceiling
            self._changed.add(row)
        if node.advertised == ceiling or ceiling == 0:
            self._unadvertised.pop(node.name, None)
        else:
            self._unadvertised[node.name] = ceiling
        return row if known_row is None else None

    def remove(self, name: str, park: bool) -> None:
        """Forget a node. ``park``: keep its row for its return, until `unpark` lets it go."""
        self._unadvertised.pop(name, None)
        if name not in self._index:
            return
        self._own_index()
        row = self._index.pop(name)
        self._rows[row] = np.zeros((), _ROW)
        if park:
            self._parked[name] = row
        else:
            self._vacant.append(row)
        self._changed.add(row)

    def unpark(self, needed: Callable[[int], bool]) -> None:
        """Let go of the rows of gone nodes that are needed no longer."""
        for name, row in list(self._parked.items()):
            if not needed(row):
                self._vacant.append(self._parked.pop(name))

    def request(self, row: int, millicpu: int, added: int, profile: Floats32) -> None:
        """A node's pods request this much more (or less), and are forecast to use ``added`` more.

        ``profile``: the latter by hour of day, [24] cores.
        """
        self._rows["requested"][row] += millicpu
        self._rows["added"][row] += added
        self._rows["raised"][row] += profile
        self._changed.add(row)

    def serve(
        self, names: Sequence[str], forecast: Forecast, newest: Floats, usage: Floats, shape: Floats
    ) -> None:
        """Replace all forecasts; what was added since the capture stays so. See `State.serve`."""
        found = np.fromiter(map(self._index.get, names, repeat(-1)), np.int64, len(names))
        positions = np.flatnonzero(found >= 0)
        rows = found[positions]
        self._rows["added"] -= self._rows["captured"]
        self._rows["raised"] -= self._rows["captured_raised"]
        self._rows["captured"] = 0
        self._rows["captured_raised"] = 0
        self._rows["forecast"][rows] = forecast.forecast[positions]
        self._rows["expected"][rows] = forecast.expected[positions]
        self._rows["newest"][rows] = newest[positions]
        self._rows["usage"][rows] = usage[positions]
        self._rows["shape"][rows] = shape[positions]
        self._rows["known"][rows] = np.isfinite(forecast.forecast[positions]).all(axis=1)
        self._changed.update(range(len(self._rows)))

    def view(self, policy: Policy, now: float, lost: bool) -> View:
        """The nodes as they are now."""
        view = self._view
        if view is None or self._changed or policy is not self._policy:
            view = self._recompute(view, policy)
        if lost != view.lost or not view.since <= now <= view.until:
            view = _block(view, self._rows["known"], policy.max_usage_age, now, lost)
        self._view, self._policy = view, policy
        return view

    def _recompute(self, old: View | None, policy: Policy) -> View:
        """Derive the changed rows' arrays again, into copies."""
        if old is None or len(old.free) != len(self._rows) or policy is not self._policy:
            rows = np.arange(len(self._rows))
            old = _empty(len(rows), 0 if old is None else old.id)
        else:
            rows = np.fromiter(self._changed, np.int64, len(self._changed))
        self._changed.clear()
        data = self._rows[rows]
        known, ceiling = data["known"][:, None], data["ceiling"]
        allocatable = data["allocatable"]
        added = data["added"][:, None] / 1000
        requested = data["requested"][:, None] / 1000
        forecast = np.where(known, data["forecast"] + added, requested)
        daily = np.where(known, data["forecast"][:, -1:], 0) * data["shape"] + data["raised"]
        profile = np.where(known, daily, requested).T.astype(np.float32)
        free = reclaimable_millicpu(allocatable, forecast, policy)
        emptied = reclaimable_millicpu(allocatable, np.zeros((len(rows), 1)), policy)[:, 0]
        self._published_index = self._index
        return View(
            id=old.id + 1,
            index=self._index,
            allocatable=_with(old.allocatable, rows, allocatable),
            forecast=_with(old.forecast, rows, forecast),
            expected=_with(
                old.expected, rows, np.where(known, data["expected"] + added, requested)
            ),
            profile=_with_columns(old.profile, rows, profile),
            usage=_with(old.usage, rows, data["usage"]),
            free=_with(old.free, rows, np.where(known, np.minimum(free, ceiling[:, None]), 0)),
            emptied=_with(old.emptied, rows, np.minimum(emptied, ceiling)),
            newest=_with(old.newest, rows, data["newest"]),
            blocked=old.blocked,
            usage_age=old.usage_age,
        )

    def _take_row(self, name: str) -> int:
        self._own_index()
        if name in self._parked:
            row = self._parked.pop(name)
        elif self._vacant:
            row = self._vacant.pop()
        else:
            row = len(self._rows)
            if row == len(self._capacity):
                self._capacity = np.concatenate([self._capacity, np.zeros_like(self._capacity)])
            self._rows = self._capacity[: row + 1]
        self._rows["newest"][row] = -np.inf
        self._rows["usage"][row] = np.nan
        self._index[name] = row
        return row

    def _own_index(self) -> None:
        """Copy the index before it changes, once after each view that handed it out."""
        if self._index is self._published_index:
            self._index = dict(self._index)


def _empty(nodes: int, number: int) -> View:
    """A view of no knowledge, to be filled."""
    cores, millicores = np.zeros(nodes), np.zeros(nodes, np.int64)
    by_horizon = np.zeros((nodes, len(HORIZONS)), order="F")  # a decision reads one column
    return View(
        id=number,
        index={},
        allocatable=cores,
        forecast=by_horizon,
        expected=by_horizon,
        profile=np.zeros((HOURS, nodes), np.float32),  # an hour's nodes lie together
        usage=cores,
        free=by_horizon.astype(np.int64, order="K"),
        emptied=millicores,
        newest=cores,
        blocked=millicores,
        usage_age=cores,
    )


_Array = TypeVar("_Array", Floats, Ints)


def _with(old: _Array, rows: Ints, values: _Array) -> _Array:
    """A copy of an array with some rows replaced, closed to writing."""
    new = old.copy(order="K")
    new[rows] = values
    new.flags.writeable = False
    return new


def _with_columns(old: Floats32, rows: Ints, values: Floats32) -> Floats32:
    """As `_with`, where nodes are columns."""
    new = old.copy()
    new[:, rows] = values
    new.flags.writeable = False
    return new


def _block(view: View, known: Bools, max_age: float, now: float, lost: bool) -> View:
    """Say for each node whether something forbids new promises, and until when that holds."""
    age = now - view.newest
    stale = age > max_age
    blocked = np.where(stale, Reason.STALE_USAGE, Reason.FITS)
    blocked = np.where(known, blocked, Reason.NO_FORECAST).astype(np.int64)
    if lost:
        blocked = np.full(len(blocked), Reason.DISCONNECTED, np.int64)
    blocked.flags.writeable = age.flags.writeable = False
    until = min(float(np.min(view.newest[~stale] + max_age, initial=np.inf)), now + 1.0)
    changed = not np.array_equal(blocked, view.blocked)
    return replace(
        view,
        id=view.id + changed,
        blocked=blocked,
        usage_age=age,
        since=now,
        until=until,
        lost=lost,
    )
