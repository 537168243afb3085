"""Many calls at once, in processes of this machine or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from uuid import uuid4

from threadpoolctl import threadpool_limits

from models.errors import SettingsError

Given = TypeVar("Given")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def cores() -> int:
    """How many replays run at once by default: one on each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Workers(Generic[Arguments, Answer]):
    """Where work is done: an executor, what it is to call, and how many calls at a time."""

    executor: Executor
    call: Callable[Arguments, Answer]
    jobs: int


@contextmanager
def workers(
    given: Given,
    work: Callable[Concatenate[Given, Arguments], Answer],
    jobs: int,
    dask: str | None = None,
) -> Iterator[Workers[Arguments, Answer]]:
    """This process for one job, else a process for each; or the threads of a Dask cluster.

    Each process gets what is given once, when it starts, and computes with one thread. What was
    not begun is dropped where the block fails.

    Args:
        given: what all calls are about, such as a trace.
        work: a function of a module, called with what is given and the arguments of each call.
        jobs: how many at a time, where there is no cluster.
        dask: address of a Dask scheduler, whose workers need this package.

    Raises:
        SettingsError: no Dask scheduler answers, or it has no workers.
    """
    token = uuid4().hex
    call: Callable[..., Answer] = partial(_call, token, work)
    if dask is not None:
        with _cluster(dask, token, given) as (executor, threads):
            yield Workers(executor, call, threads)
    elif jobs == 1:
        with ThreadPoolExecutor(1) as executor:
            yield Workers(executor, partial(work, given), 1)
    else:
        # Spawned: a fork would copy the locks of the threads that polars and LightGBM have started.
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(token, given)
        ) as executor:
            try:
                yield Workers(executor, call, jobs)
            finally:
                executor.shutdown(wait=True, cancel_futures=True)


def each(
    given: Given,
    work: Callable[..., Answer],
    calls: Sequence[Sequence[object]],
    *,
    jobs: int,
    dask: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Answer]:
    """Work with each set of arguments; answers in the given order.

    Args:
        given, work, dask: see `workers`.
        calls: the arguments; these and the answers must be picklable.
        jobs: how many at a time, where there is no cluster.
        progress: called with the share of calls that are done.

    Raises:
        Exception: the first that a call raised, as it raised it; calls not begun are dropped.
        SettingsError: as `workers`.
    """
    with workers(given, work, max(min(jobs, len(calls)), 1), dask) as crew:
        futures = [crew.executor.submit(crew.call, *arguments) for arguments in calls]
        try:
            _watch(futures, progress or (lambda _: None))
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]


def _watch(futures: Sequence[Future[Answer]], step: Callable[[float], None]) -> None:
    """Wait for all, or for the first that fails."""
    waiting: Iterable[Future[Answer]] = futures
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        step(1 - len(waiting) / len(futures))


@contextmanager
def _cluster(address: str, token: str, given: object) -> Iterator[tuple[Executor, int]]:
    """A Dask cluster's executor, and how many threads its workers have."""
    from distributed import Client, WorkerPlugin

    class Settle(WorkerPlugin):  # workers that join later get it too
        """Hands what is given to every worker process.

        It travels by value, with copies of the globals that it names, so it only calls functions.
        """

        def setup(self, worker: object) -> None:  # noqa: ARG002
            _settle(token, given)

        def teardown(self, worker: object) -> None:  # noqa: ARG002
            _forget(token)

    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, ValueError, TypeError) as e:  # TypeError: tls:// without certificates
        raise SettingsError(f"no Dask scheduler answers at {address}: {e}") from e
    with client:
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise SettingsError(f"the Dask scheduler at {address} has no workers; start some")
        client.register_plugin(Settle(), name=token)
        try:
            yield client.get_executor(), threads
        finally:
            client.unregister_worker_plugin(token)


_PATIENCE = "10s"
"""How long a Dask scheduler may take to answer."""

_settled: dict[str, Any] = {}
"""What this worker process was given, by whom: a cluster may serve several at once."""


def _begin(token: str, given: object) -> None:
    """Start a worker process, which must not outlive a parent that was killed."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_follow, args=(parent,), daemon=True).start()
    _settle(token, given)


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _settle(token: str, given: object) -> None:
    _settled[token] = given


def _forget(token: str) -> None:
    _settled.pop(token, None)


def _call(token: str, work: Callable[..., Answer], *arguments: object) -> Answer:
    threadpool_limits(1)  # of the thread that computes: OpenMP counts for each on its own
    return work(_settled[token], *arguments)
