"""What the demo prints: a table for people, one object for programs, and a page."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from archimedes.demo.run import Outcome
from shadow.figures import Figures, figures
from shadow.machines import Machines
from shadow.page import Section, write_page
from shadow.plots import cpu_plot, nodes_plot
from shadow.report import machine_kind
from shadow.series import node_series


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The object that `demo --json` ends with; core-hours, shares, milliseconds."""

    requested_core_hours: float
    used_core_hours: float
    reclaimed_core_hours: float
    reclaimed_share: float
    violation_rate: float
    offline_pods_placed: int
    offline_pods_waiting: int
    machines: int | None
    machines_saved: int | None
    decision_ms_p50: float
    decision_ms_p99: float
    champion_before: str
    champion_after: str
    verdict: str


def summarise(outcome: Outcome) -> tuple[Summary, Figures]:
    """The figures of the run."""
    found = figures(outcome.result)
    return (
        Summary(
            requested_core_hours=found.requested_core_hours,
            used_core_hours=found.used_core_hours or 0.0,
            reclaimed_core_hours=found.reclaimed_core_hours,
            reclaimed_share=found.reclaimed_share or 0.0,
            violation_rate=found.violation_rate or 0.0,
            offline_pods_placed=found.offline_pods_placed,
            offline_pods_waiting=found.offline_pods_waiting,
            machines=outcome.machines.needed,
            machines_saved=outcome.machines.saved,
            decision_ms_p50=found.decision_ms_p50 or 0.0,
            decision_ms_p99=found.decision_ms_p99 or 0.0,
            champion_before=outcome.champion_before,
            champion_after=outcome.champion_after,
            verdict=outcome.comparison.verdict,
        ),
        found,
    )


def rows(outcome: Outcome, summary: Summary, found: Figures) -> list[tuple[str, str]]:
    """The table's lines."""
    refused = [f"{cause}: {pods}" for cause, pods in sorted(found.refused.items())]
    return [
        ("nodes, simulated hours", f"{found.nodes}, {found.hours:g}"),
        ("CPU of the nodes", _core_hours(found.allocatable_core_hours)),
        ("requested by online pods", _core_hours(summary.requested_core_hours)),
        ("used by online pods", _core_hours(summary.used_core_hours)),
        (
            "reclaimed: run by offline pods",
            (
                f"{_core_hours(summary.reclaimed_core_hours)}, "
                f"{summary.reclaimed_share:.1%} of what was idle"
            ),
        ),
        (
            "utilisation of the nodes, before and after",
            f"{_mean(found.utilisation_before)} and {_mean(found.utilisation_after)}",
        ),
        ("violations: real peak above forecast", f"{summary.violation_rate:.2%} of forecasts"),
        ("node windows above the ceiling", f"{found.overload_rate or 0.0:.2%}"),
        (
            "offline pods",
            (
                f"{summary.offline_pods_placed} placed, {summary.offline_pods_waiting} waiting "
                f"at the end, of {found.offline_pods}"
            ),
        ),
        ("pods that had to wait, by reason", "; ".join(refused) or "none"),
        (
            "decision (filter + prioritize over HTTP)",
            (
                f"{summary.decision_ms_p50:.2f} ms median, {summary.decision_ms_p99:.2f} ms p99, "
                f"{len(outcome.result.latency)} decisions"
            ),
        ),
        (
            "champion",
            f"version {outcome.champion_before} before, {outcome.champion_after} after",
        ),
        (
            "verdict of the shadow",
            f"{outcome.comparison.verdict}: {' '.join(outcome.comparison.reasons)}",
        ),
        (
            "machines for the same work",
            _machines(outcome.machines),
        ),
    ]


def _machines(counted: Machines) -> str:
    if counted.saved is None or counted.without is None:
        return "cannot be told: no number of machines does the same"
    return (
        f"{counted.needed} with reclaiming, {counted.without} without: {counted.saved} saved "
        f"({counted.saved / counted.without:.0%}), of {machine_kind(counted)}"
    )


def print_table(console: Console, title: str, lines: list[tuple[str, str]]) -> None:
    """Print the table."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, value)
    console.print(table)


def write_report(path: Path, title: str, lines: list[tuple[str, str]], outcome: Outcome) -> None:
    """Write the page."""
    result = outcome.result
    series = node_series(result)
    cpu = Section("CPU of the cluster", cpu_plot(result, series, outcome.swapped))
    nodes = Section("Utilisation of the nodes", nodes_plot(series))
    write_page(path, title, [cpu, nodes, Section("Figures", rows=lines)])


def _core_hours(value: float) -> str:
    return f"{value:,.0f} core-hours"


def _mean(utilisation: object) -> str:
    mean = getattr(utilisation, "mean", None)
    return "unknown" if mean is None else f"{mean:.1%}"
