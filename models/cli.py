"""`archimedes models`: the promotion loop, for people and for cron."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import msgspec
import typer

from models.errors import ArchimedesError, SettingsError
from models.store import DEFAULT_TRACKING_URI, MODEL_NAME
from models.terminal import Json, TrackingUri, user
from models.times import utc

if TYPE_CHECKING:
    from models.promotion import Event
    from models.versions import Version

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="List, promote, roll back and fetch model versions.",
)


def _given(reason: str) -> str:
    if not reason.strip():
        raise SettingsError("--reason is empty; say why, in a few words")
    return reason


Reason = Annotated[
    str,
    typer.Option(
        "--reason",
        help="Why; kept with the version and in its run's audit files.",
        callback=_given,
    ),
]


@app.command("list", epilog="Example: archimedes models list --json")
def list_versions(tracking_uri: TrackingUri = DEFAULT_TRACKING_URI, as_json: Json = False) -> None:
    """Show the versions, the newest first, and what was promoted when."""
    from models.registry import Registry

    registry = Registry(tracking_uri)
    versions, history = registry.versions(), registry.history()
    if as_json:
        shown = {"model": MODEL_NAME, "versions": versions, "history": history}
        typer.echo(msgspec.json.encode(shown))
        return
    _print_versions(versions)
    for event in history:
        typer.echo(f"{utc(event.time)}  {_sentence(event)} by {event.by}: {event.reason}")
    champion = next(
        (version.version for version in versions if "champion" in version.aliases), None
    )
    if history and champion not in (None, history[-1].champion):
        typer.echo(
            f"Version {champion} was made the champion by hand; "
            f"`archimedes models promote {champion} --reason WHY` records it."
        )


@app.command("promote", epilog='Example: archimedes models promote 4 --reason "beat 3 in replay"')
def promote(
    version: Annotated[str, typer.Argument(help="A version's number, or an alias.")],
    reason: Reason,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Make a version the champion; the old champion becomes the previous version.

    Repeating it changes nothing; running it again completes one that was interrupted.
    """
    from models.registry import Registry

    event = Registry(tracking_uri).promote(version, reason, user())
    if as_json:
        typer.echo(msgspec.json.encode({"changed": event is not None, "event": event}))
    elif event is None:
        typer.echo(f"{version} is the champion already.")
    else:
        typer.echo(_sentence(event))


@app.command("rollback", epilog='Example: archimedes models rollback --reason "evictions doubled"')
def rollback(
    reason: Reason, tracking_uri: TrackingUri = DEFAULT_TRACKING_URI, as_json: Json = False
) -> None:
    """Swap champion and previous version."""
    from models.registry import Registry

    event = Registry(tracking_uri).rollback(reason, user())
    typer.echo(msgspec.json.encode({"event": event}) if as_json else _sentence(event))


@app.command("pull", epilog="Example: archimedes models pull champion --to ./versions")
def pull(
    ref: Annotated[str, typer.Argument(help="A version's number, or an alias.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that gets one folder per version.")],
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Download a version, check it in a child process and put it on disk, whole or not at all."""
    from models.registry import Registry

    version = Registry(tracking_uri).pull(ref, to)
    folder = to / version
    if as_json:
        typer.echo(msgspec.json.encode({"version": version, "folder": str(folder)}))
    else:
        typer.echo(f"Version {version} is in {folder}")


def _print_versions(versions: list[Version]) -> None:
    """A headline for each version and a line for each of its metrics, all horizons in it."""
    from models.versions import FORECASTER_TAG, TARGET_TAG, TRACE_TAG, metric_lines

    for v in versions:
        known = {tag: v.tags.get(tag, "unknown") for tag in (FORECASTER_TAG, TARGET_TAG, TRACE_TAG)}
        typer.echo(
            f"{v.version:>4}  {', '.join(v.aliases) or '-':<11} {utc(v.created)}  "
            f"{known[FORECASTER_TAG]}  target {known[TARGET_TAG]}  "
            f"trace {known[TRACE_TAG][:12]}  run {v.run_id[:8]}"
        )
        for line in metric_lines(v.metrics):
            typer.echo(f"      {line}")


def _sentence(event: Event) -> str:
    before = "" if event.previous is None else f" instead of {event.previous}"
    verb = "Promoted" if event.action == "promote" else "Rolled back"
    return f"{verb}: version {event.champion} is the champion{before}"


if __name__ == "__main__":  # the extender pulls in a child process
    try:
        app()
    except ArchimedesError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
