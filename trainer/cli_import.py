"""`archimedes trainer import`: public sources into a trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trainer.importers.common import Imported

app = typer.Typer(no_args_is_help=True, help="Turn a public source into a trace.")

Source = Annotated[Path, typer.Argument(help="Folder with the source's files, searched through.")]
Out = Annotated[Path, typer.Argument(help="Folder of the trace to write.")]
MinDays = Annotated[
    float, typer.Option(min=0, help="Leave out machines that lived for fewer days.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample that --limit takes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a trace that stands at OUT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")]


@app.command(
    "azure-v1",
    epilog="Example: archimedes trainer import azure-v1 AzurePublicDataset/ traces/azure",
)
def azure_v1(
    source: Source,
    out: Out,
    limit: Annotated[
        int, typer.Option(min=0, help="At most so many machines, a sample; 0 for all.")
    ] = 1000,
    min_days: MinDays = 0.0,
    seed: Seed = 0,
    start: Annotated[
        datetime,
        typer.Option(
            formats=["%Y-%m-%d"],
            show_default="2017-01-02",
            help="Day (UTC) that second 0 stands for; the publisher does not tell it.",
        ),
    ] = datetime(2017, 1, 2),  # noqa: DTZ001 - typer parses days without a zone
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Import Azure Public Dataset V1: its CSV files, or an extract with a column a machine."""
    from trainer.importers.azure_v1 import import_azure_v1

    _report(
        out,
        import_azure_v1(
            source,
            out,
            start=start.replace(tzinfo=UTC),
            track=_track,
            limit=limit,
            min_days=min_days,
            seed=seed,
            overwrite=force,
        ),
        as_json=as_json,
    )


@app.command(
    epilog="Example: archimedes trainer import bitbrains GWA-T-12/fastStorage/ traces/bitbrains"
)
def bitbrains(
    source: Source,
    out: Out,
    limit: Annotated[
        int, typer.Option(min=0, help="At most so many machines, a sample; 0 for all.")
    ] = 0,
    min_days: MinDays = 0.0,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Import GWA-T-12 Bitbrains: one CSV file a virtual machine, or one a month."""
    from trainer.importers.bitbrains import import_bitbrains

    _report(
        out,
        import_bitbrains(
            source,
            out,
            track=_track,
            limit=limit,
            min_days=min_days,
            seed=seed,
            overwrite=force,
        ),
        as_json=as_json,
    )


def _track(files: Sequence[Path]) -> Iterable[Path]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(files, "importing", console=console, disable=not console.is_terminal)


def _report(out: Path, imported: Imported, *, as_json: bool) -> None:
    figures = {
        "trace": str(out),
        "pods": imported.pods,
        "usage_rows": imported.usage_rows,
        "first": imported.first.isoformat(),
        "last": imported.last.isoformat(),
    }
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo(
        f"{out}: {imported.pods} pods, {imported.usage_rows} usage rows, "
        f"{imported.first:%Y-%m-%d %H:%M} to {imported.last:%Y-%m-%d %H:%M} UTC"
    )
