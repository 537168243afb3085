"""What runs beside the calls: the watches, refreshes, the champion, expiry, advertising."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import numpy as np
import structlog

from extender.binder import Binder
from extender.decision_log import DecisionLog
from extender.forecasting import ForecastingError
from extender.lag import Turns, probe_lag
from extender.learned import Learned, load_learned, save_learned
from extender.ports import Clock, Cluster, ClusterError, ModelSource
from extender.reflector import Backoff
from extender.refresh import Refresher
from extender.settings import Settings
from extender.state import State
from extender.telemetry import Telemetry
from extender.watchers import lock_feed, run_feed
from models.model import Model
from models.policy import HORIZONS

_TICK_SECONDS = 1.0
_CHASE_SECONDS = 2.0
_RENEW_SECONDS = 15.0
"""Seconds between looks for promises that outlived their horizon of an hour or more."""

_FOLLOW_SECONDS = 1.0
"""Seconds between two takings of what changed of pods: 300 pods a second need half a millisecond of
the interpreter then, and those of five minutes 0.13 s at the start of a refresh."""

_SAVE_SECONDS = 300.0
_SLIP_SECONDS = 5.0
"""The clock may go on by so much more, or less, than a pause was meant to last; above that, it was
set, or the process stood still."""

_COLLECT_SECONDS = 1.0
"""Seconds between garbage collections: each has a second's new objects to look through, about a
millisecond."""

_GARBAGE = 100_000
"""New objects, some 20 MB, after which a collection comes in any case. Of what calls leave, only a
few objects a second hold each other so that a collector is needed to free them."""

_STEADY_SECONDS = 120.0
"""Seconds after which a loop has worked: when it crashes then, it starts again at once."""

_INSTALL_AGAIN_SECONDS = 600.0
"""At most so long after a model could not be put into service it is tried again."""

_ADVERTISE_SECONDS = 2.0
_ADVERTISE_AGAIN_SECONDS = 15.0
"""Seconds for which a node's watch event may take; then it is advertised once more."""

_ADVERTISE_AT_ONCE = 16
"""Patches under way: a new cluster of 5,000 nodes is done within a minute, and nothing floods."""

log = structlog.get_logger()


