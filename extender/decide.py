"""Filter and prioritize as pure functions over arrays.

The server, the replay and the live shadow call these same functions. They see rows of a snapshot,
an ask and a policy; never pods, HTTP or Kubernetes objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from extender.snapshot import Reason, Snapshot
from extender.spread import MAX_NODE_SCORE, default_spread
from models.arrays import Bools, Floats, Floats32, Ints
from models.policy import HORIZONS, Policy

MAX_SCORE = 10
_LEAST_SPAN = 0.25
"""Share of the weights below which differences between nodes are not stretched any further."""

# Plain integers: NumPy takes microseconds to look through an enum.
_FITS, _RANKED_OUT = int(Reason.FITS), int(Reason.RANKED_OUT)
_NOT_ENOUGH, _TOO_LARGE = int(Reason.NOT_ENOUGH), int(Reason.TOO_LARGE)
_UNKNOWN_NODE = int(Reason.UNKNOWN_NODE)


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a pod wants: millicores for a horizon (index into HORIZONS).

    An offline pod's millicpu is its ask for the reclaimed resource; an online pod's is its
    ordinary request, used for ranking only.
    """

    millicpu: int
    horizon: int
    offline: bool


@dataclass(frozen=True, slots=True)
class Habit:
    """What is known of a pod's workload.

    profile: [24] cores that the pod will use at its highest in each hour of the day, None where
    nothing is known: then it is flat at its request. home: row of the node that a predecessor left
    and that the pod would like to have, -1 for none.
    """

    profile: Floats32 | None = None
    home: int = -1


NOTHING_KNOWN = Habit()


