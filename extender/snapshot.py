"""The immutable view on which one request is decided."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from extender.node_index import NodeIndex
from models.arrays import Floats, Floats32, Ints


class Reason(IntEnum):
    """Why a node was, or was not, offered to a pod."""

    FITS = 0
    RANKED_OUT = 1
    """It fits, but enough better nodes do too."""
    NOT_ENOUGH = 2
    """The ask is more than is reclaimable now; it might fit if offline pods left."""
    TOO_LARGE = 3
    """The ask is more than the node could give with nothing on it."""
    UNKNOWN_NODE = 4
    """No watch event has shown this node yet."""
    STALE_USAGE = 5
    """The node's usage data is too old to promise on."""
    NO_FORECAST = 6
    """The node has no forecast yet, or no model serves."""
    DISCONNECTED = 7
    """The watch on the API server has been silent for too long."""


class Snapshot(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Node arrays of one moment; N nodes, H horizons of `models.policy.HORIZONS`.

    Fields, with shapes and units:
        id: increases by one whenever free or blocked change.
        time: seconds since the epoch at which it was taken.
        index: node name -> row.
        allocatable: [N] cores.
        forecast: [N, H] cores, the peak exceeded with at most the policy's probability.
        expected: [N, H] cores, the peak that is expected; forecast - expected is the uncertainty.
        profile: [24, N] cores by hour of day (UTC); its highest hour is the forecast for a day.
        usage: [N] cores that the node's online pods used in the newest window, NaN where not known.
        free: [N, H] millicores reclaimable before promises, without what resource locks withhold.
        emptied: [N] millicores that could be promised with nothing on the node.
        promised: [N] millicores held and promised to pods other than the one being decided. Every
            live promise overlaps every horizon that starts now, so one column serves all horizons.
        blocked: [N] Reason that forbids new promises, or FITS.
        usage_age: [N] seconds since the newest usage window ended.
        model_version: what made the forecast.
        zone: [N] number of each node's zone, `extender.spread.NO_ZONE` for none; None where no node
            has one.
        locked: [N, H] millicores that resource locks ask for, whether they are there or not; None
            where there are no locks. Whoever forecasts otherwise has to withhold the same.
    """

    id: int
    time: float
    index: NodeIndex
    allocatable: Floats
    forecast: Floats
    expected: Floats
    profile: Floats32
    usage: Floats
    free: Ints
    emptied: Ints
    promised: Ints
    blocked: Ints
    usage_age: Floats
    model_version: str
    locked: Ints | None = None
    zone: Ints | None = None

    def rows(self, names: Sequence[str]) -> Ints:
        """Rows of node names, -1 for a name that is not known."""
        return self.index.rows(names)
