"""The evaluation's result: one JSON object, and tables for people."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from models.grid import UsageGrid
from trainer.backtest import TEST_FROM, Protocol, SeedResult
from trainer.judging import Judged
from trainer.metrics import Figures

BATCH = "koordinator-batch"
"""What Koordinator's users get by default; the learned forecast's savings are put beside it."""

CALIBRATED = (0.3, 1.5)
"""Multiples of the target between which a violation rate counts as calibrated."""

WORST = 5.0
"""Multiple of the target under which the worst machines must stay."""

ENOUGH_WINDOWS = 10
"""Non-overlapping windows of a horizon in the test below which chance decides, so that the interval
must reach into the calibrated range instead of the rate lying in it."""

FIGURES = (
    "violation_rate",
    "worst_machines",
    "severity_mean",
    "severity_p99",
    "excess_reserve",
    "savings",
    "oracle_share",
    "pinball",
)
"""Figures that vary from seed to seed."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One predictor in one mode: means over seeds, and standard deviations over them as spread.

    ``decisions`` counts those of all seeds. ``violation_interval`` is the mean of the seeds'
    intervals. See `trainer.metrics.Figures` for what each figure means.
    """

    predictor: str
    mode: str
    horizon_hours: int
    target: float
    violation_rate: float
    violation_interval: tuple[float, float]
    worst_machines: float
    severity_mean: float
    severity_p99: float
    excess_reserve: float
    savings: float
    oracle_share: float
    pinball: float
    decisions: int
    violation_rate_spread: float
    worst_machines_spread: float
    severity_mean_spread: float
    severity_p99_spread: float
    excess_reserve_spread: float
    savings_spread: float
    oracle_share_spread: float
    pinball_spread: float


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """How the learned forecaster stands at one horizon and target.

    calibrated: the violation rate (or, where chance decides, its interval) lies within CALIBRATED
        times the target, and the worst machines under WORST times it.
    pinball_ratio: its pinball loss over the best classical predictor's as deployed, which is named.
    reserve_ratio: its excess reserve over the least of the classical predictors' frontiers.
    multiple_over_batch: its savings over those of Koordinator's batch tier with its default.
    """

    horizon_hours: int
    target: float
    calibrated: bool
    pinball_ratio: float
    best_deployed: str
    reserve_ratio: float
    best_frontier: str
    multiple_over_batch: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What `trainer evaluate --json` prints.

    model: the version that was judged, "fitted" where one was fitted for each seed, None without
    a learned forecaster. held_out: whether that model cannot have seen the test period, None where
    that is not known (`models.model.Training.saw`). machines: tested on, all seeds together. rows,
    shipped, cold_start, cpu_max: see `SeedResult`.
    """

    trace: str
    seeds: int
    machines: int
    test_days: float
    model: str | None
    learned: str | None
    held_out: bool | None
    rows: tuple[Row, ...]
    shipped: tuple[Row, ...]
    cold_start: tuple[Row, ...]
    cpu_max: tuple[Row, ...]
    bar: tuple[Bar, ...]


def summarise(
    name: str,
    grid: UsageGrid,
    results: Sequence[SeedResult],
    protocol: Protocol,
    *,
    model: str | None,
    held_out: bool | None,
) -> Evaluation:
    """Put the seeds' figures together; see `Evaluation`."""
    rows = _means([result.rows for result in results])
    shipped = _means([result.shipped for result in results])
    learned = results[0].learned
    days = (1 - TEST_FROM) * (grid.end - grid.start) / 86_400
    bars = () if learned is None else _bars(rows, shipped, learned, protocol, days)
    return Evaluation(
        trace=name,
        seeds=len(results),
        machines=sum(result.machines for result in results),
        test_days=round(days, 3),
        model=model,
        learned=learned,
        held_out=held_out,
        rows=rows,
        shipped=shipped,
        cold_start=_means([result.cold for result in results]),
        cpu_max=_means([result.cpu_max for result in results]),
        bar=bars,
    )


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """The learned forecaster's figures by name, for MLflow; those that are not known are left out.

    The name is FIGURE_HORIZONh_TARGETpct, for example ``violation_rate_6h_1pct``.
    """
    named: dict[str, float] = {}
    for row in evaluation.rows:
        if row.predictor == evaluation.learned:
            for figure in FIGURES:
                named[_metric(figure, row)] = getattr(row, figure)
    for bar in evaluation.bar:
        for figure in ("pinball_ratio", "reserve_ratio", "multiple_over_batch"):
            named[_metric(figure, bar)] = getattr(bar, figure)
    return {name: value for name, value in named.items() if np.isfinite(value)}


def print_tables(evaluation: Evaluation, console: Console) -> None:
    """Print a table for each target and horizon, best pinball loss first, and the bar."""
    console.print(
        f"{evaluation.trace}: {evaluation.machines} machines over {evaluation.seeds} seed(s), "
        f"the last {evaluation.test_days:g} days"
    )
    cells = dict.fromkeys((row.target, row.horizon_hours) for row in evaluation.rows)
    for target, hours in cells:
        console.print(_table(evaluation, target, hours))
    for bar in evaluation.bar:
        console.print(_sentence(evaluation, bar), highlight=False)


