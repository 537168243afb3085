"""Azure Public Dataset V1, as published and as an extract, with every number checked by hand."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from models.errors import TraceError
from models.trace import Trace, read_trace
from tests.traces import rows, shared, track
from trainer.cli import app
from trainer.importers.azure_v1 import import_azure_v1

START = datetime(2017, 1, 2, tzinfo=UTC)


def azure(
    source: Path, out: Path, *, limit: int = 1000, min_days: float = 0.0, seed: int = 0
) -> Trace:
    import_azure_v1(
        source, out, start=START, track=track, limit=limit, min_days=min_days, seed=seed
    )
    return read_trace(out)


def vm(name: str, created: int, deleted: int, cores: object = 2, memory: float = 3.5) -> str:
    """A line of vmtable.csv as published."""
    figures = f"{created},{deleted},99.3,3.4,10.2,Interactive,{cores},{memory}"
    return f"{name},sub/1==,dep/{name}==,{figures}"


def published(folder: Path, table: Sequence[str], *parts: Sequence[str], ending: str = "") -> Path:
    files = {"vmtable/vmtable.csv": table} | {
        f"vm_cpu_readings/vm_cpu_readings-file-{number}-of-125.csv": part
        for number, part in enumerate(parts, 1)
    }
    for name, lines in files.items():
        file = folder / (name + ending)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = ("\n".join(lines) + "\n").encode()
        file.write_bytes(gzip.compress(content) if ending else content)
    return folder


TABLE = [
    vm("+ZcrOp5/c", 0, 2591700),
    vm("wR/G1YU", 600, 900, cores=8, memory=56),
    vm("never/read", 0, 2591700),
]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_azure_numbers_by_hand(tmp_path: Path, ending: str) -> None:
    source = published(
        tmp_path / "in",
        TABLE,
        ["0,+ZcrOp5/c,2.05,30,10", "300,+ZcrOp5/c,1,9,5", "0,stranger,1,2,3"],
        # The window of 600 s is split between two files; wR/G1YU has readings to its last second.
        ["600,wR/G1YU,10,75,50"],
        ["600,+ZcrOp5/c,0,0.5,0.5", "900,wR/G1YU,1,1.5,1.25"],
        ending=ending,
    )
    trace = azure(source, tmp_path / "out")
    assert rows(trace) == [
        ("+ZcrOp5/c", "02 00:00", 0.2, 0.6),  # 2 cores x 10 %, x 30 %
        ("+ZcrOp5/c", "02 00:05", 0.1, 0.18),
        ("+ZcrOp5/c", "02 00:10", 0.01, 0.01),
        ("wR/G1YU", "02 00:10", 4.0, 6.0),  # 8 cores x 50 %, x 75 %
        ("wR/G1YU", "02 00:15", 0.1, 0.12),
    ]
    pods = trace.pods.sort("pod")
    assert pods["workload"].to_list() == ["dep/+ZcrOp5/c==", "dep/wR/G1YU=="]
    assert pods["cpu_request"].to_list() == [2.0, 8.0]
    assert pods["memory_request"].to_list() == [3.5, 56.0]
    assert pods["start"].to_list() == [START, datetime(2017, 1, 2, 0, 10, tzinfo=UTC)]
    # 2,591,700 s after 2 January is 31 January, 23:55; the second VM is deleted at 900 s, but was
    # read in the window from 900 to 1,200 s.
    assert pods["end"].to_list() == [
        datetime(2017, 1, 31, 23, 55, tzinfo=UTC),
        datetime(2017, 1, 2, 0, 20, tzinfo=UTC),
    ]


def test_azure_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    parts = [[f"{300 * n},+ZcrOp5/c,1,{n},{n}"] for n in range(12)]
    trace = azure(published(tmp_path / "in", TABLE, *parts), tmp_path / "out")
    assert trace.usage is not None
    # Part 10 comes after part 9, not after part 1. n % of 2 cores.
    assert trace.usage["cpu"].round(4).to_list() == pytest.approx([n / 50 for n in range(12)])


def test_azure_the_reading_that_two_parts_share_counts_once(tmp_path: Path) -> None:
    line = "0,+ZcrOp5/c,1,20,10"
    parts = [line], [line], [line, "300,+ZcrOp5/c,1,20,10"]
    trace = azure(published(tmp_path / "in", TABLE, *parts), tmp_path / "out")
    assert [row[1] for row in rows(trace)] == ["02 00:00", "02 00:05"]


def test_azure_the_maximum_is_never_below_the_mean(tmp_path: Path) -> None:
    source = published(tmp_path / "in", TABLE, ["0,+ZcrOp5/c,1,9.9999,10"])
    assert rows(azure(source, tmp_path / "out")) == [("+ZcrOp5/c", "02 00:00", 0.2, 0.2)]


def test_azure_limit_and_days(tmp_path: Path) -> None:
    table = [vm(f"vm{n:02d}", 0, n * 86_400) for n in range(20)]
    readings = [f"0,vm{n:02d},1,2,1.5" for n in range(20)]
    source = published(tmp_path / "in", table, readings)
    assert azure(source, tmp_path / "all", limit=0).pods.height == 20
    some = azure(source, tmp_path / "some", limit=5, seed=3).pods["pod"].to_list()
    assert len(some) == 5
    assert azure(source, tmp_path / "again", limit=5, seed=3).pods["pod"].to_list() == some
    assert azure(source, tmp_path / "other", limit=5, seed=4).pods["pod"].to_list() != some
    long = azure(source, tmp_path / "long", min_days=18)
    assert long.pods["pod"].sort().to_list() == ["vm18", "vm19"]


def test_azure_a_header_in_the_table_is_skipped(tmp_path: Path) -> None:
    header = (
        "vmid,subscriptionid,deploymentid,vmcreated,vmdeleted,maxcpu,avgcpu,p95maxcpu,"
        "vmcategory,vmcorecount,vmmemory"
    )
    source = published(tmp_path / "in", [header, *TABLE], ["0,+ZcrOp5/c,1,30,10"])
    assert azure(source, tmp_path / "out").pods.height == 1


READ = "0,+ZcrOp5/c,1,30,10"

AZURE_ERRORS: list[tuple[list[str], list[list[str]], str]] = [
    (TABLE, [[READ, "300,+ZcrOp5/c,1"]], r"file-1-of-125\.csv, line 2: 3 fields where 5 belong"),
    (TABLE, [[READ, "300,+ZcrOp5/c,1,2,-5"]], r"line 2: column 'avgcpu' is '-5' and must"),
    (TABLE, [[READ, "300,+ZcrOp5/c,1,2,x"]], r"line 2: column 'avgcpu' is 'x' and must"),
    (TABLE, [[READ, "noon,+ZcrOp5/c,1,2,3"]], r"line 2: column 'timestamp' is 'noon'"),
    (
        [*TABLE, vm("v2", 0, 9, cores=">24")],
        [[READ]],
        r"vmtable\.csv, line 4: column 'vmcorecount' is '>24' and must be a number",
    ),
    ([*TABLE, "a,b,c"], [[READ]], r"vmtable\.csv, line 4: 3 fields where 11 belong \(vmid, subs"),
    ([TABLE[0], TABLE[0]], [[READ]], r"vmtable\.csv lists machine '\+ZcrOp5/c' twice"),
    (TABLE, [["300,+ZcrOp5/c,1,30,10"], [READ]], r"file-2-of-125\.csv goes back to times of the"),
    (TABLE, [["0,stranger,1,30,10"]], r"no usage was found for any machine"),
    (TABLE, [], r"has 1 vmtable\.csv\(\.gz\), 0 vm_cpu_readings-file-N"),
]


@pytest.mark.parametrize(("table", "parts", "message"), AZURE_ERRORS)
def test_azure_errors_name_file_and_line(
    tmp_path: Path, table: list[str], parts: list[list[str]], message: str
) -> None:
    source = published(tmp_path / "in", table, *parts)
    with pytest.raises(TraceError, match=message):
        azure(source, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_azure_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere does not exist"):
        azure(tmp_path / "nowhere", tmp_path / "out")
    source = published(tmp_path / "in", TABLE, [READ] * 1000, ending=".gz")
    file = source / "vm_cpu_readings" / "vm_cpu_readings-file-1-of-125.csv.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match=r"file-1-of-125\.csv\.gz cannot be read, download it"):
        azure(source, tmp_path / "out")
    file.write_bytes(gzip.compress(b""))
    with pytest.raises(TraceError, match=r"file-1-of-125\.csv\.gz is empty"):
        azure(source, tmp_path / "out")
    file.write_bytes(whole)
    file.with_suffix("").write_bytes(gzip.decompress(whole))
    with pytest.raises(TraceError, match=r"are the same part; keep one"):
        azure(source, tmp_path / "out")
    with pytest.raises(TraceError, match=r"has no machine that lived for 40 days"):
        azure(published(tmp_path / "short", TABLE, [READ]), tmp_path / "out", min_days=40)


def extract(folder: Path, names: Sequence[str], cells: str, peaks: str | None = None) -> Path:
    """CSV as R's write.csv writes it; cells are 'a b; a b', a row for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in (("avg", cells), ("max", peaks)):
        if text is not None:
            lines = [
                ",".join([f'"{name}"', *row.split()])
                for name, row in zip(names, text.split(";"), strict=True)
            ]
            (folder / f"microsoft_{kind}_100.csv").write_text(
                "\n".join(['"","VM/a=","VM/b="', *lines]) + "\n"
            )
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("1", "2", "3"),
        ("0", "300", "600"),
        ("2017-01-02", "2017-01-02 00:05:00", "2017-01-02 00:10:00"),
    ],
    ids=["row numbers", "seconds", "times"],
)
def test_extract_numbers_by_hand(tmp_path: Path, names: Sequence[str]) -> None:
    source = extract(tmp_path / "in", names, "10 NA; 20 5; 30 6", "15 NA; 20 50; NA 60")
    trace = azure(source, tmp_path / "out")
    assert rows(trace) == [
        ("VM/a=", "02 00:00", 0.1, 0.15),
        ("VM/a=", "02 00:05", 0.2, 0.2),
        ("VM/a=", "02 00:10", 0.3, None),
        ("VM/b=", "02 00:05", 0.05, 0.5),
        ("VM/b=", "02 00:10", 0.06, 0.6),
    ]
    assert trace.pods["cpu_request"].to_list() == [1.0, 1.0]
    assert trace.pods["memory_request"].null_count() == 2
    assert trace.pods["start"].to_list() == [START, datetime(2017, 1, 2, 0, 5, tzinfo=UTC)]
    assert set(trace.pods["end"]) == {datetime(2017, 1, 2, 0, 15, tzinfo=UTC)}


