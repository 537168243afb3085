"""Azure Public Dataset V1: its own CSV files, or an extract with one column a virtual machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import polars as pl

from models.errors import TraceError
from models.grid import WINDOW
from trainer.importers import azure_extract
from trainer.importers.common import (
    Imported,
    Part,
    Schema,
    Track,
    blocks,
    choose,
    cut_header,
    moment,
    parse,
    to_windows,
    write_parts,
)

VMTABLE: Schema = {
    "vmid": pl.String,
    "subscriptionid": pl.String,
    "deploymentid": pl.String,
    "vmcreated": pl.Float64,
    "vmdeleted": pl.Float64,
    "maxcpu": pl.Float64,
    "avgcpu": pl.Float64,
    "p95maxcpu": pl.Float64,
    "vmcategory": pl.String,
    "vmcorecount": pl.Float64,
    "vmmemory": pl.Float64,
}
"""Columns of vmtable.csv, which has no header; times in seconds, memory in GiB."""

READINGS: Schema = {
    "timestamp": pl.Float64,
    "vmid": pl.String,
    "mincpu": pl.Float64,
    "maxcpu": pl.Float64,
    "avgcpu": pl.Float64,
}
"""Columns of vm_cpu_readings-file-N-of-125.csv, without a header; CPU in % of the VM's cores."""

_READINGS_FILE = re.compile(r".*vm_cpu_readings-file-(\d+)-of-\d+\.csv(?:\.gz)?")
_VMTABLE_FILE = re.compile(r".*vmtable\.csv(?:\.gz)?")


def import_azure_v1(
    source: Path,
    out: Path,
    *,
    start: datetime,
    track: Track[Path],
    limit: int = 1000,
    min_days: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> Imported:
    """Import the dataset's files in a folder (searched through), or an extract, into a trace.

    A machine requests its core count and memory and uses cores x average / 100; its workload is its
    deployment.

    Args:
        source: folder with vmtable.csv(.gz) and vm_cpu_readings-file-N-of-125.csv(.gz), some or
            all; or with an extract (`azure_extract`).
        out: the trace to write.
        start: what second 0 stands for, UTC; the publisher does not tell it.
        track: shows progress over the source's files.
        limit: at most so many machines, a seeded sample; 0 for all.
        min_days: leave out machines that lived for fewer days.
        seed: of the sample.
        overwrite: replace a trace that stands there.

    Raises:
        TraceError: names the file and the line or column that is wrong.
    """
    if not source.exists():
        raise TraceError(f"{source} does not exist; give the folder with the CSV files.")
    tables = _matching(source, _VMTABLE_FILE)
    readings = _ordered_readings(source)
    parts: Iterator[Part]
    if len(tables) == 1 and readings:
        machines = _machines(tables[0], limit, min_days, seed)
        parts = _parts(track(readings), machines, start)
    elif not tables and not readings and (extract := azure_extract.find(source)):
        parts = azure_extract.read(extract, start, limit, min_days, seed, track)
    else:
        raise TraceError(
            f"{source} has {len(tables)} vmtable.csv(.gz), {len(readings)} "
            "vm_cpu_readings-file-N-of-125.csv(.gz) and no NAME_avg_N.csv; give one vmtable with "
            "its readings, or an extract."
        )
    return write_parts(parts, out, overwrite=overwrite)


def _matching(source: Path, pattern: re.Pattern[str]) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    return [file for file in files if pattern.fullmatch(file.name)]


def _ordered_readings(source: Path) -> list[Path]:
    """The readings' files by their number, which is the order of time."""
    numbered: dict[int, Path] = {}
    for file in _matching(source, _READINGS_FILE):
        match = _READINGS_FILE.fullmatch(file.name)
        number = int(match[1]) if match else 0
        if number in numbered:
            raise TraceError(f"{file} and {numbered[number]} are the same part; keep one of them.")
        numbered[number] = file
    return [numbered[number] for number in sorted(numbered)]


def _machines(file: Path, limit: int, min_days: float, seed: int) -> pl.DataFrame:
    """The chosen machines: pod, workload, cores, memory_request, created, deleted (seconds)."""
    kept = []
    for block in blocks(file):
        body = cut_header(block)[1] if block.data.startswith((b"vmid", b'"vmid')) else block
        lived = (pl.col("vmdeleted") - pl.col("vmcreated")) >= min_days * 86_400
        kept.append(
            parse(body, VMTABLE)
            .filter(lived)
            .select(
                pod="vmid",
                workload="deploymentid",
                cores="vmcorecount",
                memory_request="vmmemory",
                created="vmcreated",
                deleted="vmdeleted",
            )
        )
    table = pl.concat(kept) if kept else pl.DataFrame()
    if table.height == 0:
        raise TraceError(f"{file} has no machine that lived for {min_days:g} days.")
    repeated = table.filter(~pl.col("pod").is_first_distinct())
    if repeated.height:
        raise TraceError(f"{file} lists machine '{repeated['pod'][0]}' twice; keep one row.")
    chosen = choose(table["pod"].to_list(), limit, seed)
    return table.filter(pl.col("pod").is_in(chosen))


def _parts(files: Iterable[Path], machines: pl.DataFrame, start: datetime) -> Iterator[Part]:
    """One part a file. A window that is split between two files keeps its first reading."""
    epoch = start.timestamp()
    edge = pl.DataFrame(schema={"pod": pl.String, "time": pl.Datetime("us", "UTC")})
    for file in files:
        readings = pl.concat(_chosen(parse(block, READINGS), machines) for block in blocks(file))
        usage = to_windows(
            readings.select(
                "pod",
                second=pl.col("timestamp") + epoch,
                cpu=pl.col("avgcpu") * pl.col("cores") / 100,
                cpu_max=pl.col("maxcpu") * pl.col("cores") / 100,
            )
        ).join(edge, on=["pod", "time"], how="anti", maintain_order="left")
        if edge.height and usage.filter(pl.col("time") < edge["time"][0]).height:
            raise TraceError(
                f"{file} goes back to times of the parts before it; name the parts as published."
            )
        known = pl.concat([edge, usage.select("pod", "time")])
        edge = known.filter(pl.col("time") == pl.col("time").max())
        yield Part(usage, _lives(readings, epoch))


def _chosen(readings: pl.DataFrame, machines: pl.DataFrame) -> pl.DataFrame:
    return readings.join(machines, left_on="vmid", right_on="pod", how="inner").rename(
        {"vmid": "pod"}
    )


def _lives(readings: pl.DataFrame, epoch: float) -> pl.DataFrame:
    """The pods of a file; one lives at least while it was read."""
    pods = readings.group_by("pod").agg(
        pl.col("workload").first(),
        pl.col("cores").first().alias("cpu_request"),
        pl.col("memory_request").first(),
        start=pl.min_horizontal(pl.col("created").first(), pl.col("timestamp").min()),
        end=pl.max_horizontal(pl.col("deleted").first(), pl.col("timestamp").max() + WINDOW),
    )
    return pods.with_columns(moment("start", epoch), moment("end", epoch)).sort("pod")
