"""Pods that were left one node, and are expected there until they are seen to be bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from extender.ask import PodFacts

_MOST = 1024
"""Pods that may be under way: three seconds' at 300 a second."""


class Sent(NamedTuple):
    """Where a pod is expected, by the node's row, since when and until; and what counts of it."""

    row: int
    since: float
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

    def send(self, pod: PodFacts, row: int, now: float, until: float) -> None:
        """A pod was left one node: its row, and until when it is expected there."""
        self._sent[pod.uid] = Sent(row, now, until, pod.offline, pod.replica_of)

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

    def shift(self, seconds: float, is_new: Callable[[float], bool]) -> None:
        """The clock has gone on by so much more; all are expected for as long as before.

        ``is_new``: whether a time was read from the clock after that; who was sent then stays.
        """
        self._sent = {
            uid: sent
            if is_new(sent.since)
            else sent._replace(since=sent.since + seconds, until=sent.until + seconds)
            for uid, sent in self._sent.items()
        }

    def expire(self, now: float) -> None:
        """Expect those no longer whose time has run out."""
        self._sent = {uid: sent for uid, sent in self._sent.items() if now < sent.until}

    def others(self, uid: str) -> list[Sent]:
        """All but one pod."""
        return [sent for other, sent in self._sent.items() if other != uid]
