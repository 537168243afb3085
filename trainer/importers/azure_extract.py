"""An extract of Azure's dataset with one column a machine, as carlonlv/DataCenterSim publishes it.

R exports a data frame with ``write.csv(microsoft_avg_100, "microsoft_avg_100.csv")``, and so the
maxima, ``microsoft_max_100``: the first column has the rows' names, each other one is a machine,
values are in % of it, NA is missing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import polars as pl

from models.errors import TraceError
from models.grid import DAY, WINDOW
from trainer.importers.common import (
    Part,
    Track,
    blocks,
    choose,
    cut_header,
    moment,
    parse,
    to_windows,
)

_AVERAGES = re.compile(r"(.+)_avg_(\d+)\.csv(\.gz)?")

_ROW = "row"

_ROWS_IN_HALF_A_DAY = 143
"""The extract lacks the last window of each half day: 286 samples a day."""

_COLUMNS_AT_ONCE = 100
"""Machines that become one part: 100 machines x 8,064 windows are 0.8 million rows."""


def find(source: Path) -> Path | None:
    """The file of averages of an extract in a folder, or the file itself.

    Raises:
        TraceError: the folder has several.
    """
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    found = [file for file in files if _AVERAGES.fullmatch(file.name)]
    if len(found) > 1:
        raise TraceError(f"{source} has {len(found)} extracts; name one, such as {found[0]}.")
    return found[0] if found else None


def read(
    file: Path, start: datetime, limit: int, min_days: float, seed: int, track: Track[Path]
) -> Iterator[Part]:
    """The parts of an extract.

    A machine requests 1.0 core, since core counts are not in the extract, so that its usage is a
    share of its size; it lives from its first sample to 5 minutes after its last.

    Raises:
        TraceError: names the file and the line or column that is wrong.
    """
    maxima = file.with_name(file.name.replace("_avg_", "_max_"))
    tables = [_table(found) for found in track([f for f in (file, maxima) if f.exists()])]
    mean, peak = tables[0], tables[1] if len(tables) > 1 else None
    if peak is not None and not _alike(mean, peak):
        raise TraceError(
            f"{maxima} has other rows or machines than {file.name}; export both again."
        )
    second = _seconds(mean[_ROW], file, start)
    names = choose(_lasting(second, mean, min_days), limit, seed)
    for first in range(0, len(names), _COLUMNS_AT_ONCE):
        columns = names[first : first + _COLUMNS_AT_ONCE]
        yield _part(second, mean.select(columns), peak)


def _table(file: Path) -> pl.DataFrame:
    """Row names as text, then one column of percentages for each machine."""
    tables = []
    names: list[str] = []
    for number, block in enumerate(blocks(file)):
        body = block
        if number == 0:
            header, body = cut_header(block)
            names = [_ROW, *next(csv.reader([header]))[1:]]
            if len(names) < 2 or len(set(names)) < len(names):
                raise TraceError(
                    f"{file}: the header must have an empty field and then one different name for "
                    f"each machine; it is '{header[:100]}'."
                )
        schema = {name: pl.String if name == _ROW else pl.Float64 for name in names}
        tables.append(parse(body, schema, gaps=True))
    return pl.concat(tables)


def _alike(mean: pl.DataFrame, peak: pl.DataFrame) -> bool:
    return mean.columns == peak.columns and mean[_ROW].equals(peak[_ROW])


def _seconds(rows: pl.Series, file: Path, start: datetime) -> pl.Series:
    """Seconds since the epoch of each row, by its name.

    Names are timestamps (UTC), seconds from ``start`` in steps of 300, or R's row numbers 1, 2,
    ..., which stand for the windows that the extract has: all but the last of each half day.
    """
    epoch = int(start.timestamp())
    numbers = rows.cast(pl.Int64, strict=False)
    if numbers.null_count() == 0:
        count = pl.Series(range(rows.len()), dtype=pl.Int64)
        if numbers.equals(count + 1, check_names=False):
            skipped = count // _ROWS_IN_HALF_A_DAY * (DAY // 2 - _ROWS_IN_HALF_A_DAY)
            numbers = (count + skipped) * WINDOW
        seconds = numbers + epoch
    else:
        # R leaves the time of day away at midnight.
        text = pl.when(rows.str.len_chars() == 10).then(rows + " 00:00:00").otherwise(rows)
        times = pl.select(text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)).to_series()
        seconds = times.dt.epoch("s")
    wrong = (
        seconds.is_null() | (seconds % WINDOW != 0) | (seconds.diff() <= 0).fill_null(value=False)
    )
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise TraceError(
            f"{file}, line {row + 2}: the row's name is '{rows[row]}' and must be 1, 2, ..., or "
            "rising seconds in steps of 300, or rising times (2017-01-02 00:05:00)."
        )
    return seconds


def _lasting(second: pl.Series, mean: pl.DataFrame, min_days: float) -> list[str]:
    """The machines that have a reading and lived for so many days."""

    def lasts(name: str) -> bool:
        seen = second.filter(mean[name].is_not_null())
        return not seen.is_empty() and seen[-1] + WINDOW - seen[0] >= min_days * 86_400

    return [name for name in mean.columns[1:] if lasts(name)]


def _part(second: pl.Series, mean: pl.DataFrame, peak: pl.DataFrame | None) -> Part:
    def tall(table: pl.DataFrame, value: str) -> pl.Series:
        return table.unpivot(value_name=value)[value] / 100

    pod = mean.unpivot(variable_name="pod")["pod"]
    none = pl.Series([None] * len(pod), dtype=pl.Float64)
    readings = pl.DataFrame(
        {
            "pod": pod,
            "second": pl.concat([second] * mean.width),
            "cpu": tall(mean, "cpu"),
            "cpu_max": none if peak is None else tall(peak.select(mean.columns), "cpu_max"),
        }
    ).drop_nulls("cpu")
    lives = readings.group_by("pod", maintain_order=True).agg(
        start=pl.col("second").min().cast(pl.Float64),
        end=pl.col("second").max().cast(pl.Float64) + WINDOW,
    )
    pods = lives.select(
        "pod",
        moment("start"),
        moment("end"),
        workload="pod",
        cpu_request=pl.lit(1.0),
        memory_request=pl.lit(None, pl.Float64),
    )
    return Part(to_windows(readings), pods)
