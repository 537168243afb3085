"""Turns recorded production into a trace, which replays, compares and trains like any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from extender.decision_log import Binding, Decision, End, Record
from extender.recording import SUFFIX, Refresh
from models.errors import ArchimedesError
from models.trace import Trace
from models.trace_schema import PODS
from shadow.lives import Lives, NodeLife, PodLife, numbered
from shadow.recorded import RecordedStream
from shadow.tail import Position, follow_log

GIB_PER_CORE = 4.0
"""Memory is not recorded; nodes get as much as where a trace has none, and pods request none."""

_HOUR = 3600.0
_TIME = pl.Datetime("us", "UTC")
_PODS = {column.name: column.stored for column in PODS if not column.extra}

Row = dict[str, str | float | datetime | None]


class Extracted(msgspec.Struct):
    """What a trace was made of.

    nodes, online: lives; one that came back counts again. windows: those with measured usage.
    offline: pods; of these ended, running and waiting at the end. assumed: those of ``running``
    that were taken to end with their horizon, as the log tells of no end at all.
    unseen: offline pods that ended and of which the log says nothing else any more.
    cut: segments of the recording that end in a damaged or half-written frame.
    """

    nodes: int = 0
    online: int = 0
    windows: int = 0
    offline: int = 0
    ended: int = 0
    running: int = 0
    waiting: int = 0
    assumed: int = 0
    unseen: int = 0
    cut: int = 0


@dataclass(slots=True)
class Job:
    """An offline pod by the log; seconds since the epoch, None for what has not happened."""

    pod: str
    arrival: float
    millicpu: int
    hours: int
    bound: float | None = None
    ended: float | None = None


@dataclass(slots=True)
class Jobs:
    """All offline pods of a log by UID.

    time: of its newest record. ends: whether it tells when pods end. unseen: pods of which it only
    tells that.
    """

    by_uid: dict[str, Job] = field(default_factory=dict)
    time: float = -math.inf
    ends: bool = False
    unseen: int = 0

    def take(self, record: Record) -> None:
        """Take in the next record."""
        self.time = max(self.time, record.time)
        job = self.by_uid.get(record.uid)
        match record:
            case Decision(offline=True) | Binding(error=""):
                if job is None:
                    job = Job(record.pod, record.time, record.millicpu, record.horizon_hours)
                    self.by_uid[record.uid] = job
                if isinstance(record, Binding):
                    job.bound = record.time
            case End():
                self.ends = True
                if job is None:
                    self.unseen += 1
                else:
                    job.ended = record.time


def extract(log: Path, name: str) -> tuple[Trace, Extracted]:
    """The trace of what a decision log and the recording beside it saw.

    Args:
        log: the decision log.
        name: of the trace.

    Raises:
        ArchimedesError: a file cannot be read, or the recording holds no refresh.
    """
    jobs = Jobs()
    for record, _ in follow_log(log, Position()):
        jobs.take(record)
    lives, stream = Lives({job.pod for job in jobs.by_uid.values()}), _recording(log)
    for entry in stream.until(math.inf, ""):
        if isinstance(entry, Refresh):  # decisions are made again
            lives.see(entry)
    if not lives.nodes:
        raise ArchimedesError(
            f"recording {log}{SUFFIX} holds no refresh with nodes; name the log of an extender "
            "that records (recording_megabytes) and forecasts"
        )
    until = max(jobs.time, lives.time)
    nodes = numbered([node.name for node in lives.nodes])
    pods = [_online_row(life, nodes, until) for life in lives.pods]
    pods += [_offline_row(job, until, jobs) for job in jobs.by_uid.values()]
    names = numbered([str(pod["pod"]) for pod in pods])
    table = pl.DataFrame(pods, _PODS).with_columns(pod=pl.Series(names, dtype=pl.String))
    trace = Trace(name, _nodes(lives.nodes, nodes), table, _usage(lives, names))
    return trace, _counts(lives, jobs, stream.cut)


def _recording(log: Path) -> RecordedStream:
    folder = Path(f"{log}{SUFFIX}")
    if not folder.is_dir():
        raise ArchimedesError(
            f"recording {folder} does not exist; it is written beside the decision log where "
            "recording_megabytes is above 0"
        )
    return RecordedStream(folder, 0.0)


def _online_row(life: PodLife, nodes: Sequence[str], until: float) -> Row:
    return {
        "pod": life.pod.key,
        "workload": life.pod.workload,
        "tier": "online",
        "cpu_request": life.pod.request,
        "start": _moment(life.start),
        "end": _moment(max(min(life.end, until), life.start)),
        "node": None if life.node is None else nodes[life.node.row],
    }


def _offline_row(job: Job, until: float, jobs: Jobs) -> Row:
    """An offline pod from its arrival on, for as long as it ran; a replay places it itself."""
    return {
        "pod": job.pod,
        "workload": job.pod,  # the log knows no owners
        "tier": "offline",
        "cpu_request": job.millicpu / 1000,
        "start": _moment(job.arrival),
        "end": _moment(job.arrival + _lasts(job, until, jobs)),
        "node": None,
    }


def _lasts(job: Job, until: float, jobs: Jobs) -> float:
    """Seconds that a pod ran, or is expected to run where it has not begun or not ended."""
    began = job.arrival if job.bound is None else job.bound
    if job.ended is not None:
        return max(job.ended - began, 1.0)
    ran = until - began if job.bound is not None and jobs.ends else 0.0
    return max(ran, job.hours * _HOUR)


def _nodes(lives: Sequence[NodeLife], names: Sequence[str]) -> pl.DataFrame:
    cpu = [life.cpu for life in lives]
    return pl.DataFrame(
        {
            "node": names,
            "cpu": cpu,
            "memory": [GIB_PER_CORE * cores for cores in cpu],
            "start": [_moment(life.start) for life in lives],
            "end": [_moment(life.end) for life in lives],
        },
        schema_overrides={"start": _TIME, "end": _TIME},
    )


def _usage(lives: Lives, names: Sequence[str]) -> pl.DataFrame | None:
    """One row for each pod and window; None where no usage was recorded."""
    if not lives.usage:
        return None
    rows = np.concatenate([rows for rows, _, _ in lives.usage])
    times = np.repeat([time for _, time, _ in lives.usage], [len(r) for r, _, _ in lives.usage])
    return pl.DataFrame(
        {
            "pod": pl.Series(names, dtype=pl.String).gather(rows),
            "time": pl.from_epoch(pl.Series(times), "s").dt.replace_time_zone("UTC").cast(_TIME),
            "cpu": np.concatenate([cores for _, _, cores in lives.usage]),
        }
    ).with_columns(cpu_max=pl.lit(None, pl.Float32))


def _counts(lives: Lives, jobs: Jobs, cut: int) -> Extracted:
    found = list(jobs.by_uid.values())
    ended = sum(job.ended is not None for job in found)
    running = sum(job.bound is not None and job.ended is None for job in found)
    return Extracted(
        nodes=len(lives.nodes),
        online=len(lives.pods),
        windows=len(lives.usage),
        offline=len(found),
        ended=ended,
        running=running,
        waiting=len(found) - ended - running,
        assumed=0 if jobs.ends else running,
        unseen=jobs.unseen,
        cut=cut,
    )


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if math.isfinite(seconds) else None
