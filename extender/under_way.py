"""Pods that were left one node, and are expected there until they are seen to be bound."""

from __future__ import annotations

from typing import NamedTuple

from extender.ask import PodFacts

_MOST = 1024
"""Pods that may be under way: three seconds' at 300 a second."""


class Sent(NamedTuple):
    """Where a pod is expected, by the node's row, and until when; and what counts of it."""

    row: int
    until: float
    offline: bool
    replica_of: str


class UnderWay:
    """Who was sent where."""

    def __init__(self) -> None:
        self._sent: dict[str, Sent] = {}

    @property
    def lost(self) -> bool:
        """Whether so many have not arrived that nobody seems to see where pods go."""
        return len(self._sent) > _MOST

    def send(self, pod: PodFacts, row: int, until: float) -> None:
        """A pod was left one node: its row, and until when it is expected there."""
        self._sent[pod.uid] = Sent(row, until, pod.offline, pod.replica_of)

    def narrow(self, uid: str, rows: tuple[int, ...]) -> None:
        """A pod was decided again: it is expected no longer, unless it was left the same node."""
        sent = self._sent.get(uid)
        if sent is not None and (sent.row,) != rows:
            del self._sent[uid]

    def end(self, uid: str) -> None:
        """A pod has arrived somewhere, or is gone."""
        self._sent.pop(uid, None)

    def forget_node(self, row: int) -> None:
        """A node is gone: nobody is expected there, and its row may be another's."""
        self._sent = {uid: sent for uid, sent in self._sent.items() if sent.row != row}

    def shift(self, seconds: float) -> None:
        """The clock has gone on by so much more; all are expected for as long as before."""
        self._sent = {
            uid: sent._replace(until=sent.until + seconds) for uid, sent in self._sent.items()
        }

    def expire(self, now: float) -> None:
        """Expect those no longer whose time has run out."""
        self._sent = {uid: sent for uid, sent in self._sent.items() if now < sent.until}

    def others(self, uid: str) -> list[Sent]:
        """All but one pod."""
        return [sent for other, sent in self._sent.items() if other != uid]
