"""What the commands of several packages have in common: options, a progress bar, the registry."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.registry import Registry

TraceDir = Annotated[Path, typer.Option("--trace", help="Folder of the trace.")]
TrackingUri = Annotated[
    str,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow's address: http(s)://HOST:PORT of a server, or sqlite:///FILE.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

Step = Callable[[str, float], None]
"""Called with the name of what is being done and the share of it that is done."""


@contextmanager
def progress_bar(what: str) -> Iterator[Step]:
    """A bar on stderr where that is a terminal; nothing elsewhere.

    Args:
        what: the name of what is done first.
    """
    if not sys.stderr.isatty():
        yield lambda _name, _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda name, done: bar.update(task, description=name, completed=done)


def user() -> str:
    """Who runs this, for the history of promotions."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return "unknown"


def prepared(tracking_uri: str) -> Registry:
    """The registry, for a command that works for minutes before it writes there.

    Raises:
        RegistryError: it cannot be used; said before the work and not after it.
    """
    from models.registry import Registry

    registry = Registry(tracking_uri)
    registry.prepare()
    return registry
