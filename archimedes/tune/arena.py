"""Where policies are measured: replays of the training days, in this process or in others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import msgspec
from threadpoolctl import threadpool_limits

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


@contextmanager
def workers(arena: Arena, jobs: int) -> Iterator[tuple[Executor, Evaluate]]:
    """An executor, and what it is to call: this process for one job, else a process for each.

    Each process gets the arena once, when it starts, and computes with one thread.
    """
    if jobs == 1:
        with ThreadPoolExecutor(1) as executor:
            yield executor, arena.measure
        return
    # Spawned: a fork would copy the locks of the threads that polars and LightGBM have started.
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_settle, initargs=(arena,)
    ) as executor:
        try:
            yield executor, _measure
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


_settled: list[Callable[[Policy], Measured]] = []
"""What this worker process measures with; set once, before its first policy."""


def _settle(arena: Arena) -> None:
    threadpool_limits(1)
    _settled.append(arena.measure)


def _measure(policy: Policy) -> Measured:
    return _settled[0](policy)


def _rate(part: float, whole: float) -> float | None:
    return None if whole == 0 else part / whole
