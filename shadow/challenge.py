"""What the challenger says where the champion decided: pure functions over recorded arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from msgspec import structs

from extender.recording import Recorded, Refresh
from extender.snapshot import Reason, Snapshot
from models.arrays import Floats, Floats32, Ints
from models.grid import WINDOW
from models.policy import HORIZONS, Policy
from models.reclaim import reclaimable_millicpu
from models.rolling import Forecast
from models.truth import LATE, MIN_OBSERVED, assume, highest_known, sum_known, watched
from models.usage_store import UsageStore
from shadow.live_state import Choice, Side, Versions


def challenged(recorded: Recorded, refresh: Refresh, own: Forecast, policy: Policy) -> Recorded:
    """The decision as the challenger would have met it.

    What pods that came after the refresh need was added to the champion's forecast; it is added to
    the challenger's too. What was measured is the same for both: the newest window's usage, and at
    which hours nodes use CPU. Resource locks withhold from either what they ask for.
    """
    snapshot, share = recorded.snapshot, refresh.advertise_share
    was = _by_row(snapshot, refresh.nodes, refresh.forecast)
    added = np.nan_to_num(np.maximum(snapshot.forecast - was, 0.0), nan=0.0)
    forecast = _by_row(snapshot, refresh.nodes, own.forecast) + added
    expected = _by_row(snapshot, refresh.nodes, own.expected) + added
    known = np.isfinite(forecast).all(axis=1)
    lifted = np.where(snapshot.blocked == Reason.NO_FORECAST, Reason.FITS, snapshot.blocked)
    changed = structs.replace(
        snapshot,
        # Where nothing is forecast, online pods see the node with its requests, as production did.
        forecast=np.where(known[:, None], forecast, snapshot.forecast),
        expected=np.where(known[:, None], expected, snapshot.expected),
        profile=_stretched(snapshot, np.where(known, forecast[:, -1], snapshot.forecast[:, -1])),
        blocked=np.where(known, lifted, Reason.NO_FORECAST).astype(np.int64),
    )
    return replace(recorded, snapshot=reclaiming(changed, policy, share), policy=policy)


def reclaiming(snapshot: Snapshot, policy: Policy, share: float) -> Snapshot:
    """The snapshot with what a policy reclaims of it; ``share`` of a node is promised at most."""
    known = (snapshot.blocked != Reason.NO_FORECAST)[:, None]
    ceiling = (snapshot.allocatable * 1000 * share + 1e-6).astype(np.int64)
    free = reclaimable_millicpu(snapshot.allocatable, snapshot.forecast, policy)
    free = np.where(known, np.minimum(free, ceiling[:, None]), 0)
    if snapshot.locked is not None:
        free = np.maximum(free - snapshot.locked, 0)
    nothing = np.zeros((len(ceiling), 1))
    emptied = reclaimable_millicpu(snapshot.allocatable, nothing, policy)[:, 0]
    return structs.replace(snapshot, free=free, emptied=np.minimum(emptied, ceiling))


def choice(
    recorded: Recorded, own: Recorded, champions: Sequence[str], trial: Versions, refresh: float
) -> tuple[Choice, float]:
    """What the challenger chooses, and the share of candidates that both sides have in common.

    Of equally good nodes it takes the first by name; ``champions`` are the champion's candidates.
    Nodes that the extender did not know have no figures, and are left out.
    """
    snapshot, verdicts = recorded.snapshot, own.again()
    names = {row: name for name, row in snapshot.index.items()}
    passed = [at for at in verdicts.passed.tolist() if own.rows[at] >= 0]
    scored = {names[int(own.rows[at])]: float(verdicts.score[at]) for at in passed}
    champions = [name for name in champions if name in snapshot.index]
    chosen = min(scored, key=lambda name: (-scored[name], name), default="")
    either = sorted({*scored, *champions})
    rows = snapshot.rows(either)
    policy = recorded.policy
    room = snapshot.allocatable * policy.ceiling - policy.system_reserve - snapshot.promised / 1000
    found = Choice(
        recorded.time,
        trial,
        refresh,
        HORIZONS[recorded.ask.horizon],
        tuple(either),
        tuple(room[rows].tolist()),
        chosen,
    )
    common = len(set(scored) & set(champions))
    return found, common / len(either) if either else 1.0


def resolved(time: float, hours: int, store: UsageStore) -> bool:
    """Whether usage up to the horizon's end is known, with time for what arrives late."""
    return store.time - LATE * WINDOW >= time + hours * 3600


def real_peaks(
    store: UsageStore,
    pods: Sequence[str],
    here: Collection[str],
    node: Ints,
    nodes: int,
    time: float,
    hours: int,
) -> Floats:
    """The highest window of nodes' pods within a horizon, [N] cores; NaN where it is not known.

    A pod that has ended meanwhile uses nothing from its last window on. One has ended that is no
    longer listed and was not observed where others were: an outage of the monitoring ends nobody.
    One that is listed and silent counts with its mean, as in recalibration.

    Args:
        store: knows the horizon's windows.
        pods: P names; node: [P] the row of each pod's node, of ``nodes`` rows.
        here: names of the pods that are still listed.
        time: seconds since the epoch at which the horizon begins, and its ``hours``.
    """
    begin = int(time) // WINDOW * WINDOW
    end = begin + hours * 3600
    past = store.take(pods, end)
    observed = past[:, -(hours * 3600 // WINDOW) :]
    starts = begin + WINDOW * np.arange(observed.shape[1])
    newest = store.newest(pods)
    listed = np.array([pod in here for pod in pods], bool)[:, None]
    late = (newest < store.fresh - LATE * WINDOW)[:, None]
    after = np.isnan(observed) & (starts >= newest[:, None]) & late
    usage = np.where(after & ~listed, np.float32(0), observed)
    index = np.arange(len(pods))
    assume(usage, after & listed & watched(observed, index, node, nodes), past)
    total = sum_known(usage, index, node, nodes)
    peak, known = highest_known(total)
    return np.where(known >= MIN_OBSERVED * usage.shape[1], peak, np.nan)


def judge(side: Side, forecast: Floats, truth: Floats, allocatable: Floats, policy: Policy) -> None:
    """Add one horizon of one refresh, [N] cores each; nodes without a forecast offer nothing."""
    known = np.isfinite(truth) & np.isfinite(forecast) & (allocatable > 0)
    forecast, truth, allocatable = forecast[known], truth[known], allocatable[known]
    above = truth > forecast
    side.judged += int(known.sum())
    side.violated += int(above.sum())
    side.severity += float(((truth - forecast) / allocatable)[above].sum())
    side.excess += float((forecast - truth)[~above].sum())
    free = reclaimable_millicpu(allocatable, forecast[:, None], policy)
    side.offered += float(free.sum()) / 1000


def _stretched(snapshot: Snapshot, daily: Floats) -> Floats32:
    """The nodes' profiles [24, N], whose highest hours become ``daily`` forecasts [N]."""
    highest = snapshot.profile.max(axis=0, initial=0)
    shape = np.where(highest > 0, snapshot.profile / np.where(highest > 0, highest, 1), 1)
    return (shape * daily).astype(np.float32)


def _by_row(snapshot: Snapshot, nodes: Sequence[str], values: Floats) -> Floats:
    """Values of named nodes at the snapshot's rows; NaN for rows without one."""
    placed = np.full(snapshot.forecast.shape, np.nan)
    rows = snapshot.rows(nodes)
    placed[rows[rows >= 0]] = values[rows >= 0]
    return placed
