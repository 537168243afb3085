"""`archimedes shadow follow`: the live shadow beside a running extender."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import structlog
import typer

from extender.recording import SUFFIX
from models.errors import ArchimedesError, ArtifactError, RegistryError, SettingsError
from models.grid import WINDOW
from models.model import Model
from models.store import ALIASES, DEFAULT_TRACKING_URI, copies
from models.terminal import Json, TrackingUri
from models.usage_source import PrometheusSettings, UsageError, UsageSource, problems
from shadow.cli_options import Decisions
from shadow.follow import Follower
from shadow.live_figures import figures
from shadow.live_state import LiveState
from shadow.state_file import StateFile

if TYPE_CHECKING:
    from models.registry import Registry

POLL_SECONDS = 10.0

RETRY_SECONDS = 600.0
"""A challenger that cannot be loaded is tried again after this long: each try is a download."""

log = structlog.get_logger()

Prometheus = Annotated[str, typer.Option("--prometheus", help="Prometheus' address.")]
TokenFile = Annotated[
    str, typer.Option("--prometheus-token-file", help="File with a bearer token.")
]
CaFile = Annotated[
    str, typer.Option("--prometheus-ca-file", help="File with its authority's certificates.")
]
Query = Annotated[
    str,
    typer.Option("--prometheus-query", help="PromQL of the pods' cores, as prometheus.query."),
]
ClusterLabel = Annotated[
    list[str] | None,
    typer.Option("--cluster-label", help="NAME=VALUE that selects this cluster; repeatable."),
]
Ref = Annotated[str, typer.Option("--challenger", help="REF: an alias is followed as it moves.")]
State = Annotated[
    Path, typer.Option("--state", help="File that remembers how far it is, and the sums.")
]
Once = Annotated[bool, typer.Option("--once", help="Do what can be done now, then stop.")]


def follow(
    decisions: Decisions,
    prometheus: Prometheus,
    token_file: TokenFile = "",
    ca_file: CaFile = "",
    query: Query = "",
    cluster_label: ClusterLabel = None,
    challenger: Ref = "challenger",
    state: State = Path("shadow.state"),
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    once: Once = False,
    as_json: Json = False,
) -> None:
    """Score each logged decision with the challenger, and judge both by what really happened."""
    from models.registry import Registry

    # Standard output belongs to the figures; where errors go is looked up for each line.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    settings = _checked(prometheus, token_file, ca_file, query, cluster_label or [])
    registry = Registry(tracking_uri)
    file = StateFile(state)
    with file.alone():
        found = asyncio.run(
            _run(
                settings,
                lambda source: Follower(
                    decisions,
                    Path(f"{decisions}{SUFFIX}"),
                    source,
                    settings,
                    file,
                    Challenger(challenger, tracking_uri, registry, Path(f"{state}.models")),
                    registry.log_shadow,
                ),
                once=once,
            )
        )
    _print(found, as_json=as_json)


def _checked(
    url: str, token_file: str, ca_file: str, query: str, labels: list[str]
) -> PrometheusSettings:
    """How to reach Prometheus, by the rules of the extender's settings. Raises SettingsError."""
    pairs = [label.partition("=") for label in labels]
    for label, (name, _, value) in zip(labels, pairs, strict=True):
        if not name or not value:
            raise SettingsError(f"--cluster-label: {label!r} is no NAME=VALUE")
    settings = PrometheusSettings(
        url=url,
        token_file=token_file,
        ca_file=ca_file,
        query=query,
        cluster_label={name: value for name, _, value in pairs},
    )
    for problem in problems(settings):
        field, _, wrong = problem.partition(":")
        raise SettingsError(f"{_OPTIONS[field]}:{wrong}")
    return settings


_OPTIONS = {
    "prometheus.url": "--prometheus",
    "prometheus.cluster_label": "--cluster-label",
    "prometheus.query": "--prometheus-query",
}


