"""What runs beside the calls: the watches, refreshes, the champion, expiry, advertising."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import structlog

from extender.decision_log import DecisionLog
from extender.ports import Clock, Cluster, ClusterError, ModelSource
from extender.reflector import Backoff
from extender.refresh import Refresher
from extender.settings import Settings
from extender.state import State
from extender.telemetry import Telemetry

_TICK_SECONDS = 1.0
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
        cluster: Cluster,
        models: ModelSource,
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
        self._cluster = cluster
        self._models = models
        self._decisions = decisions
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._rng = rng
        self._others = others
        self._advertised: dict[str, float] = {}

    async def run(self) -> None:
        """Run all loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            for body in (self.follow, self._refresh, self._champion, self._tick, self._advertise):
                group.create_task(self._supervise(body.__name__.strip("_"), body))
            for name, other in self._others.items():
                group.create_task(self._supervise(name, other))

    async def follow(self) -> None:
        """Keep up with nodes and pods."""
        await self._cluster.follow(self._state.node_feed(), self._state.pod_feed())

    def tick(self) -> None:
        """Let holds whose time has run out go, and hand the decision log to the system."""
        for entry in self._state.ledger.expire(self._clock()):
            self._telemetry.expired.inc()
            log.info("hold expired", pod=entry.pod, stage=entry.stage.value)
        self._decisions.flush()

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
        while True:
            try:
                await body()
            except Exception:
                self._telemetry.loop_errors.labels(name).inc()
                log.exception("background loop crashed", loop=name)
            await asyncio.sleep(backoff.next(at_least=1.0))

    async def _refresh(self) -> None:
        await self._state.synced.wait()
        # What the first sync brought stays for as long as the process: no collector looks at it.
        gc.collect()
        gc.freeze()
        every, delay = self._settings.refresh_seconds, self._settings.prometheus.delay_seconds
        while True:
            await self._refresher.refresh()
            # Just after a window can be read, not at a random moment within it.
            await asyncio.sleep(every - (self._clock() - delay) % every)

    async def _champion(self) -> None:
        model, status = await self._models.initial()
        await self._refresher.install(model, status.source)
        while True:
            await asyncio.sleep(self._settings.model.poll_seconds)
            model = await self._models.poll()
            if model is not None:
                await self._refresher.install(model, self._models.status.source)

    async def _tick(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(_TICK_SECONDS)

    async def _advertise(self) -> None:
        while True:
            await self.advertise()
            await asyncio.sleep(_ADVERTISE_SECONDS)

    async def _advertise_node(self, slots: asyncio.Semaphore, node: str, ceiling: int) -> None:
        async with slots:
            self._advertised[node] = asyncio.get_running_loop().time()
            try:
                await self._cluster.advertise(node, self._settings.resource, ceiling)
            except ClusterError as e:
                log.warning("node not advertised", node=node, error=str(e))
