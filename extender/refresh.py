"""From usage to forecasts in service: reads new windows, forecasts in a thread, swaps models."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import structlog

from extender.ask import PodFacts
from extender.outlook import Champion, Outlook, unknown
from extender.ports import Clock
from extender.recorder import Recorder
from extender.recording import OnlinePod, Refresh
from extender.settings import Settings
from extender.state import NO_MODEL, Capture, State
from extender.telemetry import Telemetry
from models.arrays import Floats
from models.freeing import free_in_pieces
from models.model import Model
from models.usage_source import UsageError, UsageSource
from models.usage_store import UsageReader, UsageStore

log = structlog.get_logger()


class Refresher:
    """Keeps the state's forecasts fresh and made by the champion."""

    def __init__(
        self,
        state: State,
        source: UsageSource | None,
        settings: Settings,
        clock: Clock,
        telemetry: Telemetry,
        recorder: Recorder | None = None,
    ) -> None:
        """``recorder``: None where nobody wants to know later what was forecast."""
        self._state = state
        self._asks = source is not None
        self._store = UsageStore()
        self._reader = UsageReader(source, self._store, settings.prometheus)
        self._fallback = settings.policy
        self._share = settings.advertise_share
        self._recorder = recorder
        self._clock = clock
        self._telemetry = telemetry
        self._champion: Champion | None = None
        self._pods: dict[str, PodFacts] = {}  # by UID, as of the newest capture
        self._observed: Counter[str] = Counter()  # of them, by key, those whose usage is forecast
        self._in_force: tuple[dict[str, int], Floats, int] = ({}, np.zeros(0), 0)
        self._lock = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether usage is read or forecasts are made."""
        return self._lock.locked()

    async def install(self, model: Model | None, source: str) -> None:
        """Put a model into service; until its first forecast is made, the old one serves.

        Args:
            model: what shall serve; None for nothing, then nothing is promised.
            source: where it came from, for the metrics.
        """
        async with self._lock:
            champion = None if model is None else Champion(model)
            await self._forecast(champion)
            replaced = [self._champion]
            self._champion = champion
            await asyncio.to_thread(replaced.clear)  # LightGBM takes milliseconds to free a model
            self._telemetry.serving(model, source)
            log.info("model serves", version=self._state.model_version)

    async def refresh(self) -> None:
        """Read new usage and forecast again. Where usage cannot be read, what is known stays."""
        began = asyncio.get_running_loop().time()
        async with self._lock:
            await self._capture()
            try:
                await self._reader.catch_up(self._clock(), self._observed.keys())
                if self._asks and self._observed and self._store.fresh < 0:
                    log.warning(
                        "the usage query returns no pod: look at prometheus.query and "
                        "cluster_label, and at the labels namespace and pod"
                    )
            except UsageError as e:
                self._telemetry.usage_errors.inc()
                log.warning("usage cannot be read", error=str(e), newest=self._store.time)
            await self._forecast(self._champion)
        self._telemetry.usage_end.set(max(self._store.fresh, 0))
        self._telemetry.refresh_seconds.set(asyncio.get_running_loop().time() - began)

    async def _capture(self) -> Capture:
        """What to forecast for now; the pods are brought up to date."""
        capture = self._state.capture()
        await asyncio.to_thread(self._follow, capture.changes)
        return capture

    def _follow(self, changes: Mapping[str, PodFacts | None]) -> None:
        for uid, pod in changes.items():
            before = self._pods.pop(uid, None)
            if before is not None and _is_observed(before):
                self._observed[before.key] -= 1
                if not self._observed[before.key]:
                    del self._observed[before.key]
            if pod is not None:
                self._pods[uid] = pod
                if _is_observed(pod):
                    self._observed[pod.key] += 1

    async def _forecast(self, champion: Champion | None) -> None:
        capture = await self._capture()
        outlook, version, policy = unknown(len(capture.nodes)), NO_MODEL, self._fallback
        if champion is not None:
            version, policy = champion.model.version, champion.model.policy
            if self._store.time:
                outlook = await asyncio.to_thread(self._outlook, champion, capture)
        await asyncio.to_thread(self._compare, capture.nodes, outlook)
        self._state.serve(
            capture, outlook.forecast, outlook.newest, version, policy, outlook.rhythm
        )
        if self._recorder is not None:
            about = (self._clock(), self._store.time, version, self._share)
            pods = await asyncio.to_thread(_with_requests, self._pods.values())
            self._recorder.put(lambda: _recorded(capture, pods, outlook, *about))

    def _outlook(self, champion: Champion, capture: Capture) -> Outlook:
        pods = _with_requests(self._pods.values())
        found = champion.outlook(capture, pods, self._store)
        free_in_pieces(pods)
        return found

    def _compare(self, nodes: Sequence[str], outlook: Outlook) -> None:
        """Count in how many nodes the newest window was above the forecast then in force."""
        rows, forecast, time = self._in_force
        if self._store.time > time:
            pairs = [(rows[node], at) for at, node in enumerate(nodes) if node in rows]
            before, now = np.array(pairs, np.int64).reshape(-1, 2).T
            truth, promised = outlook.rhythm.usage[now], forecast[before]
            known = np.isfinite(truth) & np.isfinite(promised)
            self._telemetry.node_windows.inc(int(known.sum()))
            self._telemetry.violations.inc(int((truth[known] > promised[known]).sum()))
        self._in_force = (
            {node: at for at, node in enumerate(nodes)},
            outlook.forecast.forecast[:, 0],
            self._store.time,
        )


def _recorded(
    capture: Capture,
    pods: Sequence[PodFacts],
    outlook: Outlook,
    time: float,
    usage_end: int,
    version: str,
    share: float,
) -> Refresh:
    """What is recorded of a refresh: the forecast, and the pods and the usage that count in it."""
    known = outlook.newest >= usage_end  # where nothing was observed, usage counts as 0
    return Refresh(
        time=time,
        usage_end=usage_end,
        model_version=version,
        nodes=capture.nodes,
        allocatable=capture.allocatable,
        forecast=outlook.forecast.forecast,
        expected=outlook.forecast.expected,
        pods={
            pod.key: OnlinePod(pod.key, pod.node, pod.request, pod.started, pod.workload)
            for pod in pods
        },
        advertise_share=share,
        usage=np.where(known, outlook.rhythm.usage, np.nan),
    )


def _is_observed(pod: PodFacts) -> bool:
    return bool(pod.node) and not pod.offline


def _with_requests(pods: Iterable[PodFacts]) -> list[PodFacts]:
    """The pods that count in a forecast."""
    return [pod for pod in pods if pod.request or not pod.offline]
