"""What people see of the state: each node's arithmetic, and whether all is well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from extender.arithmetic import Arithmetic, arithmetic
from extender.decide import Ask, explain
from extender.ledger import Entry, Stage
from extender.snapshot import Reason, Snapshot
from extender.state import NO_MODEL, State
from extender.telemetry import Telemetry
from models.arrays import Ints
from models.policy import HORIZONS, Policy

if TYPE_CHECKING:
    from extender.champion import ModelStatus

_MAX_ASTRAY = 20
"""Locks that concern nothing and are named by health: a mistyped name is among a few."""


class HorizonTerms(msgspec.Struct, frozen=True):
    """What can be promised for one horizon, never below 0.

    ``reclaimable - withheld - promised = available``

    ``reclaimable_millicpu`` is allocatable x ceiling - system reserve - forecast, in millicores, at
    most the advertised ceiling; ``withheld_millicpu`` is what resource locks take of it. Unknown
    figures are null.
    """

    hours: int
    forecast_cores: float
    expected_cores: float
    reclaimable_millicpu: int
    withheld_millicpu: int
    available_millicpu: int


class Promise(msgspec.Struct, frozen=True):
    """A pod's charge on the node; a held one is charged on every node that was offered.

    ``until``: when a hold is dropped, or a bound promise's horizon has passed; null while a binding
    is under way. ``overdue``: that has passed, and the node cannot cover the promise any more.
    """

    pod: str
    uid: str
    millicpu: int
    horizon_hours: int
    stage: str
    made: float
    until: float
    overdue: bool


class LockTerm(msgspec.Struct, frozen=True):
    """A resource lock that concerns the node; ``start`` and ``end`` in seconds since the epoch."""

    name: str
    reason: str
    start: float
    end: float
    millicpu: int


class NodeSummary(msgspec.Struct, frozen=True):
    """One node of the list; ``blocked`` says why nothing new is promised, empty where it is."""

    node: str
    allocatable_cores: float
    usage_age_seconds: float
    blocked: str
    promised_millicpu: int
    horizons: tuple[HorizonTerms, ...]


class NodeDetails(msgspec.Struct, frozen=True):
    """One node, term by term; ``arithmetic`` adds up to what filter compares with an ask."""

    summary: NodeSummary
    arithmetic: tuple[Arithmetic, ...]
    snapshot: int
    model_version: str
    ceiling: float
    system_reserve_cores: float
    emptied_millicpu: int
    promises: tuple[Promise, ...]
    locks: tuple[LockTerm, ...]


class Health(msgspec.Struct, frozen=True):
    """Whether the server is ready, and a text that says what it knows."""

    ready: bool
    text: str


def describe_nodes(snapshot: Snapshot, withheld: Ints, policy: Policy) -> list[NodeSummary]:
    """Every node, by name; of thousands this takes long enough to be a thread's work.

    Args:
        snapshot, withheld, policy: the state's of one moment; withheld as `State.withheld`.
    """
    return [
        _summary(snapshot, withheld, policy, name, row)
        for name, row in sorted(snapshot.index.items())
    ]


def describe_node(state: State, name: str, now: float) -> NodeDetails | None:
    """One node's arithmetic, or None where it is not known."""
    snapshot = state.snapshot(now)
    row = snapshot.index.get(name)
    if row is None:
        return None
    summary = _summary(snapshot, state.withheld(now), state.policy, name, row)
    return NodeDetails(
        summary=summary,
        arithmetic=_arithmetic(summary, state.policy),
        snapshot=snapshot.id,
        model_version=snapshot.model_version,
        ceiling=state.policy.ceiling,
        system_reserve_cores=state.policy.system_reserve,
        emptied_millicpu=int(snapshot.emptied[row]),
        promises=tuple(_promise(e, now) for e in state.ledger.entries() if row in e.rows),
        locks=tuple(
            LockTerm(lock.name, lock.reason, lock.start, lock.end, millicpu)
            for lock, millicpu in state.locks_on(name, float(snapshot.allocatable[row]), now)
        ),
    )


