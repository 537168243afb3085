"""GWA-T-12 files in their own format become traces, with every number checked by hand."""

from __future__ import annotations

import gzip
import json
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
from trainer.importers import common
from trainer.importers.bitbrains import import_bitbrains


def bitbrains(
    source: Path,
    out: Path,
    *,
    limit: int = 0,
    min_days: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> Trace:
    import_bitbrains(
        source,
        out,
        track=track,
        limit=limit,
        min_days=min_days,
        seed=seed,
        overwrite=overwrite,
    )
    return read_trace(out)


HEADER = (
    "Timestamp [ms];\tCPU cores;\tCPU capacity provisioned [MHZ];\tCPU usage [MHZ];\tCPU usage [%];"
    "\tMemory capacity provisioned [KB];\tMemory usage [KB];\tDisk read throughput [KB/s];"
    "\tDisk write throughput [KB/s];\tNetwork received throughput [KB/s];"
    "\tNetwork transmitted throughput [KB/s]"
)


def reading(second: float, percent: float, cores: int = 4, memory: str = "6.7108864E7") -> str:
    """A line as published: CPU 2,926 MHz a core."""
    fields = [second, cores, cores * 2926.0, cores * 29.26 * percent, percent, memory, 6129274.4]
    return ";\t".join(map(str, [*fields, 0.13, 15981.6, 0.0, 2.13]))


def machine(file: Path, *lines: str, header: str = HEADER) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join([header, *lines]) + "\n"
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(content.encode()))
    else:
        file.write_text(content)
    return file


def test_bitbrains_numbers_by_hand(tmp_path: Path) -> None:
    machine(
        tmp_path / "in" / "1.csv",
        reading(1376314846, 93.25),  # 12 August 2013, 13:40:46
        reading(1376315146, 50.0),  # 13:45:46
        reading(1376316046, 0.0),  # 14:00:46, after two windows that nobody observed
    )
    machine(tmp_path / "in" / "10.csv", reading(1376314846, 10.0, cores=1, memory="181352.0"))
    machine(tmp_path / "in" / "2.csv", reading(1376314846, 10.0, cores=2))
    trace = bitbrains(tmp_path / "in", tmp_path / "out")
    assert trace.pods["pod"].to_list() == ["vm-1", "vm-2", "vm-10"]
    assert trace.pods["workload"].to_list() == trace.pods["pod"].to_list()
    assert trace.pods["cpu_request"].to_list() == [4.0, 2.0, 1.0]
    # 67,108,864 KB / 1024 / 1024 = 64 GiB; 181,352 KB = 0.17295 GiB
    assert trace.pods["memory_request"].round(5).to_list() == [64.0, 64.0, 0.17295]
    assert trace.pods["start"][0] == datetime(2013, 8, 12, 13, 40, 46, tzinfo=UTC)
    assert trace.pods["end"][0] == datetime(2013, 8, 12, 14, 5, 46, tzinfo=UTC)
    assert set(trace.pods["tier"]) == {"online"}
    assert rows(trace) == [
        ("vm-1", "12 13:40", 3.73, None),  # 4 cores x 93.25 %
        ("vm-1", "12 13:45", 2.0, None),
        ("vm-1", "12 14:00", 0.0, None),
        ("vm-10", "12 13:40", 0.1, None),
        ("vm-2", "12 13:40", 0.2, None),
    ]


