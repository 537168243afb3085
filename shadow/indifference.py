"""For which of a trace's pods the extender leaves kube-scheduler nothing to choose."""

from __future__ import annotations

import numpy as np

from models.arrays import Ints
from models.kube.preferences import is_spread
from shadow.constraints import Constraints, PodKind
from shadow.options import ReplayOptions
from shadow.scenario import Scenario


def indifferent(scenario: Scenario, options: ReplayOptions) -> list[bool]:
    """For each pod, whether kube-scheduler is taken to have no preference about its node.

    A trace does not name the owners of offline pods; they are taken to be Jobs.
    """
    pods, grid = scenario.pods, scenario.grid
    if not options.choose_alone:
        return [False] * len(pods)
    found = pods.offline.copy()
    if grid is not None:
        online = np.flatnonzero(~pods.offline)
        spread = [is_spread(grid.workloads[at], offline=False) for at in pods.grid[online].tolist()]
        found[online] = ~np.array(spread, bool)
    if scenario.constraints is not None and pods.kind is not None:
        prefers = [_prefers(kind) for kind in scenario.constraints.kinds]
        found &= ~np.array(prefers, bool)[pods.kind]
    chosen: list[bool] = found.tolist()
    return chosen


def shunned(constraints: Constraints | None) -> Ints:
    """Rows of the nodes that have a taint PreferNoSchedule."""
    taints = () if constraints is None else constraints.nodes.taints
    soft = [any(taint.effect == "PreferNoSchedule" for taint in of) for of in taints]
    rows: Ints = np.flatnonzero(soft)
    return rows


def _prefers(kind: PodKind) -> bool:
    anyway = any(spread.when_unsatisfiable == "ScheduleAnyway" for spread in kind.topology_spread)
    return anyway or bool(kind.node_affinity.preferred)
