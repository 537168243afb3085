"""The tables of a trace: which columns they have, and what type each has in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from models.constraints import NODE_JSON, POD_JSON
from models.errors import TraceError

_UTC = ("UTC", "Etc/UTC", "Etc/UCT", "UCT", "Universal", "Zulu", "+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: what it may hold, and the type it has once read.

    An optional column that a file lacks is read as empty, an extra one stays absent: most traces
    have none of these, and pay nothing for them.
    """

    name: str
    kind: Literal["text", "number", "time", "flag"]
    nullable: bool = False
    optional: bool = False
    extra: bool = False
    dtype: pl.DataType | type[pl.DataType] = pl.Float64

    @property
    def stored(self) -> pl.DataType | type[pl.DataType]:
        """The polars type in memory."""
        return {
            "text": pl.String,
            "number": self.dtype,
            "time": pl.Datetime("us", "UTC"),
            "flag": pl.Boolean,
        }[self.kind]


def _extra(name: str, kind: Literal["text", "time", "flag"]) -> Column:
    return Column(name, kind, nullable=True, optional=True, extra=True)


NODES = (
    Column("node", "text"),
    Column("cpu", "number"),
    Column("memory", "number"),
    _extra("start", "time"),
    _extra("end", "time"),
    _extra("unschedulable", "flag"),
    *(_extra(name, "text") for name in NODE_JSON),
)

PODS = (
    Column("pod", "text"),
    Column("workload", "text"),
    Column("tier", "text"),
    Column("cpu_request", "number"),
    Column("memory_request", "number", nullable=True),
    Column("start", "time"),
    Column("end", "time", nullable=True),
    Column("node", "text", nullable=True, optional=True),
    *(_extra(name, "text") for name in POD_JSON),
)

USAGE = (
    Column("pod", "text"),
    Column("time", "time"),
    Column("cpu", "number", dtype=pl.Float32),
    Column("cpu_max", "number", nullable=True, optional=True, dtype=pl.Float32),
)


def check_schema(schema: pl.Schema, columns: Sequence[Column], file: Path) -> None:
    """Check that the columns exist with usable types; unknown extra columns are fine.

    Raises:
        TraceError: names the file, the column, its type and what it must be.
    """
    for column in columns:
        if column.name in schema:
            _check_type(column, schema[column.name], file)
        elif not column.optional:
            raise TraceError(
                f"{file}: column '{column.name}' is missing, add it; "
                f"the file has {', '.join(schema) or 'no columns'}."
            )


def _check_type(column: Column, found: pl.DataType, file: Path) -> None:
    where = f"{file}: column '{column.name}'"
    if found == pl.Null and column.nullable:
        return
    if column.kind == "time" and isinstance(found, pl.Datetime):
        if found.time_zone is None:
            raise TraceError(f"{where} has times without a zone; write them as UTC timestamps.")
        if found.time_zone not in _UTC:
            raise TraceError(f"{where} has times in {found.time_zone}; convert them to UTC.")
        return
    wanted = {
        "text": "text",
        "number": "a number",
        "time": "a UTC timestamp",
        "flag": "true or false",
    }[column.kind]
    is_text = found in (pl.String, pl.Categorical, pl.Enum)
    fits = {
        "text": is_text,
        "number": found.is_numeric(),
        "time": False,
        "flag": found == pl.Boolean,
    }[column.kind]
    if not fits:
        raise TraceError(f"{where} has type {found} and must be {wanted}.")


def conform(frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """Bring a table whose schema is checked to the stored types and order; extra columns go."""
    return frame.select(
        pl.col(column.name).cast(column.stored)
        if column.name in frame.columns
        else pl.lit(None, column.stored).alias(column.name)
        for column in columns
        if column.name in frame.columns or not column.extra
    )
