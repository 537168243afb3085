"""Preempt as a pure function: which nodes have room once the proposed victims are gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from msgspec.structs import replace

from extender.decide import Ask, room
from extender.ledger import Entry
from extender.snapshot import Reason, Snapshot


def rooms(
    snapshot: Snapshot,
    ask: Ask,
    victims: Mapping[str, Collection[str]],
    entry: Callable[[str], Entry | None],
) -> dict[str, Reason]:
    """Whether the pod fits on each of the proposed nodes after its victims' eviction.

    An online pod fits on all of them: its CPU is kube-scheduler's own business. An offline pod fits
    where filter would pass it, were the victims' own promises there given back. A victim that was
    promised nothing on that node frees nothing: what an online pod used stays in the node's
    forecast until the next refresh.

    Args:
        snapshot: what is known, without the charge of the pod itself.
        ask: what the pod wants.
        victims: node name -> UIDs of the pods that would go, without the pod itself.
        entry: the ledger's entry of a UID, None where there is none.
    """
    if not ask.offline:
        return dict.fromkeys(victims, Reason.FITS)
    rows = snapshot.rows(list(victims))
    freed = np.zeros_like(snapshot.promised)
    for row, uids in zip(rows.tolist(), victims.values(), strict=True):
        if row >= 0:
            freed[row] = _freed(row, uids, entry)
    emptier = replace(snapshot, promised=snapshot.promised - freed)
    reasons, _ = room(emptier, rows, ask)
    return dict(zip(victims, map(Reason, reasons.tolist()), strict=True))


def _freed(row: int, uids: Collection[str], entry: Callable[[str], Entry | None]) -> int:
    """Millicores charged on a row for these pods, each of them counted once."""
    entries = (entry(uid) for uid in set(uids))
    return sum(found.millicpu for found in entries if found is not None and row in found.rows)
