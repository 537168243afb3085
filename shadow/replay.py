"""Decide a trace's pods again, with production's own decision functions, while time passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np

from extender.decide import (
    MAX_SCORE,
    NOTHING_KNOWN,
    Alone,
    Ask,
    Habit,
    Verdicts,
    decide,
    to_wire_scores,
)
from extender.replicas import Replicas
from extender.snapshot import Reason
from extender.spread import MAX_NODE_SCORE, default_spread
from models.arrays import Floats, Floats32, Ints
from models.grid import WINDOW
from models.habits import NO_HABITS, HabitsBuilder, Rhythm, node_shapes
from models.model import Model
from models.policy import Policy
from models.rolling import RollingForecast
from models.trace import Trace
from shadow.cluster import ORDINARY, Cluster
from shadow.events import ARRIVAL, END, JOIN, LEAVE, NEVER, Change, Timeline, Waiting
from shadow.indifference import indifferent, owners, shunned
from shadow.kube_scheduler import (
    CPU,
    MEMORY,
    Request,
    pick,
    sample,
    sample_size,
)
from shadow.no_room import NoRoom
from shadow.options import ReplayOptions
from shadow.placing import SPREAD_WEIGHT, Placing
from shadow.preemption import Holder, preempt
from shadow.recorder import Recorder
from shadow.result import CONSTRAINTS, RESOURCES, Ending, ReplayResult, State
from shadow.scenario import Scenario, build_scenario
from shadow.usage import OnlineUsage

REQUESTS = "requests"
"""The model version of a replay without a model: every online pod counts with its request."""

Progress = Callable[[float], None]
"""Called with the share of the replayed time that has passed, 0 to 1."""

Clock = Callable[[], float]
"""Seconds of a monotonic clock; only differences are used."""

_EVENTS_PER_PROGRESS = 256


def replay(
    trace: Trace,
    model: Model | None,
    *,
    policy: Policy | None = None,
    options: ReplayOptions | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> ReplayResult:
    """Decide a trace's pods again under a model and a policy.

    The same trace, model, policy and options give the same result. What is decided at a time
    depends on nothing that happens later, but for the durations of pods, which are declared.

    Args:
        trace: nodes, pods and usage; see `models.trace`.
        model: makes the forecasts. None, or a trace without usage: the forecast is the sum of
            requests, so that only CPU that nobody requested is given away.
        policy: instead of the model's own.
        options: see `ReplayOptions`.
        progress: called now and then.
        clock: measures each decision.

    Raises:
        TraceError: the trace does not cover the wanted period, or no pod is alive in it.
    """
    options = options or ReplayOptions()
    return replay_scenario(
        build_scenario(trace, options),
        model,
        policy=policy,
        options=options,
        progress=progress,
        clock=clock,
    )


def replay_scenario(
    scenario: Scenario,
    model: Model | None,
    *,
    policy: Policy | None,
    options: ReplayOptions,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> ReplayResult:
    """As `replay`, for a scenario that was built before."""
    policy = policy or (model.policy if model is not None else Policy())
    if scenario.grid is None:
        model = None
    if model is not None:
        model = replace(model, policy=policy)
    run = _Replay(scenario, model, policy, options, clock or (lambda: 0.0))
    run.play(progress or (lambda _: None))
    return run.result(measured=clock is not None)


class _Replay:
    """One pass through a scenario; all its mutable state."""

    def __init__(
        self,
        scenario: Scenario,
        model: Model | None,
        policy: Policy,
        options: ReplayOptions,
        clock: Clock,
    ) -> None:
        self._scenario, self._policy, self._options = scenario, policy, options
        self._clock = clock
        self._version = REQUESTS if model is None else model.version
        self._rolling = None if model is None else RollingForecast(model)
        self._cluster = Cluster(
            scenario.fleet, policy, options.max_pods, forecasting=model is not None
        )
        self._usage: OnlineUsage | None = None
        if scenario.grid is not None:
            self._usage = OnlineUsage(
                scenario.grid, len(scenario.fleet), scenario.start, scenario.stop
            )
        self._rng = np.random.default_rng([options.seed, 2])
        self._luck = np.random.default_rng([options.seed, 3])
        self._habits = NO_HABITS
        self._turn = 0
        self._waiting = Waiting()
        self._record = Recorder(scenario)
        self._running: dict[int, int] = {}  # pod -> its run, in the order of their begin
        self._no_room = NoRoom()
        constraints = scenario.constraints
        self._placing = None if constraints is None else Placing(constraints)
        self._indifferent = indifferent(scenario, options)
        self._owners = owners(scenario)
        self._replicas = Replicas()
        self._shunned = shunned(constraints)
        self._requests = _requests(scenario, options)
        pods = scenario.pods
        # Plain lists and numbers: the loop reads them once for each decision.
        self._offline: list[bool] = pods.offline.tolist()
        self._horizon: list[int] = pods.horizon.tolist()
        self._kind: list[int] = [0] * len(pods) if pods.kind is None else pods.kind.tolist()
        changes = self._node_changes()
        self._want = self._sample_size()
        self._first = int(((pods.arrival == scenario.start) & ~pods.offline).sum())
        ticks = range(scenario.start + WINDOW, scenario.stop, WINDOW) if self._usage else range(0)
        self._timeline = Timeline(pods.arrival, self._first, ticks, scenario.stop, changes)

    def play(self, progress: Progress) -> None:
        """Let time pass, from the start to the stop."""
        start, span = self._scenario.start, self._scenario.stop - self._scenario.start
        for pod in range(self._first):
            self._attempt(pod, start)
        self._tick(start)
        for number, (time, kind, subject) in zip(count(), self._timeline, strict=False):
            if kind is ARRIVAL:
                if self._attempt(subject, time) and self._frees(subject):
                    self._wake(time)
            elif kind is END:
                self._end(subject, time)
            elif kind is JOIN or kind is LEAVE:
                self._change_node(subject, time, here=kind is JOIN)
            else:
                self._tick(time)
            if number % _EVENTS_PER_PROGRESS == 0:
                progress((time - start) / span)
        progress(1.0)

    def _attempt(self, pod: int, time: int) -> bool:
        """Decide a pod, and start it or let it wait."""
        row = int(self._scenario.pods.node[pod])
        if row < 0:
            began = self._clock()
            choice = self._choose(pod, time)
            self._record.decided(pod, self._clock() - began)
            if isinstance(choice, str) and not self._offline[pod]:
                freed = self._preempt(pod, time)
                choice = choice if freed is None else freed
            if isinstance(choice, str):
                self._record.refused(pod, choice)
                self._waiting.add(pod, *self._need(pod), time)
                return False
            row = choice
        self._waiting.remove(pod)
        self._start(pod, row, time)
        return True

    def _choose(self, pod: int, time: int) -> int | str:
        """One scheduling cycle: the row of the chosen node, or why there is none."""
        nodes, request = self._cluster.nodes, self._requests[pod]
        fit = nodes.fits(request)
        if self._placing is not None:
            roomy = bool(fit.any())
            fit &= self._placing.fits(self._kind[pod])
        rows, self._turn = sample(fit, self._turn, self._want)
        if len(rows) == 0:
            self._note_no_room(pod)
            return CONSTRAINTS if self._placing is not None and roomy else RESOURCES
        ranks: Ints | None = None
        if self._options.reclaim or not self._offline[pod]:
            verdicts = self._ask_extender(pod, rows, time)
            passed = verdicts.passed
            if len(passed) == 0:
                if len(rows) < self._want:  # it saw every node that the pod could use
                    self._note_no_room(pod)
                return Reason(int(np.bincount(verdicts.reason).argmax())).name.lower()
            rows = rows.take(passed)
            best = verdicts.score.take(passed)
            wire = to_wire_scores(best, self._policy, offline=self._offline[pod])
            ranks = np.array(wire, np.int64)
        if len(rows) == 1:
            return int(rows[0])
        score = nodes.score(rows, request)
        if self._placing is not None:
            score += self._placing.score(self._kind[pod], rows)
        if len(replicas := self._replicas.rows(self._owners[pod])):
            score += SPREAD_WEIGHT * default_spread(rows, replicas, self._scenario.fleet.zone)
        if ranks is not None:
            entries = 2 if self._offline[pod] else 1
            weight = entries * self._options.extender_weight
            score += ranks * (MAX_NODE_SCORE // MAX_SCORE * weight)
        return int(rows[pick(score, self._rng)])

    def _ask_extender(self, pod: int, rows: Ints, time: int) -> Verdicts:
        """What the server would answer to a filter call."""
        offline, request = self._offline[pod], self._requests[pod]
        millicpu = request.extended if offline else request.millicpu
        ask = Ask(millicpu, self._horizon[pod], offline)
        snapshot = self._cluster.snapshot(time, self._version, offline=offline)
        known = self._known(pod)
        habit = NOTHING_KNOWN if known is None else Habit(known)
        alone = None
        if self._indifferent[pod]:
            alone = Alone(self._shunned, self._replicas.rows(self._owners[pod]))
        return decide(snapshot, rows, ask, self._policy, self._options.candidates, habit, alone)

    def _known(self, pod: int) -> Floats32 | None:
        """The profile of an online pod's workload, as its siblings showed it by the last refresh.

        Traces hold no labels, so no pod asks to be rebuilt in place.
        """
        scenario = self._scenario
        if self._offline[pod] or scenario.grid is None:
            return None
        return self._habits.of(scenario.grid.workloads[int(scenario.pods.grid[pod])])

    def _preempt(self, pod: int, time: int) -> int | None:
        """Displace offline pods for an online one: the row that is free now, if there is one.

        The victims' grace period is not waited for.
        """
        record = self._record
        allowed = None if self._placing is None else self._placing.fits(self._kind[pod])
        holders = [
            Holder(run, record.node[run], self._requests[other], record.begin[run])
            for other, run in self._running.items()
            if self._offline[other] and (allowed is None or allowed[record.node[run]])
        ]
        found = preempt(self._cluster.nodes, self._requests[pod], holders)
        if found is None:
            return None
        row, runs = found
        for run in runs:
            self._displace(record.pod[run], time, Ending.PREEMPTED)
        return row

    def _displace(self, pod: int, time: int, ending: Ending) -> None:
        """Stop an offline pod, which starts again from the beginning when it is placed again."""
        self._stop(pod, time, ending)
        self._waiting.add(pod, *self._need(pod), time, backoff=0)

    def _start(self, pod: int, row: int, time: int) -> None:
        pods, cluster, request = self._scenario.pods, self._cluster, self._requests[pod]
        free = -1
        if not self._offline[pod]:
            end = int(pods.gone[pod])
            cluster.add(row, request, self._known(pod))
            if self._usage is not None:
                self._usage.place(row, int(pods.grid[pod]), time)
        else:
            end = time + int(pods.duration[pod])
            if self._options.reclaim:
                free = cluster.promise(row, pods.names[pod], request, self._horizon[pod], time)
            else:
                cluster.nodes.add(row, request)
        self._replicas.add(self._owners[pod], row)
        if self._placing is not None:
            self._placing.add(self._kind[pod], row)
        run = self._record.started(pod, row, time, free)
        self._running[pod] = run
        self._timeline.end_at(end, run)

    def _end(self, run: int, time: int) -> None:
        pod = self._record.pod[run]
        if self._running.get(pod) != run:
            return  # it was evicted before
        self._stop(pod, time, Ending.NATURAL)
        self._record.state[pod] = State.FINISHED
        self._wake(time)

    def _stop(self, pod: int, time: int, ending: Ending) -> None:
        run = self._running.pop(pod)
        self._no_room.clear()
        row, request = self._record.node[run], self._requests[pod]
        self._record.ended(run, time, ending)
        self._replicas.remove(self._owners[pod], row)
        if self._placing is not None:
            self._placing.remove(self._kind[pod], row)
        if not self._offline[pod]:
            self._cluster.remove(row, request)
            if self._usage is not None:
                self._usage.remove(row)
        elif self._options.reclaim:
            self._cluster.release(row, self._scenario.pods.names[pod], request)
        else:
            self._cluster.nodes.remove(row, request)

    def _node_changes(self) -> list[Change]:
        """Take away the nodes that are not here at the start; what changes from then on."""
        fleet, start = self._scenario.fleet, self._scenario.start
        never = np.full(len(fleet), NEVER)
        joined = -never if fleet.joined is None else fleet.joined
        left = never if fleet.left is None else fleet.left
        for row in np.flatnonzero((joined > start) | (left <= start)).tolist():
            self._set_here(row, here=False)
        coming = np.flatnonzero(joined > start)
        going = np.flatnonzero((left > start) & (left < NEVER))
        return [(int(joined[row]), JOIN, row) for row in coming.tolist()] + [
            (int(left[row]), LEAVE, row) for row in going.tolist()
        ]

    def _set_here(self, row: int, *, here: bool) -> None:
        nodes = self._cluster.nodes
        (nodes.join if here else nodes.leave)(row)
        if self._placing is not None:
            self._placing.present(row, here=here)

    def _sample_size(self) -> int:
        return sample_size(self._cluster.nodes.here, self._options.nodes_to_score)

    def _change_node(self, row: int, time: int, *, here: bool) -> None:
        """A node joins or leaves.

        With a node that leaves its online pods end, as what takes their place is a pod of its own
        in the trace; its offline pods start again elsewhere.
        """
        self._set_here(row, here=here)
        self._want = self._sample_size()
        self._no_room.clear()
        if not here:
            there = [pod for pod, run in self._running.items() if self._record.node[run] == row]
            for pod in there:
                if self._offline[pod]:
                    self._displace(pod, time, Ending.LEFT)
                else:
                    self._stop(pod, time, Ending.LEFT)
                    self._record.state[pod] = State.FINISHED
            if self._usage is not None:
                self._usage.leave(row, time)
        self._wake(time)

    def _tick(self, time: int) -> None:
        """A usage window is complete: look at its age, forecast when due, evict if wanted."""
        if self._usage is None:
            return
        self._no_room.clear()
        if (time - self._scenario.start) % self._options.refresh == 0:
            self._refresh(self._usage, time)
        if self._rolling is not None:
            online, node = self._online()
            self._cluster.observe(self._usage.age(time, online, node))
        if self._options.evict:
            self._evict(self._usage.at(time), time)
        self._wake(time)

    def _refresh(self, usage: OnlineUsage, time: int) -> None:
        """Forecast from what is known now; record it beside what will really be."""
        cluster = self._cluster
        if self._rolling is not None:
            online, node = self._online()
            workloads = usage.workloads(online)
            history = usage.history(time, online, node, cluster.allocatable)
            history = history.counting(self._habits.needs(workloads))
            builder = HabitsBuilder(workloads)
            builder.add(workloads, history.usage, history.time)
            self._habits = builder.build()
            forecast = self._rolling.refresh(
                history, usage.names(online), self._scenario.fleet.names
            )
            rhythm = Rhythm(history.newest, node_shapes(history), self._habits)
            cluster.refresh(forecast.forecast, forecast.expected, rhythm)
            self._record.forecast(time, forecast.forecast, usage.peaks(time))
        else:
            self._record.forecast(time, cluster.forecast, usage.peaks(time))

    def _online(self) -> tuple[Ints, Ints]:
        """Grid rows and node rows of the online pods that run."""
        nodes, offline = self._record.node, self._offline
        running = [(pod, nodes[run]) for pod, run in self._running.items() if not offline[pod]]
        pod, node = np.array(running, np.int64).reshape(-1, 2).T
        return self._scenario.pods.grid[pod], node

    def _evict(self, used: Floats, time: int) -> None:
        """Stop the newest offline pods of hot nodes until what is left fits under the ceiling."""
        promised = self._cluster.promised / 1000
        excess = used + promised - self._cluster.allocatable * self._policy.ceiling
        for pod, run in reversed(list(self._running.items())):
            row = self._record.node[run]
            if self._offline[pod] and excess[row] > 0:
                excess[row] -= self._requests[pod].extended / 1000
                self._displace(pod, time, Ending.EVICTED)

    def _wake(self, time: int) -> None:
        """Try the waiting pods that some node may have room for, in kube-scheduler's order."""
        if len(self._waiting) == 0:
            return
        queue = self._waiting.retry(time, self._cluster.headroom(), self._luck)
        while queue.size:
            pods, need, kind = queue
            ready = np.flatnonzero(need <= self._cluster.headroom()[kind])
            last = len(pods)
            for place, pod in zip(ready.tolist(), pods[ready].tolist(), strict=True):
                if not self._offline[pod] and self._scenario.pods.gone[pod] <= time:
                    self._waiting.remove(pod)
                    self._record.state[pod] = State.MISSED
                elif not self._refused_since(pod) and not self._attempt(pod, time):
                    last = place + 1  # less is left than was thought: look again
                    break
            queue = queue[:, last:]

    def _refused_since(self, pod: int) -> bool:
        """Whether one that asked for no more was refused since anything was freed."""
        return self._no_room.covers(self._requests[pod], self._horizon[pod], self._kind[pod])

    def _note_no_room(self, pod: int) -> None:
        """No node has room for a pod, until something is freed.

        A pod that spreads is not noted: a pod that starts elsewhere may make room for it.
        """
        kind = self._kind[pod]
        if self._placing is None or not self._placing.spreads(kind):
            self._no_room.note(self._requests[pod], self._horizon[pod], kind)

    def _frees(self, pod: int) -> bool:
        """Whether a pod's start may let another one start: one that spreads beside it."""
        return (
            self._placing is not None
            and len(self._waiting) > 0
            and self._placing.counted(self._kind[pod])
        )

    def _hopeless(self, pod: int) -> bool:
        """Whether a pod asks for more than any node that it may use has with nothing on it."""
        request, nodes = self._requests[pod], self._cluster.nodes
        able = (
            (nodes.allocatable[CPU] >= request.millicpu)
            & (nodes.allocatable[MEMORY] >= request.memory)
            & (self._cluster.emptied >= request.extended)
        )
        if self._placing is not None:
            able &= self._placing.standing(self._kind[pod]).fits
        return not able.any()

    def _need(self, pod: int) -> tuple[int, int]:
        """Millicores of headroom without which a pod cannot start, and of which kind."""
        request = self._requests[pod]
        if request.extended:
            return request.extended, self._horizon[pod]
        return request.millicpu, ORDINARY

    def result(self, *, measured: bool) -> ReplayResult:
        """The recording, closed at the scenario's stop."""
        scenario, record = self._scenario, self._record
        used = None
        if self._usage is not None:
            windows = -(-(scenario.stop - scenario.start) // WINDOW)
            used = self._usage.node[:, :windows].copy()
        return ReplayResult(
            trace=scenario.name,
            model_version=self._version,
            policy=self._policy,
            options=self._options,
            start=scenario.start,
            stop=scenario.stop,
            fleet=scenario.fleet,
            pods=scenario.pods,
            state=record.states(self._running, self._hopeless),
            attempts=record.attempts,
            waited=record.waits(),
            refused={reason: len(pods) for reason, pods in sorted(record.reasons.items())},
            runs=record.runs(),
            used=used,
            forecasts=record.forecasts(),
            decisions=int(record.attempts.sum()),
            latency=np.array(record.latency if measured else [], np.float64),
        )


def _requests(scenario: Scenario, options: ReplayOptions) -> list[Request]:
    """What kube-scheduler sees of each pod; pods that ask for the same share one value."""
    pods = scenario.pods
    managed = pods.offline & options.reclaim
    asks = np.stack(
        [np.where(managed, 0, pods.millicpu), pods.memory, np.where(managed, pods.millicpu, 0)]
    )
    kinds, which = np.unique(asks, axis=1, return_inverse=True)
    shared = [Request(*ask) for ask in kinds.T.tolist()]
    return [shared[kind] for kind in which.ravel().tolist()]
