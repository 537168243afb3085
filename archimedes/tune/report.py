"""What `trainer tune` prints and its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from archimedes.tune.run import Days, Outcome, Tuned
from shadow.page import Section, write_page
from shadow.plots import BLUE, GREEN, GREY, RED, WIDTH, legend_above
from shadow.report import comparison_sentences, model_name
from shadow.report_page import comparison_sections
from trainer.tune import Attempt, Budget

NONE = "-"


def print_tuned(tuned: Tuned) -> None:
    """Print the table of given and found policy, and what the later days say."""
    console = Console()
    console.print(_table(tuned))
    lines = headline(tuned)
    if tuned.comparison is not None:
        lines += comparison_sentences(tuned.comparison)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def write_report(path: Path, outcome: Outcome) -> None:
    """Write the page: the search, then the comparison on the later days.

    Raises:
        SettingsError: the file cannot be written.
    """
    tuned = outcome.tuned
    head = ("on the search days", "given", "found")
    plot = search_plot(outcome.attempts, tuned.base, tuned.best, tuned.budget)
    sections = [
        Section("The found policy", text=headline(tuned), rows=table_rows(tuned), head=head),
        Section("The search", plot),
    ]
    if outcome.sides is not None and tuned.comparison is not None:
        sections += comparison_sections(outcome.sides, tuned.comparison)
    write_page(path, f"Policy search on {tuned.trace}", sections)


def search_plot(
    attempts: Sequence[Attempt], base: Attempt, best: Attempt | None, budget: Budget
) -> Figure:
    """Every policy on the search days: what it reclaims against what it violates."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for within, colour, name in ((True, GREEN, "within the budget"), (False, GREY, "above it")):
        kept = [a for a in attempts if a.within_budget == within]
        rates = [100 * (a.measured.violation_rate or 0.0) for a in kept]
        reclaimed = [a.measured.reclaimed_core_hours for a in kept]
        axes.plot(rates, reclaimed, "o", color=colour, ms=5, alpha=0.7, label=name)
    for attempt, marker, name in ((base, "s", "given"), (best, "*", "found")):
        if attempt is not None:
            rate = 100 * (attempt.measured.violation_rate or 0.0)
            height = attempt.measured.reclaimed_core_hours
            axes.plot([rate], [height], marker, color=BLUE, ms=12, ls="none", label=name)
    axes.axvline(100 * budget.violation_rate, color=RED, ls="--", lw=1, label="budget")
    axes.set_xlabel("forecasts violated, %")
    axes.set_ylabel("reclaimed, core-hours")
    axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # a mark at 0 is seen as a whole
    axes.grid(alpha=0.2)
    legend_above(figure)
    return figure


def headline(tuned: Tuned) -> list[str]:
    """What was searched on what, whether it wins on later days and by how much."""
    t = tuned
    lines = [
        f"{t.trials} policies on {_days(t.searched)}, {t.seeds} stream(s) of offline pods each",
        (
            f"Accepted: {_percent(t.budget.violation_rate)} of forecasts violated, "
            f"{_percent(t.budget.overload_rate)} of node windows overloaded"
        ),
    ]
    if t.best is None:
        return [*lines, "No policy keeps to the budget: give more trials, or a larger budget."]
    if t.comparison is None:
        return [
            *lines,
            "The given policy is the best that was found: nothing to judge or to register.",
        ]
    gain, given = t.comparison.reclaimed_core_hours, t.comparison.champion.reclaimed_core_hours
    share = f"{gain.value / given:+.1%}" if given else "the given one reclaims nothing"
    verb = "wins" if t.wins else "does not win"
    lines.append(f"On the later days ({_days(t.judged)}) the found policy {verb}: {share}")
    if t.model_saw_judged_days is None:
        lines.append(
            "The model was trained on another trace of the judged days: whether its forecasts "
            "there are held out is not known; both sides have the same ones."
        )
    elif t.model_saw_judged_days:
        lines.append(
            "The model was trained on the judged days, so its forecasts there are not held out; "
            "both sides have the same ones."
        )
    if t.registered is not None:
        lines.append(f"Registered as version {t.registered}, the challenger")
    return lines


def table_rows(tuned: Tuned) -> list[tuple[str, str, str]]:
    """The policies' fields and what they come to; found fields only where they changed."""
    base, best = tuned.base, tuned.best
    rows = []
    for name in base.policy.__struct_fields__:
        pair = tuned.changed.get(name)
        rows.append(
            (name, f"{getattr(base.policy, name):g}", "" if pair is None else f"{pair[1]:g}")
        )
    figures: tuple[tuple[str, Callable[[Attempt], str]], ...] = (
        ("reclaimed, core-hours", lambda a: f"{a.measured.reclaimed_core_hours:,.1f}"),
        ("forecasts violated", lambda a: _percent(a.measured.violation_rate)),
        ("node windows overloaded", lambda a: _percent(a.measured.overload_rate)),
    )
    rows += [(name, shown(base), NONE if best is None else shown(best)) for name, shown in figures]
    return rows


def _table(tuned: Tuned) -> Table:
    by = model_name(tuned.model_version)
    table = Table(title=f"{tuned.trace}, forecasts by {by}", title_justify="left")
    for name in ("on the search days", "given", "found"):
        table.add_column(name)
    for row in table_rows(tuned):
        table.add_row(*row)
    return table


def _days(days: Days) -> str:
    start, stop = (datetime.fromtimestamp(t, UTC) for t in (days.start, days.stop))
    return f"{start:%Y-%m-%d %H:%M} to {stop:%Y-%m-%d %H:%M}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2%}"
