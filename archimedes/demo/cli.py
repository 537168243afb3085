"""`archimedes demo`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from models.terminal import Json, progress_bar

TraceDir = Annotated[
    Path | None, typer.Option("--trace", help="Folder of a trace. Default: a generated cluster.")
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", min=1, help="So many equal nodes. Default: the trace's, or 50."),
]
Hours = Annotated[float, typer.Option("--hours", min=2, max=240, help="Simulated hours to serve.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of all that is random.")]
Out = Annotated[Path, typer.Option("--out", help="Folder that gets a new folder for this run.")]


def demo(
    trace: TraceDir = None,
    nodes: Nodes = None,
    hours: Hours = 24.0,
    seed: Seed = 0,
    out: Out = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Show the whole loop without a cluster: train, serve, decide, compare, promote, swap.

    Example: archimedes demo --trace traces/azure-v1 --hours 24
    """
    from rich.console import Console

    from archimedes.demo.report import print_table, rows, summarise, write_report
    from archimedes.demo.run import run
    from archimedes.demo.world import build_world, generated
    from extender.telemetry import configure_logs
    from models.trace import read_trace

    configure_logs("warning")
    read = read_trace(trace) if trace is not None else generated(nodes, hours, seed)
    world = build_world(read, hours, nodes if trace is not None else None, seed)
    folder = out / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    with progress_bar("starting") as step:
        outcome = run(world, folder, step)
    summary, found = summarise(outcome)
    lines = rows(outcome, summary, found)
    title = f"Archimedes on {read.name}"
    page = folder / "demo.html"
    write_report(page, title, lines, outcome)
    if as_json:
        typer.echo(msgspec.json.encode(summary))
        return
    print_table(Console(), title, lines)
    typer.echo(f"Page with the plots: {page.resolve()}")
    commands, registry = Path(sys.executable).parent, outcome.tracking_uri
    typer.echo(f"Versions: {commands}/archimedes models list --tracking-uri {registry}")
    typer.echo(
        f"MLflow's pages: {commands}/mlflow server --workers 1 --backend-store-uri {registry}"
    )
