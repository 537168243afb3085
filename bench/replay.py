"""How fast the replay decides: python -m bench.replay.

Prints decisions a second, how much of that time is the extender's own `decide`, and how the cost of
a decision grows with the nodes. The budget is 10,000 a second on 1,500 nodes on one core, and a
cost that grows no faster than the number of nodes. Then a day of a generated cluster of 50 nodes
with usage, where forecasts are refreshed as well. Machines differ, so read the ratios.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
import polars as pl

from extender.decide import decide
from models.arrays import Ints
from models.classical import classical
from models.generator import ClusterSpec, generate_trace
from models.rolling import RollingForecast
from models.shipped import shipped
from models.trace import Trace, read_trace
from shadow.options import ReplayOptions
from shadow.replay import replay_scenario
from shadow.scenario import build_scenario

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"
BUDGET = 10_000
PODS = 8000
ROUNDS = 3
OPTIONS = ReplayOptions()

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def main() -> None:
    """Measure all clusters in one run."""
    print(f"{'nodes':>12} {'decisions':>9} {'a second':>9} {'us each':>8} {'in decide':>9}")
    if (TRACES / "openb").exists():
        row("openb, 1523", read_trace(TRACES / "openb"))
    cost = {count: row(str(count), cluster(count)) for count in (500, 1500, 5000)}
    grown = cost[5000] / cost[500]
    print(f"ten times the nodes: {grown:.1f} times the cost of a decision (budget 10)")
    print(f"1500 nodes: {1 / cost[1500]:,.0f} decisions a second (budget {BUDGET:,})")
    day()


def row(name: str, trace: Trace) -> float:
    """Print the line of a trace without usage; CPU seconds of a decision."""
    scenario = build_scenario(trace, OPTIONS)
    best, decisions = np.inf, 1
    for _ in range(ROUNDS):
        began = time.process_time()
        result = replay_scenario(scenario, None, policy=None, options=OPTIONS)
        best, decisions = min(best, time.process_time() - began), result.decisions
    spent = Spent()
    with patch("shadow.replay.decide", spent.timed(decide)):
        began = time.process_time()
        replay_scenario(scenario, None, policy=None, options=OPTIONS)
        share = spent.seconds / (time.process_time() - began)
    each = best / decisions
    print(f"{name:>12} {decisions:>9,} {1 / each:>9,.0f} {each * 1e6:>8.0f} {share:>9.0%}")
    return each


def day() -> None:
    """Print what a day with usage costs, and how much of it is forecasting."""
    scenario = build_scenario(generate_trace(ClusterSpec()), OPTIONS)
    model = shipped(classical("koordinator"))
    spent = Spent()
    with patch.object(RollingForecast, "refresh", spent.timed(RollingForecast.refresh)):
        began = time.process_time()
        result = replay_scenario(scenario, model, policy=None, options=OPTIONS)
        seconds = time.process_time() - began
    print(
        f"50 nodes x 24 h with usage: {seconds:.1f} s for {result.decisions:,} decisions and "
        f"{spent.calls} refreshes, which took {spent.seconds / seconds:.0%} of it"
    )


class Spent:
    """CPU seconds that calls of a function took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def timed(self, function: Callable[Given, Answer]) -> Callable[Given, Answer]:
        """The function, measured."""

        def measured(*arguments: Given.args, **named: Given.kwargs) -> Answer:
            began = time.process_time()
            answer = function(*arguments, **named)
            self.seconds += time.process_time() - began
            self.calls += 1
            return answer

        return measured


def cluster(nodes: int, count: int = PODS) -> Trace:
    """Equal nodes and short pods of both tiers that arrive over a day, a tenth of the CPU at once.

    Like openb, whose pods last minutes: nearly every decision finds a node.
    """
    rng = np.random.default_rng(nodes)
    start = np.sort(rng.integers(0, 86_400, count))
    length = rng.lognormal(np.log(600), 1.0, count).astype(np.int64) + 1
    offline = rng.random(count) < 0.4
    names = [f"pod-{index}" for index in range(count)]
    pods = pl.DataFrame(
        {
            "pod": names,
            "workload": names,
            "tier": np.where(offline, "offline", "online"),
            "cpu_request": rng.choice([1.0, 4.0, 8.0, 12.0], count),
            "memory_request": rng.choice([2.0, 8.0, 32.0], count),
            "start": moments(start),
            "end": moments(start + length),
            "node": pl.Series([None] * count, dtype=pl.String),
        }
    )
    table = pl.DataFrame(
        {"node": [f"n{index}" for index in range(nodes)], "cpu": 96.0, "memory": 384.0}
    )
    return Trace(f"{nodes} nodes", table, pods, None)


def moments(seconds: Ints) -> pl.Series:
    """UTC timestamps of a day."""
    first = int(datetime(2025, 1, 6, tzinfo=UTC).timestamp())
    return pl.Series((seconds + first) * 1_000_000).cast(pl.Datetime("us", "UTC"))


if __name__ == "__main__":
    main()
