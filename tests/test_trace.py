"""Traces are read as written, and whatever is wrong with one is named by file, row and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.errors import TraceError
from models.trace import Trace, digest, read_trace, staged_folder, usage_grid, write_trace
from tests.traces import EPOCH, minutes, nodes, pods, put, save, shared, usage


def test_a_written_trace_is_read_back(tmp_path: Path) -> None:
    trace = read_trace(save(tmp_path / "t"))
    write_trace(trace, tmp_path / "u")
    again = read_trace(tmp_path / "u")
    assert again.name == "u"
    for table in ("nodes", "pods", "usage"):
        assert_frame_equal(getattr(trace, table), getattr(again, table))
    assert sorted(file.name for file in (tmp_path / "u").iterdir()) == [
        "nodes.parquet",
        "pods.parquet",
        "usage.parquet",
    ]
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_nodes_usage_and_optional_columns_may_be_absent(tmp_path: Path) -> None:
    bare = pods().drop("node").with_columns(gpu_request=pl.lit(1))
    trace = read_trace(save(tmp_path / "t", nodes=None, usage=None, pods=bare))
    assert trace.nodes is None
    assert trace.usage is None
    assert trace.pods["node"].null_count() == 4
    assert trace.pods.columns[-1] == "node"  # known columns only, in the documented order
    plain = read_trace(save(tmp_path / "u", usage=usage().drop("cpu_max")))
    assert plain.usage is not None
    assert plain.usage["cpu_max"].null_count() == 8
    assert usage_grid(plain).cpu_max is None


def test_other_types_of_the_same_meaning_are_accepted(tmp_path: Path) -> None:
    table = pods().with_columns(
        pl.col("tier").cast(pl.Categorical),
        pl.col("cpu_request").cast(pl.Int32),
        pl.col("start").dt.convert_time_zone("Etc/UTC").dt.cast_time_unit("ms"),
        pl.lit(None).alias("node"),
    )
    trace = read_trace(save(tmp_path / "t", pods=table))
    assert trace.pods.schema["tier"] == pl.String
    assert trace.pods["cpu_request"].to_list() == [2.0, 2.0, 4.0, 1.0]
    assert trace.pods["start"].to_list() == pods()["start"].to_list()


def test_an_empty_end_means_running_until_the_trace_ends(tmp_path: Path) -> None:
    open_end = put(pods(), "end", 1, None)
    trace = read_trace(save(tmp_path / "t", pods=open_end))
    assert trace.pods["end"][1] == minutes(30)  # last window 25..30; others end at 30, 20, 21
    early = put(put(open_end, "end", 0, None), "end", 2, minutes(20))
    late = pl.concat([usage(), usage().tail(1).with_columns(pl.lit("a").alias("pod"))])
    late = put(late, "time", 8, minutes(55))
    trace = read_trace(save(tmp_path / "u", pods=early, usage=late))
    assert trace.pods["end"].to_list()[:2] == [minutes(60), minutes(60)]  # window 55..60


def test_a_grid_has_gaps_lives_and_the_whole_axis(tmp_path: Path) -> None:
    grid = usage_grid(read_trace(save(tmp_path / "t")))
    assert (grid.start, grid.windows, grid.pods) == (EPOCH, 6, ("a", "b", "c"))
    assert grid.workloads == ("w", "w", "v")
    nan = np.nan
    expected = [
        [0.5, 0.75, nan, nan, 1.0, nan],
        [nan, nan, 0.25, 0.5, 0.125, 0.0],
        [nan] * 6,
    ]
    np.testing.assert_array_equal(grid.cpu, np.array(expected, np.float32))
    assert grid.cpu.dtype == np.float32
    assert grid.cpu_max is not None
    assert grid.cpu_max[0, 0] == np.float32(0.6)
    assert np.isnan(grid.cpu_max[0, 1])
    np.testing.assert_array_equal(grid.request, [2.0, 2.0, 4.0])
    np.testing.assert_array_equal(grid.born, [EPOCH, EPOCH + 600, EPOCH])
    np.testing.assert_array_equal(grid.gone, [EPOCH + 1800, EPOCH + 1800, EPOCH + 1200])


def test_a_grid_of_the_other_tier_has_the_same_axis(tmp_path: Path) -> None:
    grid = usage_grid(read_trace(save(tmp_path / "t")), tier="offline")
    assert (grid.start, grid.windows, grid.pods) == (EPOCH, 6, ("j",))
    assert grid.cpu[0, 1] == np.float32(0.9)
    assert np.isnan(grid.cpu).sum() == 5


@pytest.mark.parametrize("table", [None, usage().clear()], ids=["no file", "no rows"])
def test_without_usage_a_grid_has_no_windows(tmp_path: Path, table: pl.DataFrame | None) -> None:
    grid = usage_grid(read_trace(save(tmp_path / "t", usage=table)))
    assert grid.cpu.shape == (3, 0)
    assert grid.start == grid.end == EPOCH


def test_a_trace_with_one_pod_and_one_window(tmp_path: Path) -> None:
    trace = read_trace(save(tmp_path / "t", nodes=None, pods=pods()[:1], usage=usage()[:1]))
    assert usage_grid(trace).cpu.tolist() == [[0.5]]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_grid_equals_a_slow_one(data: st.DataObject) -> None:
    cells = data.draw(
        st.dictionaries(
            st.tuples(st.integers(0, 4), st.integers(0, 40)),
            st.tuples(st.floats(0, 8, width=32), st.none() | st.floats(8, 9, width=32)),
            min_size=1,
        )
    )
    order = data.draw(st.permutations(sorted(cells)))
    table = pl.DataFrame(
        {
            "pod": [f"p{p}" for p, _ in order],
            "time": [minutes(5 * w) for _, w in order],
            "cpu": [cells[key][0] for key in order],
            "cpu_max": [cells[key][1] for key in order],
        },
        schema_overrides={"cpu": pl.Float32, "cpu_max": pl.Float32},
    )
    five = pl.concat([pods()[:1]] * 5).with_columns(
        pod=pl.Series([f"p{p}" for p in range(5)]), end=pl.lit(minutes(300)), node=None
    )
    grid = usage_grid(Trace("t", None, five, table))
    first = min(w for _, w in cells)
    assert grid.windows == max(w for _, w in cells) - first + 1
    for p in range(5):
        for w in range(grid.windows):
            cpu, cpu_max = cells.get((p, w + first), (np.nan, None))
            np.testing.assert_equal(grid.cpu[p, w], np.float32(cpu))
            if grid.cpu_max is not None:
                np.testing.assert_equal(
                    grid.cpu_max[p, w], np.float32(np.nan if cpu_max is None else cpu_max)
                )


def shuffled(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    columns = np.random.default_rng(seed).permutation(table.columns).tolist()
    return table.sample(fraction=1, shuffle=True, seed=seed).select(columns)


@pytest.mark.parametrize("seed", range(5))
def test_the_digest_ignores_order_compression_and_name(tmp_path: Path, seed: int) -> None:
    before = digest(read_trace(save(tmp_path / "t")))
    folder = tmp_path / "u"
    folder.mkdir()
    for name, table in (("nodes", nodes()), ("pods", pods()), ("usage", usage())):
        shuffled(table, seed).write_parquet(folder / f"{name}.parquet", compression="gzip")
    assert digest(read_trace(folder)) == before
    assert len(before) == 64


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("pods", put(pods(), "cpu_request", 0, 2.5)),
        ("pods", put(pods(), "workload", 0, "other")),
        ("pods", put(pods(), "memory_request", 1, 0.0)),  # 0 is not empty
        ("pods", put(pods(), "start", 1, minutes(9))),
        ("usage", put(usage(), "cpu", 3, 0.2)),
        ("usage", put(usage(), "cpu_max", 1, 0.8)),
        ("usage", usage()[1:]),
        ("usage", None),
        ("nodes", put(nodes(), "memory", 0, 65.0)),
        ("nodes", None),
    ],
)
def test_the_digest_sees_every_value(
    tmp_path: Path, table: str, change: pl.DataFrame | None
) -> None:
    before = digest(read_trace(save(tmp_path / "t")))
    assert digest(read_trace(save(tmp_path / "u", **{table: change}))) != before


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_byte_never_changes_a_value(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "t"
    write_trace(read_trace(save(tmp_path / "s")), path)
    before = digest(read_trace(path))
    file = path / str(rng.choice(["nodes.parquet", "pods.parquet", "usage.parquet"]))
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)
    try:
        after = digest(read_trace(path))
    except TraceError:
        return
    assert after == before


def test_an_invalid_trace_is_not_written(tmp_path: Path) -> None:
    trace = read_trace(save(tmp_path / "t"))
    broken = Trace("x", trace.nodes, trace.pods.with_columns(tier=pl.lit("x")), trace.usage)
    with pytest.raises(TraceError, match="'x' is no tier"):
        write_trace(broken, tmp_path / "u")
    naive = trace.pods.with_columns(pl.col("start").dt.replace_time_zone(None))
    with pytest.raises(TraceError, match="times without a zone"):
        write_trace(Trace("x", None, naive, None), tmp_path / "u")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_nothing_is_overwritten_by_chance(tmp_path: Path) -> None:
    trace = read_trace(save(tmp_path / "t"))
    (tmp_path / "empty").mkdir()
    write_trace(trace, tmp_path / "empty")
    with pytest.raises(TraceError, match=r"is not empty \(it has nodes\.parquet\)"):
        write_trace(trace, tmp_path / "empty")
    smaller = Trace("x", None, trace.pods, None)
    write_trace(smaller, tmp_path / "empty", overwrite=True)
    assert [file.name for file in (tmp_path / "empty").iterdir()] == ["pods.parquet"]
    (tmp_path / "empty" / "thesis.tex").touch()
    with pytest.raises(TraceError, match=r"holds more than a trace \(thesis\.tex\)"):
        write_trace(trace, tmp_path / "empty", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(TraceError, match=r"file is a file; name a folder"):
        write_trace(trace, tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("name", [".", "../here", ""])
def test_the_working_directory_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(TraceError, match="is the working directory"), staged_folder(Path(name)):
        pytest.fail("began to write")


def test_a_failed_write_leaves_the_old_trace(tmp_path: Path) -> None:
    path = save(tmp_path / "t")
    before = digest(read_trace(path))

    def fail() -> None:
        with staged_folder(path, overwrite=True) as folder:
            (folder / "pods.parquet").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert digest(read_trace(path)) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_a_failed_replacement_puts_the_old_trace_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "t")
    before = digest(read_trace(path))
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(TraceError, match="t cannot be written: No space left on device"):
        write_trace(Trace("x", None, pods().drop("node"), None), path, overwrite=True)
    assert digest(read_trace(path)) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trace = read_trace(save(tmp_path / "t"))
    with pytest.raises(TraceError, match=r"cannot be written: Not a directory"):
        write_trace(trace, tmp_path / "file" / "t")


@pytest.mark.parametrize(
    ("name", "pods_rows", "windows", "unobserved"),
    # azure: 55 gaps of one window for each of 100 pods. bitbrains: 50 x 8,640 - 391,475 rows.
    [("azure-v1", 100, 8059, 5500), ("bitbrains", 50, 8640, 40525), ("openb", 4754, 0, 0)],
)
def test_the_real_traces(
    tmp_path: Path, name: str, pods_rows: int, windows: int, unobserved: int
) -> None:
    trace = shared(name)
    grid = usage_grid(trace)
    assert grid.cpu.shape == (pods_rows, windows)
    assert np.isnan(grid.cpu).sum() == unobserved
    write_trace(trace, tmp_path / name)
    assert digest(read_trace(tmp_path / name)) == digest(trace)
