"""Simulated time passes: pods come and go, usage is measured, the extender decides over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
import numpy as np

from archimedes.demo.scheduler import NAMESPACE, Json, Scheduler, pod_object
from extender.app import Server
from extender.memory import GridUsage, MemoryCluster
from models.arrays import Floats
from models.errors import ArchimedesError
from models.grid import WINDOW, UsageGrid
from models.kube.types import Node, Pod
from models.policy import HORIZONS
from shadow.events import ARRIVAL, END, Timeline
from shadow.kube_scheduler import Request
from shadow.no_room import NoRoom
from shadow.options import ReplayOptions
from shadow.recorder import Recorder
from shadow.result import Ending, ReplayResult, State
from shadow.scenario import Scenario
from shadow.usage import OnlineUsage

Progress = Callable[[float], None]

QUEUE_SECONDS = 100
"""Simulated seconds between looks at the pods that wait. kube-scheduler looks after at most 10, and
at every event; a minute delays a pod by half of one, and costs a tenth of the decisions."""

_ANYWHERE = 0
"""The one kind of constraints that pods have here: none."""

_NOT_ASKED = -1
"""In place of `Runs.free`, which no figure reads and which would cost a snapshot for each pod."""


class SimulatedClock:
    """Seconds since the epoch, as far as the demo has come."""

    def __init__(self, time: int) -> None:
        self.time = time

    def __call__(self) -> float:
        """Now."""
        return float(self.time)


def cluster_of(scenario: Scenario) -> MemoryCluster:
    """The scenario's nodes, without pods, as the API server would hold them."""
    cluster = MemoryCluster()
    fleet = scenario.fleet
    for name, millicpu, memory in zip(fleet.names, fleet.millicpu, fleet.memory, strict=True):
        amounts = {"cpu": f"{millicpu}m", "memory": str(memory)}
        node = {"metadata": {"name": name}, "status": {"allocatable": amounts, "capacity": amounts}}
        cluster.put_node(msgspec.convert(node, Node))
    return cluster


def usage_of(grid: UsageGrid) -> GridUsage:
    """The trace's usage, as Prometheus would answer it."""
    return GridUsage(replace(grid, pods=tuple(f"{NAMESPACE}/{pod}" for pod in grid.pods)))


