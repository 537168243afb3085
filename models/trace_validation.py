"""What makes the rows of a trace valid: units, times, and references between its tables.

Rules are polars expressions, so a table is checked in one pass and a rule costs no Python per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from models.errors import TraceError
from models.grid import WINDOW
from models.trace_schema import NODES, PODS, USAGE, Column

TIERS = ("online", "offline")

MOST_CORES = 4096.0
"""No machine has more; CPU above this is in millicores, percent or nanoseconds."""

TYPICAL_CORES = 200.0
"""A median request above this many cores is in millicores: no fleet of such pods exists."""

MOST_MEMORY = 32_768.0
"""GiB. The largest machines have 32 TiB; memory above this is in bytes, KiB or MiB."""

TYPICAL_MEMORY = 2_048.0
"""GiB. A median request above 2 TiB is in MiB."""

PEAK_CORES, PEAK_RATIO, PEAK_SHARE = 10.0, 10.0, 0.25
"""Where this share of the pods peaks above so many cores and so many times its request, usage is in
percent or millicores. A few pods may do that; on Bitbrains, percent makes 42 % of them do it."""

LONGEST_DAYS = 3_660
"""Ten years; a longer axis comes from a mistyped time and would exhaust the memory."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows for which ``bad`` is true break the rule; ``says`` follows the value in the message."""

    column: str
    bad: pl.Expr
    says: str


def check_rows(frame: pl.DataFrame, rules: Sequence[Rule], file: Path) -> None:
    """Raise for the first rule that a row breaks.

    Raises:
        TraceError: names the file, the row (0-based), the column and the value.
    """
    names = [str(index) for index in range(len(rules))]
    broken = frame.select(
        rule.bad.fill_null(value=False).any().alias(name)
        for name, rule in zip(names, rules, strict=True)
    )
    for name, rule in zip(names, rules, strict=True):
        if frame.height and broken[name].item():
            row = frame.select(rule.bad.fill_null(value=False).arg_true().first()).item()
            value = _shown(frame[rule.column][row])
            raise TraceError(f"{file}: row {row}, column '{rule.column}': {value} {rule.says}.")


def check_json(frame: pl.DataFrame, kinds: Mapping[str, Any], file: Path) -> None:
    """Raise for the first JSON column that holds a text of another form.

    Pods share their texts, so each different one is parsed once.

    Raises:
        TraceError: names the file, the row (0-based), the column and what is wrong in the text.
    """
    for name in kinds.keys() & set(frame.columns):
        for text in frame[name].drop_nulls().unique(maintain_order=True):
            try:
                msgspec.json.decode(text, type=kinds[name])
            except msgspec.DecodeError as error:
                row = frame.select((pl.col(name) == text).arg_true().first()).item()
                shown = text if len(text) <= 60 else f"{text[:60]}..."
                raise TraceError(
                    f"{file}: row {row}, column '{name}': {shown!r} is not what Kubernetes "
                    f"writes there, as JSON: {error}."
                ) from error


def _shown(value: object) -> str:
    if value is None:
        return "an empty value"
    return f"{value:.6g}" if isinstance(value, float) else f"'{value}'"


def _here(frame: pl.DataFrame, *names: str) -> bool:
    """Whether a table has these extra columns."""
    return set(names) <= set(frame.columns)


def _filled(columns: Sequence[Column]) -> list[Rule]:
    """Required values are there; numbers are finite and not negative."""
    required = [
        Rule(c.name, pl.col(c.name).is_null(), "is not allowed; fill it or leave the row out")
        for c in columns
        if not c.nullable
    ]
    finite = [
        Rule(c.name, ~pl.col(c.name).is_finite(), "is not a finite number; leave the row out")
        for c in columns
        if c.kind == "number"
    ]
    signs = [
        Rule(c.name, pl.col(c.name) < 0, "is negative; it must be 0 or more")
        for c in columns
        if c.kind == "number"
    ]
    return required + finite + signs


def _median_over(name: str, bound: float) -> pl.Expr:
    """The column's highest row, where its median is above the bound."""
    column = pl.col(name)
    return (column.median() > bound) & (column == column.max())


def node_rules(nodes: pl.DataFrame) -> list[Rule]:
    """Rules of nodes.parquet."""
    lives = []
    if _here(nodes, "start", "end"):
        bad = pl.col("end") <= pl.col("start")
        lives.append(Rule("end", bad, "is not after the node's start; correct either"))
    return [
        *lives,
        *_filled(NODES),
        Rule("node", ~pl.col("node").is_first_distinct(), "is listed twice; list a node once"),
        Rule("cpu", pl.col("cpu") <= 0, "cores is no node; leave it out"),
        Rule("memory", pl.col("memory") <= 0, "GiB is no node; leave it out"),
        Rule("cpu", pl.col("cpu") > MOST_CORES, "looks like millicores; CPU is in cores"),
        Rule("cpu", _median_over("cpu", 8 * TYPICAL_CORES), "looks like millicores; use cores"),
        *_memory_rules("memory", typical=MOST_MEMORY),
    ]


