"""Figures of several seeds as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

S = TypeVar("S", bound=msgspec.Struct)


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
