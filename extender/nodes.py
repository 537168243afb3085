"""The node arrays behind the state: one row a node, published as read-only views.

Only `extender.state.State` holds a table. Changing a node marks its row, which the next view
recomputes; what a pod adds to its node is added at once. Both happen in place, as copying all
arrays costs more than a decision does, unless somebody keeps the newest view: then what is kept
stays as it is, and copies are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec import structs

from extender.node_index import NodeIndex
from extender.snapshot import Reason
from extender.spread import NO_ZONE
from models.arrays import Bools, Floats, Floats32, Ints
from models.constraints import ZONE
from models.habits import HOURS_A_DAY
from models.kube.quantity import QuantityError, cores, whole
from models.kube.types import Metadata, Node, NodeStatus, version_of
from models.policy import HORIZONS, Policy
from models.reclaim import reclaimable_millicpu
from models.rolling import Forecast

_Where: TypeAlias = Ints | slice

_ROW = np.dtype(
    [
        ("allocatable", np.float64),  # cores
        ("ceiling", np.int64),  # millicores that are promised at most
        ("zone", np.int64),  # its number, see `NodeTable`
        ("known", np.bool_),  # whether there is a forecast
        ("forecast", np.float64, (len(HORIZONS),)),  # cores, of the last refresh
        ("expected", np.float64, (len(HORIZONS),)),
        ("shape", np.float32, (HOURS_A_DAY,)),  # usage by hour as a share of the highest hour's
        ("usage", np.float64),  # cores, of the newest window
        ("newest", np.float64),  # seconds since the epoch: end of the newest usage window
        ("reclaimable", np.int64, (len(HORIZONS),)),  # millicores, by that forecast; 0 if not known
        ("requested", np.int64),  # millicores that the node's pods request
        ("added", np.int64),  # millicores for pods that the forecast does not know
        ("raised", np.float32, (HOURS_A_DAY,)),  # cores by hour of day, for the same pods
        ("captured", np.int64),  # of the added millicores, those that the next forecast knows
        ("captured_raised", np.float32, (HOURS_A_DAY,)),
    ]
)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the extender keeps of a node's object.

    allocatable: cores. advertised: millicores of the reclaimed resource in the node's status, None
    where there is none. shunned: whether it has a taint PreferNoSchedule. zone: by its label, None
    without it. version: its resourceVersion, 0 where there is none.
    """

    name: str
    allocatable: float
    advertised: int | None
    shunned: bool
    zone: str | None
    version: int


