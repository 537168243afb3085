"""kube-scheduler's default preemption: an online pod that fits nowhere displaces offline pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shadow.kube_scheduler import CPU, MEMORY, SLOTS, NodeState, Request


@dataclass(frozen=True, slots=True)
class Holder:
    """An offline pod that runs: its run, its node's row, what it holds, and since when."""

    run: int
    row: int
    request: Request
    begin: int


def preempt(
    nodes: NodeState, request: Request, holders: Sequence[Holder]
) -> tuple[int, tuple[int, ...]] | None:
    """The node on which the fewest offline pods have to go for a pod to fit, and their runs.

    All offline pods have the same, lower priority and no disruption budget, so what is left of
    ``pickOneNodeForPreemption`` is: the fewest victims, then those that began last.

    Args:
        nodes: what is free now; the pod fits on none of them.
        request: of the pod.
        holders: offline pods that run.

    Returns:
        The row and the victims, or None where even all of them are not enough.
    """
    on_node: dict[int, list[Holder]] = {}
    for holder in holders:
        on_node.setdefault(holder.row, []).append(holder)
    best: tuple[int, int, int] | None = None
    chosen: tuple[int, tuple[int, ...]] | None = None
    for row in sorted(on_node):
        victims = _victims(nodes, row, request, on_node[row])
        if not victims:
            continue
        rank = (len(victims), -min(victim.begin for victim in victims), row)
        if best is None or rank < best:
            best, chosen = rank, (row, tuple(victim.run for victim in victims))
    return chosen


def _victims(
    nodes: NodeState, row: int, request: Request, holders: Sequence[Holder]
) -> list[Holder]:
    """Who has to go on a node; empty where even all of them are not enough.

    As `SelectVictimsOnNode`: take all away, then let the oldest stay for as long as the pod fits.
    """
    spare = [
        int(nodes.free[CPU, row]) + sum(h.request.millicpu for h in holders) - request.millicpu,
        int(nodes.free[MEMORY, row]) + sum(h.request.memory for h in holders) - request.memory,
        int(nodes.free[SLOTS, row]) + len(holders) - 1,
    ]
    if not _enough(spare, request):
        return []
    victims = []
    for holder in sorted(holders, key=lambda h: h.begin):
        without = [
            spare[0] - holder.request.millicpu,
            spare[1] - holder.request.memory,
            spare[2] - 1,
        ]
        if _enough(without, request):
            spare = without
        else:
            victims.append(holder)
    return victims


def _enough(spare: Sequence[int], request: Request) -> bool:
    """Whether what would be spare is enough; a resource that is not requested is not looked at."""
    cpu, memory, slots = spare
    return (cpu >= 0 or not request.millicpu) and (memory >= 0 or not request.memory) and slots >= 0
