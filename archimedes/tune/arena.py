"""Where policies are measured: replays of the training days, in this process or in others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from uuid import uuid4

import msgspec
from threadpoolctl import threadpool_limits

from models.errors import SettingsError
from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.cells import cells_of
from shadow.compare import FULL
from shadow.options import ReplayOptions
from shadow.replay import replay_scenario
from shadow.scenario import Scenario, build_scenario
from trainer.tune import Evaluate, Measured


@dataclass(frozen=True, slots=True)
class Arena:
    """The training days, one scenario for each seed, and the model that forecasts in them."""

    scenarios: tuple[Scenario, ...]
    options: tuple[ReplayOptions, ...]
    model: Model | None

    def measure(self, policy: Policy) -> Measured:
        """What a policy comes to; overload counts above `shadow.compare.FULL` for every policy."""
        results = [
            replay_scenario(scenario, self.model, policy=policy, options=options)
            for scenario, options in zip(self.scenarios, self.options, strict=True)
        ]
        cells = cells_of(results, FULL)
        return Measured(
            reclaimed_core_hours=float(cells.reclaimed.sum()) / len(results),
            violation_rate=_rate(float(cells.violated.sum()), float(cells.judged.sum())),
            overload_rate=_rate(float(cells.overloaded.sum()), float(cells.promised.sum())),
        )


def build_arena(known: Trace, model: Model | None, options: ReplayOptions, seeds: int) -> Arena:
    """The arena of a trace that ends where the training days do.

    Raises:
        TraceError: the trace does not cover the wanted period, or no pod is alive in it.
    """
    each = tuple(
        msgspec.structs.replace(options, seed=seed)
        for seed in range(options.seed, options.seed + seeds)
    )
    return Arena(tuple(build_scenario(known, one) for one in each), each, model)


@dataclass(frozen=True, slots=True)
class Workers:
    """Where policies are measured: an executor, what it is to call, and how many at a time."""

    executor: Executor
    evaluate: Evaluate
    jobs: int


@contextmanager
def workers(arena: Arena, jobs: int, dask: str | None = None) -> Iterator[Workers]:
    """This process for one job, else a process for each; or the threads of a Dask cluster.

    Each process gets the arena once, when it starts, and computes with one thread.

    Args:
        arena: what policies are measured in.
        jobs: how many at a time, where there is no cluster.
        dask: address of a Dask scheduler, whose workers need this package.

    Raises:
        SettingsError: no Dask scheduler answers, or it has no workers.
    """
    token = uuid4().hex
    if dask is not None:
        with _cluster(dask, token, arena) as found:
            yield found
    elif jobs == 1:
        with ThreadPoolExecutor(1) as executor:
            yield Workers(executor, arena.measure, 1)
    else:
        # Spawned: a fork would copy the locks of the threads that polars and LightGBM have started.
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(token, arena)
        ) as executor:
            try:
                yield Workers(executor, partial(_measure, token), jobs)
            finally:
                executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _cluster(address: str, token: str, arena: Arena) -> Iterator[Workers]:
    from distributed import Client, WorkerPlugin

    class Settle(WorkerPlugin):  # workers that join later get it too
        """Hands the arena to every worker process."""

        def setup(self, worker: object) -> None:  # noqa: ARG002
            _settle(token, arena)

        def teardown(self, worker: object) -> None:  # noqa: ARG002
            _settled.pop(token, None)

    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, ValueError) as e:
        raise SettingsError(f"no Dask scheduler answers at {address}: {e}") from e
    with client:
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise SettingsError(f"the Dask scheduler at {address} has no workers; start some")
        client.register_plugin(Settle(), name=token)
        try:
            yield Workers(client.get_executor(), partial(_measure, token), threads)
        finally:
            client.unregister_worker_plugin(token)


_PATIENCE = "10s"
"""How long a Dask scheduler may take to answer."""

_settled: dict[str, Arena] = {}
"""The arenas of this worker process, by their search: a cluster may serve several at once."""


def _begin(token: str, arena: Arena) -> None:
    """Start a worker process, which must not outlive a search that was killed."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_follow, args=(parent,), daemon=True).start()
    _settle(token, arena)


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _settle(token: str, arena: Arena) -> None:
    threadpool_limits(1)
    _settled[token] = arena


def _measure(token: str, policy: Policy) -> Measured:
    return _settled[token].measure(policy)


def _rate(part: float, whole: float) -> float | None:
    return None if whole == 0 else part / whole