def pod_rules(nodes: pl.DataFrame | None) -> list[Rule]:
    """Rules of pods.parquet; with nodes, a pod's node must be one of them."""
    rules = [
        *_filled(PODS),
        Rule("pod", ~pl.col("pod").is_first_distinct(), "is listed twice; list a pod once"),
        Rule("tier", ~pl.col("tier").is_in(TIERS), "is no tier; write online or offline"),
        Rule(
            "cpu_request",
            pl.col("cpu_request") > MOST_CORES,
            "cores is more than any machine has; it looks like millicores, divide by 1000",
        ),
        Rule(
            "cpu_request",
            _median_over("cpu_request", TYPICAL_CORES),
            f"is the highest of requests whose median is above {TYPICAL_CORES:.0f} cores; "
            "they look like millicores, divide by 1000",
        ),
        *_memory_rules("memory_request", typical=TYPICAL_MEMORY),
        Rule("end", pl.col("end") < pl.col("start"), "is before the pod's start; correct either"),
    ]
    if nodes is not None:
        unknown = ~pl.col("node").is_in(nodes["node"].implode())
        rules.append(Rule("node", unknown, "is not in nodes.parquet; add it or leave it empty"))
        rules += _home_rules(nodes)
    return rules


def _home_rules(nodes: pl.DataFrame) -> list[Rule]:
    """A pod lives while its node is there, but for a window of tolerance, as with usage."""
    window = pl.duration(seconds=WINDOW)
    rules = []
    for bound in ("start", "end"):
        if not _here(nodes, bound):
            continue
        there = pl.col("node").replace_strict(
            nodes["node"], nodes[bound], default=None, return_dtype=nodes[bound].dtype
        )
        if bound == "start":
            bad, says = pl.col("start") + window < there, "is before the pod's node is there"
        else:
            bad, says = pl.col("end") > there + window, "is after the pod's node has gone"
        rules.append(Rule(bound, bad, f"{says}; correct either"))
    return rules


def _memory_rules(name: str, typical: float) -> list[Rule]:
    column = pl.col(name)
    return [
        Rule(
            name,
            column >= 2.0**26,
            "looks like bytes; memory is in GiB, divide by 1073741824",
        ),
        Rule(
            name,
            (column > MOST_MEMORY) | _median_over(name, typical),
            "looks like KiB or MiB; memory is in GiB",
        ),
    ]


def check_usage(usage: pl.DataFrame, pods: pl.DataFrame, file: Path) -> None:
    """Check the rows of usage.parquet by themselves and against the pods.

    Raises:
        TraceError: names the file, the row (0-based), the column and the value.
    """
    check_rows(usage, _usage_rules(), file)
    lives = pods.select(
        "pod", pl.int_range(pl.len(), dtype=pl.Int64).alias("_pod"), "start", "end", "cpu_request"
    )
    joined = usage.join(lives, on="pod", how="left", maintain_order="left")
    check_rows(joined, _life_rules(), file)
    _check_scale(joined, file)
    _check_span(usage, file)


def _usage_rules() -> list[Rule]:
    times = pl.col("time").dt.epoch("us")
    cpu, cpu_max = pl.col("cpu"), pl.col("cpu_max")
    too_much = "cores is more than any machine has; it looks like millicores or nanoseconds"
    return [
        *_filled(USAGE),
        Rule("cpu", cpu > MOST_CORES, too_much),
        Rule("cpu_max", cpu_max > MOST_CORES, too_much),
        # 1e-4 cores and 1e-5 of the value: sources round the two figures separately.
        Rule(
            "cpu_max",
            cpu_max < cpu * (1 - 1e-5) - 1e-4,
            "is below the mean of the same window; swap the columns if they are exchanged",
        ),
        Rule(
            "time",
            times % (WINDOW * 1_000_000) != 0,
            "is not the start of a 5-minute window; round it down to one",
        ),
    ]


def _life_rules() -> list[Rule]:
    window = pl.duration(seconds=WINDOW)
    time = pl.col("time")
    twice = ~(pl.col("_pod") * 2**32 + time.dt.epoch("s") // WINDOW).is_first_distinct()
    return [
        Rule("pod", pl.col("_pod").is_null(), "is not in pods.parquet; add it or leave it out"),
        Rule("time", twice, "is listed twice for this pod; keep one row for each window"),
        # A tolerance of one window: sources round times down, lives are exact.
        Rule("time", time + window <= pl.col("start"), "is before the pod's start; correct either"),
        Rule("time", time >= pl.col("end") + window, "is after the pod's end; correct either"),
    ]


def _check_scale(joined: pl.DataFrame, file: Path) -> None:
    """Refuse usage in percent or millicores, which shows in the pods' peaks."""
    peaks = joined.group_by("_pod").agg(pl.col("cpu").max(), pl.col("cpu_request").first())
    absurd = (pl.col("cpu") > PEAK_CORES) & (pl.col("cpu") > PEAK_RATIO * pl.col("cpu_request"))
    share = peaks.select(absurd.mean()).item()
    if share is not None and share >= PEAK_SHARE:
        row = joined["cpu"].arg_max()
        raise TraceError(
            f"{file}: row {row}, column 'cpu': {share:.0%} of the pods peak above {PEAK_RATIO:g} "
            "times their request; usage looks like percent or millicores, convert it to cores."
        )


def _check_span(usage: pl.DataFrame, file: Path) -> None:
    """Refuse a time axis that no memory could hold, which a single mistyped time makes."""
    time = pl.col("time")
    first, last, days, row = usage.select(
        time.min().alias("first"),
        time.max().alias("last"),
        (time.max() - time.min()).dt.total_days().alias("days"),
        time.arg_max().alias("row"),
    ).row(0)
    if days is not None and days > LONGEST_DAYS:
        raise TraceError(
            f"{file}: row {row}, column 'time': '{last}' is {days} days after the first time, "
            f"'{first}'; correct the mistyped one."
        )
