"""Plots of replays for pages and MLflow; each returns a figure that nobody has drawn yet."""

from __future__ import annotations

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from models.arrays import Floats, Ints
from models.policy import HORIZONS
from shadow.figures import Figures
from shadow.result import ReplayResult
from shadow.series import NodeSeries, shares, time_series
from shadow.utilisation import Balance

BLUE, GREEN, GREY, RED, AMBER = "#2563eb", "#16a34a", "#94a3b8", "#dc2626", "#d97706"
WIDTH = 10.0
"""Inches; the page scales it to its own width."""

HOUR = 3600
STEPS = (300, 900, *(HOUR * h for h in (1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 672)))
"""Seconds between the ticks of a time axis, the first that leaves few enough of them."""


def cpu_plot(result: ReplayResult, series: NodeSeries, swapped: int = 0) -> Figure:
    """CPU of the cluster over time; ``swapped``: when a new champion came, or 0."""
    lines = time_series(result, series)
    when = dates(lines["time"])
    figure, axes = _one(4.4)
    axes.plot(when, lines["allocatable"], color="black", lw=1, ls="--", label="allocatable")
    axes.plot(when, lines["requested"], color=GREY, label="requested by online pods")
    used = lines.get("used", lines["requested"])
    if "used" in lines:
        axes.fill_between(when, 0, used, color=BLUE, alpha=0.35, label="used by online pods")
        axes.plot(when, lines["forecast"], color=RED, lw=1.2, label="forecast peak, next hour")
    axes.fill_between(
        when,
        used,
        used + lines["reclaimed"],
        color=GREEN,
        alpha=0.45,
        label="reclaimed: run by offline pods",
    )
    if swapped:
        axes.axvline(swapped / 86_400, color="black", ls=":", lw=1)
        axes.annotate(
            " new champion",
            (swapped / 86_400, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            size=8,
        )
    axes.set_ylabel("cores")
    axes.set_ylim(bottom=0)
    over_time(axes, ticks=10)
    legend_above(figure)
    return figure


def nodes_plot(series: NodeSeries) -> Figure:
    """How full the nodes were, without and with offline pods; the replay must have usage."""
    if series.used is None:
        raise ValueError("utilisation needs usage")
    sides = ((series.used, BLUE, "without"), (series.used + series.run, GREEN, "with"))
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    percent = [shares(cores, series.allocatable) * 100 for cores, _, _ in sides]
    bins = np.linspace(0, max(100.0, float(np.nanmax(percent[1], initial=0.0))), 41)
    when = dates(series.start + np.arange(series.run.shape[1]) * series.step)
    for share, (_, colour, name) in zip(percent, sides, strict=True):
        there = share[~np.isnan(share)]
        weights = np.full(there.size, 100 / there.size)
        left.hist(there, bins.tolist(), weights=weights, color=colour, alpha=0.55)
        low, mid, high = np.nanpercentile(share, [5, 50, 95], axis=0)
        right.fill_between(when, low, high, color=colour, alpha=0.2)
        right.plot(when, mid, color=colour, label=f"{name} offline pods")
    left.set_xlabel("utilisation of a node, %")
    left.set_ylabel("share of (node, window), %")
    left.grid(alpha=0.2)
    right.set_ylabel("utilisation, %")
    right.set_title("median node, and from the 5th to the 95th percentile", fontsize=9)
    over_time(right)
    legend_above(figure)
    return figure


def balance_plot(before: Balance, after: Balance) -> Figure:
    """How evenly the nodes were filled, hour by hour."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("mean over the nodes", "standard deviation", "nodes at 20 to 40 %")
    names = ("mean", "deviation", "share_20_40")
    for axes, title, name in zip(panels, titles, names, strict=True):
        for hours, colour, label in ((before, BLUE, "without"), (after, GREEN, "with")):
            when = dates(np.array(hours.time))
            axes.plot(when, np.array(getattr(hours, name)) * 100, color=colour, label=label)
            if name == "mean":
                axes.plot(when, np.array(hours.p95) * 100, color=colour, ls=":", lw=1)
        axes.set_title(f"{title}; dotted: p95" if name == "mean" else title, fontsize=9)
        axes.set_ylim(bottom=0)
        over_time(axes, ticks=4)
    panels[0].set_ylabel("utilisation, %")
    panels[1].set_ylabel("percentage points")
    panels[2].set_ylabel("share of nodes, %")
    legend_above(figure, title="offline pods")
    return figure


def safety_plot(result: ReplayResult, figures: Figures) -> Figure:
    """How often forecasts were exceeded, and how long offline pods waited."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [figures.violation_rate_by_horizon[str(hours)] for hours in HORIZONS]
    bars = left.bar([f"{h} h" for h in HORIZONS], [100 * (r or 0) for r in rates], color=BLUE)
    left.bar_label(bars, ["-" if r is None else f"{r:.1%}" for r in rates], fontsize=8, padding=2)
    left.axhline(100 * result.policy.target, color=RED, ls="--", lw=1, label="target")
    left.margins(y=0.15)
    left.set_xlabel("horizon")
    left.set_ylabel("forecasts violated, %")
    left.legend(frameon=False, fontsize=8)
    waits = np.sort(result.waited[result.pods.offline]) / 60
    if len(waits):
        right.step(waits, np.arange(1, len(waits) + 1) / len(waits) * 100, color=GREEN)
        right.set_xscale("symlog", linthresh=1.0)
        right.set_xlim(left=0)
    right.set_ylim(0, 101)
    right.set_xlabel("minutes from arrival to the first start")
    right.set_ylabel("offline pods, %")
    for axes in (left, right):
        axes.grid(alpha=0.2)
    return figure


def over_time(axes: Axes, ticks: int = 6) -> None:
    """Label an axis of `dates` at whole hours or days, so many times at most."""
    axes.margins(x=0)
    axes.xaxis_date()
    low, high = (86_400 * end for end in axes.get_xlim())
    step = next((s for s in STEPS if (high - low) / s <= ticks), STEPS[-1])
    at = np.arange(-(-low // step) * step, high + 1, step) / 86_400
    locator = FixedLocator(at.tolist())
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("time, UTC")
    axes.grid(alpha=0.2)


def legend_above(figure: Figure, title: str | None = None) -> None:
    """One legend for the figure, above its axes so that it hides nothing."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=5,
        frameon=False,
        fontsize=9,
        title=title,
        title_fontsize=9,
    )


def dates(seconds: Floats | Ints) -> Floats:
    """Seconds since the epoch as Matplotlib's days since the epoch."""
    return np.asarray(seconds, np.float64) / 86_400


def _one(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()
