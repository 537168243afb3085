"""`archimedes trainer import`: public sources, or a cluster in production, into a trace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from models.errors import SettingsError
from models.kube.request import RECLAIMED
from models.terminal import Json, progress_bar

if TYPE_CHECKING:
    from trainer.importers.common import Imported

app = typer.Typer(
    no_args_is_help=True, help="Turn a public source, or a cluster's past, into a trace."
)

T = TypeVar("T")

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]

Source = Annotated[Path, typer.Argument(help="Folder with the source's files, searched through.")]
Out = Annotated[Path, typer.Argument(help="Folder of the trace to write.")]
Limit = Annotated[int, typer.Option(min=0, help="At most so many machines, a sample; 0 for all.")]
MinDays = Annotated[
    float, typer.Option(min=0, help="Leave out machines that lived for fewer days.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample that --limit takes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a trace that stands at OUT.")]
FirstDay = Annotated[
    datetime,
    typer.Option(
        formats=["%Y-%m-%d"],
        show_default="2017-01-02",
        help="Day (UTC) that second 0 stands for; the publisher does not tell it.",
    ),
]
Url = Annotated[
    str, typer.Option("--prometheus", help="Address of the Prometheus-compatible server.")
]
Start = Annotated[datetime, typer.Option(formats=TIMES, help="From when on (UTC).")]
End = Annotated[
    datetime | None, typer.Option(formats=TIMES, show_default="now", help="Until when (UTC).")
]
Kubeconfig = Annotated[
    str,
    typer.Option(
        show_default="service account, $KUBECONFIG, ~/.kube/config",
        help="Kubeconfig of the cluster whose pods and nodes are read.",
    ),
]
ClusterLabel = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        show_default="none",
        help="Label that selects this cluster's series; may be given again.",
    ),
]
Query = Annotated[
    str,
    typer.Option(
        show_default="rate of container_cpu_usage_seconds_total",
        help="PromQL that returns cores by namespace and pod.",
    ),
]
NodeCpuQuery = Annotated[
    str,
    typer.Option(
        show_default="kube_node_status_allocatable, else machine_cpu_cores",
        help="PromQL that returns the cores of nodes by node, for those that are gone.",
    ),
]
NodeMemoryQuery = Annotated[
    str,
    typer.Option(
        show_default="kube_node_status_allocatable, else machine_memory_bytes",
        help="PromQL that returns their memory in bytes by node.",
    ),
]
TokenFile = Annotated[
    str, typer.Option(show_default="none", help="File with a bearer token for Prometheus.")
]
CaFile = Annotated[
    str,
    typer.Option(
        show_default="the system's", help="File with the authority of Prometheus' certificate."
    ),
]
Timeout = Annotated[float, typer.Option(min=1, max=600, help="Seconds that one query may take.")]
Resource = Annotated[
    str, typer.Option(help="Name of the reclaimed resource, for which offline pods ask.")
]
CpuMax = Annotated[bool, typer.Option("--cpu-max", help="Read each window's highest minutes too.")]


@app.command(
    "azure-v1",
    epilog="Example: archimedes trainer import azure-v1 AzurePublicDataset/ traces/azure",
)
def azure_v1(
    source: Source,
    out: Out,
    limit: Limit = 1000,
    min_days: MinDays = 0.0,
    seed: Seed = 0,
    start: FirstDay = datetime(2017, 1, 2),  # noqa: DTZ001 - typer parses days without a zone
    force: Force = False,
    as_json: Json = False,
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
    limit: Limit = 0,
    min_days: MinDays = 0.0,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
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


@app.command(
    epilog="Example: archimedes trainer import prometheus traces/blue "
    "--prometheus http://prometheus.monitoring:9090 --start 2026-03-01"
)
def prometheus(
    out: Out,
    url: Url,
    start: Start,
    end: End = None,
    kubeconfig: Kubeconfig = "",
    cluster_label: ClusterLabel = None,
    query: Query = "",
    node_cpu_query: NodeCpuQuery = "",
    node_memory_query: NodeMemoryQuery = "",
    token_file: TokenFile = "",
    ca_file: CaFile = "",
    timeout: Timeout = 60.0,
    resource: Resource = RECLAIMED,
    cpu_max: CpuMax = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Import a cluster in production: usage from Prometheus, pods and nodes from the API server."""
    from models.usage_source import PrometheusSettings, is_address
    from trainer.importers.production import Production, import_production

    if not is_address(url):
        raise SettingsError(f"--prometheus {url!r} is no http:// or https:// address.")
    if cpu_max and query:
        raise SettingsError("--cpu-max knows only its own query; leave out --query or --cpu-max.")
    now = time.time()
    settings = PrometheusSettings(
        url=url,
        cluster_label=_labels(cluster_label or ()),
        query=query,
        timeout_seconds=timeout,
        token_file=token_file,
        ca_file=ca_file,
    )
    _report(
        out,
        import_production(
            Production(
                prometheus=settings,
                kubeconfig=kubeconfig,
                resource=resource,
                start=start.replace(tzinfo=UTC).timestamp(),
                end=end.replace(tzinfo=UTC).timestamp() if end else now - settings.delay_seconds,
                peaks=cpu_max,
                node_cpu=node_cpu_query,
                node_memory=node_memory_query,
            ),
            out,
            now=now,
            track=_track,
            overwrite=force,
        ),
        as_json=as_json,
    )


def _labels(given: Iterable[str]) -> dict[str, str]:
    """Label matchers by name."""
    labels = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise SettingsError(f"--cluster-label {text!r} is not of the form NAME=VALUE.")
        labels[name] = value
    return labels


def _track(parts: Sequence[T]) -> Iterator[T]:
    """The parts; a progress bar shows how many of them are done."""
    with progress_bar("importing") as step:
        for done, part in enumerate(parts):
            step("importing", done / len(parts))
            yield part


def _report(out: Path, imported: Imported, *, as_json: bool) -> None:
    figures = {
        "trace": str(out),
        "pods": imported.pods,
        "usage_rows": imported.usage_rows,
        "first": imported.first.isoformat(),
        "last": imported.last.isoformat(),
        **({"left_out": imported.left_out} if imported.left_out else {}),
    }
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo(
        f"{out}: {imported.pods} pods, {imported.usage_rows} usage rows, "
        f"{imported.first:%Y-%m-%d %H:%M} to {imported.last:%Y-%m-%d %H:%M} UTC"
    )
    for sentence in imported.left_out:
        typer.echo(sentence)
