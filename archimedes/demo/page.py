"""The demo's page: one self-contained HTML file with the plots and the figures."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from models.arrays import Floats, Ints

BLUE, GREEN, GREY, RED = "#2563eb", "#16a34a", "#94a3b8", "#dc2626"


@dataclass(frozen=True, slots=True)
class Series:
    """The run over T moments and N nodes.

    Shapes and units:
        time: [T] seconds since the epoch.
        requested, used, forecast, reclaimed: [T] cores of the whole cluster: requested and used by
            online pods, their forecast peak over the next hour, and the running promises.
        before, after: [T, N] share of each node's CPU used by online pods alone, and together with
            offline pods that use what they were promised.
        swapped: when the challenger began to serve, or 0 where it did not.
    """

    time: Ints
    requested: Floats
    used: Floats
    forecast: Floats
    reclaimed: Floats
    before: Floats
    after: Floats
    swapped: int


def write_page(path: Path, title: str, rows: list[tuple[str, str]], series: Series) -> None:
    """Write the page; ``rows`` are the (name, value) lines of the result table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    path.write_text(
        _PAGE.format(
            title=html.escape(title),
            table=table,
            cpu=_svg(_cpu_figure(series)),
            nodes=_svg(_nodes_figure(series)),
        ),
        encoding="utf-8",
    )


def _cpu_figure(series: Series) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.add_subplot()
    when = _dates(series.time)
    axes.plot(when, series.requested, color=GREY, label="requested by online pods")
    axes.fill_between(when, 0, series.used, color=BLUE, alpha=0.35, label="used by online pods")
    axes.plot(when, series.forecast, color=RED, lw=1.2, label="forecast peak, next hour")
    axes.fill_between(
        when,
        series.used,
        series.used + series.reclaimed,
        color=GREEN,
        alpha=0.45,
        label="reclaimed: promised to running offline pods",
    )
    if series.swapped:
        swapped = series.swapped / 86_400
        axes.axvline(swapped, color="black", ls=":", lw=1)
        axes.text(swapped, 0, " new champion", va="bottom", size=8)
    axes.set_ylabel("cores")
    axes.set_ylim(bottom=0)
    _finish(axes)
    return figure


def _nodes_figure(series: Series) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, max(1.0, float(np.nanmax(series.after, initial=0.0))), 41)
    left.hist(series.before.ravel() * 100, bins * 100, color=BLUE, alpha=0.55, label="before")
    left.hist(series.after.ravel() * 100, bins * 100, color=GREEN, alpha=0.55, label="after")
    left.set_xlabel("utilisation of a node, %")
    left.set_ylabel("node x 5 minutes")
    left.legend(frameon=False, fontsize=8)
    when = _dates(series.time)
    for share, colour, name in ((series.before, BLUE, "before"), (series.after, GREEN, "after")):
        low, mid, high = np.percentile(share * 100, [5, 50, 95], axis=1)
        right.fill_between(when, low, high, color=colour, alpha=0.2)
        right.plot(when, mid, color=colour, label=f"{name}: median, 5th to 95th percentile node")
    right.set_ylabel("utilisation, %")
    _finish(right)
    return figure


def _finish(axes: Axes) -> None:
    axes.xaxis_date()
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.2)


def _dates(seconds: Ints) -> Floats:
    """Seconds since the epoch as Matplotlib's days since the epoch."""
    return np.asarray(seconds, np.float64) / 86_400


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #0f172a; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #e2e8f0;
  font-weight: normal; }}
td {{ font-variant-numeric: tabular-nums; font-weight: 600; }}
</style></head><body>
<h1>{title}</h1>
<h2>CPU of the cluster</h2>
{cpu}
<h2>Utilisation of the nodes, before and after</h2>
{nodes}
<h2>Figures</h2>
<table>{table}</table>
</body></html>
"""
