"""Plots of a comparison: champion grey, challenger green, intervals as bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shadow.bootstrap import Interval
from shadow.cohorts import Cohort
from shadow.compare import Comparison, Sides
from shadow.plots import GREEN, GREY, RED, WIDTH, dates, legend_above, over_time
from shadow.series import node_series


def reclaimed_plot(sides: Sides) -> Figure:
    """Reclaimed CPU of both sides over time, and the core-hours by which they drift apart."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines = []
    for results, colour, name in (
        (sides.champion, GREY, "champion"),
        (sides.challenger, GREEN, "challenger"),
    ):
        series = [node_series(result) for result in results]
        cores = np.mean([s.run.sum(axis=0) for s in series], axis=0)
        when = dates(series[0].start + np.arange(len(cores)) * series[0].step)
        left.plot(when, cores, color=colour, label=name)
        lines.append(cores * series[0].hours)
    right.plot(when, np.cumsum(lines[1] - lines[0]), color=GREEN)
    right.axhline(0, color="black", lw=0.8)
    left.set_ylabel("reclaimed, cores")
    left.set_ylim(bottom=0)
    right.set_ylabel("core-hours, summed up")
    right.set_title("challenger minus champion", fontsize=9)
    for axes in (left, right):
        over_time(axes)
    legend_above(figure)
    return figure


def rates_plot(comparison: Comparison) -> Figure | None:
    """Violations and overload of both sides; None where there is nothing to judge."""
    c = comparison
    pairs = (
        ("forecasts violated", c.champion_violation_rate, c.challenger_violation_rate),
        ("node windows overloaded", c.champion_overload_rate, c.challenger_overload_rate),
    )
    known = [(name, ours, theirs) for name, ours, theirs in pairs if ours and theirs]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 0.9 + 0.9 * len(known)), layout="constrained")
    axes = figure.add_subplot()
    for row, (_, ours, theirs) in enumerate(known):
        for side, shift, colour, label in (
            (ours, -0.12, GREY, "champion"),
            (theirs, 0.12, GREEN, "challenger"),
        ):
            if side is not None:
                _bar(axes, row + shift, side, 100.0, colour, label)
    axes.axvline(100 * c.target, color=RED, ls="--", lw=1, label="accepted")
    axes.set_yticks(range(len(known)), [name for name, _, _ in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # a dot at 0 is seen as a whole
    axes.set_xlabel("%, with 90 % intervals")
    axes.grid(alpha=0.2, axis="x")
    legend_above(figure)
    return figure


def cohorts_plot(cohorts: Sequence[Cohort]) -> Figure:
    """Challenger minus champion by groups: core-hours that ran, and the wait for the start."""
    names = [f"{c.by}: {c.cohort}" for c in cohorts]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.27 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, cohort in enumerate(cohorts):
        _bar(left, row, cohort.core_hours, 1.0, GREEN)
        if cohort.wait_mean_s is not None:
            _bar(right, row, cohort.wait_mean_s, 1 / 60, GREEN)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlabel("core-hours more")
    right.set_xlabel("minutes longer until the first start")
    for axes in (left, right):
        axes.axvline(0, color="black", lw=0.8)
        axes.grid(alpha=0.2)
    return figure


def _bar(
    axes: Axes, row: float, value: Interval, scale: float, colour: str, label: str | None = None
) -> None:
    """A dot at the value and a bar over its interval."""
    axes.plot([value.low * scale, value.high * scale], [row, row], color=colour, lw=2)
    axes.plot([value.value * scale], [row], "o", color=colour, ms=5, label=label)