def test_extract_row_numbers_skip_the_last_window_of_each_half_day(tmp_path: Path) -> None:
    count = 287  # one more than a day's samples
    source = extract(tmp_path / "in", [str(n + 1) for n in range(count)], ";".join(["1 2"] * count))
    trace = azure(source, tmp_path / "out")
    times = [row[1] for row in rows(trace) if row[0] == "VM/a="]
    assert times[142:144] == ["02 11:50", "02 12:00"]
    assert times[285:] == ["02 23:50", "03 00:00"]


def test_extract_without_maxima_and_with_limits(tmp_path: Path) -> None:
    source = extract(tmp_path / "in", ("0", "86400"), "1 NA; 2 3")
    trace = azure(source / "microsoft_avg_100.csv", tmp_path / "out")
    assert {row[3] for row in rows(trace)} == {None}
    assert azure(source, tmp_path / "one", limit=1).pods.height == 1
    for seed in range(4):  # the sample is of those that lived for so long
        out = tmp_path / f"long-{seed}"
        long = azure(source, out, limit=1, min_days=1, seed=seed)
        assert long.pods["pod"].to_list() == ["VM/a="]


@pytest.mark.parametrize(
    ("names", "cells", "peaks", "message"),
    [
        (("1", "2"), "1 2; 3 x", None, r"avg_100\.csv, line 3: column 'VM/b=' is 'x' and must be"),
        (("1", "2"), "1 2; 3", None, r"avg_100\.csv, line 3: 2 fields where 3 belong"),
        (("0", "310"), "1 2; 3 4", None, r"line 3: the row's name is '310' and must be 1, 2"),
        (("300", "300"), "1 2; 3 4", None, r"line 3: the row's name is '300' and must be 1, 2"),
        (("mon", "tue"), "1 2; 3 4", None, r"line 2: the row's name is 'mon' and must be 1, 2"),
        (("1", "2"), "NA NA; NA NA", None, r"no usage was found"),
    ],
)
def test_extract_errors(
    tmp_path: Path, names: Sequence[str], cells: str, peaks: str | None, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        azure(extract(tmp_path / "in", names, cells, peaks), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_extract_of_two_different_exports(tmp_path: Path) -> None:
    source = extract(tmp_path / "in", ("1", "2"), "1 2; 3 4", "1 2; 3 4")
    file = source / "microsoft_max_100.csv"
    file.write_text(file.read_text().replace("VM/b", "VM/c"))
    with pytest.raises(TraceError, match=r"max_100\.csv has other rows or machines than micros"):
        azure(source, tmp_path / "out")
    (source / "periodic_avg_78.csv").write_text((source / "microsoft_avg_100.csv").read_text())
    with pytest.raises(TraceError, match=r"has 2 extracts; name one"):
        azure(source, tmp_path / "out")
    (source / "microsoft_avg_100.csv").write_text('"","a","a"\n"1",1,2\n')
    with pytest.raises(TraceError, match=r"the header must have an empty field and then one"):
        azure(source / "microsoft_avg_100.csv", tmp_path / "out")


def test_extract_round_trip_of_the_real_trace(tmp_path: Path) -> None:
    """The rule for row numbers gives the very windows of the trace that was made from the data."""
    trace = shared("azure-v1")
    assert trace.usage is not None
    for column, kind in (("cpu", "avg"), ("cpu_max", "max")):
        wide = trace.usage.with_columns(pl.col(column).cast(pl.Float64) * 100).pivot(
            "pod", index="time", values=column
        )
        numbered = wide.drop("time").with_row_index("", offset=1)
        (tmp_path / "in").mkdir(exist_ok=True)
        numbered.write_csv(tmp_path / "in" / f"microsoft_{kind}_100.csv", quote_style="non_numeric")
    again = azure(tmp_path / "in", tmp_path / "out")
    assert again.usage is not None
    order = ["pod", "time"]
    assert_frame_equal(again.usage.sort(order), trace.usage.sort(order), rel_tol=1e-6)
    assert_frame_equal(again.pods.sort("pod"), trace.pods.sort("pod"))


def test_the_command_passes_its_options_on(tmp_path: Path) -> None:
    source = published(tmp_path / "in", TABLE, [READ, "0,wR/G1YU,1,2,1"])
    out = str(tmp_path / "out")
    arguments = ["import", "azure-v1", str(source), out, "--start", "2017-03-01"]
    run = CliRunner().invoke(app, [*arguments, "--min-days", "20", "--limit", "5", "--seed", "5"])
    assert run.exit_code == 0, run.output
    trace = read_trace(tmp_path / "out")
    assert trace.pods["start"].to_list() == [datetime(2017, 3, 1, tzinfo=UTC)]
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, TraceError)
    assert "is not empty" in str(run.exception)
    run = CliRunner().invoke(app, [*arguments, "--force"])
    assert run.exit_code == 0
    assert read_trace(tmp_path / "out").pods.height == 2
