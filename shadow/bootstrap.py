"""Confidence intervals of figures that both sides of a comparison have for the same cells."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from models.arrays import Floats

CONFIDENCE = 0.90
"""Of every interval, as in the evaluation."""

RESAMPLES = 2000
"""Of the bootstrap; 2,000 settle the ends of a 90 % interval to about a twentieth of its width."""


class Interval(msgspec.Struct, frozen=True):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Weights:
    """How often each seed [S, K], node [S, N] and block of time [S, B] was drawn.

    Row 0 is the sample itself. Both sides are weighed by the same draws: that pairs them.
    """

    seeds: Floats
    nodes: Floats
    blocks: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, seeds: int, nodes: int, blocks: int) -> Weights:
        """Resample seeds, nodes and blocks, each with replacement."""
        drawn = [
            np.concatenate(
                [np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)]
            ).astype(np.float64)
            for count in (nodes, blocks, seeds)
        ]
        return cls(drawn[2], drawn[0], drawn[1])

    def sums(self, cells: Floats) -> Floats:
        """The sum of [K, N, B] cells (mean over the seeds) in each resample, [S]."""
        return self._over_seeds([self.nodes @ seed for seed in cells])

    def sums_over_time(self, cells: Floats) -> Floats:
        """The same of [K, B] cells, that belong to no node."""
        return self._over_seeds(list(cells))

    def difference_of_sums(self, theirs: Floats, ours: Floats) -> Interval:
        """Theirs less ours."""
        return interval(self.sums(theirs - ours))

    def rate(self, part: Floats, whole: Floats) -> Interval | None:
        """A rate, None where there is nothing to count."""
        return interval(self._rates(part, whole)) if whole.sum() else None

    def difference_of_rates(
        self, theirs: tuple[Floats, Floats], ours: tuple[Floats, Floats]
    ) -> Interval | None:
        """Their rate less ours, each (part, whole); None where either has nothing to count."""
        if theirs[1].sum() == 0 or ours[1].sum() == 0:
            return None
        return interval(self._rates(*theirs) - self._rates(*ours))

    def _rates(self, part: Floats, whole: Floats) -> Floats:
        rates: Floats = self.sums(part) / np.maximum(self.sums(whole), 1e-9)
        return rates

    def _over_seeds(self, by_block: list[Floats]) -> Floats:
        """Weigh [K] arrays of [S, B] or [B] by block, then by seed."""
        by_seed = np.stack([(seed * self.blocks).sum(axis=1) for seed in by_block], axis=1)
        total: Floats = (by_seed * self.seeds).mean(axis=1)
        return total


def interval(samples: Floats) -> Interval:
    """The figure itself (row 0) and its percentile interval."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples[1:], [tail, 100 - tail])
    return Interval(float(samples[0]), float(low), float(high))