class Drive:
    """Plays a scenario through a running extender; records what the shadow's replay records."""

    def __init__(
        self,
        scenario: Scenario,
        grid: UsageGrid,
        options: ReplayOptions,
        server: Server,
        cluster: MemoryCluster,
        clock: SimulatedClock,
        scheduler: Scheduler,
    ) -> None:
        self._scenario, self._options = scenario, options
        self._server, self._cluster, self._clock = server, cluster, clock
        self._scheduler = scheduler
        self._usage = OnlineUsage(grid, len(scenario.fleet), scenario.start, scenario.stop)
        self._record = Recorder(scenario)
        self._running: dict[int, int] = {}  # pod -> its run
        self._waiting: dict[int, None] = {}  # in the order of arrival
        pods = scenario.pods
        first = int(((pods.arrival == scenario.start) & ~pods.offline).sum())
        self._first = first
        ticks = range(scenario.start + QUEUE_SECONDS, scenario.stop, QUEUE_SECONDS)
        self._timeline = Timeline(pods.arrival, first, ticks, scenario.stop)
        self._resource = server.parts.settings.resource
        self._objects = [self._object(pod) for pod in range(len(pods))]

    async def play(
        self, events: Mapping[int, Callable[[], Awaitable[None]]], progress: Progress
    ) -> None:
        """Let time pass from the scenario's start to its stop.

        Args:
            events: what else shall happen, by the tick (seconds since the epoch) at which it does.
            progress: called with the share of the time that has passed.
        """
        start, span = self._scenario.start, self._scenario.stop - self._scenario.start
        for pod in range(self._first):
            await self._attempt(pod, start)
        await self._tick(start)
        for time, kind, subject in self._timeline:
            self._clock.time = time
            self._cluster.hear()
            if kind is ARRIVAL:
                await self._attempt(subject, time)
            elif kind is END:
                self._end(subject, time)
            else:
                await self._tick(time)
                if time in events:
                    await events[time]()
                progress((time - start) / span)
        progress(1.0)

    def result(self) -> ReplayResult:
        """The recording, closed at the scenario's stop."""
        scenario, record = self._scenario, self._record
        windows = (scenario.stop - scenario.start) // WINDOW
        return ReplayResult(
            trace=scenario.name,
            model_version=self._server.state.model_version,
            policy=self._server.state.policy,
            options=self._options,
            start=scenario.start,
            stop=scenario.stop,
            fleet=scenario.fleet,
            pods=scenario.pods,
            state=record.states(self._running, lambda _: False),
            attempts=record.attempts,
            waited=record.waits(),
            refused={reason: len(pods) for reason, pods in sorted(record.reasons.items())},
            runs=record.runs(),
            used=self._usage.node[:, :windows].copy(),
            forecasts=record.forecasts(),
            decisions=int(record.attempts.sum()),
            latency=np.array(self._scheduler.latency),
        )

    def _object(self, pod: int) -> tuple[Json, Request]:
        pods = self._scenario.pods
        cpu, memory = int(pods.millicpu[pod]), int(pods.memory[pod])
        offline = bool(pods.offline[pod])
        request = Request(0 if offline else cpu, memory, cpu if offline else 0)
        row = int(pods.node[pod])
        node = self._scenario.fleet.names[row] if row >= 0 else ""
        duration = int(pods.duration[pod])
        return pod_object(pods.names[pod], request, self._resource, duration, node), request

    async def _attempt(self, pod: int, time: int) -> bool:
        """Decide a pod, and start it or let it wait."""
        body, request = self._objects[pod]
        row = int(self._scenario.pods.node[pod])
        if row >= 0:
            self._cluster.put_pod(msgspec.convert(body, Pod))
        else:
            if pod not in self._waiting:
                self._cluster.put_pod(msgspec.convert(body, Pod))
            seconds = len(self._scheduler.latency)
            choice = await self._scheduler.schedule(body, request)
            self._record.decided(pod, sum(self._scheduler.latency[seconds:]))
            error = choice if isinstance(choice, str) else await self._scheduler.bind(body, choice)
            if isinstance(choice, str) or error:
                self._record.refused(pod, error)
                self._waiting[pod] = None
                return False
            row = choice
        self._waiting.pop(pod, None)
        self._start(pod, row, time)
        return True

    def _start(self, pod: int, row: int, time: int) -> None:
        pods = self._scenario.pods
        if pods.offline[pod]:
            end = time + int(pods.duration[pod])
        else:
            end = int(pods.gone[pod])
            self._usage.place(row, int(pods.grid[pod]), time)
        self._scheduler.nodes.add(row, self._objects[pod][1])
        run = self._record.started(pod, row, time, _NOT_ASKED)
        self._running[pod] = run
        self._timeline.end_at(end, run)

    def _end(self, run: int, time: int) -> None:
        pod = self._record.pod[run]
        del self._running[pod]
        row = self._record.node[run]
        self._record.ended(run, time, Ending.NATURAL)
        self._record.state[pod] = State.FINISHED
        self._scheduler.nodes.remove(row, self._objects[pod][1])
        self._cluster.delete_pod(NAMESPACE, self._scenario.pods.names[pod])
        if not self._scenario.pods.offline[pod]:
            self._usage.remove(row)

    async def _tick(self, time: int) -> None:
        """Forecast when it is time, and try the pods that wait."""
        self._server.loops.tick()
        if (time - self._scenario.start) % self._options.refresh == 0:
            await self._server.refresher.refresh()
            self._record.forecast(time, self._forecast(), self._usage.peaks(time))
        await self._wake(time)

    async def _wake(self, time: int) -> None:
        """Try the pods that wait, the oldest first.

        A pod is passed over where one before it was refused that asked for no more, for no longer:
        kube-scheduler would only hear the same.
        """
        no_room = NoRoom()
        pods = self._scenario.pods
        for pod in list(self._waiting):
            need = (self._objects[pod][1], int(pods.horizon[pod]), _ANYWHERE)
            if not pods.offline[pod] and pods.gone[pod] <= time:
                del self._waiting[pod]
                self._cluster.delete_pod(NAMESPACE, pods.names[pod])
                self._record.state[pod] = State.MISSED
            elif not no_room.covers(*need) and not await self._attempt(pod, time):
                no_room.note(*need)

    def _forecast(self) -> Floats:
        """The forecasts in force, [N, H] cores, in the order of the scenario's nodes."""
        snapshot = self._server.state.snapshot(self._clock())
        rows = snapshot.rows(self._scenario.fleet.names)
        if (rows < 0).any():
            raise ArchimedesError("the extender does not know a node of the demo")
        return snapshot.forecast[rows].reshape(-1, len(HORIZONS))
