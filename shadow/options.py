"""How a replay is run: data, so that a result can be had again."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from models.grid import WINDOW
from models.trace_validation import LONGEST_DAYS, MOST_CORES, MOST_MEMORY


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replay decides and on what; each default explains itself.

    A policy says how the extender decides, these say what it meets.
    """

    seed: Annotated[int, Meta(ge=0)] = 0
    """Of the offline stream, of kube-scheduler's choice among equals, and of the blur."""

    start: int | None = None
    """Seconds since the epoch at which deciding begins; what lies before is history. By default 7
    days into the usage, or half of it where that is less; without usage the first pod's start."""

    hours: Annotated[float, Meta(gt=0, le=24 * LONGEST_DAYS)] | None = None
    """How long to decide for; with usage a multiple of its 5-minute windows. By default 24 h, or
    what the usage still covers; without usage until the last pod's end."""

    nodes: Annotated[int, Meta(ge=1)] | None = None
    """Equal nodes instead of the trace's own. Where the trace has none, by default one for ten
    online pods, so that peaks of several pods have to be forecast together."""

    node_cpu: Annotated[float, Meta(gt=0, le=MOST_CORES)] | None = None
    """Allocatable cores of an equal node. By default so many that online requests fill ``fill``."""

    node_memory: Annotated[float, Meta(gt=0, le=MOST_MEMORY)] | None = None
    """Allocatable GiB of an equal node. By default 4 a core, the common ratio, or twice what online
    pods request where that is more: where a trace knows little of memory, CPU should decide."""

    fill: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Share of equal nodes' CPU that online requests fill at their highest. Clusters are called
    full at 90 to 95 %; higher leaves kube-scheduler no room to place them."""

    max_pods: Annotated[int, Meta(ge=1)] = 110
    """Pods that a node takes: kubelet's default."""

    offline_load: Annotated[float, Meta(ge=0, le=100)] = 0.75
    """Where a trace has no offline pods: cores that generated jobs would keep busy if none ever
    waited, as a share of the CPU that online pods left idle before the start. Three quarters is
    about what a good forecast gives back, so there is mostly a job that waits; lower reclaims less
    for want of work, higher lets more jobs wait for longer, and each of them takes memory."""

    refresh: Annotated[int, Meta(ge=WINDOW, multiple_of=WINDOW)] = 900
    """Seconds between forecasts. The server refreshes every 5 minutes; 15 cost a third of that, and
    a forecast for hours ages little in 15 minutes. Higher is faster and violates a little more."""

    candidates: Annotated[int, Meta(ge=0)] = 32
    """To how many nodes filter narrows (the server's default); 0 for all."""

    choose_alone: bool = True
    """Whether filter leaves the best node alone, as the server does by default, to pods about whose
    node kube-scheduler has no preference, or none but to spread replicas. A trace does not say who
    owns offline pods: they count as Jobs'. Of online pods it says so only where it has usage."""

    extender_weight: Annotated[int, Meta(ge=1)] = 2
    """Weight of the extender's scores in kube-scheduler's configuration, of each of its two entries
    (2, as shipped); both rank an offline pod."""

    nodes_to_score: Annotated[int, Meta(ge=0, le=100)] = 0
    """`percentageOfNodesToScore` of kube-scheduler's configuration: it offers so many percent of
    the nodes, at least 100 of those that fit. 0 leaves the share to it, as its default does."""

    duration_blur: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """Standard deviation of the log of expected / real duration of offline pods. 0 knows durations
    exactly, as an annotation may; 0.5 errs by a factor of 1.6, as users do."""

    evict: bool = False
    """Evict the newest offline pods of a node whose last window (online usage and running asks)
    was above the ceiling; they start again from the beginning. Off, because the server does not
    evict yet; without eviction such pods go on with the CPU that is left."""

    reclaim: bool = True
    """Decide offline pods by reclaimed CPU. False: their asks are ordinary requests that
    kube-scheduler places alone, as in a cluster without reclaiming."""
