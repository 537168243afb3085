"""`archimedes shadow extract`: recorded production as a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from models.terminal import Json
from shadow.cli_options import Decisions


def extract(
    out: Annotated[Path, typer.Argument(help="Folder to write the trace to.")],
    decisions: Decisions,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a trace that stands at OUT.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn what production logged and recorded into a trace, to replay, compare or train on."""
    from models.trace import write_trace
    from shadow.extract import extract as run

    trace, found = run(decisions, out.name)
    write_trace(trace, out, overwrite=force)
    if as_json:
        typer.echo(msgspec.json.encode(found))
        return
    for name, value in msgspec.to_builtins(found).items():
        typer.echo(f"{name}: {value}")
