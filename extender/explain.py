"""Why a pod is where it is, or waits: from the decision log and the nodes as they are now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from extender.ask import DURATION_ANNOTATION
from extender.decision_log import Binding, Candidate, Decision, End, Preemption, Record
from models.errors import ArchimedesError


class HorizonView(msgspec.Struct, frozen=True):
    """Of a node's figures for one horizon what is read here."""

    hours: int
    reclaimable_millicpu: int
    withheld_millicpu: int
    available_millicpu: int

    @property
    def promisable(self) -> int:
        """Millicores for all promises together: what resource locks leave."""
        return self.reclaimable_millicpu - self.withheld_millicpu


class NodeView(msgspec.Struct, frozen=True):
    """Of a node in /v1/nodes what is read here."""

    node: str
    allocatable_cores: float
    usage_age_seconds: float | None
    blocked: str
    promised_millicpu: int
    horizons: tuple[HorizonView, ...]

    def at(self, hours: int) -> HorizonView:
        """The figures for a horizon. Raises ArchimedesError where there are none."""
        for figures in self.horizons:
            if figures.hours == hours:
                return figures
        raise ArchimedesError(
            f"the extender's answer has no figures of {self.node} for {hours} h; is it of another "
            "version than this command?"
        )


class Explanation(msgspec.Struct, frozen=True):
    """The newest decision about a pod, and what became of it.

    rejected: nodes by failure text. hot: nodes that were ranked out for being hot. ranked_out:
    nodes that fit, but others were preferred.
    decisions: how many are remembered. node: where it was bound, or empty. bind_error: why the last
    bind failed, or empty. ended: whether it has left that node. preemption: the newest answer about
    whom it might displace, if it was asked for. would_help: what would have to change, where no
    node could take it.
    """

    pod: str
    uid: str
    offline: bool
    millicpu: int
    horizon_hours: int
    time: float
    model_version: str
    snapshot: int
    decisions: int
    offered: int
    rejected: dict[str, int]
    hot: int
    ranked_out: int
    candidates: tuple[Candidate, ...]
    node: str
    bind_error: str
    ended: bool
    preemption: Preemption | None
    would_help: tuple[str, ...]


def explanation(records: Sequence[Record], nodes: Sequence[NodeView]) -> Explanation | None:
    """Explain the newest decision; None where there is none.

    Args:
        records: of one pod's name, the newest first; only those of its newest UID count.
        nodes: as they are now.
    """
    told = [record for record in records if not isinstance(record, End)]  # of an older pod, maybe
    own = [record for record in told if record.uid == told[0].uid]
    decisions = [record for record in own if isinstance(record, Decision)]
    preemption = next((record for record in own if isinstance(record, Preemption)), None)
    if decisions:
        last = decisions[0]
    elif preemption is not None:
        last = _unfiltered(preemption)
    else:
        return None
    bindings = [record for record in own if isinstance(record, Binding)]
    bound = next((binding for binding in bindings if not binding.error), None)
    error = bindings[0].error if bindings and bound is None else ""
    # An ask that cannot be met anywhere is recorded as 0; why not stands in the refusals.
    waits = last.offline and last.millicpu > 0 and not last.candidates and bound is None
    left_out = last.offered - len(last.candidates) - sum(last.rejected.values())
    return Explanation(
        pod=last.pod,
        uid=last.uid,
        offline=last.offline,
        millicpu=last.millicpu,
        horizon_hours=last.horizon_hours,
        time=last.time,
        model_version=last.model_version,
        snapshot=last.snapshot,
        decisions=len(decisions),
        offered=last.offered,
        rejected=last.rejected,
        hot=last.hot,
        ranked_out=left_out - last.hot,
        candidates=tuple(sorted(last.candidates, key=lambda c: -c.score)),
        node=bound.node if bound is not None else "",
        bind_error=error,
        ended=any(isinstance(record, End) and record.uid == last.uid for record in records),
        preemption=preemption,
        would_help=_would_help(last, nodes) if waits else (),
    )