class _Arrays(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What is derived and written to as nodes and pods change.

    Names, shapes and units as in `extender.snapshot.Snapshot`; newest: [N] seconds since the epoch.
    """

    allocatable: Floats
    zone: Ints
    forecast: Floats
    expected: Floats
    profile: Floats32
    usage: Floats
    free: Ints
    emptied: Ints
    newest: Floats

    def copy(self) -> _Arrays:
        """The same in memory of its own."""
        return _Arrays(*(array.copy(order="K") for array in structs.astuple(self)))

    def closed(self) -> dict[str, Any]:
        """The same memory by name, closed to writing for whoever gets it."""
        views: dict[str, Any] = {name: of.view() for name, of in structs.asdict(self).items()}
        for view in views.values():
            view.flags.writeable = False
        return views


class View(_Arrays, frozen=True, eq=False, gc=False):
    """The derived arrays of one moment, closed to writing.

    ``blocked`` and ``usage_age`` were computed at ``since``, for ``lost`` (the API server is
    silent). They are used until ``until``: before another node's usage becomes stale, and for a
    second at most.
    """

    id: int
    index: NodeIndex
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
    taints = (node.spec and node.spec.taints) or ()
    shunned = any(taint.effect == "PreferNoSchedule" for taint in taints)
    zone = (metadata.labels or {}).get(ZONE)
    return NodeFacts(metadata.name or "", cpu, advertised, shunned, zone, version_of(metadata))


class NodeTable:
    """Nodes by row; the row of a node that is gone is used again, once nothing needs it."""

    def __init__(self, advertise_share: float) -> None:
        self._share = advertise_share
        self._capacity = np.zeros(64, _ROW)
        self._rows = self._capacity[:0]
        self._index = NodeIndex()
        self._published_index = NodeIndex()
        self._vacant: list[int] = []
        self._parked: dict[str, int] = {}
        self._unadvertised: dict[str, int] = {}
        self._shunned: set[int] = set()
        self._zones: dict[str | None, int] = {None: NO_ZONE}  # numbers, in order of appearance
        self._changed: set[int] = set()
        self._raised = False  # whether pods have added anything since the last view
        self._arrays = _empty(0)
        self._view = View(
            **self._arrays.closed(),
            id=0,
            index=self._index,
            blocked=np.zeros(0, np.int64),
            usage_age=np.zeros(0),
        )
        self._kept = False
        self._policy: Policy | None = None  # None where all has to be computed anew

    def __len__(self) -> int:
        return len(self._index)

    def row(self, name: str) -> int | None:
        """The row of a node, or None."""
        return self._index.get(name)

    def last_row(self, name: str) -> int | None:
        """The row of a node, also of one that is gone and whose row is parked, or None."""
        return self._index.get(name, self._parked.get(name))

    @property
    def shunned(self) -> Collection[int]:
        """Rows of nodes with a taint PreferNoSchedule: where pods should rather not run."""
        return self._shunned

    @property
    def zoned(self) -> bool:
        """Whether any node has ever had a zone."""
        return len(self._zones) > 1

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
        if node.shunned:
            self._shunned.add(row)
        else:
            self._shunned.discard(row)
        ceiling = int(node.allocatable * 1000 * self._share + 1e-6)
        if known_row is None or self._rows["allocatable"][row] != node.allocatable:
            self._rows["allocatable"][row] = node.allocatable
            self._rows["ceiling"][row] = ceiling
            self._changed.add(row)
        zone = self._zones.setdefault(node.zone, len(self._zones) - 1)
        if self._rows["zone"][row] != zone:
            self._rows["zone"][row] = zone
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

    def request(self, row: int, millicpu: int, added: int, profile: Floats32 | float) -> None:
        """A node's pods request this much more (or less), and are forecast to use ``added`` more.

        ``profile``: the latter by hour of day, [24] cores, or a number where it is always the same.
        """
        rows = self._rows
        rows["requested"][row] += millicpu
        if added:
            rows["added"][row] += added
            rows["raised"][row] += profile
        if not rows["known"][row]:
            self._changed.add(row)
        elif added and row < len(self._arrays.free):  # a row that no view has had comes whole
            self._raise(row, added / 1000, profile)

    def _raise(self, row: int, cores: float, profile: Floats32 | float) -> None:
        """Add to the peaks of a node with a forecast, at every horizon; less can be promised."""
        self._own_arrays()
        arrays, data = self._arrays, self._rows[row]
        arrays.forecast[row] += cores
        arrays.expected[row] += cores
        arrays.profile[:, row] += profile
        free = data["reclaimable"] - data["added"]
        np.maximum(free, 0, out=free)
        arrays.free[row] = np.minimum(free, data["ceiling"], out=free)
        self._raised = True

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
        self._policy = None

    def view(self, policy: Policy, now: float, lost: bool, keep: bool = False) -> View:
        """The nodes as they are now; it stays so where ``keep``, else until something changes."""
        view = self._view
        if len(view.free) != len(self._rows) or policy is not self._policy:
            self._arrays = _empty(len(self._rows))
            self._derive(np.s_[:], policy)
            view = structs.replace(
                view, id=view.id + 1, **self._arrays.closed(), **self._unblocked()
            )
            self._kept = False
        elif self._changed:
            view = self._own_arrays()
            self._derive(np.fromiter(self._changed, np.int64, len(self._changed)), policy)
            view = structs.replace(view, id=view.id + 1, **self._unblocked())
        elif self._raised:
            view = structs.replace(view, id=view.id + 1)
        self._changed.clear()
        self._raised = False
        if lost != view.lost or not view.since <= now <= view.until:
            view = _block(view, self._rows["known"], policy.max_usage_age, now, lost)
        # The next change may write to whatever arrays nobody has kept.
        self._kept = keep or self._kept
        self._view, self._policy = view, policy
        return view

    def _own_arrays(self) -> View:
        """Copy the arrays before they change, once after a view that somebody keeps."""
        if self._kept:
            self._arrays = self._arrays.copy()
            self._view = structs.replace(self._view, **self._arrays.closed())
            self._kept = False
        return self._view

    def _unblocked(self) -> dict[str, Any]:
        """What changes in a view when nodes do: their index, and how long ``blocked`` holds."""
        self._published_index = self._index
        return {"index": self._index, "since": np.inf, "until": -np.inf}

    def _derive(self, rows: _Where, policy: Policy) -> None:
        """Compute some rows anew."""
        data, arrays = self._rows[rows], self._arrays
        allocatable, known = data["allocatable"], data["known"]
        emptied = reclaimable_millicpu(allocatable, np.zeros((len(data), 1)), policy)[:, 0]
        reclaimable = reclaimable_millicpu(allocatable, data["forecast"], policy)
        reclaimable[~known] = 0
        self._rows["reclaimable"][rows] = reclaimable
        arrays.allocatable[rows] = allocatable
        arrays.zone[rows] = data["zone"]
        arrays.usage[rows] = data["usage"]
        arrays.emptied[rows] = np.minimum(emptied, data["ceiling"])
        arrays.newest[rows] = data["newest"]
        # What pods add raises the peak of every horizon alike.
        added = data["added"][:, None] / 1000
        forecast, expected = data["forecast"] + added, data["expected"] + added
        profile = data["forecast"][:, -1:] * data["shape"] + data["raised"]
        requested = data["requested"][~known, None] / 1000
        forecast[~known] = expected[~known] = profile[~known] = requested
        arrays.forecast[rows] = forecast
        arrays.expected[rows] = expected
        arrays.profile[:, rows] = profile.T
        free = np.maximum(reclaimable - data["added"][:, None], 0)
        arrays.free[rows] = np.minimum(free, data["ceiling"][:, None])

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
            self._index = NodeIndex(self._index)


def _empty(nodes: int) -> _Arrays:
    """Arrays to be filled."""
    cores = partial(np.zeros, (nodes, len(HORIZONS)), np.float64, "F")  # a decision reads a column
    return _Arrays(
        allocatable=np.zeros(nodes),
        zone=np.full(nodes, NO_ZONE),
        forecast=cores(),
        expected=cores(),
        profile=np.zeros((HOURS_A_DAY, nodes), np.float32),  # an hour's nodes lie together
        usage=np.zeros(nodes),
        free=np.zeros((nodes, len(HORIZONS)), np.int64, "F"),
        emptied=np.zeros(nodes, np.int64),
        newest=np.zeros(nodes),
    )


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
    return structs.replace(
        view,
        id=view.id + changed,
        blocked=blocked,
        usage_age=age,
        since=now,
        until=until,
        lost=lost,
    )
