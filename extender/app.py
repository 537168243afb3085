"""The composition root: puts the server together from its parts, runs it, and drains it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog
import uvloop
from aiohttp import web

from extender.ask import PodFacts
from extender.binder import Binder
from extender.calls import Calls
from extender.connections import Connections
from extender.decision_log import DecisionLog, End
from extender.events import Events
from extender.forecasting import Forecasting, ThreadForecasting
from extender.handlers import Pages, Verbs
from extender.lag import background_threads
from extender.loops import Loops
from extender.ports import Clock, Cluster, ModelSource
from extender.recorder import Recorder
from extender.recording import SUFFIX
from extender.refresh import Refresher
from extender.settings import Settings
from extender.state import State
from extender.telemetry import Telemetry, configure_logs
from extender.tls import Gate
from models.errors import ArchimedesError, SettingsError

_SWITCH_SECONDS = 0.0001
"""How long another thread may keep the interpreter while a call waits for it. A call needs the
interpreter two or three times, so this adds less than a third of a millisecond to it."""

_OTHER_FILES = 64
"""File descriptors that are needed beside those of callers: watches, binds, logs, certificates."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What a server is made of; a demo or a test brings its own.

    learned_file: where it is kept what a restart should not forget, None for nowhere.
    """

    settings: Settings
    clock: Clock
    cluster: Cluster
    forecasting: Forecasting
    models: ModelSource
    learned_file: Path | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)


class Server:
    """One extender: state, calls, background loops and its HTTP application.

    With `loops` running it looks after itself. Without, whoever embeds it calls ``loops.follow``,
    ``loops.tick``, ``refresher.refresh`` and ``refresher.install`` when their time has come.
    """

    def __init__(self, parts: Parts) -> None:
        """Raises SettingsError where the decision log or the certificates cannot be used."""
        settings, clock = parts.settings, parts.clock
        self.parts = parts
        self.telemetry = parts.telemetry
        self.decisions = _open_log(settings.decision_log, self.telemetry)
        self.state = State(settings, clock, self._log_end)
        self.gate = Gate(settings.tls, self.telemetry) if settings.tls.cert_file else None
        self.recorder = _open_recorder(settings, self.telemetry)
        self.refresher = Refresher(
            self.state, parts.forecasting, settings, clock, self.telemetry, self.recorder
        )
        self.events = Events(settings.events, clock, self.state, parts.cluster, self.telemetry)
        shared = (settings, clock, self.decisions, self.telemetry, self.events)
        self.calls = Calls(self.state, *shared, self.recorder)
        self.binder = Binder(self.state, parts.cluster, *shared)
        self.loops = Loops(
            self.state,
            self.refresher,
            self.binder,
            parts.cluster,
            parts.models,
            parts.learned_file,
            self.decisions,
            settings,
            clock,
            self.telemetry,
            np.random.default_rng(),
            self._other_loops(),
        )
        self.loops.load_learned()

    def app(self) -> web.Application:
        """The HTTP application."""
        settings = self.parts.settings
        app = web.Application(client_max_size=settings.max_body_bytes)
        app.add_routes(
            Verbs(self.calls, self.binder, self.state, settings, self.telemetry).routes()
        )
        app.add_routes(self._pages().routes())
        if self.gate is not None:
            self.gate.guard(app)
        return app

    def probes(self) -> web.Application:
        """The application for those who may only look: health and metrics."""
        app = web.Application()
        app.add_routes(self._pages().probes())
        return app

    async def close(self) -> None:
        """Finish binds that are under way and close what is open."""
        await self.binder.drain()
        self.loops.save_learned()
        await self.parts.cluster.close()
        await self.parts.forecasting.close()
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.close)
        self.decisions.close()

    def _log_end(self, pod: PodFacts) -> None:
        now = self.parts.clock()
        self.decisions.append(End(time=now, pod=pod.key, uid=pod.uid, node=pod.node))

    def _other_loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        loops: dict[str, Callable[[], Awaitable[None]]] = {}
        if self.gate is not None:
            loops["tls"] = self.gate.watch
        if self.parts.settings.events.enabled:
            loops["events"] = self.events.run
        return loops

    def _pages(self) -> Pages:
        parts = self.parts
        return Pages(self.state, self.decisions, parts.models, self.telemetry, parts.clock)


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[str]:
    """Serve HTTP in this event loop for as long as the context lasts; gives the URL.

    At the end no new connections are taken, and calls under way have `drain_seconds` to finish.

    Raises:
        ArchimedesError: the address cannot be listened on.
    """
    settings, probed = server.parts.settings, server.parts.settings.probes
    async with AsyncExitStack() as stack:
        calls = await stack.enter_async_context(_connections(server, server.app()))
        if probed.host:
            probes = await stack.enter_async_context(_connections(server, server.probes()))
            plain = _plain(probes, probed.host, probed.port)
            log.info("listening for probes", url=f"http://{await stack.enter_async_context(plain)}")
        if server.gate is None:
            plain = _plain(calls, settings.host, settings.port)
            yield f"http://{await stack.enter_async_context(plain)}"
            return
        stack.callback(server.gate.close)
        with _address_named(settings.host, settings.port):
            address = await server.gate.open(calls, settings.host, settings.port)
        yield f"https://{_joined(*address)}"


@asynccontextmanager
async def _connections(server: Server, app: web.Application) -> AsyncIterator[Connections]:
    """What makes an application's connections; at the end, calls under way are waited for."""
    settings = server.parts.settings
    runner = web.AppRunner(app, shutdown_timeout=settings.drain_seconds)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it is set up
    try:
        yield Connections(runner.server, settings, server.telemetry)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _plain(connections: Connections, host: str, port: int) -> AsyncIterator[str]:
    """Take connections without TLS for as long as the context lasts; gives the address."""
    with _address_named(host, port):
        listener = await asyncio.get_running_loop().create_server(connections, host, port)
    try:
        yield _joined(*listener.sockets[0].getsockname()[:2])
    finally:
        listener.close()


