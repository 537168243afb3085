"""Pages of a replay and of a comparison: the plots, and the same tables as in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shadow.compare import Comparison, Sides
from shadow.comparison_plots import cohorts_plot, rates_plot, reclaimed_plot
from shadow.figures import Figures
from shadow.page import Section, write_page
from shadow.plots import balance_plot, cpu_plot, nodes_plot, safety_plot
from shadow.report import (
    COHORT_HEAD,
    cohort_rows,
    comparison_rows,
    comparison_sentences,
    model_name,
)
from shadow.result import ReplayResult
from shadow.series import NodeSeries, node_series


def write_replay_page(
    path: Path, result: ReplayResult, figures: Figures, rows: Sequence[tuple[str, str]]
) -> None:
    """Write the page of one replay; ``rows`` are the lines of its table.

    Raises:
        SettingsError: the file cannot be written.
    """
    title = f"Replay of {figures.trace}, forecasts by {model_name(figures.model_version)}"
    sections = replay_sections(result, figures, node_series(result))
    write_page(path, title, [*sections, Section("Figures", rows=rows)])


def replay_sections(result: ReplayResult, figures: Figures, series: NodeSeries) -> list[Section]:
    """The plots of one replay; those that need usage only where there is some."""
    sections = [Section("CPU of the cluster", cpu_plot(result, series))]
    if series.used is not None:
        sections.append(Section("Utilisation of the nodes", nodes_plot(series)))
    if figures.balance_before is not None and figures.balance_after is not None:
        plot = balance_plot(figures.balance_before, figures.balance_after)
        sections.append(Section("Balance between the nodes, hour by hour", plot))
    sections.append(Section("Forecasts and queueing", safety_plot(result, figures)))
    return sections


def write_comparison_page(path: Path, sides: Sides, comparison: Comparison) -> None:
    """Write the page of a comparison.

    Raises:
        SettingsError: the file cannot be written.
    """
    names = [side.model_version for side in (comparison.champion, comparison.challenger)]
    title = f"{comparison.champion.trace}: {names[1]} (challenger) against {names[0]} (champion)"
    write_page(path, title, comparison_sections(sides, comparison))


def comparison_sections(sides: Sides, comparison: Comparison) -> list[Section]:
    """The verdict first, then what it rests on."""
    sections = [
        Section("Verdict", text=comparison_sentences(comparison)),
        Section("Reclaimed CPU", reclaimed_plot(sides)),
    ]
    rates = rates_plot(comparison)
    if rates is not None:
        sections.append(Section("Violations and overload", rates))
    cohorts = comparison.cohorts
    text = ["Challenger minus champion, with 90 % intervals."]
    table = cohort_rows(cohorts)
    sections.append(Section("Who gains", cohorts_plot(cohorts), text, table, COHORT_HEAD))
    head = ("figure", "champion", "challenger")
    return [*sections, Section("Figures", rows=comparison_rows(comparison), head=head)]
