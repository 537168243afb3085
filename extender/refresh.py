"""From usage to forecasts in service: when to forecast, for what, and what serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import structlog

from extender.forecasting import CountedPods, Forecasting, Usage
from extender.outlook import CountedPod, Outlook, counted, unknown
from extender.pods import ChangedPods
from extender.ports import Clock
from extender.recorder import Recorder
from extender.recording import OnlinePod, Refresh
from extender.settings import Settings
from extender.state import NO_MODEL, Capture, State
from extender.telemetry import Telemetry
from models.arrays import Floats
from models.model import Model

_FREED_AT_ONCE = 1000
"""Names that are freed in one go, in which no other thread has the interpreter."""

log = structlog.get_logger()


class Refresher:
    """Keeps the state's forecasts fresh and made by the champion."""

    def __init__(
        self,
        state: State,
        forecasting: Forecasting,
        settings: Settings,
        clock: Clock,
        telemetry: Telemetry,
        recorder: Recorder | None = None,
    ) -> None:
        """``recorder``: None where nobody wants to know later what was forecast."""
        self._state = state
        self._forecasting = forecasting
        self._fallback = settings.policy
        self._share = settings.advertise_share
        self._recorder = recorder
        self._pods = CountedPods()  # in a refresh, as of its newest capture
        self._clock = clock
        self._telemetry = telemetry
        self._model: Model | None = None
        self._source = ""
        self._reported = (NO_MODEL, "")  # version and source of what serves
        self._usage = Usage()
        self._outlook = unknown(0)
        self._in_force: tuple[dict[str, int], Floats, int] = ({}, np.zeros(0), 0)
        self._lock = asyncio.Lock()

    async def install(self, model: Model | None, source: str) -> None:
        """Put a model into service; until its first forecast is made, the old one serves.

        Args:
            model: what shall serve; None for nothing, then nothing is promised.
            source: where it came from, for the metrics.

        Raises:
            ForecastingError: no forecast could be made; the old one serves on.
        """
        async with self._lock:
            capture = await self._capture()
            outlook = await self._forecasting.install(model, capture.nodes, capture.allocatable)
            replaced = [self._model]
            self._model, self._source = model, source
            await asyncio.to_thread(replaced.clear)  # LightGBM takes milliseconds to free a model
            await self._serve(capture, outlook)

    def attribute(self, source: str) -> None:
        """What serves comes from elsewhere, too: a copy on disk may prove to be the champion."""
        self._source = source
        if self._model is not None and self._model.version == self._reported[0]:
            self._tell(self._model.version)

    async def refresh(self) -> None:
        """Read new usage and forecast again. Where usage cannot be read, what is known stays.

        Raises:
            ForecastingError: no forecast could be made; what is in force stays.
        """
        began = asyncio.get_running_loop().time()
        async with self._lock:
            await self._capture()
            self._usage = await self._forecasting.read_usage(self._clock())
            self._report(self._usage)
            capture = await self._capture()  # reading may have taken minutes
            outlook = await self._forecasting.forecast(capture.nodes, capture.allocatable)
            await self._serve(capture, outlook)
        self._telemetry.refresh_seconds.set(asyncio.get_running_loop().time() - began)

    async def follow(self) -> None:
        """Take over what has changed of pods, so that a refresh has little of that to begin with.

        Raises:
            ForecastingError: what makes forecasts has not heard of it; the next time it will.
        """
        if self._lock.locked():
            return  # a refresh is under way, and does this itself
        async with self._lock:
            if changes := self._state.changes():
                await self._follow(changes)

    async def _capture(self) -> Capture:
        """What to forecast for now; what forecasts follow is brought up to date."""
        capture = self._state.capture()
        await self._follow(capture.changes)
        return capture

    async def _follow(self, changes: ChangedPods) -> None:
        await asyncio.to_thread(self._pods.follow, counted(changes))
        new = await self._forecasting.begin()
        await self._forecasting.follow(self._pods.all() if new else counted(changes))

    def _report(self, usage: Usage) -> None:
        self._telemetry.usage_end.set(max(usage.fresh, 0))
        if usage.error:
            self._telemetry.usage_errors.inc()
            log.warning("usage cannot be read", error=usage.error, newest=usage.time)
        elif usage.time and usage.pods and usage.fresh < 0:
            log.warning(
                "the usage query returns no pod: look at prometheus.query and "
                "cluster_label, and at the labels namespace and pod"
            )

    async def _serve(self, capture: Capture, made: Outlook | None) -> None:
        """Put what was made into force; ``made``: None where there is no model or no usage."""
        model = self._model
        if made is None and model is not None and self._outlook.usage_end:
            return  # forecasting has begun anew, and knows less yet than what is in force
        version, policy = NO_MODEL, self._fallback
        if model is not None:
            version, policy = model.version, model.policy
        outlook = made or unknown(len(capture.nodes), self._usage.time)
        await asyncio.to_thread(self._compare, capture.nodes, outlook)
        self._state.serve(
            capture, outlook.forecast, outlook.newest, version, policy, outlook.rhythm
        )
        self._tell(version)
        if self._recorder is not None:
            about = (self._clock(), version, self._share)
            pods = await asyncio.to_thread(self._pods.counting)
            self._recorder.put(lambda: _recorded(capture, pods, outlook, *about))
        replaced = [self._outlook]
        self._outlook = outlook
        await asyncio.to_thread(_free, replaced)

    def _tell(self, version: str) -> None:
        """Say which version serves, where that has changed."""
        if self._reported != (version, self._source):
            self._reported = version, self._source
            self._telemetry.serving(self._model, self._source)
            log.info("model serves", version=version, source=self._source)

    def _compare(self, nodes: Sequence[str], outlook: Outlook) -> None:
        """Count in how many nodes the newest window was above the forecast then in force."""
        rows, forecast, time = self._in_force
        if outlook.usage_end > time:
            pairs = [(rows[node], at) for at, node in enumerate(nodes) if node in rows]
            before, now = np.array(pairs, np.int64).reshape(-1, 2).T
            truth, promised = outlook.rhythm.usage[now], forecast[before]
            known = np.isfinite(promised) & (outlook.newest[now] >= outlook.usage_end)
            self._telemetry.node_windows.inc(int(known.sum()))
            self._telemetry.violations.inc(int((truth[known] > promised[known]).sum()))
        self._in_force = (
            {node: at for at, node in enumerate(nodes)},
            outlook.forecast.forecast[:, 0],
            outlook.usage_end,
        )


def _recorded(
    capture: Capture,
    pods: Sequence[CountedPod],
    outlook: Outlook,
    time: float,
    version: str,
    share: float,
) -> Refresh:
    """What is recorded of a refresh: the forecast, and the pods and the usage that count in it."""
    known = outlook.newest >= outlook.usage_end  # where nothing was observed, usage counts as 0
    return Refresh(
        time=time,
        usage_end=outlook.usage_end,
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


def _free(outlooks: list[Outlook]) -> None:
    """Let go of an outlook, in a thread: its names are as many as there are workloads."""
    outlook = outlooks.pop()
    names = list(outlook.rhythm.habits.index)
    del outlook
    while names:
        del names[-_FREED_AT_ONCE:]
