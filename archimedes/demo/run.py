"""The whole loop, embedded: learn, register, serve, compare, promote, swap, serve on."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from archimedes.demo.drive import Drive, SimulatedClock, cluster_of, usage_of
from archimedes.demo.scheduler import Scheduler
from archimedes.demo.world import World
from extender.app import Parts, Server, listening
from extender.champion import ChampionSource
from extender.forecasting import ThreadForecasting
from extender.settings import ModelSettings, Settings
from models.artifact import load_model, save_model
from models.classical import classical
from models.errors import ArchimedesError
from models.model import Model
from models.policy import Policy
from models.registry import Registry
from models.terminal import Step
from models.trace import Trace, digest, usage_grid
from models.usage_source import PrometheusSettings
from models.versions import FORECASTER_TAG, TARGET_TAG, TRACE_TAG
from shadow.compare import Comparison, compare
from shadow.kube_scheduler import NodeState
from shadow.machines import Machines, machines
from shadow.options import ReplayOptions
from shadow.result import ReplayResult
from shadow.seeds import Candidate
from trainer.fit import calibrate_model
from trainer.machines import placement_of
from trainer.train import register, train

BASELINE = "koordinator"
"""The first champion: the predictor that ships in the best known co-location system, calibrated on
the same past. The challenger has to beat it."""

COUNTING_REFRESH = 3600
"""Seconds between forecasts while machines are counted: a dozen replays, all with the same."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo showed."""

    result: ReplayResult
    comparison: Comparison
    machines: Machines
    champion_before: str
    champion_after: str
    swapped: int
    tracking_uri: str


def run(world: World, out: Path, step: Step) -> Outcome:
    """Run the demo; everything it writes lies in ``out``.

    Raises:
        ArchimedesError: the trace does not carry a demo, or a part failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    registry = Registry(f"sqlite:///{(out / 'mlflow.db').resolve()}")
    step("opening the registry, calibrating the first champion", 0.0)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(registry.prepare)
        model = _baseline(world.past(world.trial), world.options.seed)
        opened.result()
    baseline = _register_baseline(model, out / "baseline", registry)
    registry.promote(baseline, "first champion of the demo", by="demo")
    served = uvloop.run(_Service(world, out, registry, baseline, step).run())
    step("counting machines", 0.85)
    final = load_model(out / ("challenger/model" if served.promoted else "baseline"))
    hourly = msgspec.structs.replace(world.options, refresh=COUNTING_REFRESH)
    counted = machines(world.trace, final, options=hourly)
    step("done", 1.0)
    return Outcome(
        served.result,
        served.comparison,
        counted,
        baseline,
        served.challenger if served.promoted else baseline,
        world.middle if served.promoted else 0,
        registry.tracking_uri,
    )


def _baseline(trace: Trace, seed: int) -> Model:
    grid = usage_grid(trace)
    return calibrate_model(
        classical(BASELINE),
        grid,
        seed=seed,
        placement=placement_of(trace, grid),
        data_digest=digest(trace),
    )


def _register_baseline(model: Model, folder: Path, registry: Registry) -> str:
    save_model(model, folder)
    tags = {
        TRACE_TAG: model.training.data_digest,
        TARGET_TAG: f"{model.policy.target:g}",
        FORECASTER_TAG: model.forecaster.name,
    }
    return registry.register(
        folder, params={}, metrics=model.training.metrics, tags=tags, run_name="baseline"
    )


@dataclass(frozen=True, slots=True)
class _Served:
    result: ReplayResult
    comparison: Comparison
    challenger: str
    promoted: bool


class _Service:
    """The extender and all that happens around it while simulated time passes."""

    def __init__(
        self,
        world: World,
        out: Path,
        registry: Registry,
        baseline: str,
        step: Step,
    ) -> None:
        self._world, self._out, self._registry = world, out, registry
        self._baseline, self._challenger = baseline, ""
        self._step = step
        self._comparison: Comparison | None = None

    async def run(self) -> _Served:
        """Serve and drive from the world's start to its stop."""
        world, out = self._world, self._out
        scenario = world.scenario()
        grid = usage_grid(world.trace)
        clock, cluster = SimulatedClock(world.start), cluster_of(scenario)
        settings = Settings(
            port=0,
            model=ModelSettings(
                directory=str(out / "models"), tracking_uri=self._registry.tracking_uri
            ),
            prometheus=PrometheusSettings(delay_seconds=0.0),
            decision_log=str(out / "decisions.jsonl"),
        )
        source = ChampionSource(
            settings.model.tracking_uri, out / "models", clock=clock, fallback=None
        )
        forecasting = ThreadForecasting(usage_of(grid), settings.prometheus)
        server = Server(Parts(settings, clock, cluster, forecasting, source))
        cluster.attach(server.state.node_feed(), server.state.pod_feed())
        await server.loops.advertise()
        self._step("fetching the champion, training the challenger", 0.1)
        (model, status), self._challenger = await asyncio.gather(
            source.initial(), asyncio.to_thread(self._train)
        )
        if status.source != "champion":
            raise ArchimedesError(f"the champion cannot serve: {status.reason}")
        await server.refresher.install(model, status.source)
        try:
            async with listening(server) as url, aiohttp.ClientSession() as session:
                nodes = NodeState(
                    scenario.fleet.millicpu, scenario.fleet.memory, world.options.max_pods
                )
                scheduler = Scheduler(url, session, scenario.fleet.names, nodes, world.options.seed)
                drive = Drive(scenario, grid, world.options, server, cluster, clock, scheduler)
                review = {world.middle: lambda: self._review(server, source)}
                await drive.play(
                    review, lambda done: self._step("serving kube-scheduler", 0.35 + 0.5 * done)
                )
        finally:
            await server.close()
        if self._comparison is None:
            raise ArchimedesError("the demo ended before its review; give it at least one hour")
        return _Served(
            drive.result(),
            self._comparison,
            self._challenger,
            self._comparison.verdict == "promote",
        )

    def _train(self) -> str:
        """Train the challenger on what is known before the trial, and register it: its version."""
        world, folder = self._world, self._out / "challenger"
        known = world.past(world.trial)
        folder.mkdir()
        trained = train(known, folder, seed=world.options.seed, policy=Policy())
        return register(trained, known.name, self._registry)

    async def _review(self, server: Server, source: ChampionSource) -> None:
        """Compare in the shadow on what is known by now; promote and swap where it is better."""
        self._step("comparing in the shadow", 0.6)
        world, out = self._world, self._out
        trial = ReplayOptions(
            seed=world.options.seed,
            start=world.trial,
            hours=(world.middle - world.trial) / 3600,
        )
        comparison, _ = await asyncio.gather(
            asyncio.to_thread(
                compare,
                world.past(world.middle),
                Candidate(load_model(out / "baseline", self._baseline)),
                Candidate(load_model(out / "challenger" / "model", self._challenger)),
                options=trial,
            ),
            # Downloaded and checked meanwhile, so that a promotion takes effect at once.
            asyncio.to_thread(self._registry.pull, self._challenger, out / "models"),
        )
        self._comparison = comparison
        if comparison.verdict != "promote":
            return
        reason = " ".join(comparison.reasons)
        await asyncio.to_thread(self._registry.promote, self._challenger, reason, "demo")
        model: Model | None = await source.poll()
        if model is None:
            raise ArchimedesError(f"the new champion cannot serve: {source.status.reason}")
        await server.refresher.install(model, source.status.source)
