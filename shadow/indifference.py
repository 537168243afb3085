"""For which of a trace's pods the extender leaves kube-scheduler nothing to choose."""

from __future__ import annotations

import numpy as np

from models.arrays import Ints
from models.kube.preferences import may_be_spread, replicates
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
        workloads = [grid.workloads[at] for at in pods.grid[online].tolist()]
        spread = [may_be_spread(of, offline=False) and not replicates(of) for of in workloads]
        found[online] = ~np.array(spread, bool)
    if scenario.constraints is not None and pods.kind is not None:
        kinds = scenario.constraints.kinds
        found |= np.array([bool(kind.topology_spread) for kind in kinds])[pods.kind]
        found &= ~np.array([_prefers(kind) for kind in kinds])[pods.kind]
    chosen: list[bool] = found.tolist()
    return chosen


def owners(scenario: Scenario) -> list[str]:
    """For each pod, beside whose pods kube-scheduler spreads it by default; empty for nobody's.

    A trace does not say which ReplicaSet of a Deployment a pod is of: all pods of a workload count
    as siblings.
    """
    pods, grid, constraints = scenario.pods, scenario.grid, scenario.constraints
    found = [""] * len(pods)
    if grid is None:
        return found
    own = np.zeros(len(pods), bool)
    if constraints is not None and pods.kind is not None:
        own = np.array([bool(kind.topology_spread) for kind in constraints.kinds])[pods.kind]
    for pod in np.flatnonzero(~pods.offline & ~own).tolist():
        workload = grid.workloads[int(pods.grid[pod])]
        found[pod] = workload if replicates(workload) else ""
    return found


def shunned(constraints: Constraints | None) -> Ints:
    """Rows of the nodes that have a taint PreferNoSchedule."""
    taints = () if constraints is None else constraints.nodes.taints
    soft = [any(taint.effect == "PreferNoSchedule" for taint in of) for of in taints]
    rows: Ints = np.flatnonzero(soft)
    return rows


def _prefers(kind: PodKind) -> bool:
    anyway = any(spread.when_unsatisfiable == "ScheduleAnyway" for spread in kind.topology_spread)
    return anyway or bool(kind.node_affinity.preferred)
