"""What a policy search may change: the numeric fields of a policy and their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from msgspec.inspect import FloatType, IntType, StructType, type_info

from models.errors import SettingsError
from models.policy import Policy

NARROWER: dict[str, tuple[float, float]] = {"ceiling": (0.7, 0.98)}
"""Where a field allows more than a trace can speak for: below 70 % a node gives nothing back, and
2 % stay free for bursts shorter than the trace's windows, which no replay can see."""

LEFT_ALONE = ("max_usage_age", "system_reserve", "spread_weight")
"""About what no trace holds: monitoring gaps, daemons that nothing measures, zones that fail. A
search would take them away, as it never sees what they are for; searched only where named."""

OPEN_END = 4.0
"""A field is searched up to this many times its default (at least 1), and not beyond its bound:
that of a weight says no more than that it is a number."""

DIGITS = 3
"""Significant digits of a value: more than a trace can tell apart, and short to read."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One field of the policy, searched in [low, high]; ``whole`` for integers."""

    name: str
    low: float
    high: float
    whole: bool

    def around(self, value: float) -> Dimension:
        """The range, as wide as a value needs."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def rounded(self, value: float) -> float:
        """A legible value within the range."""
        if self.whole:
            return round(value)
        return float(np.clip(float(f"{value:.{DIGITS}g}"), self.low, self.high))


def search_space(base: Policy, fields: Sequence[str] = ()) -> tuple[Dimension, ...]:
    """The numeric fields of `Policy` with the bounds that they declare, or those named.

    Every range holds the value of ``base``, from which the search begins.

    Raises:
        SettingsError: a name is no numeric field of the policy.
    """
    known = {found.name: found for found in _dimensions()}
    wrong = [name for name in fields if name not in known]
    if wrong:
        raise SettingsError(f"--field {wrong[0]}: choose among {', '.join(known)}")
    chosen = fields or [name for name in known if name not in LEFT_ALONE]
    return tuple(known[name].around(getattr(base, name)) for name in dict.fromkeys(chosen))


def with_values(policy: Policy, space: Sequence[Dimension], values: Mapping[str, float]) -> Policy:
    """The policy with some fields changed.

    Raises:
        SettingsError: the policy refuses a value.
    """
    changed = {
        d.name: d.rounded(values[d.name])
        for d in space
        if values[d.name] != getattr(policy, d.name)  # its own value stays to the last digit
    }
    try:
        return msgspec.convert({**msgspec.to_builtins(policy), **changed}, Policy)
    except msgspec.ValidationError as e:
        raise SettingsError(f"the policy cannot be: {e}") from e


def _dimensions() -> list[Dimension]:
    info = type_info(Policy)
    if not isinstance(info, StructType):
        raise TypeError("a policy is a msgspec struct")
    return [
        _dimension(field.name, field.type, field.default)
        for field in info.fields
        if isinstance(field.type, FloatType | IntType)
    ]


def _dimension(name: str, kind: FloatType | IntType, default: float) -> Dimension:
    whole = isinstance(kind, IntType)
    # An exclusive bound is left by the smallest step that counts.
    step = 1.0 if whole else 1e-3
    low = kind.ge if kind.ge is not None else 0.0 if kind.gt is None else kind.gt + step
    bound = kind.le if kind.lt is None else kind.lt - step
    high = max(OPEN_END * default, 1.0)
    high = high if bound is None else min(high, bound)
    low, high = NARROWER.get(name, (float(low), float(high)))
    return Dimension(name, low, high, whole)
