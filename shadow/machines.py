"""How many machines the same work needs, with reclaiming and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import msgspec
import numpy as np

from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.options import ReplayOptions
from shadow.replay import Progress, replay_scenario
from shadow.result import ReplayResult, State
from shadow.scenario import GIB, Scenario, build_scenario, equal_fleet, highest_sum
from shadow.series import node_series

TOLERANCE = 0.02
"""Share by which the offline core-hours may fall short, or the mean wait be longer."""

MOST_GROWTH = 64
"""Give up where this many times the machines do not do the work either."""


@dataclass(frozen=True, slots=True)
class Work:
    """What has to get done: core-hours that offline pods ran, and their mean wait in seconds."""

    offline_core_hours: float
    wait_mean_s: float


@dataclass(frozen=True, slots=True)
class Machines:
    """The fewest machines of one kind on which the same online pods run and the same work is done.

    Fields:
        cpu, memory: of each machine, cores and GiB.
        size: times the mean of the trace's nodes; above 1 where the largest online pod needs it.
        present: how many of them make up the trace's nodes (or the options').
        needed: with reclaiming. without: where offline asks count as ordinary requests. None where
            not even `MOST_GROWTH` times as many do the work, as where pods that are displaced again
            and again ran for longer than they would on any number of machines.
        work: what both get done.
    """

    cpu: float
    memory: float
    size: float
    present: int
    needed: int | None
    without: int | None
    work: Work

    @property
    def saved(self) -> int | None:
        """Machines that need not be bought."""
        if self.needed is None or self.without is None:
            return None
        return self.without - self.needed


def machines(
    trace: Trace,
    model: Model | None,
    *,
    policy: Policy | None = None,
    options: ReplayOptions | None = None,
    progress: Progress | None = None,
) -> Machines:
    """Count the machines for the work that reclaiming gets done on the trace's own number of them.

    Held equal on both sides: the kind of machine (the mean of the trace's nodes over time, or a
    larger one of the same shape where the largest online pod needs it, and as many fewer), the
    online pods with their usage, the stream of offline pods, kube-scheduler, seed and period.
    Online pods are placed anew, largest first, and each must find a node as soon as it arrives. The
    work is what the replay with reclaiming does on the present number of machines; every other
    number must run at least as many offline core-hours (less `TOLERANCE`), with a mean wait no
    longer (plus `TOLERANCE` and a minute). CPU that online pods needed themselves counts for
    nobody.

    Raises:
        TraceError: as `shadow.replay.replay`.
    """
    options = options or ReplayOptions()
    scenario, size = _anywhere(build_scenario(trace, options))
    attempts = _Attempts(scenario, model, policy, options, progress or (lambda _: None))
    present = len(scenario.fleet)
    work = attempts.work(present, reclaim=True)
    return Machines(
        cpu=int(scenario.fleet.millicpu[0]) / 1000,
        memory=int(scenario.fleet.memory[0]) / GIB,
        size=size,
        present=present,
        needed=attempts.fewest(work, reclaim=True),
        without=attempts.fewest(work, reclaim=False),
        work=work,
    )


def _anywhere(scenario: Scenario) -> tuple[Scenario, float]:
    """The same on equal machines that are there all the time, with no pod tied to any of them.

    There are as many as the most of the trace's nodes that are there together, of their mean size.
    Where an online pod does not fit into that, they are larger, and as many fewer: by how much is
    the second answer, 1 where they are not.
    """
    fleet, pods = scenario.fleet, scenario.pods
    ones = np.ones(len(fleet), np.int64)
    born = scenario.start * ones if fleet.joined is None else fleet.joined
    gone = scenario.stop * ones if fleet.left is None else fleet.left
    count = round(
        highest_sum(np.maximum(born, scenario.start), np.minimum(gone, scenario.stop), ones)
    )
    there = fleet.presence(scenario.start, scenario.stop - scenario.start, 1)[:, 0]
    millicpu = float(np.average(fleet.millicpu, weights=there))
    memory = float(np.average(fleet.memory, weights=there))
    online = ~pods.offline
    size = max(
        1.0,
        float(pods.millicpu[online].max(initial=0)) / millicpu,
        float(pods.memory[online].max(initial=0)) / memory,
    )
    larger = replace(
        scenario,
        fleet=equal_fleet(ceil(count / size), size * millicpu / 1000, size * memory / GIB),
        pods=replace(pods, node=np.full(len(pods), -1, np.int64), kind=None),
        constraints=None,
    )
    return larger, size


class _Attempts:
    """Replays of one scenario on different numbers of machines."""

    def __init__(
        self,
        scenario: Scenario,
        model: Model | None,
        policy: Policy | None,
        options: ReplayOptions,
        progress: Progress,
    ) -> None:
        self._scenario, self._model, self._policy = scenario, model, policy
        self._options, self._progress = options, progress
        self._results: dict[tuple[int, bool], ReplayResult] = {}

    def work(self, count: int, *, reclaim: bool) -> Work:
        """What gets done on a number of machines."""
        return _work(self._replay(count, reclaim=reclaim))

    def fewest(self, work: Work, *, reclaim: bool) -> int | None:
        """The fewest machines that do the work; None where no number of them does.

        More machines are taken never to do less, so the number is found by bisection.
        """
        fleet, pods = self._scenario.fleet, self._scenario.pods
        present, millicpu = len(fleet), int(fleet.millicpu[0])
        online = highest_sum(pods.arrival, pods.gone, np.where(pods.offline, 0, pods.millicpu))
        hours = (self._scenario.stop - self._scenario.start) / 3600
        offline = 0.0 if reclaim else work.offline_core_hours / hours * 1000
        return _smallest(
            lambda count: _does(self._replay(count, reclaim=reclaim), work),
            low=int(np.ceil(online / millicpu)) - 1,
            guess=present if reclaim else int(np.ceil((online + offline) / millicpu)),
        )

    def _replay(self, count: int, *, reclaim: bool) -> ReplayResult:
        """One number of machines, replayed once."""
        key = (count, reclaim)
        if key not in self._results:
            self._results[key] = self._played(count, reclaim=reclaim)
        return self._results[key]

    def _played(self, count: int, *, reclaim: bool) -> ReplayResult:
        fleet = self._scenario.fleet
        some = equal_fleet(count, int(fleet.millicpu[0]) / 1000, int(fleet.memory[0]) / GIB)
        return replay_scenario(
            replace(self._scenario, fleet=some),
            self._model if reclaim else None,
            policy=self._policy or (self._model.policy if self._model else None),
            options=msgspec.structs.replace(self._options, reclaim=reclaim),
            progress=self._progress,
        )


def _work(result: ReplayResult) -> Work:
    series = node_series(result)
    waited = result.waited[result.pods.offline]
    return Work(
        offline_core_hours=float(series.run.sum()) * series.hours,
        wait_mean_s=float(waited.mean()) if len(waited) else 0.0,
    )


def _does(result: ReplayResult, work: Work) -> bool:
    online = ~result.pods.offline
    if (result.state[online] >= State.WAITING).any() or result.waited[online].any():
        return False
    done = _work(result)
    return (
        done.offline_core_hours >= work.offline_core_hours * (1 - TOLERANCE)
        and done.wait_mean_s <= work.wait_mean_s * (1 + TOLERANCE) + 60
    )


def _smallest(enough: Callable[[int], bool], low: int, guess: int) -> int | None:
    """The smallest count above ``low`` that is enough, looked for from a guess on.

    Steps from the guess double until the answer lies between two counts, which are then bisected.
    None where `MOST_GROWTH` times the guess is not enough either.
    """
    high = max(guess, low + 1)
    limit, step = MOST_GROWTH * high, 1
    if enough(high):
        while high - step > low and enough(high - step):
            high, step = high - step, 2 * step
        low = max(low, high - step)
    else:
        low, high = high, high + 1
        while not enough(high):
            step *= 2
            low, high = high, high + step
            if high > limit:
                return None
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
