"""GWA-T-12 Bitbrains (fastStorage and rnd): one CSV file a virtual machine, or one a month."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from models.errors import TraceError
from models.grid import WINDOW
from trainer.importers.common import (
    Block,
    Imported,
    Part,
    Track,
    blocks,
    choose,
    cut_header,
    moment,
    parse,
    to_windows,
    write_parts,
)

_NEEDED = {
    "Timestamp [ms]": "second",
    "CPU cores": "cores",
    "CPU usage [%]": "percent",
    "Memory capacity provisioned [KB]": "memory",
}
"""Column as published -> our name; upper and lower case do not matter. The rest is not needed."""

_OURS = {name.lower(): ours for name, ours in _NEEDED.items()}

_MONTH = re.compile(r"\d{4}-\d{1,2}")

_MILLISECONDS = 1e11
"""Timestamps above this are in milliseconds, whatever the header says: as seconds it is the year
5138, as milliseconds 1973."""


def import_bitbrains(
    source: Path,
    out: Path,
    *,
    track: Track[Path],
    limit: int = 0,
    min_days: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> Imported:
    """Import a folder of CSV files (searched through), or one file, into a trace.

    A machine requests its cores and provisioned memory and uses cores x CPU usage / 100; it lives
    from its first reading to 5 minutes after its last.

    Args:
        source: folder or file.
        out: the trace to write.
        track: shows progress over the machines' first files.
        limit: at most so many machines, a seeded sample; 0 for all.
        min_days: leave out machines whose readings span fewer days.
        seed: of the sample.
        overwrite: replace a trace that stands there.

    Raises:
        TraceError: names the file and the line or column that is wrong.
    """
    machines = _machines(source)
    chosen = choose(list(machines), limit, seed)
    names = {machines[name][0]: name for name in chosen}
    parts = (
        part
        for first in track(list(names))
        if (part := _machine(names[first], machines[names[first]], min_days)) is not None
    )
    return write_parts(parts, out, overwrite=overwrite)


def _machines(source: Path) -> dict[str, list[Path]]:
    """The files of each machine, in natural order.

    The same number in the folders of several months (2013-7, 2013-8) is one machine; other folders
    (fastStorage, rnd) tell machines apart and become part of their names.
    """
    if not source.exists():
        raise TraceError(f"{source} does not exist; give the folder with the CSV files.")
    files = [source] if source.is_file() else sorted(source.rglob("*.csv*"))
    machines: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        stem, _, ending = file.name.partition(".")
        if stem and ending in {"csv", "csv.gz"}:
            relative = file.relative_to(source).parts[:-1] if file != source else ()
            groups = [part for part in relative if not _MONTH.fullmatch(part)]
            number = f"vm-{stem}" if stem.isdigit() else stem
            machines["-".join([*groups, number])].append(file)
    if not machines:
        raise TraceError(f"{source} has no CSV files (*.csv or *.csv.gz).")
    return dict(sorted(machines.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(n or 0), text) for text, n in re.findall(r"(\D*)(\d*)", name)]


def _machine(name: str, files: Sequence[Path], min_days: float) -> Part | None:
    """A machine's usage and pod; None where it has no readings or too few days of them."""
    tables = [table for file in files for table in _readings(file)]
    if not tables:
        return None
    readings = pl.concat(tables).with_columns(
        pod=pl.lit(name),
        cpu=pl.col("cores") * pl.col("percent") / 100,
        cpu_max=pl.lit(None, pl.Float64),
    )
    life = readings.select(
        "pod",
        workload="pod",
        cpu_request="cores",
        memory_request=pl.col("memory") / 1024**2,
        start="second",
        end=pl.col("second") + WINDOW,
    )
    pod = life.group_by("pod", "workload").agg(
        pl.col("cpu_request", "memory_request", "end").max(), pl.col("start").min()
    )
    if pod.select(pl.col("end") - pl.col("start")).item() < min_days * 86_400:
        return None
    return Part(to_windows(readings), pod.with_columns(moment("start"), moment("end")))


def _readings(file: Path) -> Iterator[pl.DataFrame]:
    """The needed columns of a file under our names, by block; timestamps in seconds."""
    header: list[str] = []
    separator = ","
    for number, block in enumerate(blocks(file)):
        body = block
        if number == 0:
            first, body = cut_header(block)
            separator = next((s for s in ";\t" if s in first), ",")
            header = _names(file, first, separator)
        if separator == ";":
            body = Block(file, body.line, body.data.replace(b"\t", b""))
        schema = {n: pl.Float64 if n.lower() in _OURS else pl.String for n in header}
        needed = {_OURS[n.lower()]: n for n in header if n.lower() in _OURS}
        table = parse(body, schema, separator).select(**needed)
        if table.height:
            is_ms = pl.col("second").max() >= _MILLISECONDS
            yield table.with_columns(
                second=pl.when(is_ms).then(pl.col("second") / 1000).otherwise("second")
            )


def _names(file: Path, header: str, separator: str) -> list[str]:
    """The names in a header, without quotes and double spaces; the needed ones are there."""
    names = [" ".join(part.strip().strip('"').split()) for part in header.split(separator)]
    known = [name.lower() for name in names]
    missing = [name for name in _NEEDED if name.lower() not in known]
    if missing:
        raise TraceError(
            f"{file}: column '{missing[0]}' is missing; its header is '{header[:200]}', which is "
            "not that of a GWA-T-12 file."
        )
    return names