class Loops:
    """The background loops; each one's crash is logged, counted, and it starts again."""

    def __init__(
        self,
        state: State,
        refresher: Refresher,
        binder: Binder,
        cluster: Cluster,
        models: ModelSource,
        learned_file: Path | None,
        decisions: DecisionLog,
        settings: Settings,
        clock: Clock,
        telemetry: Telemetry,
        rng: np.random.Generator,
        others: Mapping[str, Callable[[], Awaitable[None]]],
    ) -> None:
        """``others``: loops by name that belong to parts of their own."""
        self._state = state
        self._refresher = refresher
        self._binder = binder
        self._cluster = cluster
        self._models = models
        self._learned_file = learned_file
        self._decisions = decisions
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._rng = rng
        self._others = others
        self._advertised: dict[str, float] = {}
        self._overdue: set[str] = set()
        self._ticked = asyncio.Event()

    async def run(self) -> None:
        """Run all loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            for body in (
                self.follow,
                self._collect,
                self._follow_pods,
                self._refresh,
                self._champion,
                self._tick,
                self._chase,
                self._renew,
                self._save_learned,
                self._advertise,
                self._lag,
            ):
                group.create_task(self._supervise(body.__name__.strip("_"), body))
            for name, other in self._others.items():
                group.create_task(self._supervise(name, other))

    async def follow(self) -> None:
        """Keep up with nodes and pods, with resource locks and with what has finished."""
        state, cluster, locks = self._state, self._cluster, self._settings.locks
        async with asyncio.TaskGroup() as group:
            if locks.name:
                feed = lock_feed(state, self._telemetry)
                group.create_task(cluster.follow_config_map(locks.namespace, locks.name, feed))
            group.create_task(cluster.follow_succeeded(run_feed(state, self._settings.resource)))
            await cluster.follow(state.node_feed(), state.pod_feed())

    def tick(self) -> None:
        """Let holds whose time has run out go, and hand the decision log to the system."""
        for entry in self._state.expire(self._clock()):
            self._telemetry.expired.inc()
            log.info("hold expired", pod=entry.pod)
        self._decisions.flush()
        self._ticked.set()

    async def renew(self) -> None:
        """Renew promises that outlived their horizon; tell once of each that cannot be."""
        overdue: set[str] = set()
        turns = Turns()
        for found in self._state.renew(self._clock()):
            self._telemetry.renewed.inc(len(found.renewed))
            for entry in found.overdue:
                overdue.add(entry.uid)
                if entry.uid not in self._overdue:
                    log.warning(
                        "promise overdue: its node does not cover all its promises any more",
                        pod=entry.pod,
                        millicpu=entry.millicpu,
                        horizon_hours=HORIZONS[entry.horizon],
                    )
                    await turns.give_way()
            await turns.give_way()
        self._overdue = overdue
        self._telemetry.overdue.set(len(overdue))

    def load_learned(self) -> None:
        """Take over what an earlier process had learned, where it was kept."""
        if self._learned_file is None:
            return
        try:
            self._state.learn(load_learned(self._learned_file))
        except (OSError, ValueError) as e:
            self._telemetry.learned_file_errors.inc()
            log.warning(
                "file of what was learned ignored", path=str(self._learned_file), error=str(e)
            )

    def save_learned(self) -> None:
        """Keep what was learned for the next process."""
        if self._learned_file is not None:
            self._write_learned(self._state.learned(), self._learned_file)

    async def advertise(self) -> None:
        """Write the resource into the status of nodes that lack it."""
        now = asyncio.get_running_loop().time()
        missing = self._state.unadvertised()
        self._advertised = {
            node: at
            for node, at in self._advertised.items()
            if node in missing and now - at < _ADVERTISE_AGAIN_SECONDS
        }
        slots = asyncio.Semaphore(_ADVERTISE_AT_ONCE)
        due = {node: ceiling for node, ceiling in missing.items() if node not in self._advertised}
        await asyncio.gather(*(self._advertise_node(slots, *each) for each in due.items()))

    async def _supervise(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(self._rng)
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await body()
            except Exception:
                self._telemetry.loop_errors.labels(name).inc()
                log.exception("background loop crashed", loop=name)
            if loop.time() - began > _STEADY_SECONDS:
                backoff.reset()
            await asyncio.sleep(backoff.next(at_least=1.0))

    async def _collect(self) -> None:
        await self._state.synced.wait()
        # What the first sync brought stays for as long as the process: no collector looks at it.
        # The little garbage among it stays as well; looking for it would take half a second.
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        while True:
            gc.collect()
            await asyncio.sleep(_COLLECT_SECONDS)

    async def _follow_pods(self) -> None:
        await self._state.synced.wait()
        while True:
            await self._refresher.follow()
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def _refresh(self) -> None:
        await self._state.synced.wait()
        every, delay = self._settings.refresh_seconds, self._settings.prometheus.delay_seconds
        while True:
            await self._refresher.refresh()
            # Just after a window can be read, not at a random moment within it.
            await asyncio.sleep(every - (self._clock() - delay) % every)

    async def _champion(self) -> None:
        every, time_of = self._settings.model.poll_seconds, asyncio.get_running_loop().time
        model, status = await self._models.initial()
        source, waits, failures, due = status.source, True, 0, 0.0
        while True:
            if waits and time_of() >= due:
                waits = not await self._install(model, source)
                failures += waits
                due = time_of() + min(failures * every, _INSTALL_AGAIN_SECONDS)
            await asyncio.sleep(every)
            newer = await self._models.poll()
            source = self._models.status.source
            if newer is not None:
                model, waits, failures, due = newer, True, 0, 0.0
            elif not waits:
                self._refresher.attribute(source)

    async def _install(self, model: Model | None, source: str) -> bool:
        """Put a model into service; False where it could not make a forecast."""
        try:
            await self._refresher.install(model, source)
        except ForecastingError as e:
            self._telemetry.loop_errors.labels("champion").inc()
            log.warning("model cannot serve, the one before stays", error=str(e))
            return False
        return True

    async def _tick(self) -> None:
        before = self._clock()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._clock()
            slip = now - before - _TICK_SECONDS
            before = now  # not read anew after the tick: what is set during that is a slip as well
            if abs(slip) > _SLIP_SECONDS:
                log.warning("the clock was set, or the process stood still", seconds=round(slip))
                self._state.shift(slip)
            self.tick()

    async def _chase(self) -> None:
        while True:
            await asyncio.sleep(_CHASE_SECONDS)
            self._ticked.clear()
            await self._ticked.wait()  # who has just noticed whether the clock was set
            await self._binder.chase()

    async def _renew(self) -> None:
        await self._state.synced.wait()
        while True:  # the pause comes first: without a forecast, all would be overdue
            await asyncio.sleep(_RENEW_SECONDS)
            await self.renew()

    async def _save_learned(self) -> None:
        while self._learned_file is not None:
            await asyncio.sleep(_SAVE_SECONDS)
            await asyncio.to_thread(self._write_learned, self._state.learned(), self._learned_file)
        await asyncio.Event().wait()

    def _write_learned(self, learned: Learned, path: Path) -> None:
        try:
            save_learned(learned, path)
        except OSError as e:
            self._telemetry.learned_file_errors.inc()
            log.warning("file of what was learned not written", path=str(path), error=str(e))

    async def _advertise(self) -> None:
        while True:
            await self.advertise()
            await asyncio.sleep(_ADVERTISE_SECONDS)

    async def _lag(self) -> None:
        await probe_lag(time.perf_counter, self._telemetry.loop_lag.observe)

    async def _advertise_node(self, slots: asyncio.Semaphore, node: str, ceiling: int) -> None:
        async with slots:
            self._advertised[node] = asyncio.get_running_loop().time()
            try:
                await self._cluster.advertise(node, self._settings.resource, ceiling)
            except ClusterError as e:
                log.warning("node not advertised", node=node, error=str(e))
