"""Many replays at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.options import ReplayOptions
from shadow.replay import Clock, Progress, replay
from shadow.result import ReplayResult

Answer = TypeVar("Answer")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
"""What tells the numerical libraries how many threads to start; they read it when they load."""


def cores() -> int:
    """How many replays run at once by default: one on each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    work: Callable[..., Answer],
    calls: Sequence[Sequence[object]],
    *,
    jobs: int,
    progress: Callable[[float], None] | None = None,
) -> list[Answer]:
    """Call a function with each set of arguments, ``jobs`` at a time; answers in the given order.

    Processes are spawned, not forked: locks of threads that other libraries started would stay
    locked in a fork. Each computes with one thread, as there is a process for each core. With one
    job, or one call, all is done here.

    Args:
        work: a function of a module, as processes find it by name.
        calls: its arguments; these and the answers must be picklable.
        jobs: processes, at least 1.
        progress: called with the share of calls that are done.

    Raises:
        Exception: the first that a call raised, as it raised it; calls not begun are dropped.
    """
    step = progress or (lambda _: None)
    if jobs <= 1 or len(calls) <= 1:
        answers = []
        for number, arguments in enumerate(calls, start=1):
            answers.append(work(*arguments))
            step(number / len(calls))
        return answers
    with _one_thread(os.environ), _pool(min(jobs, len(calls))) as pool:
        futures = [pool.submit(work, *arguments) for arguments in calls]
        _watch(futures, step)
        return [future.result() for future in futures]


def replay_seeds(
    trace: Trace,
    model: Model | None,
    *,
    policy: Policy | None,
    options: ReplayOptions,
    seeds: int,
    jobs: int,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> list[ReplayResult]:
    """Replay a trace under so many seeds, from that of the options on; see `shadow.replay.replay`.

    Raises:
        TraceError: as `shadow.replay.replay`.
    """
    if seeds == 1:
        return [
            replay(trace, model, policy=policy, options=options, progress=progress, clock=clock)
        ]
    seeded = [
        msgspec.structs.replace(options, seed=options.seed + number) for number in range(seeds)
    ]
    calls = [(trace, model, policy, own, clock) for own in seeded]
    return each(_replayed, calls, jobs=jobs, progress=progress)


def _replayed(
    trace: Trace,
    model: Model | None,
    policy: Policy | None,
    options: ReplayOptions,
    clock: Clock | None,
) -> ReplayResult:
    return replay(trace, model, policy=policy, options=options, clock=clock)


def _watch(futures: Sequence[Future[Answer]], step: Callable[[float], None]) -> None:
    """Wait for all, or for the first that fails."""
    waiting: Iterable[Future[Answer]] = futures
    while waiting:
        done, left = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        waiting = left
        step(1 - len(left) / len(futures))


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that drops what has not begun when the block fails."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread(environment: dict[str, str] | os._Environ[str]) -> Iterator[None]:
    """Let processes that start in the block compute with one thread."""
    before: Mapping[str, str | None] = {name: environment.get(name) for name in _THREADS}
    environment.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del environment[name]
            else:
                environment[name] = value
