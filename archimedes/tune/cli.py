"""`archimedes trainer tune`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from models.errors import SettingsError
from models.store import DEFAULT_TRACKING_URI
from models.terminal import Json, TraceDir, TrackingUri, prepared, progress_bar
from shadow.cli_options import (
    DEFAULT_MODEL,
    Blur,
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
    from archimedes.tune.run import Outcome, Task
    from models.registry import Registry

ModelRef = Annotated[
    str,
    typer.Option(
        "--model", help="A model's folder, a registered version or alias, or a predictor."
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="Begin with this policy file, not with the model's own."),
]
Trials = Annotated[
    int, typer.Option("--trials", min=1, help="Policies to measure, the given one included.")
]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="Policies to measure at a time, a process each.")
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask", help="Address of a Dask scheduler: measure on its workers' threads instead."
    ),
]
Study = Annotated[
    Path | None,
    typer.Option("--study", help="SQLite file that keeps the search: killed, it goes on."),
]
ViolationBudget = Annotated[
    float | None,
    typer.Option(
        "--violation-budget",
        min=0,
        max=1,
        help="Share of forecasts that may be exceeded. Default: the policy's target, or what "
        "the given policy causes where that is more.",
    ),
]
OverloadBudget = Annotated[
    float | None,
    typer.Option(
        "--overload-budget",
        min=0,
        max=1,
        help="Share of node windows with promises in which CPU may run out. Default: as for "
        "violations.",
    ),
]
SearchDays = Annotated[
    float | None,
    typer.Option("--search-days", help="Days to search on. Default: half, at most 7."),
]
JudgeDays = Annotated[
    float | None,
    typer.Option("--judge-days", help="Later days to judge on. Default: half, at most 7."),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--field", help="Search this field of the policy only; repeatable."),
]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Streams of offline pods to replay each with.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Of the proposals and the first of the streams.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Write the found policy to this file (YAML).")
]
Register = Annotated[
    bool,
    typer.Option("--register", help="Register the model with the found policy as challenger."),
]


def tune(
    trace: TraceDir,
    model: ModelRef = DEFAULT_MODEL,
    policy: PolicyFile = None,
    trials: Trials = 60,
    jobs: Jobs = 1,
    dask: Dask = None,
    study: Study = None,
    violation_budget: ViolationBudget = None,
    overload_budget: OverloadBudget = None,
    search_days: SearchDays = None,
    judge_days: JudgeDays = None,
    field: Fields = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    nodes: Nodes = None,
    node_cpu: NodeCpu = None,
    offline_load: OfflineLoad = 0.75,
    refresh_minutes: Refresh = 30,
    blur: Blur = 0.0,
    nodes_to_score: NodesToScore = 0,
    evict: Evict = False,
    out: Out = None,
    html: Html = None,
    register: Register = False,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Search the policy that reclaims most at a violation budget, judged on later days."""
    options = replay_options(
        hours=None,
        nodes=nodes,
        node_cpu=node_cpu,
        seed=seed,
        offline_load=offline_load,
        refresh_minutes=refresh_minutes,
        blur=blur,
        nodes_to_score=nodes_to_score,
        evict=evict,
    )
    from archimedes.tune import report
    from archimedes.tune import run as tuning
    from models.refs import resolve_model
    from models.trace import read_trace
    from trainer.search_space import search_space

    source, chosen = read_trace(trace), resolve_model(model, tracking_uri)
    base = read_policy(policy) or chosen.policy
    searched, judged = tuning.split_days(source, search_days, judge_days)
    registry = prepared(tracking_uri) if register else None
    task = tuning.Task(
        trace=source,
        model=chosen,
        base=base,
        space=search_space(base, field or ()),
        violation_budget=violation_budget,
        overload_budget=overload_budget,
        trials=trials,
        seeds=seeds,
        jobs=jobs,
        dask=dask,
        options=options,
        searched=searched,
        judged=judged,
        study=study,
    )
    with progress_bar("searching") as step:
        outcome = tuning.tune(task, step)
    tuned = outcome.tuned
    try:
        if registry is not None:
            version = _register(task, outcome, registry)
            tuned = msgspec.structs.replace(tuned, registered=version)
    finally:  # a registry that has gone meanwhile loses no figures
        if as_json:
            typer.echo(msgspec.json.encode(tuned))
        else:
            report.print_tuned(tuned)
    # After what is printed, which a file that cannot be written must not lose.
    if out is not None:
        _write_policy(out, outcome)
    if html is not None:
        report.write_report(html, outcome)


def _register(task: Task, outcome: Outcome, registry: Registry) -> str | None:
    """Register the found policy with its page; the version, None where it is the model's own."""
    from archimedes.tune.report import write_report
    from archimedes.tune.run import register

    best = outcome.tuned.best
    if best is None or best.policy == task.model.policy:
        return None
    with TemporaryDirectory(prefix="archimedes-") as scratch:
        page = Path(scratch) / "tune.html"
        write_report(page, outcome)
        return register(task, outcome, page, registry)


def _write_policy(file: Path, outcome: Outcome) -> None:
    """Write the found policy, or what was given where nothing better keeps to the budget."""
    best = outcome.tuned.best or outcome.tuned.base
    try:
        file.write_bytes(msgspec.yaml.encode(best.policy))
    except OSError as e:
        raise SettingsError(f"--out: {file} cannot be written: {e.strerror}") from e