@dataclass(frozen=True, slots=True)
class Alone:
    """What counts where a pod may be left one node, so that kube-scheduler scores none.

    passed_over: rows that are not chosen. replicas: [S] rows of the nodes on which its siblings
    run, one for each pod, where kube-scheduler would spread them.
    """

    passed_over: Ints
    replicas: Ints


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The outcome for each of K offered nodes, in the order in which they were offered.

    reason: [K] of `Reason`; score: [K], higher is better, NaN-free; available: [K] millicores that
    the pod could have been promised (0 for unknown nodes). spread: what the node that was left
    alone was worth beyond its score, for how few of the pod's siblings are there. hot: how many of
    those that are ranked out are so for being hot.
    """

    reason: Ints
    score: Floats
    available: Ints
    spread: float = 0.0
    hot: int = 0

    @property
    def passed(self) -> Ints:
        """Positions of the nodes that are offered to kube-scheduler."""
        positions: Ints = (self.reason == _FITS).nonzero()[0]
        return positions


def decide(
    snapshot: Snapshot,
    rows: Ints,
    ask: Ask,
    policy: Policy,
    candidates: int,
    habit: Habit = NOTHING_KNOWN,
    alone: Alone | None = None,
) -> Verdicts:
    """Which of the offered nodes may take the pod, narrowed to the best ``candidates``.

    An online pod is never rejected, only ranked: its CPU is kube-scheduler's own business. Hot
    nodes are ranked out as long as a known node that is not hot remains. Where there is more to
    narrow and kube-scheduler has nothing to choose by, the best node is left alone, so that
    kube-scheduler need not rank any.

    Args:
        snapshot: what is known.
        rows: [K] rows of the offered nodes, -1 for unknown ones.
        ask: what the pod wants.
        policy: thresholds and weights.
        candidates: how many nodes to return at most; 0 for all.
        habit: what is known of its workload.
        alone: by what the best one is chosen; None where kube-scheduler is to choose.
    """
    if len(snapshot.promised) == 0:
        reason = np.full(len(rows), _UNKNOWN_NODE if ask.offline else _FITS, np.int64)
        score, available = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
        _narrow(reason, score, candidates, None)
        return Verdicts(reason, score, available)
    missing = _missing(rows)
    available = _available(snapshot, rows, ask, missing)
    size, usage = _sizes(snapshot, rows), snapshot.usage.take(rows)
    hot = 0
    if ask.offline:
        reason = _offline_reasons(snapshot, rows, ask, available, missing)
        score = _offline_scores(snapshot, rows, ask, policy, available, size, usage)
    else:
        daily, peak = _peaks(snapshot, rows, ask, habit)
        reason, hot = _online_reasons(policy, peak, size, usage, missing)
        score = _online_scores(policy, daily, peak, size)
    _finish(score, rows, policy, habit, missing)
    choose = None
    if alone is not None:
        choose = partial(_choose, snapshot, rows, score, policy, alone, habit.home)
    spread = _narrow(reason, score, candidates, choose)
    return Verdicts(reason, score, available, spread, hot)


def room(snapshot: Snapshot, rows: Ints, ask: Ask) -> tuple[Ints, Ints]:
    """Whether an offline pod may be promised nodes, whichever is best: reason and available, [K].

    Both as in `Verdicts`; no node is ranked out.
    """
    if len(snapshot.promised) == 0:
        return np.full(len(rows), _UNKNOWN_NODE), np.zeros(len(rows), np.int64)
    missing = _missing(rows)
    available = _available(snapshot, rows, ask, missing)
    return _offline_reasons(snapshot, rows, ask, available, missing), available


def scores(
    snapshot: Snapshot, rows: Ints, ask: Ask, policy: Policy, habit: Habit = NOTHING_KNOWN
) -> Floats:
    """How good a home each offered node is, [K]; unknown nodes and unknown figures score 0.

    Offline: the share of the node that stays reclaimable, how narrow its forecast is, and whether
    it is hot now. Online: the share of the node that is left free by its predicted daily peak and
    the pod's request, and by what both use at the hour when they peak together. Either: whether a
    predecessor ran there.
    """
    if len(snapshot.promised) == 0:
        return np.zeros(len(rows))
    missing = _missing(rows)
    size = _sizes(snapshot, rows)
    if ask.offline:
        available = _available(snapshot, rows, ask, missing)
        usage = snapshot.usage.take(rows)
        score = _offline_scores(snapshot, rows, ask, policy, available, size, usage)
    else:
        score = _online_scores(policy, *_peaks(snapshot, rows, ask, habit), size)
    _finish(score, rows, policy, habit, missing)
    return score


def to_wire_scores(score: Floats, policy: Policy, *, offline: bool) -> list[int]:
    """Stretch scores over the whole 0..10 range; the best becomes 10.

    Where all lie within a quarter of what the weights tell a full node from an empty one by, they
    are stretched no further: noise would else outweigh kube-scheduler's scores, its spread of
    replicas among them, as its configuration multiplies these by up to 40.
    """
    if len(score) == 0:
        return []
    if offline:
        weights = policy.slack_weight + policy.certainty_weight
    else:
        weights = policy.balance_weight + policy.peak_hour_weight
    high = float(score.max())
    span = max(high - float(score.min()), _LEAST_SPAN * weights, 1e-12)
    below: list[int] = np.rint((high - score) / span * MAX_SCORE).astype(np.int64).tolist()
    return [MAX_SCORE - each for each in below]


def explain(reason: Reason, ask: Ask, policy: Policy) -> str:
    """The failure text of a reason.

    kube-scheduler counts nodes by identical text, so it holds the cause and the pod's own ask,
    never a node's figures.
    """
    hours = HORIZONS[ask.horizon]
    match reason:
        case Reason.NOT_ENOUGH:
            return f"asks {ask.millicpu}m for {hours} h, more than is reclaimable"
        case Reason.TOO_LARGE:
            return f"asks {ask.millicpu}m, more than the node could give if it were empty"
        case Reason.UNKNOWN_NODE:
            return "node is not known to the extender yet"
        case Reason.STALE_USAGE:
            return f"usage data is older than {policy.max_usage_age:g} s, nothing new is promised"
        case Reason.NO_FORECAST:
            return "no usage forecast, nothing is promised"
        case Reason.DISCONNECTED:
            return "the extender has lost the API server, nothing new is promised"
        case Reason.FITS | Reason.RANKED_OUT:
            return ""


# Most calls have 500 nodes at most, so what costs is how many operations of NumPy there are, and
# not how large. What holds for all nodes most of the time (known, finite, not hot) is asked before
# it is worked out for each; count_nonzero tells in a tenth of the time that any() and all() take.


def _missing(rows: Ints) -> Bools | None:
    """Which of the offered nodes are unknown, [K]; None where all are known."""
    missing: Bools = rows < 0
    return missing if np.count_nonzero(missing) else None


def _available(snapshot: Snapshot, rows: Ints, ask: Ask, missing: Bools | None) -> Ints:
    """Millicores that the pod could be promised on each offered node, [K], never below 0."""
    left = snapshot.free[:, ask.horizon].take(rows)
    left -= snapshot.promised.take(rows)
    np.maximum(left, 0, out=left)
    if missing is not None:
        left[missing] = 0
    return left


def _sizes(snapshot: Snapshot, rows: Ints) -> Floats:
    """Allocatable cores to divide by, [K], above 0."""
    size = snapshot.allocatable.take(rows)
    np.maximum(size, 1e-9, out=size)
    return size


def _peaks(snapshot: Snapshot, rows: Ints, ask: Ask, habit: Habit) -> tuple[Floats, Floats]:
    """Cores that each node and the pod use: their daily peaks added, and when they peak together.

    Both are [K], and NaN where that is not known.
    """
    daily = snapshot.forecast[:, -1].take(rows)
    daily += ask.millicpu / 1000
    _forget_infinite(daily)
    if habit.profile is None:
        return daily, daily
    together = snapshot.profile.take(rows, axis=1)
    together += habit.profile[:, None]
    peak = together.max(axis=0).astype(np.float64)
    _forget_infinite(peak)
    return daily, peak


def _forget_infinite(cores: Floats) -> None:
    finite = np.isfinite(cores)
    if np.count_nonzero(finite) < len(cores):
        cores[~finite] = np.nan


def _offline_scores(
    snapshot: Snapshot,
    rows: Ints,
    ask: Ask,
    policy: Policy,
    available: Ints,
    size: Floats,
    usage: Floats,
) -> Floats:
    doubt = snapshot.forecast[:, ask.horizon].take(rows)
    doubt -= snapshot.expected[:, ask.horizon].take(rows)
    doubt *= policy.certainty_weight
    score = (available - ask.millicpu) * np.float64(policy.slack_weight / 1000)
    score -= doubt
    score /= size
    score += policy.certainty_weight
    hot = usage > size * policy.hot_share
    if np.count_nonzero(hot):
        score[hot] -= policy.hot_weight
    return score


def _online_scores(policy: Policy, daily: Floats, peak: Floats, size: Floats) -> Floats:
    taken = daily * policy.balance_weight
    taken += peak * policy.peak_hour_weight
    taken /= size
    score: Floats = policy.balance_weight + policy.peak_hour_weight - taken
    return score


def _finish(score: Floats, rows: Ints, policy: Policy, habit: Habit, missing: Bools | None) -> None:
    """Score 0 where a node or its figures are unknown; raise the one that a predecessor left."""
    finite = np.isfinite(score)
    if np.count_nonzero(finite) < len(score):
        score[~finite] = 0.0
    if missing is not None:
        score[missing] = 0.0
    if habit.home >= 0:
        score[rows == habit.home] += policy.rebuild_weight


def _online_reasons(
    policy: Policy, peak: Floats, size: Floats, usage: Floats, missing: Bools | None
) -> tuple[Ints, int]:
    """All fit; hot nodes are ranked out as long as a known node that is not hot remains.

    Beside the reasons, [K]: how many those are.
    """
    reason = np.full(len(peak), _FITS, np.int64)
    limit = size * policy.hot_share
    hot: Bools = peak > limit
    hot |= usage > limit
    if missing is not None:
        hot &= ~missing
    if count := np.count_nonzero(hot):
        cool = np.isfinite(peak) & ~hot
        if missing is not None:
            cool &= ~missing
        if np.count_nonzero(cool):
            reason[hot] = _RANKED_OUT
            return reason, int(count)
    return reason, 0


def _offline_reasons(
    snapshot: Snapshot, rows: Ints, ask: Ask, available: Ints, missing: Bools | None
) -> Ints:
    fits: Bools = available >= ask.millicpu
    all_fit = np.count_nonzero(fits) == len(fits)
    reason = np.full(len(rows), _FITS, np.int64)
    if not all_fit:
        reason[~fits] = _NOT_ENOUGH
    # A pod that asks for nothing takes nothing, so nothing but an unknown node stands in its way.
    if ask.millicpu > 0:
        blocked = snapshot.blocked.take(rows)
        if np.count_nonzero(blocked):
            np.copyto(reason, blocked, where=blocked != _FITS)
        if not all_fit:
            reason[snapshot.emptied.take(rows) < ask.millicpu] = _TOO_LARGE
    if missing is not None:
        reason[missing] = _UNKNOWN_NODE
    return reason


def _narrow(
    reason: Ints,
    score: Floats,
    candidates: int,
    choose: Callable[[Ints], tuple[int, float] | None] | None,
) -> float:
    """Mark all but the best of the fitting nodes as ranked out, where they are too many.

    ``choose``: of their positions the one that is left alone and what its spread is worth, which is
    returned; or None where several are left.
    """
    fits = (reason == _FITS).nonzero()[0]
    if not 0 < candidates < len(fits):
        return 0.0
    left: Ints | int
    if choose is not None and (chosen := choose(fits)) is not None:
        left, spread = chosen
    else:
        left = fits[score.take(fits).argpartition(len(fits) - candidates)[-candidates:]]
        spread = 0.0
    reason[fits] = _RANKED_OUT
    reason[left] = _FITS
    return spread


def _choose(
    snapshot: Snapshot,
    rows: Ints,
    score: Floats,
    policy: Policy,
    alone: Alone,
    home: int,
    fits: Ints,
) -> tuple[int, float] | None:
    """The position of the node that is left alone, and what its spread is worth.

    Beside their rank, replicas are spread as kube-scheduler would, were it left these. Its other
    scores count for nothing. A spread sends no pod to a hot node, nor away from its home. None
    where all that fit are passed over.
    """
    avoided = np.zeros(len(snapshot.promised) + 1, np.bool_)
    avoided[alone.passed_over] = True
    avoided[-1] = True  # for row -1: of an unknown node nothing speaks for it
    eligible = fits[~avoided.take(rows.take(fits))]
    if len(eligible) == 0:
        return None
    best = int(eligible[score.take(eligible).argmax()])
    if len(alone.replicas) == 0 or (home >= 0 and rows[best] == home):
        return best, 0.0
    cool = eligible[~_hot(snapshot, rows.take(eligible), policy)]
    eligible = cool if len(cool) else eligible
    spread = default_spread(rows.take(eligible), alone.replicas, snapshot.zone)
    worth = spread * (policy.spread_weight / MAX_NODE_SCORE)
    best = int((score.take(eligible) + worth).argmax())
    return int(eligible[best]), float(worth[best])


def _hot(snapshot: Snapshot, rows: Ints, policy: Policy) -> Bools:
    """Which nodes are hot by their usage now; not those whose usage is not known."""
    hot: Bools = snapshot.usage.take(rows) > _sizes(snapshot, rows) * policy.hot_share
    return hot
