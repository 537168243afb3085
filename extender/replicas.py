"""On which nodes the pods of each owner run, of those that kube-scheduler spreads by default."""

from __future__ import annotations

import numpy as np

from models.arrays import Ints

_NONE: Ints = np.zeros(0, np.int64)


class Replicas:
    """Pods by their owner and their node's row."""

    def __init__(self) -> None:
        self._on: dict[str, dict[int, int]] = {}

    def add(self, owner: str, row: int) -> None:
        """Count a pod; nothing where ``owner`` is empty."""
        if owner:
            on = self._on.setdefault(owner, {})
            on[row] = on.get(row, 0) + 1

    def remove(self, owner: str, row: int) -> None:
        """Count a pod no longer.

        Raises:
            KeyError: it was not counted.
        """
        if not owner:
            return
        on = self._on[owner]
        on[row] -= 1
        if not on[row]:
            del on[row]
            if not on:
                del self._on[owner]

    def rows(self, owner: str) -> Ints:
        """[S] the rows of an owner's pods, one for each pod."""
        on = self._on.get(owner)
        if on is None:
            return _NONE
        rows = np.fromiter(on, np.int64, len(on))
        return rows.repeat(np.fromiter(on.values(), np.int64, len(on)))
