"""What a promise must satisfy and how nodes are ranked: data, versioned with the forecaster."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

HORIZONS: tuple[int, ...] = (1, 3, 6, 12, 24)
"""Hours for which a promise can be made; a pod takes the smallest that covers its duration."""

TARGETS: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Violation probabilities for which every model version carries calibrated knobs."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds and score weights; a small frozen value.

    Each default explains itself: unit, why this value, what a higher one costs. Bounds keep scores
    and figures finite: one that is not would rank nodes at random, and no JSON could hold it.
    """

    target: Annotated[float, Meta(ge=0.005, le=0.1)] = 0.01
    """Accepted probability that a node's real peak exceeds its forecast within the horizon.
    At 1 %, one forecast in a hundred is exceeded at some time; higher reclaims more."""

    ceiling: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Share of allocatable CPU that online peaks and promises may fill together.
    5 % stay free for bursts shorter than a 5-minute window; higher reclaims more."""

    system_reserve: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.1
    """Cores kept free on each node beyond what its kubelet already reserves.
    0.1 covers a few unmeasured system daemons; higher costs that much on every node."""

    max_usage_age: Annotated[float, Meta(gt=0, le=604_800)] = 900.0
    """Seconds after which a node's usage data is too old to promise on (three windows).
    Higher rides out longer monitoring gaps, on older knowledge."""

    slack_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    """Weight of the share of a node's CPU that stays reclaimable after the pod was placed.
    Higher spreads offline pods over the emptiest nodes."""

    certainty_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.5
    """Weight of how narrow the forecast is: 1 - (forecast - expected peak) / allocatable.
    Higher prefers predictable nodes over merely empty ones."""

    balance_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    """Weight, for online pods, of the share of a node that its forecast peak leaves free.
    Higher spreads predicted peaks more evenly over the cluster, at whatever hour they fall."""

    peak_hour_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    """Weight, for online pods, of the share of a node that is left free at the hour when the node
    and the pod together peak. Higher prefers nodes whose peaks fall at other hours than the pod's.
    """

    spread_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 4.0
    """Weight of how few siblings run on a node and in its zone, where a replica is left one node.
    4, beside an online pod's default weights of 2 in total, keeps the proportion that
    kube-scheduler has between its spread and its score for free CPU; higher spreads replicas more
    evenly."""

    rebuild_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    """Added to the node of a predecessor for a pod that asks to be rebuilt in place. 1 is worth a
    whole empty node to an offline pod and half of one to an online pod, whose two weights add up to
    2; higher than all other weights together makes it the best node always."""

    hot_share: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of allocatable CPU above which a node is hot, by its usage now or its forecast peak.
    0.9 lies below the ceiling, so the guard acts before promises fail; lower narrows more."""

    hot_weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    """Taken from an offline pod's score on a node whose usage now is hot. 1 is worth a whole empty
    node: a hot node is taken only where no other fits about as well."""


def horizon_index(duration_s: float) -> int:
    """Index into HORIZONS of the smallest horizon that covers a duration in seconds.

    A pod that is expected to outlive the longest horizon takes the longest.
    """
    for index, hours in enumerate(HORIZONS):
        if duration_s <= hours * 3600:
            return index
    return len(HORIZONS) - 1
