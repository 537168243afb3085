"""Replays under several seeds, and their figures as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.options import ReplayOptions
from shadow.parallel import each
from shadow.replay import Clock, Progress, replay_scenario
from shadow.result import ReplayResult
from shadow.scenario import build_scenario

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What decides: a model (None: requests) and a policy (None: the model's own)."""

    model: Model | None
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class Replays:
    """Replays of one trace, whose candidates meet the same nodes, pods, usage and seeds.

    Fields:
        trace: what is replayed.
        candidates: models and policies that decide it, each in a replay of its own.
        clock: measures each decision.
    """

    trace: Trace
    candidates: tuple[Candidate, ...]
    clock: Clock | None = None

    def under(
        self, options: ReplayOptions, progress: Progress | None = None
    ) -> tuple[ReplayResult, ...]:
        """One replay for each candidate.

        Raises:
            TraceError: as `shadow.replay.replay`.
        """
        scenario = build_scenario(self.trace, options)
        report, total = progress or (lambda _: None), len(self.candidates)
        return tuple(
            replay_scenario(
                scenario,
                candidate.model,
                policy=candidate.policy,
                options=options,
                progress=lambda part, done=done: report((done + part) / total),  # type: ignore[misc]
                clock=self.clock,
            )
            for done, candidate in enumerate(self.candidates)
        )


def replay_seeds(
    replays: Replays,
    *,
    options: ReplayOptions,
    seeds: int,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> list[tuple[ReplayResult, ...]]:
    """Replay under so many seeds, from that of the options on; one tuple for each seed.

    Wherever a seed is replayed, its results are the same.

    Args:
        replays: of which trace, by whom.
        options: see `ReplayOptions`.
        seeds: how many.
        jobs, dask: see `shadow.parallel.workers`; a process replays one seed at a time.
        progress: called with the share that is done of all replays.

    Raises:
        TraceError: as `shadow.replay.replay`.
        SettingsError: no Dask scheduler answers, or it has no workers.
    """
    if seeds == 1 and dask is None:
        return [replays.under(options, progress)]
    seeded = [
        (msgspec.structs.replace(options, seed=options.seed + number),) for number in range(seeds)
    ]
    return each(replays, Replays.under, seeded, jobs=jobs, dask=dask, progress=progress)


def mean_of(figures: Sequence[S]) -> S:
    """The mean of each number over the seeds that know it; counts are rounded.

    Texts are those of the first seed. A key that some seeds lack counts 0 there.
    """
    if len(figures) == 1:
        return figures[0]
    return msgspec.convert(_mean([msgspec.to_builtins(f) for f in figures]), type(figures[0]))


def _mean(values: Sequence[Any]) -> Any:  # noqa: ANN401  # any part of a decoded JSON value
    known = [value for value in values if value is not None]
    if not known or isinstance(known[0], str):
        return known[0] if known else None
    if isinstance(known[0], dict):
        names = dict.fromkeys(name for value in known for name in value)
        return {name: _mean([value.get(name, 0) for value in known]) for name in names}
    if isinstance(known[0], list | tuple):
        return [_mean(item) for item in zip(*known, strict=True)]
    mean = float(np.mean(known))
    return round(mean) if isinstance(known[0], int) else mean
