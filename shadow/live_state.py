"""What the live shadow must not forget; `shadow.state_file` keeps it.

Everything that is counted is counted in this state only, together with how far the log was read.
A process that is killed goes on from the last state that was saved and counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from models.arrays import Ints, Packed
from models.policy import Policy
from shadow.tail import Position


class Side(msgspec.Struct):
    """Sums of the champion's or the challenger's outcomes.

    Fields, with units:
        judged: (node, refresh, horizon) whose real peak is known; violated: those above the
            forecast; severity: summed share of the node's CPU by which they were above.
        offered, excess: cores summed over what was judged: reclaimable, and reserved in vain.
        regret: cores summed over decisions whose outcome is known.
    """

    judged: int = 0
    violated: int = 0
    severity: float = 0.0
    offered: float = 0.0
    excess: float = 0.0
    regret: float = 0.0


class Versions(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Who is compared in a trial."""

    champion: str
    challenger: str


class Tally(msgspec.Struct):
    """Sums about one trial.

    decisions: scored with the challenger; overlap: summed share of common candidates; unscored:
    those without a recording or forecast. bound: offline pods bound after such a decision; agreed:
    to the challenger's choice. joined: those whose outcome is known; unknown: those whose is not.
    """

    decisions: int = 0
    unscored: int = 0
    overlap: float = 0.0
    bound: int = 0
    agreed: int = 0
    joined: int = 0
    unknown: int = 0
    champion: Side = msgspec.field(default_factory=Side)
    challenger: Side = msgspec.field(default_factory=Side)


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """A scored decision: the candidates of either side, and what is known of them.

    room: cores of each that are left for a peak (allocatable x ceiling - reserve - promises).
    """

    time: float
    trial: Versions
    refresh: float
    hours: int
    nodes: tuple[str, ...]
    room: tuple[float, ...]
    chosen: str
    bound: str = ""


class Pending(msgspec.Struct, array_like=True):
    """A refresh that is not forgotten yet; waits: hours of the horizons still to be judged."""

    time: float
    trial: Versions
    waits: tuple[int, ...]


class Point(msgspec.Struct, frozen=True, array_like=True):
    """Figures for the registry that it has not got yet."""

    trial: Versions
    time: float
    figures: dict[str, float]


class LiveState(msgspec.Struct, kw_only=True):
    """All of it; choices await their bind by UID, bound ones their outcome.

    read, refreshed: times of the newest event and of the newest refresh. learned: the challenger,
    and the refresh up to which its progress is kept. tallies: of all trials so far; logged: the
    last figures of each that were kept for the registry.
    """

    position: Position = Position()
    read: float = 0.0
    refreshed: float = 0.0
    learned: tuple[str, float] = ("", 0.0)
    tallies: dict[Versions, Tally] = {}
    choices: dict[str, Choice] = {}
    bound: list[Choice] = []
    pending: list[Pending] = []
    unlogged: list[Point] = []
    logged: dict[Versions, Point] = {}


class Forecasts(msgspec.Struct, frozen=True, array_like=True):
    """Both sides' forecasts of one refresh, [N, H] cores, and the pods that they were made for.

    policy: the challenger's. pods: P names; row: [P] of each pod's node.
    """

    nodes: tuple[str, ...]
    allocatable: Packed
    champion: Packed
    challenger: Packed
    policy: Policy
    pods: tuple[str, ...]
    row: Packed

    def on(self, nodes: Sequence[str]) -> tuple[list[str], Ints]:
        """The pods on some of the nodes, and the indices of theirs among these."""
        index = {name: at for at, name in enumerate(nodes)}
        place = np.array([index.get(name, -1) for name in self.nodes], np.int64)[self.row.array()]
        on_them = np.flatnonzero(place >= 0)
        return [self.pods[at] for at in on_them], place[on_them]
