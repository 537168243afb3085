"""`archimedes shadow`: decide a trace's pods again, and compare models on it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from models.store import DEFAULT_TRACKING_URI
from models.terminal import Json, TraceDir, TrackingUri, prepared, progress_bar
from shadow.cli_extract import extract
from shadow.cli_follow import follow
from shadow.cli_options import (
    DEFAULT_MODEL,
    Blur,
    Decisions,
    Evict,
    Html,
    NodeCpu,
    Nodes,
    NodesToScore,
    OfflineLoad,
    Refresh,
    read_policy,
    replay_options,
)

if TYPE_CHECKING:
    from models.model import Model

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Decide a trace's pods again, and compare models on it.",
)

app.command(
    epilog="Example: archimedes shadow follow --decisions decisions.jsonl "
    "--prometheus http://prometheus:9090"
)(follow)
app.command(
    epilog="Example: archimedes shadow extract --decisions decisions.jsonl traces/production"
)(extract)

REQUESTS = "requests"
"""In place of a model: every online pod counts with its request."""

_REF = (
    "a model folder, a registered version or alias, a classical predictor's name, or 'requests' "
    "(nothing beyond requests is reclaimed)"
)

Hours = Annotated[
    float | None,
    typer.Option(
        "--hours",
        help="How long to decide for, at most what the trace covers. Default: 24; of a trace "
        "without usage, all.",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Of generated offline pods and of choices among equals.")
]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Replay under so many seeds, from --seed on.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="Replays at once, where there are several seeds. Default: each core."
    ),
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Address of a Dask scheduler: replay on its workers instead."),
]
Log = Annotated[
    bool, typer.Option("--log", help="Log figures, JSON and the page to MLflow as a run.")
]


@app.command(epilog="Example: archimedes shadow replay --trace traces/azure-v1 --model champion")
def replay(
    trace: TraceDir,
    model: Annotated[str, typer.Option("--model", help=f"REF: {_REF}.")] = DEFAULT_MODEL,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="YAML or JSON file, instead of the model's own policy."),
    ] = None,
    hours: Hours = None,
    nodes: Nodes = None,
    node_cpu: NodeCpu = None,
    seed: Seed = 0,
    offline_load: OfflineLoad = 0.75,
    refresh_minutes: Refresh = 15,
    blur: Blur = 0.0,
    nodes_to_score: NodesToScore = 0,
    evict: Evict = False,
    seeds: Seeds = 1,
    jobs: Jobs = None,
    dask: Dask = None,
    machines: Annotated[
        bool,
        typer.Option("--machines", help="Also count the machines that the same work needs."),
    ] = False,
    html: Html = None,
    log: Log = False,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Decide a trace's pods again with the extender's own functions while its time passes."""
    options = replay_options(
        hours=hours,
        nodes=nodes,
        node_cpu=node_cpu,
        seed=seed,
        offline_load=offline_load,
        refresh_minutes=refresh_minutes,
        blur=blur,
        nodes_to_score=nodes_to_score,
        evict=evict,
    )
    from models.trace import read_trace
    from shadow import machines as counting
    from shadow import report
    from shadow.figures import figures
    from shadow.parallel import cores
    from shadow.seeds import Candidate, Replays, mean_of, replay_seeds

    registry = prepared(tracking_uri) if log else None
    read = read_trace(trace)
    chosen, own_policy = _model(model, tracking_uri), read_policy(policy)
    with progress_bar("replay") as step:
        seeded = replay_seeds(
            Replays(read, (Candidate(chosen, own_policy),), time.perf_counter),
            options=options,
            seeds=seeds,
            jobs=jobs or cores(),
            dask=dask,
            progress=partial(step, "replay"),
        )
    results = [result for (result,) in seeded]
    found = mean_of([figures(result) for result in results])
    rows, shown = report.figure_rows(found), msgspec.to_builtins(found)
    if machines:
        with progress_bar("machines") as step:
            count = counting.machines(
                read, chosen, policy=own_policy, options=options, progress=partial(step, "machines")
            )
        rows += report.machine_rows(count)
        shown |= {"machines": count.needed, "machines_saved": count.saved}
    try:
        if registry is not None:
            from shadow.logged import log_replay

            shown["run_id"] = log_replay(registry, read, results[0], found, rows, shown)
    finally:  # a registry that has gone meanwhile loses no figures
        if as_json:
            typer.echo(msgspec.json.encode(shown))
        else:
            by = report.model_name(found.model_version)
            _print(report.replay_table(f"{found.trace}, forecasts by {by}", rows))
    if html is not None:  # after what is printed, which a file that cannot be written must not lose
        from shadow.report_page import write_replay_page

        # Plots show one replay, the table what all seeds come to.
        write_replay_page(html, results[0], found, rows)


