"""What a replay recorded: arrays from which every figure is computed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from models.arrays import Floats, Floats32, Ints
from models.policy import Policy
from shadow.cluster import Fleet
from shadow.options import ReplayOptions
from shadow.scenario import Pods

RESOURCES = "resources"
"""No node has the CPU, memory, or pod slots by kube-scheduler's own count."""

CONSTRAINTS = "constraints"
"""Nodes have the room, but taints, affinity or topology spread forbid them."""


class State(IntEnum):
    """What had become of a pod when the replay stopped; every pod is in one state."""

    RUNNING = 0
    FINISHED = 1
    """It ended, or for an online pod was deleted, after it ran."""
    WAITING = 2
    REFUSED = 3
    """It waits, and asks for more than any node could give with nothing on it."""
    MISSED = 4
    """An online pod that was deleted while it waited."""


class Ending(IntEnum):
    """How a run ended."""

    NATURAL = 0
    """It was done, or deleted, or still goes on."""
    EVICTED = 1
    """Its node was hot."""
    PREEMPTED = 2
    """An online pod needed its place."""
    LEFT = 3
    """Its node went away."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Each time that a pod ran on a node; all arrays are [R], in the order of their begin.

    Fields:
        pod, node: indices.
        begin, end: seconds since the epoch; a run that goes on ends at the replay's stop.
        free: millicores that were reclaimable on the node for the pod's horizon, before any
            promise, when it was promised; -1 for a run that is no promise.
        ending: of `Ending`.
    """

    pod: Ints
    node: Ints
    begin: Ints
    end: Ints
    free: Ints
    ending: Ints


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Each refresh: time [R] in seconds since the epoch; forecast and truth [R, N, H] in cores.

    The truth is the highest window of the pods that were on the node, NaN where not known.
    """

    time: Ints
    forecast: Floats32
    truth: Floats32


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The recording of a replay of [start, stop), seconds since the epoch.

    Fields:
        trace, model_version, policy, options: what was replayed, with what.
        pods: those of the scenario; state: [P] of `State`; attempts: [P] decisions about each.
        waited: [P] seconds from arrival until it first ran, was deleted (only online pods are), or
            until the stop.
        refused: how many pods had to wait for each reason (`extender.snapshot.Reason` in lower
            case, or RESOURCES or CONSTRAINTS where kube-scheduler's own filters left no node).
        used: [N, T] cores that online pods used in each window, None where the trace has no usage.
        forecasts: None where the trace has no usage.
        decisions: how many were taken.
        latency: seconds of each decision; empty unless a clock was given.
    """

    trace: str
    model_version: str
    policy: Policy
    options: ReplayOptions
    start: int
    stop: int
    fleet: Fleet
    pods: Pods
    state: Ints
    attempts: Ints
    waited: Ints
    refused: dict[str, int]
    runs: Runs
    used: Floats32 | None
    forecasts: Forecasts | None
    decisions: int
    latency: Floats