def health(state: State, status: ModelStatus, now: float) -> Health:
    """Whether every promise is known and the server is not stopping, and the figures behind it."""
    ready = state.ready and not state.draining
    silence = state.silence(now)
    blocked = _blocked(state.snapshot(now))
    lines = [
        f"[{'+' if state.ready else '-'}] nodes, pods and locks listed, ledger rebuilt",
        *(f"[-] not listed yet: {kind}" for kind in state.unlisted),
        f"[{'-' if state.draining else '+'}] not draining",
        *(f"[ ] {name}: {count}" for name, count in state.counts.items()),
        f"[ ] API server last heard: {f'{silence:.0f} s ago' if silence < math.inf else 'never'}",
        *_models(state.model_version, status),
        *([f"[ ] {_doubt(status)}: {status.reason}"] if status.reason else []),
        *(f"[ ] nodes blocked, {reason}: {count}" for reason, count in blocked.items() if count),
        f"[ ] resource locks that are not over: {sum(now < lock.end for lock in state.locks)}",
        *(f"[ ] resource lock {name} ignored: {why}" for name, why in state.lock_problems.items()),
        *_astray(state.locks_astray(now)),
        "ready" if ready else "not ready",
    ]
    return Health(ready, "\n".join(lines) + "\n")


def _models(serving: str, status: ModelStatus) -> list[str]:
    """What serves, and what shall as soon as a forecast was made with it."""
    chosen = status.version or NO_MODEL
    if serving == chosen:
        return [f"[ ] model: {serving} ({status.source})"]
    return [
        f"[ ] model: {serving}",
        f"[ ] model {chosen} ({status.source}) does not serve: no forecast was made with it yet",
    ]


def _astray(locks: Sequence[str]) -> list[str]:
    """A line for each of the first locks that concern nothing."""
    more = len(locks) - _MAX_ASTRAY
    return [
        *(f"[ ] resource lock {name} concerns no known node" for name in locks[:_MAX_ASTRAY]),
        *([f"[ ] {more} more resource locks concern no known node"] if more > 0 else []),
    ]


def _doubt(status: ModelStatus) -> str:
    """What the reason is about."""
    if status.source == "champion":
        return "whether there is a newer champion is not known, or it cannot serve"
    return "model is not the champion"


def observe(state: State, telemetry: Telemetry, now: float) -> None:
    """Set the metrics that describe the state as it is."""
    snapshot = state.snapshot(now)
    usable = snapshot.blocked == Reason.FITS
    telemetry.reclaimable.set(int(snapshot.free[usable, -1].sum()))
    telemetry.withheld.set(int(state.withheld(now)[usable, -1].sum()))
    telemetry.promised.set(state.ledger.bound_millicpu())
    telemetry.workloads_timed.set(len(state.runs))
    telemetry.watch_silence.set(state.silence(now))
    for reason, count in _blocked(snapshot).items():
        telemetry.blocked_nodes.labels(reason).set(count)


def _blocked(snapshot: Snapshot) -> dict[str, int]:
    """How many nodes each reason blocks."""
    blocked = snapshot.blocked[list(snapshot.index.values())]
    reasons = (Reason.STALE_USAGE, Reason.NO_FORECAST, Reason.DISCONNECTED)
    return {r.name.lower(): int(np.count_nonzero(blocked == r)) for r in reasons}


def _summary(
    snapshot: Snapshot, withheld: Ints, policy: Policy, name: str, row: int
) -> NodeSummary:
    promised = int(snapshot.promised[row])
    reason = Reason(int(snapshot.blocked[row]))
    return NodeSummary(
        node=name,
        allocatable_cores=float(snapshot.allocatable[row]),
        usage_age_seconds=float(snapshot.usage_age[row]),
        blocked=explain(reason, Ask(0, 0, offline=True), policy),
        promised_millicpu=promised,
        horizons=tuple(
            HorizonTerms(
                hours,
                float(snapshot.forecast[row, at]),
                float(snapshot.expected[row, at]),
                int(snapshot.free[row, at] + withheld[row, at]),
                int(withheld[row, at]),
                max(int(snapshot.free[row, at]) - promised, 0) if reason is Reason.FITS else 0,
            )
            for at, hours in enumerate(HORIZONS)
        ),
    )


def _arithmetic(node: NodeSummary, policy: Policy) -> tuple[Arithmetic, ...]:
    withheld = [terms.withheld_millicpu for terms in node.horizons]
    return arithmetic(
        node.allocatable_cores,
        [terms.forecast_cores for terms in node.horizons],
        [terms.reclaimable_millicpu for terms in node.horizons],
        {
            **({"withheld": withheld} if any(withheld) else {}),
            "promised": [node.promised_millicpu for _ in node.horizons],
        },
        node.blocked,
        policy,
    )


def _promise(entry: Entry, now: float) -> Promise:
    return Promise(
        entry.pod,
        entry.uid,
        entry.millicpu,
        HORIZONS[entry.horizon],
        entry.stage.value,
        entry.made,
        entry.expires,
        entry.stage is Stage.BOUND and entry.expires <= now,
    )