@app.command(
    epilog="Example: archimedes shadow compare --trace traces/azure-v1 --champion 3 --challenger 4"
)
def compare(
    trace: TraceDir,
    champion: Annotated[str, typer.Option("--champion", help=f"REF: {_REF}.")],
    challenger: Annotated[str, typer.Option("--challenger", help=f"REF: {_REF}.")],
    champion_policy: Annotated[
        Path | None, typer.Option("--champion-policy", help="Policy file for the champion.")
    ] = None,
    challenger_policy: Annotated[
        Path | None, typer.Option("--challenger-policy", help="Policy file for the challenger.")
    ] = None,
    hours: Hours = None,
    nodes: Nodes = None,
    node_cpu: NodeCpu = None,
    seed: Seed = 0,
    offline_load: OfflineLoad = 0.75,
    refresh_minutes: Refresh = 15,
    blur: Blur = 0.0,
    nodes_to_score: NodesToScore = 0,
    evict: Evict = False,
    seeds: Seeds = 1,
    jobs: Jobs = None,
    dask: Dask = None,
    html: Html = None,
    log: Log = False,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Replay a trace under both models on the same pods and judge the challenger."""
    options = replay_options(
        hours=hours,
        nodes=nodes,
        node_cpu=node_cpu,
        seed=seed,
        offline_load=offline_load,
        refresh_minutes=refresh_minutes,
        blur=blur,
        nodes_to_score=nodes_to_score,
        evict=evict,
    )
    from models.trace import read_trace
    from shadow import report
    from shadow.compare import judge, replay_sides
    from shadow.parallel import cores
    from shadow.seeds import Candidate

    registry = prepared(tracking_uri) if log else None
    read = read_trace(trace)
    candidates = [
        Candidate(_model(ref, tracking_uri), read_policy(file))
        for ref, file in ((champion, champion_policy), (challenger, challenger_policy))
    ]
    with progress_bar("compare") as step:
        sides = replay_sides(
            read,
            *candidates,
            options=options,
            seeds=seeds,
            jobs=jobs or cores(),
            dask=dask,
            progress=partial(step, "compare"),
        )
    found = judge(sides)
    shown = msgspec.to_builtins(found)
    try:
        if registry is not None:
            from shadow.logged import log_comparison

            shown["run_id"] = log_comparison(registry, read, sides, found)
    finally:  # a registry that has gone meanwhile loses no figures
        if as_json:
            typer.echo(msgspec.json.encode(shown))
        else:
            _print(report.comparison_table(found))
            _print(report.cohort_table(found))
            for line in report.comparison_sentences(found):
                typer.echo(line)
    if html is not None:
        from shadow.report_page import write_comparison_page

        write_comparison_page(html, sides, found)


def _model(ref: str, tracking_uri: str) -> Model | None:
    if ref == REQUESTS:
        return None
    from models.refs import resolve_model

    return resolve_model(ref, tracking_uri)


@app.command(
    epilog="Example: archimedes shadow redecide --decisions decisions.jsonl --policy p.yaml"
)
def redecide(
    decisions: Decisions,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="YAML or JSON file, instead of the policy of each decision."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide what production logged and recorded again: exactly, or under another policy."""
    from shadow.redecide import redecide as run

    found = run(decisions, read_policy(policy))
    if as_json:
        typer.echo(msgspec.json.encode(found))
        return
    for name, value in msgspec.to_builtins(found).items():
        typer.echo(f"{name}: {value}")


def _print(table: object) -> None:
    from rich.console import Console

    Console().print(table)
