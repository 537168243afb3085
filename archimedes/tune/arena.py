"""Where policies are measured: replays of the search days."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.cells import cells_of
from shadow.compare import FULL
from shadow.options import ReplayOptions
from shadow.replay import replay_scenario
from shadow.scenario import Scenario, build_scenario
from trainer.tune import Measured


@dataclass(frozen=True, slots=True)
class Arena:
    """The search days, one scenario for each seed, and the model that forecasts in them."""

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
    """The arena of a trace that ends where the search days do.

    Raises:
        TraceError: the trace does not cover the wanted period, or no pod is alive in it.
    """
    each = tuple(
        msgspec.structs.replace(options, seed=seed)
        for seed in range(options.seed, options.seed + seeds)
    )
    return Arena(tuple(build_scenario(known, one) for one in each), each, model)


def _rate(part: float, whole: float) -> float | None:
    return None if whole == 0 else part / whole