def test_bitbrains_two_readings_in_a_window_are_averaged(tmp_path: Path) -> None:
    machine(
        tmp_path / "in" / "1.csv",
        reading(1376314801, 30.0),  # 13:40:01 and 13:44:59 are one window
        reading(1376315099, 50.0),
        reading(1376315100, 10.0),
    )
    trace = bitbrains(tmp_path / "in", tmp_path / "out")
    # 4 cores x (30 % + 50 %) / 2 = 1.6
    assert rows(trace) == [("vm-1", "12 13:40", 1.6, None), ("vm-1", "12 13:45", 0.4, None)]


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        HEADER.replace("\t", ""),
        HEADER.replace(";\t", "\t"),
        HEADER.replace(";\t", ","),
        HEADER.replace(";\t", "; "),
        HEADER.replace("MHZ", "MHz").replace("CPU cores", "CPU Cores").replace("usage", "Usage"),
        "\ufeff" + HEADER,
        HEADER + "\r",
        ";\t".join(f'"{name}"' for name in HEADER.split(";\t")),
    ],
    ids=["as published", "no tabs", "tabs", "commas", "spaces", "case", "BOM", "CRLF", "quotes"],
)
@pytest.mark.parametrize("factor", [1, 1000], ids=["seconds", "milliseconds"])
def test_bitbrains_variants_mean_the_same(tmp_path: Path, header: str, factor: int) -> None:
    separator = next((s for s in (";\t", "; ", ";", "\t", ",") if s in header), ";")
    ending = "\r" if header.endswith("\r") else ""
    lines = [
        reading(second * factor, 50.0).replace(";\t", separator) + ending
        for second in (1376314846, 1376315146)
    ]
    machine(tmp_path / "in" / "1.csv", *lines, "", header=header)
    trace = bitbrains(tmp_path / "in", tmp_path / "out")
    assert rows(trace) == [("vm-1", "12 13:40", 2.0, None), ("vm-1", "12 13:45", 2.0, None)]
    assert trace.pods["start"][0] == datetime(2013, 8, 12, 13, 40, 46, tzinfo=UTC)


def test_bitbrains_months_are_one_machine_and_folders_are_not(tmp_path: Path) -> None:
    july, august = 1372629804, 1375308204  # 30 June, 22:03:24, and 31 July, 22:03:24
    machine(tmp_path / "in" / "rnd" / "2013-7" / "1.csv", reading(july, 25.0, cores=2))
    machine(tmp_path / "in" / "rnd" / "2013-8" / "1.csv.gz", reading(august, 50.0, cores=4))
    machine(tmp_path / "in" / "fastStorage" / "2013-8" / "1.csv", reading(august, 75.0))
    machine(tmp_path / "in" / "rnd" / "2013-7" / ".hidden.csv", "junk")
    trace = bitbrains(tmp_path / "in", tmp_path / "out")
    assert trace.pods["pod"].to_list() == ["fastStorage-vm-1", "rnd-vm-1"]
    assert trace.pods["cpu_request"].to_list() == [4.0, 4.0]  # resized in August: the larger
    assert rows(trace) == [
        ("fastStorage-vm-1", "31 22:00", 3.0, None),
        ("rnd-vm-1", "30 22:00", 0.5, None),
        ("rnd-vm-1", "31 22:00", 2.0, None),
    ]


def test_bitbrains_one_file(tmp_path: Path) -> None:
    file = machine(tmp_path / "7.csv", reading(1376314846, 50.0))
    assert bitbrains(file, tmp_path / "out").pods["pod"].to_list() == ["vm-7"]


def test_bitbrains_limit_and_days(tmp_path: Path) -> None:
    for number in range(20):
        last = 1376314846 + number * 86_400
        machine(tmp_path / "in" / f"{number}.csv", reading(1376314846, 5.0), reading(last, 5.0))
    machine(tmp_path / "in" / "99.csv")  # no readings: left out
    every = bitbrains(tmp_path / "in", tmp_path / "all")
    assert every.pods.height == 20
    some = bitbrains(tmp_path / "in", tmp_path / "some", limit=5, seed=1)
    assert some.pods.height == 5
    again = bitbrains(tmp_path / "in", tmp_path / "again", limit=5, seed=1)
    assert again.pods.equals(some.pods)
    other = bitbrains(tmp_path / "in", tmp_path / "other", limit=5, seed=2)
    assert not other.pods.equals(some.pods)
    long = bitbrains(tmp_path / "in", tmp_path / "long", min_days=18)
    assert long.pods["pod"].to_list() == ["vm-18", "vm-19"]


def good(tmp_path: Path) -> Path:
    machine(tmp_path / "in" / "0.csv", reading(1376314846, 50.0))
    return tmp_path / "in"


