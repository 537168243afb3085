"""Node names to rows, hundreds at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from models.arrays import Ints

_SLOTS_PER_NAME = 8
"""At most one name in eight finds its slot taken and goes the longer way; 128 to 256 bytes each."""

_SLOT = np.dtype([("hash", np.int64), ("row", np.int64)])


class NodeIndex(dict[str, int]):
    """Name -> row, as a dict; not to be changed once `rows` has been called.

    A dict's entries, keys and values lie all over the memory. Looking 500 names up one by one waits
    for each of them, which between other programs' work takes longer than the rest of a decision.
    So hashes are compared first, in one array for all names at once. Two names with the same hash
    of 64 bits are not expected: Python's is keyed by a secret of the process.
    """

    def rows(self, names: Sequence[str]) -> Ints:
        """Rows of node names, [K], -1 for a name that is not known."""
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        table = self._table
        found = table.take(hashes & (len(table) - 1))
        rows: Ints = found["row"].copy()
        others = (found["hash"] != hashes).nonzero()[0]
        rows[others] = [self.get(names[at], -1) for at in others.tolist()]
        return rows

    @cached_property
    def _table(self) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Hash and row of names, each at the slot that the last bits of its hash name."""
        slots = 1 << (_SLOTS_PER_NAME * len(self)).bit_length()
        table = np.zeros(slots, _SLOT)
        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        at = hashes & (slots - 1)
        # A slot that nobody has holds a hash of which none ends like it, as 0 would in the first.
        table["hash"] = ~np.arange(slots)
        table["hash"][at] = hashes
        table["row"][at] = np.fromiter(self.values(), np.int64, len(self))
        return table
