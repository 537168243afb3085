"""Figures as tables for people."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from shadow.bootstrap import Interval
from shadow.compare import Comparison
from shadow.figures import Figures
from shadow.machines import Machines
from shadow.utilisation import Utilisation

NONE = "-"


def figure_rows(figures: Figures) -> list[tuple[str, str]]:
    """Names and values of what a replay comes to, in the order in which one asks."""
    f = figures
    waits = ", ".join(f"{count} {reason}" for reason, count in f.refused.items())
    return [
        ("nodes, hours", f"{f.nodes}, {f.hours:g}"),
        ("CPU allocatable", _core_hours(f.allocatable_core_hours)),
        ("CPU requested by online pods", _core_hours(f.requested_core_hours)),
        ("CPU used by online pods", _core_hours(f.used_core_hours)),
        (
            "CPU reclaimed",
            f"{_core_hours(f.reclaimed_core_hours)}, {_percent(f.reclaimed_share)} of the idle",
        ),
        ("  beyond what nobody requested", _core_hours(f.beyond_requests_core_hours)),
        ("  promised, but throttled", _core_hours(f.throttled_core_hours)),
        ("  lost with displaced pods", _core_hours(f.lost_core_hours)),
        ("forecasts violated", _percent(f.violation_rate)),
        (
            "  by horizon",
            ", ".join(f"{h} h {_percent(rate)}" for h, rate in f.violation_rate_by_horizon.items()),
        ),
        ("  severity, mean and p99", f"{_percent(f.severity_mean)}, {_percent(f.severity_p99)}"),
        ("node windows above the ceiling", _percent(f.overload_rate)),
        ("promises that met one", _percent(f.overloaded_promises)),
        ("online pods, without a node", f"{f.online_pods}, {f.online_pods_waiting}"),
        ("offline pods, placed", f"{f.offline_pods}, {f.offline_pods_placed}"),
        ("  finished, waiting", f"{f.offline_pods_finished}, {f.offline_pods_waiting}"),
        ("  refused (too large)", str(f.offline_pods_refused)),
        ("pods that had to wait", waits or NONE),
        ("evictions, preemptions", f"{f.evictions}, {f.preemptions}"),
        (
            "queueing time, mean, p50, p95",
            ", ".join(_minutes(s) for s in (f.wait_mean_s, f.wait_p50_s, f.wait_p95_s)),
        ),
        ("utilisation without offline pods", _utilisation(f.utilisation_before)),
        ("utilisation with offline pods", _utilisation(f.utilisation_after)),
        ("decisions", str(f.decisions)),
        (
            "decision latency, p50, p99",
            f"{_milliseconds(f.decision_ms_p50)}, {_milliseconds(f.decision_ms_p99)}",
        ),
    ]


def machine_rows(machines: Machines) -> list[tuple[str, str]]:
    """Names and values of what the same work needs."""
    m = machines
    return [
        ("machines needed with reclaiming", f"{m.needed} of {m.cpu:g} cores, {m.memory:g} GiB"),
        ("machines needed without", str(m.without)),
        ("machines saved", str(m.saved)),
    ]


def replay_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """A table of one replay."""
    table = Table("figure", "value", title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Both replays side by side."""
    sides = comparison.champion, comparison.challenger
    table = Table("figure", *(f"{side.model_version}" for side in sides), title_justify="left")
    table.title = f"{sides[0].trace}: champion and challenger"
    rows = [figure_rows(side) for side in sides]
    for ours, theirs in zip(*rows, strict=True):
        table.add_row(ours[0], ours[1], theirs[1])
    return table


def comparison_sentences(comparison: Comparison) -> list[str]:
    """The differences with their intervals, and the verdict with its reasons."""
    c = comparison
    lines = [f"reclaimed: {_interval(c.reclaimed_core_hours, '{:+,.1f}'.format)} core-hours"]
    if c.violation_rate is not None:
        lines.append(f"violations: {_interval(c.violation_rate, '{:+.2%}'.format)}")
    lines.append(
        f"(90 % paired bootstrap over nodes and {c.blocks} blocks of {c.block_hours:g} hours)"
    )
    return [*lines, f"verdict: {c.verdict}", *(f"  {reason}" for reason in c.reasons)]


def _interval(interval: Interval, shown: Callable[[float], str]) -> str:
    return f"{shown(interval.value)} ({shown(interval.low)} to {shown(interval.high)})"


def _core_hours(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f} core-hours"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2%}"


def _minutes(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds / 60:,.1f} min"


def _milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f} ms"


def _utilisation(value: Utilisation | None) -> str:
    if value is None:
        return NONE
    return (
        f"mean {value.mean:.1%}, deviation {value.deviation:.1%}, p95 {value.p95:.1%}, "
        f"at 20-40 %: {value.share_20_40:.0%}"
    )
