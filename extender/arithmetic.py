"""How a node's available millicores come about: whole numbers that add up exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from models.policy import HORIZONS, Policy


class Term(msgspec.Struct, frozen=True):
    """One summand in millicores: what gives is positive, what takes is negative."""

    name: str
    text: str
    millicpu: int


class Arithmetic(msgspec.Struct, frozen=True):
    """One horizon: the terms' sum is ``available_millicpu``, which is what filter compares."""

    hours: int
    terms: tuple[Term, ...]
    available_millicpu: int


def arithmetic(
    allocatable: float,
    peaks: Sequence[float],
    reclaimable: Sequence[int],
    taken: Mapping[str, Sequence[int]],
    blocked: str,
    policy: Policy,
) -> tuple[Arithmetic, ...]:
    """The terms for each horizon; a term that is always there may be 0, others only appear.

    Args:
        allocatable: cores.
        peaks: [H] cores, the forecast; a longer horizon counts with at least a shorter one's.
        reclaimable: [H] millicores, before anything is taken.
        taken: by term, [H] millicores that are not for new promises.
        blocked: why nothing new is promised, or empty.
        policy: ceiling and reserve.
    """
    found, peak = [], -math.inf
    for at, hours in enumerate(HORIZONS):
        peak = max(peak, peaks[at])
        terms = _reclaimable(allocatable, peak, reclaimable[at], policy)
        terms += [Term(name, name, -amounts[at]) for name, amounts in taken.items()]
        left = sum(term.millicpu for term in terms)
        if left < 0:
            terms.append(Term("floor", "never below 0", -left))
        elif blocked and left:
            terms.append(Term("blocked", blocked, -left))
        found.append(Arithmetic(hours, tuple(terms), sum(term.millicpu for term in terms)))
    return tuple(found)


def _reclaimable(allocatable: float, peak: float, reclaimable: int, policy: Policy) -> list[Term]:
    """The terms up to what is reclaimable.

    Each running sum is rounded down as `models.reclaim` rounds the last one, so the terms are whole
    and their sum is exact.
    """
    below_ceiling = allocatable * policy.ceiling
    sums = (
        allocatable,
        below_ceiling,
        below_ceiling - policy.system_reserve,
        below_ceiling - policy.system_reserve - peak,
    )
    whole = [math.floor(cores * 1000 + 1e-6) for cores in sums]
    steps = [whole[0], *(after - before for before, after in pairwise(whole))]
    texts = {
        "allocatable": "allocatable CPU",
        "above_ceiling": f"above the ceiling of {policy.ceiling:g}",
        "system_reserve": "system reserve",
        "forecast": "forecast peak of online pods",
    }
    terms = [Term(*of, step) for of, step in zip(texts.items(), steps, strict=True)]
    over = reclaimable - whole[-1]
    if over > 0:
        terms.append(Term("floor", "never below 0", over))
    elif over < 0 and reclaimable == 0:
        terms.append(Term("no_forecast", "no forecast, nothing is promised", over))
    elif over < 0:
        terms.append(Term("not_advertised", "more than the node advertises", over))
    return terms