class Challenger:
    """The model on trial: loaded once, and again when its alias names another version.

    Args:
        ref: what the operator named; tracking_uri, registry: where versions come from.
        store: folder of local copies, see `models.store`: what a restart without the registry uses.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        ref: str,
        tracking_uri: str,
        registry: Registry,
        store: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ref = ref
        self._uri = tracking_uri
        self._registry = registry
        self._store = store
        self._clock = clock
        self._refused = "", 0.0  # a version, and when to try it again
        self._model: Model | None = None
        self._answered = False  # then the last answer, which may be none, outlives any failure

    def __call__(self) -> Model | None:
        """The model, None where the alias names none.

        Raises:
            ArchimedesError: it cannot be had, and was not had earlier.
        """
        try:
            if self._ref in ALIASES:
                self._follow_alias()
            elif self._model is None:
                self._model = self._load()
        except (ArtifactError, RegistryError) as e:
            if not self._answered:
                self._model = self._copy()
                if self._model is None:
                    raise
            version = self._model.version if self._model else None
            log.warning("goes on with what is here", version=version, error=str(e))
        self._answered = True
        return self._model

    def _load(self) -> Model:
        from models.artifact import load_model
        from models.refs import resolve_model

        if Path(self._ref).is_dir() or not (self._ref in ALIASES or self._ref.isdecimal()):
            return resolve_model(self._ref, self._uri)
        version = self._registry.pull(self._ref, self._store)
        return load_model(self._store / version, version)

    def _copy(self) -> Model | None:
        """The newest local copy of what was named."""
        from models.artifact import load_model

        for folder in copies(self._store):
            if self._ref in (*ALIASES, folder.name):
                return load_model(folder, folder.name)
        return None

    def _follow_alias(self) -> None:
        version = self._registry.alias(self._ref)
        if version is None:
            self._model = None
        elif self._model is None or self._model.version != version:
            self._try(version)

    def _try(self, version: str) -> None:
        """Load what the alias names, unless that failed a short time ago."""
        refused, again = self._refused
        if version == refused and self._clock() < again:
            return
        try:
            self._model = self._load()
        except (ArtifactError, RegistryError):
            self._refused = version, self._clock() + RETRY_SECONDS
            raise


async def _run(
    settings: PrometheusSettings, build: Callable[[UsageSource], Follower], *, once: bool
) -> LiveState:
    from models.prometheus import PrometheusSource

    source = PrometheusSource(settings)
    try:
        follower = build(source)
        if once:
            await _ask(source)
        while True:
            more = await _cycle(follower, once=once)
            if once and not more:
                return follower.state
            if not more:
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await source.close()


async def _ask(source: UsageSource) -> None:
    """Ask for one window: a wrong address is told where nothing waits for usage yet, too."""
    try:
        await source.read(int(time.time() // WINDOW - 1) * WINDOW, 1)
    except UsageError as e:
        raise ArchimedesError(f"--prometheus: {e}") from e


async def _cycle(follower: Follower, *, once: bool) -> bool:
    """One cycle; whether there is more. While usage cannot be read, the next tries again."""
    try:
        return await follower.cycle(time.time())
    except UsageError as e:
        if once:
            raise ArchimedesError(f"--prometheus: {e}") from e
        log.warning("usage cannot be read", error=str(e))
        return False


def _print(state: LiveState, *, as_json: bool) -> None:
    trials = [(trial, figures(state.tallies[trial])) for trial in sorted(state.tallies)]
    if as_json:
        shown: dict[str, dict[str, dict[str, float]]] = {}
        for trial, found in trials:
            shown.setdefault(trial.challenger, {})[trial.champion] = found
        typer.echo(msgspec.json.encode(shown))
        return
    for trial, found in trials:
        typer.echo(f"challenger {trial.challenger} against champion {trial.champion}")
        for name, value in found.items():
            typer.echo(f"  {name}: {value:.6g}")
