"""What all importers share: CSV in bounded memory, errors with line numbers, writing a trace."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar, cast

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import TraceError
from models.grid import WINDOW
from models.trace import staged_folder
from models.trace_schema import PODS, USAGE, conform
from models.trace_validation import check_rows, pod_rules

BLOCK = 64 * 1024 * 1024
"""Bytes of a CSV file that are parsed at once; bounds the memory of an import to about 1 GB."""

Schema: TypeAlias = Mapping[str, type[pl.DataType]]

T = TypeVar("T")

Track: TypeAlias = Callable[[Sequence[T]], Iterable[T]]
"""Passes files, or other parts of the work, on; shows how far it is where somebody sees it."""


_POD_SCHEMA = {c.name: c.stored for c in PODS if not c.extra and c.name not in {"tier", "node"}}
_USAGE_SCHEMA = pa.schema(
    [
        ("pod", pa.large_string()),
        ("time", pa.timestamp("us", "UTC")),
        ("cpu", pa.float32()),
        ("cpu_max", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a CSV file, and the number (from 1) of the first."""

    file: Path
    line: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """What one source file adds: usage.parquet's rows, and what it says about their pods.

    ``pods`` has pod, workload, cpu_request, memory_request, start, end; parts may repeat a pod.
    """

    usage: pl.DataFrame
    pods: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has written, and in sentences what it had to leave out."""

    pods: int
    usage_rows: int
    first: datetime
    last: datetime
    left_out: tuple[str, ...] = ()


def blocks(file: Path, size: int = BLOCK) -> Iterator[Block]:
    """The lines of a plain or gzipped file, in blocks.

    Raises:
        TraceError: the file cannot be read or is damaged.
    """
    try:
        with _open(file) as stream:
            line, rest = 1, b""
            while chunk := stream.read(size):
                whole, newline, tail = chunk.rpartition(b"\n")
                if newline:
                    data = rest + whole + newline
                    yield Block(file, line, data)
                    line += data.count(b"\n")
                    rest = tail
                else:
                    rest += chunk
            if rest:
                yield Block(file, line, rest)
            elif line == 1:
                raise TraceError(f"{file} is empty; download it again.")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"{file} cannot be read, download it again: {reason}.") from error


def _open(file: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def cut_header(block: Block) -> tuple[str, Block]:
    """The first line of a block, and the rest."""
    header, newline, rest = block.data.partition(b"\n")
    text = header.decode("utf-8-sig", "replace").strip()
    return text, Block(block.file, block.line + len(newline), rest)


def parse(
    block: Block, schema: Schema, separator: str = ",", *, gaps: bool = False
) -> pl.DataFrame:
    """Parse a block without a header; numbers must be finite and not negative.

    Args:
        block: whole lines.
        schema: name and type of each column in the file's order.
        separator: one character.
        gaps: whether a number may be empty or NA, as R writes missing values.

    Raises:
        TraceError: names the file, the line and the column.
    """
    data = block.data.replace(b"\r", b"")
    if b"\n\n" in data or data.startswith(b"\n"):
        data = b"\n".join(line for line in data.split(b"\n") if line)
    missing = ["NA"] if gaps else None
    try:
        frame = pl.read_csv(
            io.BytesIO(data),
            has_header=False,
            schema=dict(schema),
            separator=separator,
            null_values=missing,
        )
    except pl.exceptions.PolarsError as error:
        raise TraceError(_malformed(block, schema, separator, gaps=gaps)) from error
    complete = data.count(separator.encode()) == frame.height * (len(schema) - 1)
    if not complete or not _sound(frame, gaps=gaps):
        raise TraceError(_malformed(block, schema, separator, gaps=gaps))
    return frame


def _sound(frame: pl.DataFrame, *, gaps: bool) -> bool:
    """Whether all numbers are finite and not negative, and none is empty unless it may be."""
    wrong = (~cs.numeric().is_finite() | (cs.numeric() < 0)).fill_null(value=not gaps)
    return not frame.select(pl.any_horizontal(wrong.any())).item()


def _malformed(block: Block, schema: Schema, separator: str, *, gaps: bool) -> str:
    """The sentence about a block's first malformed line; slow, for blocks known to have one."""
    text = block.data.decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n"), block.line):
        problem = _problem(line.strip("\r"), schema, separator, gaps=gaps)
        if line.strip() and problem:
            return f"{block.file}, line {number}: {problem}."
    last = block.line + text.count("\n")
    return f"{block.file}, lines {block.line} to {last}: this is not readable as CSV."


