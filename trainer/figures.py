"""Figures of a training run: what MLflow shows beside its parameters and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from models.policy import HORIZONS, TARGETS
from trainer.held_out import HeldOut, violation_rates

SHOWN_HORIZONS = (1, 24)
"""Hours: the easiest and the hardest forecast."""

SHOWN_FEATURES = 20


def draw(held: HeldOut, importances: Mapping[str, float], folder: Path) -> None:
    """Write ``forecast.png``, ``calibration.png`` and, where known, ``importance.png``."""
    figures = {"forecast": forecast_figure(held), "calibration": calibration_figure(held)}
    if importances:
        figures["importance"] = importance_figure(importances)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=100)


def forecast_figure(held: HeldOut) -> Figure:
    """Forecast and true peak over time, of the smallest, the median and the largest machine."""
    order = np.argsort(held.limit)
    shown = list(dict.fromkeys([int(order[0]), int(order[len(order) // 2]), int(order[-1])]))
    times = [datetime.fromtimestamp(int(t), UTC) for t in held.time]
    figure = Figure(figsize=(12, 3 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(SHOWN_HORIZONS), sharex=True, squeeze=False)
    for row, machine in enumerate(shown):
        for column, hours in enumerate(SHOWN_HORIZONS):
            axis, j = axes[row, column], HORIZONS.index(hours)
            axis.plot(times, held.truth[:, machine, j], label="true peak", lw=1)
            axis.plot(times, held.forecast[:, machine, j], label="forecast", lw=1)
            axis.set_title(f"machine limited to {held.limit[machine]:.0f} cores, {hours} h ahead")
            axis.set_ylabel("cores")
            axis.set_ylim(bottom=0)
            axis.xaxis.set_major_formatter(ConciseDateFormatter(axis.xaxis.get_major_locator()))
    axes[0, 0].legend()
    return figure


def calibration_figure(held: HeldOut) -> Figure:
    """Accepted against measured probability of a violation, out of sample, for each horizon."""
    accepted = (*TARGETS, 0.2, 0.5)
    rates = violation_rates(held, accepted)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    axis.plot(accepted, accepted, "k--", lw=1, label="as accepted")
    for j, hours in enumerate(HORIZONS):
        if not np.isnan(rates[:, j]).all():
            axis.plot(accepted, rates[:, j], "o-", lw=1, label=f"{hours} h")
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("symlog", linthresh=min(accepted))
    axis.set_xlim(0.8 * min(accepted), 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("accepted probability of a violation")
    axis.set_ylabel("measured, knob from the earlier half of the calibration share")
    axis.legend()
    return figure


def importance_figure(importances: Mapping[str, float]) -> Figure:
    """The features that the trees gain most from, as shares of the whole gain."""
    ranked = sorted(importances.items(), key=lambda item: item[1])[-SHOWN_FEATURES:]
    figure = Figure(figsize=(7, 0.3 * len(ranked) + 1), layout="constrained")
    axis = figure.subplots()
    axis.barh([name for name, _ in ranked], [share for _, share in ranked])
    axis.set_xlabel("share of the gain")
    return figure
