"""Kubernetes quantities: "1500m", "2k", "1Ki", "1e3"."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_FORM = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]{1,3})|([numkMGTPE]|[KMGTPE]i)?)"
)
_MAX_LENGTH = 64
"""Longer texts are no quantities that an API server would have let in."""

_MAX_EXPONENT = 99
"""Beyond it nothing changes: every text of that length is more than `MAX`, or less than a nano,
which an API server rounds up. Powers of 999 would take fifty times as long."""

_SCALE = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", start=1)},
    **{letter + "i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}

MAX = 2**53
"""Larger values count as this, which no node has: sums of them still fit an int64."""


class QuantityError(ValueError):
    """A text that is no quantity, or not of the kind that is asked for."""


def parse_quantity(text: str) -> Fraction:
    """The exact value of a quantity; exponents count as 99, or -99, at most.

    Raises:
        QuantityError: it is not one.
    """
    match = _FORM.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise QuantityError(f"{text[:_MAX_LENGTH]!r} is not a quantity")
    number, exponent, suffix = match.groups()
    if exponent:
        power = max(min(int(exponent[1:]), _MAX_EXPONENT), -_MAX_EXPONENT)
        return Fraction(number) * Fraction(10) ** power
    return Fraction(number) * _SCALE.get(suffix, Fraction(1))


@lru_cache(maxsize=4096)
def whole(text: str) -> int:
    """A quantity that must be a whole number, not negative, such as that of an extended resource.

    Raises:
        QuantityError: it is something else.
    """
    value = parse_quantity(text)
    if value.denominator != 1 or value < 0:
        raise QuantityError(f"{text!r} is not a whole number of units")
    return min(int(value), MAX)


@lru_cache(maxsize=4096)
def cores(text: str) -> float:
    """A CPU quantity in cores, rounded up to whole millicores as kube-scheduler counts it.

    A negative one, which no API server lets in, counts as 0.

    Raises:
        QuantityError: it is no quantity.
    """
    millicores = -(-parse_quantity(text) * 1000 // 1)
    return min(max(int(millicores), 0), MAX) / 1000
