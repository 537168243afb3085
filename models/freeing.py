"""Giving back what is large, in a way that others can live with."""

from __future__ import annotations

from typing import Any

_AT_ONCE = 1000


def free_in_pieces(items: list[Any]) -> None:
    """Empty a list of a hundred thousand objects, in a thread beside the event loop.

    In one go that takes milliseconds, in which no other thread has the interpreter.
    """
    while items:
        del items[-_AT_ONCE:]
