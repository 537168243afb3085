"""Preempt as a pure function: which nodes would have room once the proposed victims are gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from extender.decide import Ask, decide
from extender.ledger import Entry
from extender.snapshot import Snapshot
from models.policy import Policy


def nodes_with_room(
    snapshot: Snapshot,
    ask: Ask,
    policy: Policy,
    victims: Mapping[str, Collection[str]],
    entry: Callable[[str], Entry | None],
) -> list[str]:
    """Those of the proposed nodes on which the pod fits after its victims' eviction.

    An online pod keeps all of them: its CPU is kube-scheduler's own business. An offline pod keeps
    a node where filter would pass it, were the victims' own promises there given back. A victim
    that was promised nothing on that node frees nothing: what an online pod used stays in the
    node's forecast until the next refresh.

    Args:
        snapshot: what is known, without the charge of the pod itself.
        ask: what the pod wants.
        policy: thresholds.
        victims: node name -> UIDs of the pods that would go, without the pod itself.
        entry: the ledger's entry of a UID, None where there is none.
    """
    names = list(victims)
    if not ask.offline:
        return names
    rows = snapshot.rows(names)
    freed = np.zeros_like(snapshot.promised)
    for row, uids in zip(rows.tolist(), victims.values(), strict=True):
        if row >= 0:
            freed[row] = _freed(row, uids, entry)
    emptier = replace(snapshot, promised=snapshot.promised - freed)
    passed = decide(emptier, rows, ask, policy, candidates=0).passed
    return [names[at] for at in passed.tolist()]


def _freed(row: int, uids: Collection[str], entry: Callable[[str], Entry | None]) -> int:
    """Millicores charged on a row for these pods, each of them counted once."""
    entries = (entry(uid) for uid in set(uids))
    return sum(found.millicpu for found in entries if found is not None and row in found.rows)
