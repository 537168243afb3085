"""What tests of traces share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from models.trace import Trace, read_trace

SHARED = Path(__file__).resolve().parents[2] / "shared" / "traces"


def shared(name: str) -> Trace:
    """A real trace; skips the test where they are absent."""
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there: real traces are not part of the project")
    return read_trace(SHARED / name)


def rows(trace: Trace) -> list[tuple[str, str, float, float | None]]:
    """The usage as pod, time, cpu and cpu_max, rounded, in order."""
    assert trace.usage is not None
    table = trace.usage.sort("pod", "time").with_columns(
        pl.col("time").dt.strftime("%d %H:%M"), pl.col("cpu", "cpu_max").cast(pl.Float64).round(5)
    )
    return [(str(pod), str(time), cpu, cpu_max) for pod, time, cpu, cpu_max in table.iter_rows()]


def track(files: Sequence[Path]) -> Iterable[Path]:
    """No progress bar."""
    return files


T0 = datetime(2025, 1, 6, tzinfo=UTC)
EPOCH = 1_736_121_600  # T0


def minutes(count: float) -> datetime:
    return T0 + timedelta(minutes=count)


def nodes() -> pl.DataFrame:
    return pl.DataFrame({"node": ["n0", "n1"], "cpu": [16.0, 32.0], "memory": [64.0, 128.0]})


def pods() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "pod": ["a", "b", "c", "j"],
            "workload": ["w", "w", "v", "batch"],
            "tier": ["online", "online", "online", "offline"],
            "cpu_request": [2.0, 2.0, 4.0, 1.0],
            "memory_request": [4.0, None, 8.0, 1.0],
            "start": [minutes(0), minutes(10), minutes(0), minutes(3)],
            "end": [minutes(30), minutes(30), minutes(20), minutes(21)],
            "node": ["n0", None, "n1", None],
        }
    )


def usage() -> pl.DataFrame:
    """Pod a in windows 0, 1, 4 (2 and 3 are a gap), b in 2 to 5, j in 1; c never."""
    return pl.DataFrame(
        {
            "pod": ["a", "a", "a", "b", "b", "b", "b", "j"],
            "time": [minutes(5 * w) for w in (0, 1, 4, 2, 3, 4, 5, 1)],
            "cpu": [0.5, 0.75, 1.0, 0.25, 0.5, 0.125, 0.0, 0.9],
            "cpu_max": [0.6, None, 1.5, 0.25, 0.5, 0.25, 0.1, None],
        }
    )


def save(folder: Path, **tables: pl.DataFrame | None) -> Path:
    """Write the small valid trace, with the given tables in place of its own."""
    folder.mkdir(exist_ok=True)
    own: dict[str, pl.DataFrame | None] = {"nodes": nodes(), "pods": pods(), "usage": usage()}
    for name, table in (own | tables).items():
        if table is not None:
            table.write_parquet(folder / f"{name}.parquet")
    return folder


def put(table: pl.DataFrame, column: str, row: int, value: object) -> pl.DataFrame:
    values = table[column].to_list()
    values[row] = value
    dtype = None if isinstance(value, str) else table.schema[column]
    return table.with_columns(pl.Series(column, values, dtype=dtype, strict=False))
