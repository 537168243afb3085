"""Whatever is wrong with a trace is named by file, row and column, in one sentence."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.errors import TraceError
from models.trace import Trace, digest, read_trace, write_trace
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


# Where pods may run, and when nodes are there


def with_text(table: pl.DataFrame, column: str, row: int, text: str) -> pl.DataFrame:
    return table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(text)).alias(column)
    )


def skew(**fields: object) -> str:
    plain = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    return json.dumps([plain | fields])


WRONG_JSON = [
    ("pods", "labels", "app=web", "malformed"),
    ("pods", "labels", '{"app": 1}', "Expected `str`, got `int`"),
    ("pods", "node_selector", "[]", "Expected `object`, got `array`"),
    ("pods", "tolerations", '[{"operator": "Gt"}]', "Invalid enum value 'Gt'"),
    ("pods", "topology_spread", skew(maxSkew=0), "Expected `int` >= 1"),
    ("pods", "topology_spread", skew(whenUnsatisfiable="x"), "Invalid enum value 'x'"),
    (
        "pods",
        "node_affinity",
        '{"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5}]}',
        "missing required field `preference`",
    ),
    (
        "pods",
        "node_affinity",
        (
            '{"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": '
            '[{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]}]}}'
        ),
        "operator Gt needs one whole number",
    ),
    ("nodes", "taints", '[{"key": "a", "effect": "Never"}]', "Invalid enum value 'Never'"),
]


@pytest.mark.parametrize(("table", "column", "text", "message"), WRONG_JSON)
def test_what_kubernetes_would_not_write(
    tmp_path: Path, table: str, column: str, text: str, message: str
) -> None:
    own = with_text({"nodes": nodes(), "pods": pods()}[table], column, 1, text)
    with pytest.raises(TraceError) as caught:
        read_trace(save(tmp_path / "t", **{table: own}))
    assert f"{table}.parquet: row 1, column '{column}'" in str(caught.value)
    assert message in str(caught.value)


def test_a_flag_must_be_one(tmp_path: Path) -> None:
    own = nodes().with_columns(unschedulable=pl.lit("no"))
    with pytest.raises(TraceError, match=r"'unschedulable' has type String and must be true or"):
        read_trace(save(tmp_path / "t", nodes=own))


def test_what_is_right_comes_back_and_changes_the_digest(tmp_path: Path) -> None:
    plain = read_trace(save(tmp_path / "plain"))
    own = with_text(pods(), "topology_spread", 0, skew(labelSelector={"matchLabels": {"a": "b"}}))
    table = nodes().with_columns(unschedulable=pl.int_range(pl.len()) == 0)
    trace = read_trace(save(tmp_path / "t", pods=own, nodes=table))
    assert trace.pods["topology_spread"].null_count() == trace.pods.height - 1
    assert trace.nodes is not None
    assert trace.nodes["unschedulable"].to_list()[:2] == [True, False]
    write_trace(trace, tmp_path / "copy")
    assert digest(read_trace(tmp_path / "copy")) == digest(trace) != digest(plain)
    assert "labels" not in plain.pods.columns  # what a file lacks costs nothing


def test_a_pod_lives_while_its_node_is_there(tmp_path: Path) -> None:
    first, last = pods().select(pl.col("start").min(), pl.col("end").max()).row(0)
    own = pods().with_columns(node=pl.lit(nodes()["node"][0]))
    for column, moment in (("start", last), ("end", first)):
        table = nodes().with_columns(pl.lit(moment).alias(column))
        with pytest.raises(TraceError, match=rf"row \d, column '{column}': .* the pod's node"):
            read_trace(save(tmp_path / column, nodes=table, pods=own))
    both = nodes().with_columns(start=pl.lit(last), end=pl.lit(first))
    with pytest.raises(TraceError, match=r"column 'end': .* is not after the node's start"):
        read_trace(save(tmp_path / "both", nodes=both))


def test_a_pod_without_an_end_ends_with_its_node(tmp_path: Path) -> None:
    left = pods()["start"].max() + timedelta(minutes=1)  # type: ignore[operator]
    own = pods().with_columns(
        end=pl.lit(None, pods()["end"].dtype), node=pl.lit(nodes()["node"][0])
    )
    table = nodes().with_columns(end=pl.lit(left))
    trace = read_trace(save(tmp_path / "t", nodes=table, pods=own, usage=usage().clear()))
    assert (trace.pods["end"] <= left).all()
