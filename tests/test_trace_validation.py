"""Whatever is wrong with a trace is named by file, row and column, in one sentence."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.errors import TraceError
from models.trace import Trace, read_trace, write_trace
from tests.traces import minutes, nodes, pods, put, save, shared, usage


def test_a_folder_that_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere does not exist; a trace is a folder"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(TraceError, match=r"is no trace: it has no pods\.parquet"):
        read_trace(tmp_path)
    file = tmp_path / "file.parquet"
    pods().write_parquet(file)
    with pytest.raises(TraceError, match=r"file\.parquet is a file; a trace is a folder"):
        read_trace(file)


@pytest.mark.parametrize("name", ["nodes", "pods", "usage"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "footer"])
def test_a_damaged_file(tmp_path: Path, name: str, damage: str) -> None:
    file = save(tmp_path / "t") / f"{name}.parquet"
    content = file.read_bytes()
    broken = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"pod,workload\na,b\n",
        "footer": content[:-20] + b"x" * 12 + content[-8:],
    }
    file.write_bytes(broken[damage])
    with pytest.raises(TraceError, match=rf"{name}\.parquet is no readable Parquet file"):
        read_trace(tmp_path / "t")


@pytest.mark.parametrize(
    ("table", "column"),
    [("nodes", "cpu"), ("pods", "memory_request"), ("pods", "end"), ("usage", "time")],
)
def test_a_missing_column(tmp_path: Path, table: str, column: str) -> None:
    own = {"nodes": nodes(), "pods": pods(), "usage": usage()}[table].drop(column)
    with pytest.raises(TraceError, match=rf"{table}\.parquet: column '{column}' is missing"):
        read_trace(save(tmp_path / "t", **{table: own}))


BERLIN = usage().with_columns(pl.col("time").dt.convert_time_zone("Europe/Berlin"))

WRONG_TYPES = [
    ("pods", pods().cast({"cpu_request": pl.String}), "'cpu_request' has type String and must be"),
    ("pods", pods().with_columns(pod=pl.int_range(4)), "'pod' has type Int64 and must be text"),
    ("pods", pods().cast({"start": pl.Int64}), "'start' has type Int64 and must be a UTC"),
    ("pods", pods().with_columns(workload=None), "'workload' has type Null and must be text"),
    ("usage", usage().cast({"cpu": pl.Boolean}), "'cpu' has type Boolean and must be a number"),
    ("usage", usage().cast({"time": pl.Date}), "'time' has type Date and must be a UTC timestamp"),
    (
        "usage",
        usage().with_columns(pl.col("time").dt.replace_time_zone(None)),
        "'time' has times without a zone; write them as UTC timestamps",
    ),
    ("usage", BERLIN, "'time' has times in Europe/Berlin; convert them to UTC"),
    (
        "pods",
        pods().with_columns(pl.col("end").dt.convert_time_zone("Asia/Tokyo")),
        "'end' has times in Asia/Tokyo",
    ),
]


@pytest.mark.parametrize(("table", "content", "message"), WRONG_TYPES)
def test_a_wrong_type(tmp_path: Path, table: str, content: pl.DataFrame, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(save(tmp_path / "t", **{table: content}))
    assert f"{table}.parquet: column {message}" in str(caught.value)


def grown(table: pl.DataFrame, column: str, factor: float) -> pl.DataFrame:
    return table.with_columns(pl.col(column) * factor)


def vms(cores: int) -> pl.DataFrame:
    return pods().with_columns(cpu_request=pl.lit(float(cores)), node=None)


BAD_ROWS = [
    ("pods", put(pods(), "pod", 2, "a"), 2, "pod", "'a' is listed twice"),
    ("pods", put(pods(), "pod", 1, None), 1, "pod", "an empty value is not allowed"),
    ("pods", put(pods(), "tier", 3, "Online"), 3, "tier", "'Online' is no tier; write online"),
    ("pods", put(pods(), "cpu_request", 1, -1.0), 1, "cpu_request", "-1 is negative"),
    ("pods", put(pods(), "cpu_request", 1, np.nan), 1, "cpu_request", "nan is not a finite"),
    ("pods", put(pods(), "cpu_request", 1, np.inf), 1, "cpu_request", "inf is not a finite"),
    ("pods", put(pods(), "cpu_request", 2, 8000.0), 2, "cpu_request", "8000 cores is more than"),
    # All of 2, 2, 4, 1 cores as millicores: the median is 2000, the highest is in row 2.
    ("pods", grown(pods(), "cpu_request", 1000), 2, "cpu_request", "4000 is the highest of"),
    ("pods", put(pods(), "memory_request", 0, 2.0**32), 0, "memory_request", "looks like bytes"),
    ("pods", grown(pods(), "memory_request", 2.0**20), 0, "memory_request", "looks like KiB"),
    ("pods", grown(pods(), "memory_request", 1024), 2, "memory_request", "looks like KiB or MiB"),
    ("pods", put(pods(), "memory_request", 3, np.nan), 3, "memory_request", "nan is not a finite"),
    ("pods", put(pods(), "end", 1, minutes(9)), 1, "end", "is before the pod's start"),
    ("pods", put(pods(), "start", 2, None), 2, "start", "an empty value is not allowed"),
    ("pods", put(pods(), "node", 2, "n7"), 2, "node", "'n7' is not in nodes.parquet"),
    ("nodes", put(nodes(), "cpu", 1, 0.0), 1, "cpu", "0 cores is no node"),
    ("nodes", put(nodes(), "cpu", 1, -4.0), 1, "cpu", "-4 is negative"),
    ("nodes", put(nodes(), "memory", 0, None), 0, "memory", "an empty value is not allowed"),
    ("nodes", grown(nodes(), "cpu", 1000), 0, "cpu", "16000 looks like millicores"),
    ("nodes", grown(nodes(), "memory", 2.0**30), 0, "memory", "looks like bytes"),
    ("nodes", put(nodes(), "node", 1, "n0"), 1, "node", "'n0' is listed twice"),
    ("usage", put(usage(), "pod", 5, "ghost"), 5, "pod", "'ghost' is not in pods.parquet"),
    ("usage", put(usage(), "cpu", 4, -0.5), 4, "cpu", "-0.5 is negative"),
    ("usage", put(usage(), "cpu", 4, np.nan), 4, "cpu", "nan is not a finite number"),
    ("usage", put(usage(), "cpu", 4, np.inf), 4, "cpu", "inf is not a finite number"),
    ("usage", put(usage(), "cpu", 4, None), 4, "cpu", "an empty value is not allowed"),
    ("usage", put(usage(), "cpu", 1, 5000.0), 1, "cpu", "5000 cores is more than any machine"),
    ("usage", put(usage(), "cpu_max", 0, 0.4), 0, "cpu_max", "0.4 is below the mean"),
    ("usage", put(usage(), "cpu_max", 0, np.nan), 0, "cpu_max", "nan is not a finite number"),
    ("usage", put(usage(), "time", 1, minutes(6)), 1, "time", "is not the start of a 5-minute"),
    ("usage", put(usage(), "time", 1, minutes(0)), 1, "time", "is listed twice for this pod"),
    # Pod b starts at 10 and ends at 30: 0..5 and 35..40 are more than one window away.
    ("usage", put(usage(), "time", 3, minutes(0)), 3, "time", "is before the pod's start"),
    ("usage", put(usage(), "time", 6, minutes(35)), 6, "time", "is after the pod's end"),
    (
        "usage",
        put(usage(), "time", 6, datetime(1999, 1, 1, tzinfo=UTC)),
        6,
        "time",
        "is before",
    ),
]


@pytest.mark.parametrize(
    ("table", "content", "row", "column", "message"),
    BAD_ROWS,
    ids=[f"{case[0]}-{case[3]}-{index}" for index, case in enumerate(BAD_ROWS)],
)
def test_a_bad_row_is_named(
    tmp_path: Path, table: str, content: pl.DataFrame, row: int, column: str, message: str
) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(save(tmp_path / "t", **{table: content}))
    text = str(caught.value)
    assert f"{table}.parquet: row {row}, column '{column}': " in text
    assert message in text
    assert "\n" not in text


def test_a_tolerance_of_one_window_and_of_rounding(tmp_path: Path) -> None:
    # Pod b lives from 12 to 26 minutes: windows 10..15 and 25..30 overlap it, 30..35 starts within
    # one window after its end.
    table = put(put(pods(), "start", 1, minutes(12)), "end", 1, minutes(26))
    late = put(usage(), "time", 6, minutes(30))
    rounded = put(late, "cpu_max", 0, 0.49995)  # mean 0.5
    assert read_trace(save(tmp_path / "t", pods=table, usage=rounded)).pods.height == 4


def test_a_pod_that_ended_at_once_is_valid(tmp_path: Path) -> None:
    table = put(pods(), "end", 3, minutes(3))
    trace = read_trace(save(tmp_path / "t", pods=table, usage=usage()[:7]))
    assert trace.pods["start"][3] == trace.pods["end"][3]


def test_requests_of_the_largest_machines_are_valid(tmp_path: Path) -> None:
    assert read_trace(save(tmp_path / "t", nodes=None, pods=vms(192))).pods.height == 4


@pytest.mark.parametrize("factor", [100, 1000], ids=["percent", "millicores"])
def test_usage_in_other_units(tmp_path: Path, factor: int) -> None:
    # As percent, the peaks of a, b, j are 100, 50, 90 for requests of 2, 2, 1.
    table = grown(grown(usage(), "cpu", factor), "cpu_max", factor)
    with pytest.raises(TraceError, match=r"row 2, column 'cpu': 100% of the pods peak above 10"):
        read_trace(save(tmp_path / "t", usage=table))


def test_a_few_pods_may_use_far_more_than_they_requested(tmp_path: Path) -> None:
    # One of six pods with usage, j, peaks at 12 cores for a request of 1.
    more = [pods(), *(pods()[:1].with_columns(pod=pl.lit(name)) for name in ("d", "e", "f"))]
    rows = [usage(), *(usage()[:2].with_columns(pod=pl.lit(name)) for name in ("d", "e", "f"))]
    burst = put(put(pl.concat(rows), "cpu", 7, 12.0), "cpu_max", 7, None)
    assert read_trace(save(tmp_path / "t", pods=pl.concat(more), usage=burst)).pods.height == 7


def test_a_time_years_away(tmp_path: Path) -> None:
    far = pods().with_columns(end=pl.lit(datetime(2100, 1, 1, tzinfo=UTC)))
    table = put(usage(), "time", 6, datetime(2099, 1, 1, tzinfo=UTC))
    with pytest.raises(TraceError, match=r"row 6, column 'time': .* is 27023 days after the first"):
        read_trace(save(tmp_path / "t", pods=far, usage=table))


def test_an_empty_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"pods\.parquet has no pods"):
        read_trace(save(tmp_path / "t", pods=pods().clear(), usage=None))


@pytest.mark.parametrize("factor", [100, 1000])
@pytest.mark.parametrize("name", ["azure-v1", "bitbrains"])
def test_real_usage_in_other_units(tmp_path: Path, name: str, factor: int) -> None:
    trace = shared(name)
    assert trace.usage is not None
    request = pl.Series(trace.pods["cpu_request"])
    per_pod = pl.col("pod").replace_strict(trace.pods["pod"], request, return_dtype=pl.Float64)
    scale = factor / (per_pod if factor == 100 else 1)  # percent of the request, or millicores
    table = trace.usage.with_columns(pl.col("cpu") * scale, pl.col("cpu_max") * scale)
    with pytest.raises(TraceError, match="column 'cpu'"):
        write_trace(Trace(name, None, trace.pods, table), tmp_path / name)
