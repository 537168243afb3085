"""Decides recorded production again, under the recorded policy or another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from extender.decision_log import Decision
from extender.recording import SUFFIX, Recorded, Refresh
from models.policy import Policy
from shadow.batch import BatchReader
from shadow.challenge import reclaiming
from shadow.tail import Position


class Redecided(msgspec.Struct):
    """How logged decisions come out.

    decisions: decided again; unrecorded: those that could not be. different: with other candidates
    than logged, of those that the extender knew. gained, lost: candidates of these that are new,
    and that are no longer. placed, refused: decisions that had no candidate and now have one, and
    the reverse.
    """

    decisions: int = 0
    unrecorded: int = 0
    different: int = 0
    gained: int = 0
    lost: int = 0
    placed: int = 0
    refused: int = 0


def redecide(log: Path, policy: Policy | None) -> Redecided:
    """Decide all that is logged and recorded again.

    Forecasts, promises and who is too old to promise on stay as they were: what another target or
    age would have made of them is not known.

    Args:
        log: the decision log; its recording lies beside it.
        policy: to decide by; None for that by which each was decided.

    Raises:
        ArchimedesError: a file cannot be read.
    """
    found = Redecided()
    for decision, recorded in _decisions(log, policy):
        if recorded is None:
            found.unrecorded += 1
            continue
        names = {row: name for name, row in recorded.snapshot.index.items()}
        rows = recorded.rows[recorded.again().passed]
        now = {names[row] for row in rows.tolist() if row >= 0}
        then = {
            candidate.node for candidate in decision.candidates
        } & recorded.snapshot.index.keys()
        found.decisions += 1
        found.different += now != then
        found.gained += len(now - then)
        found.lost += len(then - now)
        found.placed += bool(now and not then)
        found.refused += bool(then and not now)
    return found


def _decisions(log: Path, policy: Policy | None) -> Iterator[tuple[Decision, Recorded | None]]:
    """Logged decisions with what they were made on, under the policy."""
    reader, position, share = BatchReader(log, Path(f"{log}{SUFFIX}"), 0.0), Position(), 1.0
    full = True
    while full:
        batch = reader.read(position, 0.0, math.inf)
        position, full = batch.position, batch.full
        for event in batch.events:
            match event:
                case Refresh():
                    share = event.advertise_share
                case Decision():
                    yield event, None
                case (decision, recorded):
                    if policy is not None:
                        snapshot = reclaiming(recorded.snapshot, policy, share)
                        recorded = replace(recorded, snapshot=snapshot, policy=policy)
                    yield decision, recorded
