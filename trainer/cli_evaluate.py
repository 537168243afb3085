"""`archimedes trainer evaluate`: every predictor on one trace under one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from models.errors import SettingsError, TraceError
from models.store import DEFAULT_TRACKING_URI
from models.terminal import Json, TraceDir, TrackingUri, prepared, progress_bar

if TYPE_CHECKING:
    from models.arrays import Ints
    from models.forecaster import Forecaster
    from models.grid import UsageGrid
    from models.model import Model
    from models.registry import Registry
    from models.trace import Trace
    from trainer.backtest import Fit
    from trainer.report import Evaluation

ModelRef = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A model's folder, a registered version or an alias; default: fit one per seed.",
    ),
]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Random splits and machines; more take longer.")
]
Horizons = Annotated[
    list[int] | None,
    typer.Option("--horizon", help="Hours to judge, repeatable; default 1, 6 and 24."),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of LightGBM.")]
Log = Annotated[bool, typer.Option("--log", help="Log the result to MLflow.")]


def evaluate(
    trace: TraceDir,
    model: ModelRef = None,
    seeds: Seeds = 3,
    horizon: Horizons = None,
    threads: Threads = 2,
    log: Log = False,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Judge the learned and every classical predictor on the last quarter of a trace."""
    from models.refs import resolve_model
    from models.trace import read_trace, usage_grid
    from trainer.backtest import BACKTEST_HORIZONS, Protocol, backtest, check_enough
    from trainer.dataset import observed
    from trainer.machines import placement_of
    from trainer.report import summarise

    registry = prepared(tracking_uri) if log else None
    source = read_trace(trace)
    if source.usage is None:
        raise TraceError(f"{trace} has no usage.parquet; an evaluation compares forecasts with it")
    grid = observed(usage_grid(source))
    placement = placement_of(source, grid)
    protocol = Protocol(horizons=_horizons(horizon, BACKTEST_HORIZONS))
    check_enough(grid, placement, protocol.horizons)
    given = None if model is None else resolve_model(model, tracking_uri)
    fit = _fitting(grid, placement, threads) if given is None else _using(given)
    with progress_bar("evaluating") as progress:
        results = backtest(grid, placement, fit, seeds, protocol, progress)
    evaluation = summarise(
        source.name,
        grid,
        results,
        protocol,
        model="fitted" if given is None else given.version,
        held_out=True if given is None else _held_out(given, source, grid),
    )
    _show(evaluation, as_json=as_json)
    if registry is not None:
        _log(evaluation, source, registry)


def _horizons(chosen: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    from models.policy import HORIZONS

    if not chosen:
        return default
    wrong = sorted(set(chosen) - set(HORIZONS))
    if wrong:
        served = ", ".join(str(hours) for hours in HORIZONS)
        raise SettingsError(f"--horizon {wrong[0]}: choose among {served}")
    return tuple(sorted(set(chosen)))


def _fitting(grid: UsageGrid, placement: Sequence[str | None] | None, threads: int) -> Fit:
    """Fits a forecaster for each seed, on its train pods and the first share of the time."""
    from trainer.backtest import CALIBRATE_FROM, TEST_FROM
    from trainer.fit import fit_model

    def fit(seed: int, pods: Ints) -> Forecaster:
        return fit_model(
            grid,
            seed=seed,
            pods=pods,
            placement=placement,
            train=(0.0, CALIBRATE_FROM),
            calibrate=(CALIBRATE_FROM, TEST_FROM),
            threads=threads,
        ).forecaster

    return fit


def _using(model: Model) -> Fit | None:
    """The given model's forecaster for every seed; a classical one is judged in any case."""
    from models.classical import CLASSICAL

    if model.forecaster.name in CLASSICAL:
        return None
    return lambda _seed, _pods: model.forecaster


def _held_out(model: Model, trace: Trace, grid: UsageGrid) -> bool | None:
    """Whether a model was trained on nothing of what it is tested on; None: not known."""
    from models.trace import digest
    from trainer.backtest import TEST_FROM

    tested_from = grid.start + TEST_FROM * (grid.end - grid.start)
    saw = model.training.saw(digest(trace), tested_from, grid.end)
    return None if saw is None else not saw


def _log(evaluation: Evaluation, trace: Trace, registry: Registry) -> None:
    from models.trace import digest
    from models.versions import TRACE_TAG
    from trainer.report import metrics_of

    with TemporaryDirectory(prefix="archimedes-") as folder:
        (Path(folder) / "evaluation.json").write_bytes(msgspec.json.encode(evaluation))
        registry.log_run(
            f"evaluate {trace.name}",
            params={"trace": trace.name, "seeds": evaluation.seeds, "model": evaluation.model},
            metrics=metrics_of(evaluation),
            tags={TRACE_TAG: digest(trace)},
            artifacts=Path(folder),
        )


def _show(evaluation: Evaluation, *, as_json: bool) -> None:
    from rich.console import Console

    from trainer.report import print_tables

    if evaluation.held_out is None:
        typer.echo(
            "The model was trained on another trace that covers this one's test period: whether "
            "its figures are held out is not known.",
            err=True,
        )
    elif not evaluation.held_out:
        typer.echo(
            "The model was trained on this trace's test period: its figures are not held out.",
            err=True,
        )
    if as_json:
        typer.echo(msgspec.json.encode(evaluation))
        return
    terminal = Console()
    # Ten columns do not fit into the 80 that a pipe or a file is taken for.
    print_tables(evaluation, terminal if terminal.is_terminal else Console(width=140))