@contextmanager
def _address_named(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ArchimedesError(
            f"cannot listen on {host}:{port}: {e.strerror}; set another address or port"
        ) from e


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def production_parts(settings: Settings) -> Parts:
    """The parts of a real cluster.

    Raises:
        SettingsError: a file that the settings name cannot be used.
    """
    # Those who bring their own parts need none of these, of which some import LightGBM.
    from extender.lightgbm_alone import import_lightgbm_alone

    import_lightgbm_alone()
    from extender.champion import ChampionSource, fallback_model
    from extender.cluster import KubeCluster
    from extender.credentials import Credentials
    from extender.forecast_process import ProcessForecasting
    from extender.kube import KubeApi
    from extender.registry_client import mlflow_headers
    from models.prometheus import PrometheusSource

    telemetry = Telemetry()
    api = KubeApi(Credentials(settings.kubeconfig))
    prometheus, store = settings.prometheus, Path(settings.model.directory)
    forecasting: Forecasting = ThreadForecasting(None, prometheus)
    if prometheus.url:
        PrometheusSource(prometheus)  # what is wrong with its files is said now, not by the child
        forecasting = ProcessForecasting(prometheus, settings.log_level)
    else:
        log.warning("prometheus.url is not set: there is no usage, so nothing is promised")
    return Parts(
        settings=settings,
        clock=time.time,
        cluster=KubeCluster(api, telemetry, np.random.default_rng()),
        forecasting=forecasting,
        models=ChampionSource(
            settings.model.tracking_uri,
            store,
            clock=time.time,
            fallback=fallback_model(settings.policy),
            headers=mlflow_headers(os.environ),
        ),
        learned_file=store / "learned.json",
        telemetry=telemetry,
    )


def serve(settings: Settings) -> None:
    """Serve a real cluster until SIGTERM or SIGINT, then drain.

    Raises:
        ArchimedesError: it cannot start; the text says why.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    listeners = 2 if settings.probes.host else 1
    if listeners * settings.max_connections + _OTHER_FILES > files:
        raise SettingsError(
            f"max_connections: {settings.max_connections} connections of each of {listeners} "
            f"listeners need more than the {files} files that this process may open; lower it, or "
            "raise `ulimit -Hn`"
        )
    # Callers whose TLS handshake is under way are not counted as connections, but take files too.
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    configure_logs(settings.log_level)
    run(Server(production_parts(settings)))


def run(server: Server) -> None:
    """Run a server until SIGTERM or SIGINT, then drain. Raises ArchimedesError."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    uvloop.run(_serve(server))


async def _serve(server: Server) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().set_default_executor(background_threads())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    loops = asyncio.create_task(server.loops.run())
    try:
        async with listening(server) as url:
            log.info("listening", url=url)
            await stop.wait()
            server.state.draining = True
            log.info("draining")
    finally:
        loops.cancel()
        with suppress(asyncio.CancelledError):
            await loops
        await server.close()
    log.info("stopped")


def _open_log(path: str, telemetry: Telemetry) -> DecisionLog:
    try:
        return DecisionLog(Path(path) if path else None, lost=telemetry.unlogged.inc)
    except OSError as e:
        raise SettingsError(f"decision_log: {path} cannot be written: {e.strerror}") from e


def _open_recorder(settings: Settings, telemetry: Telemetry) -> Recorder | None:
    """The recorder beside the decision log, where there is one."""
    if not settings.decision_log or not settings.recording_megabytes:
        return None
    folder = Path(settings.decision_log + SUFFIX)
    try:
        return Recorder(
            folder,
            max_bytes=settings.recording_megabytes * 2**20,
            max_age=settings.recording_hours * 3600,
            advertise_share=settings.advertise_share,
            dropped=telemetry.unrecorded.inc,
        )
    except OSError as e:
        raise SettingsError(f"decision_log: {folder} cannot be made: {e.strerror}") from e
