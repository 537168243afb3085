"""Figures as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from shadow.bootstrap import Interval
from shadow.cohorts import Cohort
from shadow.compare import Comparison
from shadow.figures import Figures
from shadow.machines import Machines
from shadow.utilisation import Utilisation

NONE = "-"

COHORT_HEAD = (
    "group",
    "pods",
    "champion, core-hours",
    "core-hours more",
    "minutes longer to the first start",
    "forecasts violated more",
)
"""Columns of `cohort_rows`; differences are challenger minus champion with 90 % intervals."""


def model_name(version: str) -> str:
    """A model as people read it: a registered version's number says nothing by itself."""
    return f"version {version}" if version.isdecimal() else version


def figure_rows(figures: Figures) -> list[tuple[str, str]]:
    """Names and values of what a replay comes to, in the order in which one asks."""
    f = figures
    waits = ", ".join(f"{count} {reason}" for reason, count in f.refused.items())
    return [
        ("nodes, hours", f"{f.nodes}, {f.hours:g}"),
        ("CPU allocatable", _core_hours(f.allocatable_core_hours)),
        ("CPU requested by online pods", _core_hours(f.requested_core_hours)),
        ("CPU allocated: requests and promises", _core_hours(f.allocated_core_hours)),
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
            "queueing time, mean, p50, p95, p99",
            ", ".join(
                _minutes(s) for s in (f.wait_mean_s, f.wait_p50_s, f.wait_p95_s, f.wait_p99_s)
            ),
        ),
        ("left to promise, but in fragments", _percent(f.fragmentation)),
        ("utilisation without offline pods", _utilisation(f.utilisation_before)),
        ("  nodes at 0-10, 10-20, ... 90-100 %", _tenths(f.utilisation_before)),
        ("utilisation with offline pods", _utilisation(f.utilisation_after)),
        ("  nodes at 0-10, 10-20, ... 90-100 %", _tenths(f.utilisation_after)),
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
        ("machines needed with reclaiming", f"{_count(m.needed)} of {machine_kind(m)}"),
        ("machines needed without", _count(m.without)),
        ("machines saved", _count(m.saved)),
    ]


def machine_kind(machines: Machines) -> str:
    """What one of the counted machines is."""
    kind = f"{machines.cpu:g} cores, {machines.memory:g} GiB"
    if machines.size == 1:
        return kind
    return f"{kind} ({machines.size:.2f} x the mean node, for the largest online pod)"


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
    for row in comparison_rows(comparison):
        table.add_row(*row)
    return table


def comparison_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Names and both sides' values."""
    sides = [figure_rows(side) for side in (comparison.champion, comparison.challenger)]
    return [(ours[0], ours[1], theirs[1]) for ours, theirs in zip(*sides, strict=True)]


def cohort_rows(cohorts: Sequence[Cohort]) -> list[tuple[str, ...]]:
    """A line for each group of pods or nodes, under `COHORT_HEAD`."""
    return [
        (
            f"{c.by}: {c.cohort}",
            str(c.pods) if c.wait_mean_s is not None else NONE,
            f"{c.champion_core_hours:,.1f}",
            _interval(c.core_hours, "{:+,.1f}".format),
            NONE if c.wait_mean_s is None else _interval(c.wait_mean_s, _signed_minutes),
            NONE if c.violation_rate is None else _interval(c.violation_rate, "{:+.2%}".format),
        )
        for c in cohorts
    ]


def cohort_table(comparison: Comparison) -> Table:
    """The differences by groups of pods and nodes."""
    table = Table(*COHORT_HEAD, title="challenger minus champion", title_justify="left")
    for row in cohort_rows(comparison.cohorts):
        table.add_row(*row)
    return table


def comparison_sentences(comparison: Comparison) -> list[str]:
    """The differences with their intervals, and the verdict with its reasons."""
    c = comparison
    lines = [f"reclaimed: {_interval(c.reclaimed_core_hours, '{:+,.1f}'.format)} core-hours"]
    if c.violation_rate is not None:
        lines.append(f"violations: {_interval(c.violation_rate, '{:+.2%}'.format)}")
    if c.overload_rate is not None:
        lines.append(f"node windows overloaded: {_interval(c.overload_rate, '{:+.2%}'.format)}")
    lines.append(
        f"(90 % paired bootstrap over nodes, {c.blocks} blocks of {c.block_hours:g} hours and "
        f"{len(c.seeds)} seed(s))"
    )
    return [*lines, f"verdict: {c.verdict}", *(f"  {reason}" for reason in c.reasons)]


def _count(value: int | None) -> str:
    return "cannot be told" if value is None else str(value)


def _interval(interval: Interval, shown: Callable[[float], str]) -> str:
    return f"{shown(interval.value)} ({shown(interval.low)} to {shown(interval.high)})"


def _core_hours(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f} core-hours"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2%}"


def _minutes(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds / 60:,.1f} min"


def _signed_minutes(seconds: float) -> str:
    return f"{seconds / 60:+,.1f}"


def _milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f} ms"


def _utilisation(value: Utilisation | None) -> str:
    if value is None:
        return NONE
    return (
        f"mean {value.mean:.1%}, deviation {value.deviation:.1%}, p95 {value.p95:.1%}, "
        f"at 20-40 %: {value.share_20_40:.0%}"
    )


def _tenths(value: Utilisation | None) -> str:
    return NONE if value is None else " ".join(f"{share:.0%}" for share in value.tenths)