def _unfiltered(preemption: Preemption) -> Decision:
    """What a preempt call says of a pod whose filter calls are not remembered."""
    return Decision(
        time=preemption.time,
        pod=preemption.pod,
        uid=preemption.uid,
        offline=preemption.offline,
        millicpu=preemption.millicpu,
        horizon_hours=preemption.horizon_hours,
        snapshot=preemption.snapshot,
        model_version=preemption.model_version,
        offered=0,
        candidates=(),
        rejected={},
    )


def _would_help(decision: Decision, nodes: Sequence[NodeView]) -> tuple[str, ...]:
    """What would have to change for the pod to be placed, by the nodes as they are now.

    These are the nodes that kube-scheduler offered, where the decision names them.
    """
    ask, hours = decision.millicpu, decision.horizon_hours
    if not 0 < decision.offered < len(nodes):
        return tuple(_advice(ask, hours, nodes, all_offered=True))
    named = decision.refused
    asked = [node for node in nodes if node.node in named] if named else nodes
    advice = tuple(_advice(ask, hours, asked, all_offered=bool(named)))
    which = "these" if named else f"all {len(nodes)} nodes"
    first = f"kube-scheduler offered it {decision.offered} of {len(nodes)} nodes; of {which}:"
    return (first, *advice) if advice else ()


def _advice(ask: int, hours: int, nodes: Sequence[NodeView], *, all_offered: bool) -> Iterator[str]:
    """What would help on these nodes, all of which the pod may run on where ``all_offered``."""
    for text, count in Counter(node.blocked for node in nodes if node.blocked).items():
        yield f"{count} of {len(nodes)} nodes promise nothing: {text}"
    usable = [node for node in nodes if not node.blocked]
    if not usable:
        return
    best = max(usable, key=lambda node: node.at(hours).available_millicpu)
    most = best.at(hours).available_millicpu
    if most >= ask:
        then = "wait for the next attempt" if all_offered else "if kube-scheduler offers it that"
        yield f"{best.node} could promise {most}m for {hours} h now: {then}"
        return
    if most:
        yield f"ask for at most {most}m: {best.node} has the most for {hours} h"
    yield from _shorter(ask, hours, usable)
    yield from _fewer_promises(ask, hours, usable)
    yield from _after_locks(ask, hours, usable)


def _shorter(ask: int, hours: int, nodes: Sequence[NodeView]) -> Iterator[str]:
    """The longest shorter horizon for which a node could promise the ask."""
    for figures in reversed(nodes[0].horizons):
        if figures.hours < hours:
            able = [n for n in nodes if n.at(figures.hours).available_millicpu >= ask]
            if able:
                yield (
                    f"end within {figures.hours} h, and say so with the annotation "
                    f"{DURATION_ANNOTATION}: {len(able)} of {len(nodes)} nodes could promise it"
                )
                return


def _fewer_promises(ask: int, hours: int, nodes: Sequence[NodeView]) -> Iterator[str]:
    """The node on which the least would have to end."""
    able = [n for n in nodes if n.at(hours).promisable >= ask]
    if able:
        missing = {n.node: ask - n.at(hours).available_millicpu for n in able}
        least = min(missing, key=missing.__getitem__)
        yield (
            f"on {len(able)} of {len(nodes)} nodes it would fit beside fewer offline pods: "
            f"on {least}, {missing[least]}m of what is promised would have to end"
        )


def _after_locks(ask: int, hours: int, nodes: Sequence[NodeView]) -> Iterator[str]:
    """Where it would fit but for resource locks."""
    left = [n.at(hours).reclaimable_millicpu - n.promised_millicpu for n in nodes]
    able = sum(each >= ask for each in left)
    if able:
        yield (
            f"resource locks withhold what it asks for on {able} of {len(nodes)} nodes: "
            "`archimedes nodes NAME` says which and until when"
        )
