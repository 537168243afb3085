"""Events on pods: what `kubectl describe pod` tells about a refusal, at a bounded rate.

The calls only note what happened; a background loop writes, so no call ever waits for it. What
happens again before a pod's next event is due is counted and told with that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import structlog

from extender.ports import Clock, Cluster, ClusterError, PodEvent
from extender.settings import EventSettings
from extender.state import State
from extender.telemetry import Telemetry

_WRITE_SECONDS = 1.0
_MAX_NOTE = 1024
"""Bytes that the API server takes."""

_UNSEEN_SECONDS = 60.0
"""For how long a notice waits for the watch to show its pod: a call may be faster, but not by this
much. One about a pod that is never shown is then dropped."""

log = structlog.get_logger()


class Kind(Enum):
    """An event's reason, with the action during which it happened."""

    REFUSED = ("NothingReclaimable", "Filtering")
    NOT_BOUND = ("NotBound", "Binding")


@dataclass(slots=True)
class _Notice:
    """What one pod is to be told: the newest text, and how often it happened since the last.

    since: seconds since the epoch at which it began to wait.
    """

    pod: str
    text: str
    since: float
    times: int = 0


class Events:
    """Collects notices and writes them, the oldest first."""

    def __init__(
        self,
        settings: EventSettings,
        clock: Clock,
        state: State,
        cluster: Cluster,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state = state
        self._cluster = cluster
        self._outcomes = telemetry.events
        self._waiting: dict[tuple[str, Kind], _Notice] = {}
        self._written: dict[tuple[str, Kind], float] = {}
        self._bucket = TokenBucket(settings.per_minute, clock())

    def refused(self, pod: str, uid: str, offered: int, rejected: Mapping[str, int]) -> None:
        """No offered node may take the pod; ``rejected`` counts the nodes by failure text."""
        causes = "; ".join(f"{text} ({count})" for text, count in rejected.items())
        self._note(pod, uid, Kind.REFUSED, f"none of {offered} nodes can take it: {causes}")

    def not_bound(self, pod: str, uid: str, node: str, error: str) -> None:
        """A bind failed."""
        self._note(pod, uid, Kind.NOT_BOUND, f"not bound to {node}: {error}")

    def due(self, now: float) -> list[PodEvent]:
        """The events to write now; they count as written."""
        self._forget(now)
        events = []
        for (uid, kind), notice in list(self._waiting.items()):
            if self._is_over(uid, kind, notice, now):
                del self._waiting[uid, kind]
            elif self._state.pod(uid) is not None and (uid, kind) not in self._written:
                if not self._bucket.take(now):
                    break
                del self._waiting[uid, kind]
                self._written[uid, kind] = now
                events.append(_event(uid, kind, notice, now))
        return events

    async def write(self) -> None:
        """Write what is due. One that fails is not tried again: the pod's next is not far."""
        for event in self.due(self._clock()):
            try:
                await self._cluster.write_event(event)
            except ClusterError as e:
                self._outcomes.labels("failed").inc()
                log.warning("event not written", pod=event.name, error=str(e))
            else:
                self._outcomes.labels("written").inc()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self.write()
            await asyncio.sleep(_WRITE_SECONDS)

    def _note(self, pod: str, uid: str, kind: Kind, text: str) -> None:
        if not self._settings.enabled:
            return
        notice = self._waiting.get((uid, kind))
        if notice is None:
            if len(self._waiting) >= self._settings.max_waiting:
                self._outcomes.labels("dropped").inc()
                return
            notice = self._waiting[uid, kind] = _Notice(pod, text, self._clock())
        notice.text = text
        notice.times += 1

    def _is_over(self, uid: str, kind: Kind, notice: _Notice, now: float) -> bool:
        """Whether nobody needs to be told any more: the pod is gone, or was placed after all."""
        pod = self._state.pod(uid)
        if pod is None:
            is_new = 0 <= now - notice.since < _UNSEEN_SECONDS
            return self._state.is_gone(uid) or not is_new
        return kind is Kind.REFUSED and bool(pod.node)

    def _forget(self, now: float) -> None:
        """Drop what was written so long ago that the pod may be told again."""
        for key, at in list(self._written.items()):
            if 0 <= now - at < self._settings.pod_seconds:
                break  # they stand in the order of their times, but where the clock was set back
            del self._written[key]


class TokenBucket:
    """Allows a burst of ``per_minute``, and that many a minute in the long run."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._tokens = float(per_minute)
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed now; a clock that goes back allows no more than before."""
        gained = max(now - self._at, 0.0) * self._per_minute / 60
        self._tokens, self._at = min(self._tokens + gained, self._per_minute), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _event(uid: str, kind: Kind, notice: _Notice, now: float) -> PodEvent:
    namespace, _, name = notice.pod.partition("/")
    reason, action = kind.value
    again = f"; {notice.times} times since the last event" if notice.times > 1 else ""
    text = notice.text.encode()[: _MAX_NOTE - len(again)]
    note = text.decode(errors="ignore") + again  # without the half of a character at its end
    return PodEvent(namespace, name, uid, reason, action, note, now)