LINE = reading(1376314846, 50.0)

PERCENT = r"column 'CPU usage \[%\]'"

BITBRAINS_ERRORS = [
    ([LINE, LINE[:40]], HEADER, r"1\.csv, line 3: 6 fields where 11 belong \(Timestamp \[ms\]"),
    ([LINE, LINE + ";\t1"], HEADER, r"1\.csv, line 3: 12 fields where 11 belong"),
    ([LINE, LINE.replace("50.0", "high")], HEADER, rf"line 3: {PERCENT} is 'high' and must be"),
    ([LINE, LINE.replace("50.0", "-3")], HEADER, rf"line 3: {PERCENT} is '-3' and must be a"),
    ([LINE, LINE.replace("50.0", "NaN")], HEADER, rf"line 3: {PERCENT} is 'NaN' and must be a"),
    ([LINE, LINE.replace("50.0", "")], HEADER, rf"line 3: {PERCENT} is '' and must be a number"),
    (["", LINE, "", LINE.replace("50.0", "x")], HEADER, rf"1\.csv, line 5: {PERCENT} is 'x'"),
    ([LINE], HEADER.replace("CPU cores", "vCPUs"), r"1\.csv: column 'CPU cores' is missing; its"),
    ([LINE], LINE, r"1\.csv: column 'Timestamp \[ms\]' is missing; its header is '1376314846"),
]


