"""`archimedes shadow follow`: the live shadow beside a running extender."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import structlog
import typer

from extender.recording import SUFFIX
from models.errors import ArchimedesError, RegistryError
from models.model import Model
from models.store import ALIASES, DEFAULT_TRACKING_URI
from models.usage_source import PrometheusSettings, UsageSource
from shadow.follow import Follower
from shadow.live_figures import figures
from shadow.live_state import LiveState, StateFile

if TYPE_CHECKING:
    from models.registry import Registry

POLL_SECONDS = 10.0

log = structlog.get_logger()


def follow(
    decisions: Annotated[Path, typer.Option("--decisions", help="The extender's decision log.")],
    prometheus: Annotated[str, typer.Option("--prometheus", help="Prometheus' address.")],
    challenger: Annotated[
        str, typer.Option("--challenger", help="REF: an alias is followed as it moves.")
    ] = "challenger",
    state: Annotated[
        Path, typer.Option("--state", help="File that remembers how far it is, and the sums.")
    ] = Path("shadow-state.json"),
    tracking_uri: Annotated[
        str,
        typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow's address."),
    ] = DEFAULT_TRACKING_URI,
    once: Annotated[
        bool, typer.Option("--once", help="Do what can be done now, then stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
) -> None:
    """Score each logged decision with the challenger, and judge both by what really happened."""
    from models.registry import Registry

    if not decisions.is_file():
        raise ArchimedesError(
            f"decision log {decisions} does not exist; name the file of the extender's decision_log"
        )
    if not prometheus.startswith(("http://", "https://")):
        raise ArchimedesError(f"--prometheus: {prometheus!r} is no http:// or https:// address")
    registry = Registry(tracking_uri)
    settings = PrometheusSettings(url=prometheus)
    found = asyncio.run(
        _run(
            settings,
            lambda source: Follower(
                decisions,
                Path(f"{decisions}{SUFFIX}"),
                source,
                settings,
                StateFile(state),
                Challenger(challenger, tracking_uri, registry),
                registry.log_shadow,
            ),
            once=once,
        )
    )
    _print(found, as_json=as_json)


class Challenger:
    """The model on trial: loaded once, and again when its alias names another version."""

    def __init__(self, ref: str, tracking_uri: str, registry: Registry) -> None:
        self._ref = ref
        self._uri = tracking_uri
        self._registry = registry
        self._model: Model | None = None

    def __call__(self) -> Model:
        """The model. Raises ArchimedesError where none was ever loaded."""
        from models.refs import resolve_model

        try:
            if self._model is None or self._moved(self._model.version):
                self._model = resolve_model(self._ref, self._uri)
        except RegistryError as e:
            if self._model is None:
                raise
            log.warning("the registry cannot be asked", error=str(e))
        return self._model

    def _moved(self, version: str) -> bool:
        return self._ref in ALIASES and self._registry.alias(self._ref) != version


async def _run(
    settings: PrometheusSettings, build: Callable[[UsageSource], Follower], *, once: bool
) -> LiveState:
    from models.prometheus import PrometheusSource

    source = PrometheusSource(settings)
    try:
        follower = build(source)
        while True:
            more = await follower.cycle(time.time())
            if once and not more:
                return follower.state
            if not more:
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await source.close()


def _print(state: LiveState, *, as_json: bool) -> None:
    shown = {version: figures(tally) for version, tally in state.tallies.items()}
    if as_json:
        typer.echo(msgspec.json.encode(shown))
        return
    for version, found in shown.items():
        typer.echo(f"challenger {version}")
        for name, value in found.items():
            typer.echo(f"  {name}: {value:.6g}")
