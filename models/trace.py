"""A trace: a folder of Parquet files with nodes, pods and their usage. See docs/traces.md."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException

from models.arrays import Floats32
from models.constraints import NODE_JSON, POD_JSON
from models.errors import TraceError
from models.grid import WINDOW, UsageGrid
from models.trace_schema import NODES, PODS, USAGE, Column, check_schema, conform
from models.trace_validation import check_json, check_rows, check_usage, node_rules, pod_rules

FILES = ("nodes.parquet", "pods.parquet", "usage.parquet")


@dataclass(frozen=True)
class Trace:
    """A validated trace; times are UTC datetimes, CPU is in cores, memory in GiB.

    Fields:
        name: the folder's name.
        nodes: node, cpu, memory; None where the trace lists no nodes. Where the file has them: when
            a node joins and leaves, and what `models.constraints` lists.
        pods: pod, workload, tier, cpu_request, memory_request, start, end, node. The node and the
            memory request may be null; the end never is (`read_trace`). Where the file has them:
            what `models.constraints` lists.
        usage: pod, time (a window's start), cpu, cpu_max (may be null), one row for each observed
            window; None where the trace has no usage.
    """

    name: str
    nodes: pl.DataFrame | None
    pods: pl.DataFrame
    usage: pl.DataFrame | None


def read_trace(path: Path) -> Trace:
    """Read and validate a trace.

    A pod whose end is empty was still running: its end becomes the trace's, the latest moment that
    any file mentions.

    Raises:
        TraceError: the folder is no trace, or a file is unreadable or invalid; one sentence that
            names file, column, row (0-based) and value.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise TraceError(f"{path} {problem}; a trace is a folder with pods.parquet in it.")
    if not (path / "pods.parquet").exists():
        raise TraceError(f"{path} is no trace: it has no pods.parquet.")
    nodes, pods, usage = (path / file for file in FILES)
    trace = Trace(
        name=path.resolve().name,
        nodes=_read_table(nodes, NODES) if nodes.exists() else None,
        pods=_read_table(pods, PODS),
        usage=_read_table(usage, USAGE) if usage.exists() else None,
    )
    return _validated(trace, path)


def write_trace(trace: Trace, path: Path, *, overwrite: bool = False) -> None:
    """Validate a trace and write it as a folder, all of it or nothing.

    Raises:
        TraceError: the trace is invalid, the folder holds something already (with ``overwrite``:
            something that is no trace), or it cannot be written.
    """
    for frame, columns, file in _tables(trace, path):
        check_schema(frame.schema, columns, file)
    nodes, pods, usage = trace.nodes, conform(trace.pods, PODS), trace.usage
    valid = _validated(
        Trace(
            name=trace.name,
            nodes=None if nodes is None else conform(nodes, NODES),
            pods=pods,
            usage=None if usage is None else conform(usage, USAGE),
        ),
        path,
    )
    with staged_folder(path, overwrite=overwrite) as folder:
        for frame, _, file in _tables(valid, folder):
            pq.write_table(frame.to_arrow(), file, write_page_checksum=True)


@contextmanager
def staged_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A fresh folder beside ``path`` that takes its place when the block ends without an error.

    Raises:
        TraceError: ``path`` holds something already (with ``overwrite``: something that is no
            trace), or cannot be written.
    """
    _check_free(path, overwrite=overwrite)
    mark = secrets.token_hex(4)
    staging, retired = (path.parent / f".{path.name}.{mark}.{what}" for what in ("new", "old"))
    try:
        staging.mkdir(parents=True)
        yield staging
        if path.exists():
            path.rename(retired)
        staging.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        if retired.exists():
            retired.rename(path)
        raise TraceError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def digest(trace: Trace) -> str:
    """SHA-256 (hex) of a trace's content.

    It depends on neither the order of rows, nor that of columns, nor how files are compressed, nor
    the folder's name.
    """
    sha = hashlib.sha256()
    pods = trace.pods.sort("pod")
    if trace.nodes is not None:
        _hash_table(sha, "nodes", conform(trace.nodes.sort("node"), NODES))
    _hash_table(sha, "pods", conform(pods, PODS))
    if trace.usage is not None:
        rank = pl.DataFrame({"pod": pods["pod"], "rank": np.arange(pods.height)})
        ranked = trace.usage.join(rank, on="pod", how="left", maintain_order="left")
        ordered = ranked.sort("rank", "time").select("rank", "time", "cpu", "cpu_max")
        _hash_table(sha, "usage", ordered)
    return sha.hexdigest()


def usage_grid(trace: Trace, tier: str = "online") -> UsageGrid:
    """The usage of a tier's pods on the time axis of all usage in the trace.

    Every pod of the tier has a row, in the order of ``trace.pods``, also one without any usage.
    Without usage the grid has no windows and starts at the first pod's start.
    """
    pods = trace.pods.filter(pl.col("tier") == tier)
    start, windows = _axis(trace)
    shape = (pods.height, windows)
    cpu = np.full(shape, np.nan, np.float32)
    cpu_max: Floats32 | None = None
    if trace.usage is not None:
        index = pods.select("pod", pl.int_range(pl.len(), dtype=pl.Int64).alias("row"))
        usage = trace.usage.join(index, on="pod", how="inner")
        row = usage["row"].to_numpy()
        column = (usage["time"].dt.epoch("s").to_numpy() - start) // WINDOW
        cpu[row, column] = usage["cpu"].to_numpy()
        if usage["cpu_max"].null_count() < usage.height:
            cpu_max = np.full(shape, np.nan, np.float32)
            cpu_max[row, column] = usage["cpu_max"].fill_null(np.nan).to_numpy()
    return UsageGrid(
        start=start,
        cpu=cpu,
        cpu_max=cpu_max,
        pods=tuple(pods["pod"]),
        workloads=tuple(pods["workload"]),
        request=pods["cpu_request"].to_numpy().copy(),
        born=pods["start"].dt.epoch("s").to_numpy().copy(),
        gone=pods["end"].dt.epoch("s").to_numpy().copy(),
    )


def known_at(trace: Trace, time: int) -> Trace:
    """A trace as it was known at a time (seconds): no later usage, and no pod that came later."""
    moment = datetime.fromtimestamp(time, UTC)
    pods = trace.pods.filter(pl.col("start") < moment)
    usage = trace.usage
    if usage is not None:
        whole = pl.col("time") <= moment - pl.duration(seconds=WINDOW)
        usage = usage.filter(whole & pl.col("pod").is_in(pods["pod"].implode()))
    return replace(trace, pods=pods, usage=usage)


def _axis(trace: Trace) -> tuple[int, int]:
    """Start in seconds since the epoch and length in windows of the trace's usage."""
    if trace.usage is None or trace.usage.height == 0:
        first = int(trace.pods.select(pl.col("start").dt.epoch("s").min()).item())
        return first - first % WINDOW, 0
    times = trace.usage.select(
        first=pl.col("time").min().dt.epoch("s"), last=pl.col("time").max().dt.epoch("s")
    )
    first, last = times.row(0)
    return first, (last - first) // WINDOW + 1


def _tables(trace: Trace, path: Path) -> list[tuple[pl.DataFrame, Sequence[Column], Path]]:
    tables = zip((trace.nodes, trace.pods, trace.usage), (NODES, PODS, USAGE), FILES, strict=True)
    return [(frame, cols, path / file) for frame, cols, file in tables if frame is not None]


def _read_table(file: Path, columns: Sequence[Column]) -> pl.DataFrame:
    """The known columns of a Parquet file, of the types of the schema.

    Read by pyarrow: on a damaged page it raises, where polars ends the process.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            schema = parquet.schema_arrow
            known = [column.name for column in columns if column.name in schema.names]
            check_schema(pl.Schema(schema), columns, file)
            table = parquet.read(columns=known)
        table.validate(full=True)
        return conform(pl.DataFrame(table), columns)
    except (OSError, pa.ArrowException, UnicodeDecodeError, PanicException) as error:
        if isinstance(error, OSError) and error.errno:
            raise TraceError(f"{file} cannot be read: {error.strerror}.") from error
        raise TraceError(
            f"{file} is no readable Parquet file (truncated, or of another format); write it again."
        ) from error


def _validated(trace: Trace, path: Path) -> Trace:
    """The trace with every pod's end filled in, once all rules hold."""
    if trace.pods.height == 0:
        raise TraceError(f"{path / 'pods.parquet'} has no pods; a trace needs at least one.")
    if trace.nodes is not None:
        check_rows(trace.nodes, node_rules(trace.nodes), path / "nodes.parquet")
        check_json(trace.nodes, NODE_JSON, path / "nodes.parquet")
    check_rows(trace.pods, pod_rules(trace.nodes), path / "pods.parquet")
    check_json(trace.pods, POD_JSON, path / "pods.parquet")
    pods = trace.pods.with_columns(pl.col("end").fill_null(_last_moment(trace)))
    if trace.usage is not None:
        check_usage(trace.usage, pods, path / "usage.parquet")
    return Trace(trace.name, trace.nodes, pods, trace.usage)


def _last_moment(trace: Trace) -> pl.Expr:
    """Until when a pod without an end ran: until the trace's end, or until its node left."""
    last = pl.lit(_end(trace), pl.Datetime("us", "UTC"))
    if trace.nodes is None or "end" not in trace.nodes.columns:
        return last
    left = pl.col("node").replace_strict(
        trace.nodes["node"], trace.nodes["end"], default=None, return_dtype=trace.nodes["end"].dtype
    )
    return pl.min_horizontal(last, left)


def _end(trace: Trace) -> datetime:
    """The latest moment that a trace mentions."""
    moments = trace.pods.select(pl.col("end").max(), pl.col("start").max()).row(0)
    if trace.usage is not None:
        moments += trace.usage.select(pl.col("time").max() + pl.duration(seconds=WINDOW)).row(0)
    last: datetime = max(moment for moment in moments if moment is not None)
    return last


def _check_free(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise TraceError(f"{path} is a file; name a folder to write to.")
    held = sorted(entry.name for entry in path.iterdir())
    if held and not overwrite:
        raise TraceError(
            f"{path} is not empty (it has {held[0]}); name another folder, or replace a trace "
            "with --force."
        )
    foreign = [name for name in held if name not in FILES]
    if foreign:
        raise TraceError(f"{path} holds more than a trace ({foreign[0]}); name another folder.")
    if path.samefile(Path.cwd()) or path.is_mount():
        raise TraceError(
            f"{path} is the working directory or a mount, which cannot be replaced; name a folder "
            f"in it, such as {path / 'trace'}."
        )


def _hash_table(sha: hashlib._Hash, name: str, frame: pl.DataFrame) -> None:
    """Feed a table whose rows are in a canonical order."""
    sha.update(json.dumps([name, frame.height]).encode())
    for column in frame.get_columns():
        sha.update(json.dumps(column.name).encode())
        if column.dtype == pl.String:
            sha.update(json.dumps(column.to_list()).encode())
            continue
        sha.update(column.is_null().to_numpy().tobytes())
        # Adding 0 makes -0.0 and 0.0, which are equal, also equal in bytes.
        sha.update((column.to_physical().fill_null(0).to_numpy() + 0).tobytes())