@pytest.mark.parametrize(("lines", "header", "message"), BITBRAINS_ERRORS)
def test_bitbrains_errors_name_file_and_line(
    tmp_path: Path, lines: list[str], header: str, message: str
) -> None:
    source = good(tmp_path)
    machine(source / "1.csv", *lines, header=header)
    with pytest.raises(TraceError, match=message):
        bitbrains(source, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_bitbrains_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere does not exist"):
        bitbrains(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match=r"empty has no CSV files"):
        bitbrains(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "1.csv").touch()
    with pytest.raises(TraceError, match=r"1\.csv is empty"):
        bitbrains(tmp_path / "empty", tmp_path / "out")
    lines = [reading(1376314846 + 300 * n, n / 50) for n in range(5000)]
    file = machine(tmp_path / "zip" / "1.csv.gz", *lines)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(TraceError, match=r"1\.csv\.gz cannot be read, download it again"):
        bitbrains(tmp_path / "zip", tmp_path / "out")
    file.write_bytes(b"no gzip at all")
    with pytest.raises(TraceError, match=r"1\.csv\.gz cannot be read, download it again: Not a g"):
        bitbrains(tmp_path / "zip", tmp_path / "out")
    file.unlink()
    machine(tmp_path / "zip" / "1.csv")
    with pytest.raises(TraceError, match=r"no usage was found"):
        bitbrains(tmp_path / "zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_replaces_only_a_trace_and_only_when_told(tmp_path: Path) -> None:
    source = good(tmp_path)
    bitbrains(source, tmp_path / "out")
    machine(source / "1.csv", reading(1376314846, 50.0))
    with pytest.raises(TraceError, match=r"out is not empty"):
        bitbrains(source, tmp_path / "out")
    assert bitbrains(source, tmp_path / "out", overwrite=True).pods.height == 2
    (source / "1.csv").write_text("broken")
    with pytest.raises(TraceError, match=r"1\.csv"):
        bitbrains(source, tmp_path / "out", overwrite=True)
    assert read_trace(tmp_path / "out").pods.height == 2  # the old trace stands
    with pytest.raises(TraceError, match=r"holds more than a trace \(0\.csv\)"):
        bitbrains(source, source, overwrite=True)


def test_blocks_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = machine(tmp_path / "1.csv", *(reading(1376314846 + 300 * n, n) for n in range(50)))
    whole = bitbrains(file, tmp_path / "whole")
    small = list(common.blocks(file, size=700))
    assert len(small) > 5
    assert b"".join(block.data for block in small) == file.read_bytes()
    for block in small:  # each block begins where it says
        before = file.read_bytes().split(b"\n")[: block.line - 1]
        assert file.read_bytes().startswith(b"".join(line + b"\n" for line in before) + block.data)
    original = common.blocks
    monkeypatch.setattr("trainer.importers.bitbrains.blocks", lambda path: original(path, size=700))
    pieces = bitbrains(file, tmp_path / "pieces")
    assert rows(pieces) == rows(whole)
    assert pieces.pods.equals(whole.pods)
    with file.open("a") as stream:
        stream.write(reading(1376314846, 50.0).replace("50.0", "x") + "\n")
    with pytest.raises(TraceError, match=r"1\.csv, line 52: column 'CPU usage \[%\]' is 'x'"):
        bitbrains(file, tmp_path / "broken")


def test_bitbrains_round_trip_of_the_real_trace(tmp_path: Path) -> None:
    trace = shared("bitbrains")
    assert trace.usage is not None
    pods = {row["pod"]: row for row in trace.pods.iter_rows(named=True)}
    for (pod,), usage in trace.usage.group_by("pod"):
        cores, memory = pods[pod]["cpu_request"], pods[pod]["memory_request"]
        table = usage.select(
            (pl.col("time").dt.epoch("s") + 46).cast(pl.String),
            pl.lit(str(int(cores))).alias("cores"),
            pl.lit(str(cores * 2926)).alias("capacity"),
            (pl.col("cpu") * 2926).cast(pl.String).alias("mhz"),
            (pl.col("cpu").cast(pl.Float64) / cores * 100).cast(pl.String).alias("percent"),
            pl.lit(str(memory * 1024**2)).alias("memory"),
            *(pl.lit("0.0").alias(name) for name in "abcde"),
        )
        lines = table.select(pl.concat_str(pl.all(), separator=";\t")).to_series().to_list()
        machine(tmp_path / "in" / "2013-8" / f"{str(pod)[3:]}.csv", *lines)
    again = bitbrains(tmp_path / "in", tmp_path / "out")
    assert again.usage is not None
    order = ["pod", "time"]
    assert_frame_equal(again.usage.sort(order), trace.usage.sort(order), rel_tol=1e-6)
    requests = ["pod", "cpu_request", "memory_request"]
    assert_frame_equal(
        again.pods.select(requests).sort("pod"), trace.pods.select(requests).sort("pod")
    )


# ---- the command ----


def test_the_command_reports_what_it_wrote(tmp_path: Path) -> None:
    source = good(tmp_path)
    run = CliRunner().invoke(app, ["import", "bitbrains", str(source), str(tmp_path / "a")])
    assert run.exit_code == 0
    assert run.stdout.endswith(
        "a: 1 pods, 1 usage rows, 2013-08-12 13:40 to 2013-08-12 13:45 UTC\n"
    )
    run = CliRunner().invoke(
        app, ["import", "bitbrains", str(source), str(tmp_path / "b"), "--json"]
    )
    assert json.loads(run.stdout) == {
        "trace": str(tmp_path / "b"),
        "pods": 1,
        "usage_rows": 1,
        "first": "2013-08-12T13:40:46+00:00",
        "last": "2013-08-12T13:45:46+00:00",
    }


@pytest.mark.parametrize("options", [["--limit", "-1"], ["--start", "monday"], ["--min-days", "x"]])
def test_the_command_refuses_wrong_options(tmp_path: Path, options: list[str]) -> None:
    run = CliRunner().invoke(
        app, ["import", "azure-v1", str(tmp_path), str(tmp_path / "o"), *options]
    )
    assert run.exit_code == 2
    assert options[0] in run.stderr


def test_every_option_is_documented() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "traces.md").read_text()
    for name in ("azure-v1", "bitbrains"):
        run = CliRunner().invoke(app, ["import", name, "--help"], env={"COLUMNS": "200"})
        assert f"archimedes trainer import {name}" in run.stdout
        options = {word for word in run.stdout.split() if word.startswith("--")} - {"--help"}
        assert {"--limit", "--force"} <= options
        assert not [option for option in options if f"`{option}`" not in text]