def _problem(line: str, schema: Schema, separator: str, *, gaps: bool) -> str | None:
    fields = [field.strip().strip('"') for field in line.split(separator)]
    if len(fields) != len(schema):
        return f"{len(fields)} fields where {len(schema)} belong ({', '.join(schema)})"
    for field, (name, dtype) in zip(fields, schema.items(), strict=True):
        optional = gaps and field in {"", "NA"}
        if dtype.is_numeric() and not optional and not _is_measure(field):
            return f"column '{name}' is '{field}' and must be a number of 0 or more"
    return None


def _is_measure(field: str) -> bool:
    try:
        value = float(field)
    except ValueError:
        return False
    return math.isfinite(value) and value >= 0


def moment(column: str, epoch: float = 0.0) -> pl.Expr:
    """A column of seconds after ``epoch`` as UTC timestamps."""
    microseconds = ((pl.col(column) + epoch) * 1e6).round().cast(pl.Int64)
    return microseconds.cast(pl.Datetime("us", "UTC")).alias(column)


def to_windows(readings: pl.DataFrame) -> pl.DataFrame:
    """Usage rows from readings: pod, second (since the epoch), cpu, cpu_max (may be null).

    Times are rounded down to their window. Several readings in a window are averaged, their maxima
    maximised; a window without any stays a gap. The maximum is never below the mean, from which
    sources that round the two separately differ by a rounding error.
    """
    start = (pl.col("second") // WINDOW * WINDOW).cast(pl.Int64) * 1_000_000
    windows = readings.group_by("pod", time=start.cast(pl.Datetime("us", "UTC"))).agg(
        pl.col("cpu").mean(), pl.col("cpu_max").max()
    )
    above = pl.when(pl.col("cpu_max") < pl.col("cpu")).then("cpu").otherwise("cpu_max")
    return conform(windows.with_columns(cpu_max=above).sort("pod", "time"), USAGE)


def choose(names: Sequence[str], limit: int, seed: int) -> list[str]:
    """A seeded sample of at most ``limit`` names in their order; all where the limit is 0."""
    if limit == 0 or len(names) <= limit:
        return list(names)
    kept = np.random.default_rng(seed).choice(len(names), limit, replace=False)
    return [names[index] for index in np.sort(kept)]


@contextmanager
def usage_file(folder: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Writes usage.parquet of a trace's folder, some rows at a time."""
    file = folder / "usage.parquet"
    with pq.ParquetWriter(file, _USAGE_SCHEMA, write_page_checksum=True) as writer:
        yield lambda rows: writer.write_table(rows.to_arrow().cast(_USAGE_SCHEMA))


def write_parts(parts: Iterable[Part], out: Path, *, overwrite: bool) -> Imported:
    """Write a trace part by part, all of it or nothing.

    Raises:
        TraceError: nothing was read, the pods are invalid, or ``out`` cannot be written.
    """
    pods = pl.DataFrame(schema=_POD_SCHEMA)
    rows = 0
    with staged_folder(out, overwrite=overwrite) as folder:
        with usage_file(folder) as write:
            for part in parts:
                if part.usage.height:
                    write(part.usage)
                    rows += part.usage.height
                    pods = _merge(pods, part.pods)
        if not rows:
            raise TraceError(
                f"{out} was not written: no usage was found for any machine that was asked for; "
                "give more files or lower --min-days."
            )
        table = conform(pods.with_columns(tier=pl.lit("online")), PODS)
        check_rows(table, pod_rules(None), out / "pods.parquet")
        pq.write_table(table.to_arrow(), folder / "pods.parquet", write_page_checksum=True)
    first, last = table.select(pl.col("start").min(), pl.col("end").max()).row(0)
    return Imported(table.height, rows, first, last)


def _merge(pods: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """One row a pod: the widest life and the largest request that any part told of."""
    return (
        pl.concat([pods, more.select(pods.columns)])
        .group_by("pod", maintain_order=True)
        .agg(
            pl.col("workload").first(),
            pl.col("cpu_request", "memory_request").max(),
            pl.col("start").min(),
            pl.col("end").max(),
        )
    )