def _means(seeds: Sequence[Sequence[Judged]]) -> tuple[Row, ...]:
    return tuple(_mean(judged) for judged in zip(*seeds, strict=True))


def _mean(judged: Sequence[Judged]) -> Row:
    first, figures = judged[0], [j.figures for j in judged]
    low, high = (_average(figures, name)[0] for name in ("interval_low", "interval_high"))
    values: dict[str, float] = {}
    for name in FIGURES:
        values[name], values[f"{name}_spread"] = _average(figures, name)
    return Row(
        predictor=first.predictor,
        mode=first.mode,
        horizon_hours=first.horizon,
        target=first.target,
        violation_interval=(low, high),
        decisions=sum(f.decisions for f in figures),
        **values,
    )


def _average(figures: Sequence[Figures], name: str) -> tuple[float, float]:
    """Mean and standard deviation over the seeds that know the figure."""
    values = np.array([getattr(f, name) for f in figures])
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return np.nan, np.nan
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return float(known.mean()), spread


def _bars(
    rows: Sequence[Row], shipped: Sequence[Row], learned: str, protocol: Protocol, days: float
) -> tuple[Bar, ...]:
    bars = []
    for target in protocol.targets:
        for hours in protocol.horizons:
            cell = [r for r in rows if (r.horizon_hours, r.target) == (hours, target)]
            mine = next(r for r in cell if r.predictor == learned)
            others = [r for r in cell if r.predictor != learned]
            deployed = _least(others, "deployed", "pinball")
            frontier = _least(others, "frontier", "excess_reserve")
            batch = next(
                r
                for r in shipped
                if (r.predictor, r.horizon_hours, r.target) == (BATCH, hours, target)
            )
            bars.append(
                Bar(
                    horizon_hours=hours,
                    target=target,
                    calibrated=_is_calibrated(mine, days * 24 / hours),
                    pinball_ratio=_ratio(mine.pinball, deployed.pinball),
                    best_deployed=deployed.predictor,
                    reserve_ratio=_ratio(mine.excess_reserve, frontier.excess_reserve),
                    best_frontier=frontier.predictor,
                    multiple_over_batch=_ratio(mine.savings, batch.savings),
                )
            )
    return tuple(bars)


def _least(rows: Sequence[Row], mode: str, figure: str) -> Row:
    return min(
        (row for row in rows if row.mode == mode), key=lambda row: float(getattr(row, figure))
    )


def _is_calibrated(row: Row, windows: float) -> bool:
    low, high = (row.target * bound for bound in CALIBRATED)
    rate = (row.violation_rate, row.violation_rate)
    lowest, highest = rate if windows >= ENOUGH_WINDOWS else row.violation_interval
    return lowest <= high and highest >= low and row.worst_machines < WORST * row.target


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else np.nan


def _metric(figure: str, row: Row | Bar) -> str:
    return f"{figure}_{row.horizon_hours}h_{row.target * 100:g}pct"


def _table(evaluation: Evaluation, target: float, hours: int) -> Table:
    table = Table(title=f"{hours} h, {target:.0%} accepted", title_justify="left")
    table.add_column("predictor", no_wrap=True)
    for name in (
        "violated (90 % interval)",
        "worst machines",
        "severity",
        "pinball",
        "excess reserve",
        "reserve at frontier",
        "oracle share",
        "share at frontier",
    ):
        table.add_column(name, justify="right")
    cell = [r for r in evaluation.rows if (r.target, r.horizon_hours) == (target, hours)]
    frontier = {r.predictor: r for r in cell if r.mode == "frontier"}
    deployed = [r for r in cell if r.mode == "deployed"]
    for row in sorted(deployed, key=lambda r: r.pinball):
        hindsight = frontier.get(row.predictor)
        low, high = row.violation_interval
        table.add_row(
            row.predictor,
            f"{row.violation_rate:.2%} ({low:.1%}-{high:.1%})",
            f"{row.worst_machines:.1%}",
            f"{row.severity_mean:.1%}",
            f"{row.pinball:.4f}",
            f"{row.excess_reserve:.3f}",
            "" if hindsight is None else f"{hindsight.excess_reserve:.3f}",
            f"{row.oracle_share:.3f}",
            "" if hindsight is None else f"{hindsight.oracle_share:.3f}",
            style="bold" if row.predictor == evaluation.learned else None,
        )
    return table


def _sentence(evaluation: Evaluation, bar: Bar) -> str:
    return (
        f"{bar.horizon_hours} h at {bar.target:.0%}: {evaluation.learned} is "
        f"{'' if bar.calibrated else 'not '}calibrated, has {bar.pinball_ratio:.2f} times the "
        f"pinball loss of {bar.best_deployed}, {bar.reserve_ratio:.2f} times the excess reserve of "
        f"{bar.best_frontier} with hindsight, and saves {bar.multiple_over_batch:.2f} times what "
        "Koordinator's batch tier does by default."
    )
