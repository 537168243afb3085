"""The live shadow: reads what production decided, decides it with the challenger, waits, judges.

One `cycle` reads what is new, joins what has resolved and saves one state. It may be killed at any
moment: what it has not saved, it does again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import structlog

from extender.decision_log import Binding, Decision, Record
from extender.recording import Patch, Recorded, Refresh
from models.arrays import Floats
from models.errors import ArchimedesError
from models.model import Model
from models.policy import HORIZONS, Policy
from models.rolling import Forecast
from models.truth import STEP
from models.usage_source import PrometheusSettings, UsageError, UsageSource
from models.usage_store import UsageReader, UsageStore
from shadow.challenge import challenge, challenged, choice, judge, real_peaks, resolved
from shadow.live_figures import figures
from shadow.live_state import Choice, Forecasts, LiveState, Pending, Point, StateFile, Tally
from shadow.recorded import RecordedStream
from shadow.tail import Position, follow_log

BATCH = 500
"""Log lines of one pass; each decision holds arrays until it is scored."""

UNRECORDED_SECONDS = 30.0
"""For how long a decision's recording is awaited: the recorder writes several times a second."""

UNBOUND_SECONDS = 3600.0
MAX_BOUND = 5000
"""Bound pods whose outcome is awaited at once; more are counted in all but regret."""

MAX_UNLOGGED = 2000
LOG_SECONDS = 300.0

log = structlog.get_logger()

Publish = Callable[[str, dict[str, float], float], None]
"""Logs a version's figures at a time; raises RegistryError."""


class Follower:
    """One live shadow.

    Args:
        decisions, recording: the decision log, and the folder of its recording.
        source: of usage.
        challenger: the model on trial now; asked for once in each cycle.
        publish: where figures go; None for nowhere.
    """

    def __init__(
        self,
        decisions: Path,
        recording: Path,
        source: UsageSource,
        usage: PrometheusSettings,
        state: StateFile,
        challenger: Callable[[], Model],
        publish: Publish | None,
    ) -> None:
        self._decisions = decisions
        self._file = state
        self._state = state.load()
        self._recording = recording
        self._stream = RecordedStream(recording, self._state.refreshed)
        self._store = UsageStore()
        self._reader = UsageReader(source, self._store, usage)
        self._challenger = challenger
        self._publish = publish
        self._refresh: Refresh | None = None
        self._own: tuple[float, str, Forecast] | None = None
        self._watched = {
            pending.time: frozenset(pod.key for pod in state.forecasts(pending.time).pods)
            for pending in self._state.pending
        }

    @property
    def state(self) -> LiveState:
        """What is known so far."""
        return self._state

    async def cycle(self, now: float) -> bool:
        """Do what can be done now; whether there may be more to read at once.

        Raises:
            ArchimedesError: a file cannot be used, or there has never been a challenger.
        """
        model = self._challenger()
        events, position, full = self._read(now)
        pods = frozenset[str]().union(
            *self._watched.values(), *(e.pods for e in events if isinstance(e, Refresh))
        )
        if pods:
            try:
                await self._reader.catch_up(now, pods)
            except UsageError as e:
                log.warning("usage cannot be read", error=str(e))
                self._stream = RecordedStream(self._recording, self._state.refreshed)
                return False  # what was read is read again
        for event in events:
            self._take(event, model)
        self._state.position = position
        self._join(model.policy)
        self._expire(now)
        self._log(model.version, now)
        self._file.save(self._state)
        return full

    def _read(
        self, now: float
    ) -> tuple[list[Refresh | Record | tuple[Decision, Recorded]], Position, bool]:
        """New events in order, the position after them, and whether there are more.

        A decision whose recording is not there yet ends them, unless it has had its time.
        """
        events: list[Refresh | Record | tuple[Decision, Recorded]] = []
        position, count = self._state.position, 0
        for record, after in islice(follow_log(self._decisions, position), BATCH):
            if isinstance(record, Decision):
                recorded = self._stream.find(record.time, record.uid, events.append)
                if recorded is None and now - record.time < UNRECORDED_SECONDS:
                    break
                events.append(record if recorded is None else (record, recorded))
            else:
                events.append(record)
            position, count = after, count + 1
        return events, position, count == BATCH

    def _take(self, event: Refresh | Record | tuple[Decision, Recorded], model: Model) -> None:
        tally = self._state.tallies.setdefault(model.version, Tally())
        match event:
            case Refresh():
                self._refreshed(event, model)
            case Binding():
                self._bound(event)
            case Decision():
                tally.unscored += 1
            case decision, recorded:
                self._score(tally, decision, recorded, model)

    def _refreshed(self, refresh: Refresh, model: Model) -> None:
        """Go on with a newer refresh; the first of each half hour is judged later."""
        self._refresh = refresh
        if refresh.time <= self._state.refreshed:
            return
        if refresh.time // STEP > self._state.refreshed // STEP and refresh.usage_end:
            self._follow(refresh, model, HORIZONS)
        self._state.refreshed = refresh.time

    def _follow(self, refresh: Refresh, model: Model, waits: tuple[int, ...]) -> None:
        """Keep both sides' forecasts of a refresh until what waits for them has resolved."""
        if any(pending.time == refresh.time for pending in self._state.pending):
            return
        own = self._forecast(refresh, model)
        kept = Forecasts(
            refresh.nodes,
            _patch(refresh.allocatable),
            _patch(refresh.forecast),
            _patch(own.forecast),
            _patch(own.expected),
            refresh.advertise_share,
            tuple(refresh.pods.values()),
        )
        self._file.keep(refresh.time, kept)
        self._state.pending.append(Pending(refresh.time, model.version, waits))
        self._watched[refresh.time] = frozenset(refresh.pods)

    def _forecast(self, refresh: Refresh, model: Model) -> Forecast:
        if self._own is None or self._own[:2] != (refresh.time, model.version):
            own = challenge(model, refresh, self._store)
            self._own = (refresh.time, model.version, own)
        return self._own[2]

    def _score(self, tally: Tally, decision: Decision, recorded: Recorded, model: Model) -> None:
        refresh = self._refresh
        if refresh is None or not refresh.usage_end:
            tally.unscored += 1
            return
        own = challenged(recorded, refresh, self._forecast(refresh, model), model.policy)
        champions = [candidate.node for candidate in decision.candidates]
        found, overlap = choice(recorded, own, champions, model.version, refresh.time)
        tally.decisions += 1
        tally.overlap += overlap
        if decision.offline and found.nodes:
            self._follow(refresh, model, ())
            self._state.choices[decision.uid] = found

    def _bound(self, binding: Binding) -> None:
        if binding.error:
            return
        found = self._state.choices.pop(binding.uid, None)
        if found is None:
            return
        tally = self._state.tallies[found.version]
        tally.bound += 1
        tally.agreed += found.chosen == binding.node
        waits = found.chosen and binding.node in found.nodes
        if waits and len(self._state.bound) < MAX_BOUND:
            kept = (found.time, found.version, found.refresh, found.hours, found.nodes, found.room)
            self._state.bound.append(Choice(*kept, found.chosen, binding.node))
        else:
            tally.unknown += 1

    def _join(self, policy: Policy) -> None:
        """Judge what has resolved."""
        for pending in self._state.pending:
            due = [hours for hours in pending.waits if resolved(pending.time, hours, self._store)]
            if due:
                self._judge(pending, due, policy)
                pending.waits = tuple(hours for hours in pending.waits if hours not in due)
        waiting = []
        for found in self._state.bound:
            if resolved(found.time, found.hours, self._store):
                self._regret(found)
            else:
                waiting.append(found)
        self._state.bound = waiting

    def _judge(self, pending: Pending, due: list[int], policy: Policy) -> None:
        kept, tally = self._file.forecasts(pending.time), self._state.tallies[pending.version]
        allocatable = _array(kept.allocatable)
        champion, challenger = _array(kept.champion), _array(kept.challenger)
        for hours in due:
            at = HORIZONS.index(hours)
            truth = real_peaks(self._store, kept.pods, kept.nodes, pending.time, hours)
            judge(tally.champion, champion[:, at], truth, allocatable, policy)
            judge(tally.challenger, challenger[:, at], truth, allocatable, policy)

    def _regret(self, found: Choice) -> None:
        """By how much the chosen node's real slack is below that of the best candidate."""
        tally, kept = self._state.tallies[found.version], self._file.forecasts(found.refresh)
        peaks = real_peaks(self._store, kept.pods, found.nodes, found.time, found.hours)
        slack = dict(zip(found.nodes, np.array(found.room) - peaks, strict=True))
        champion, challenger = slack[found.bound], slack[found.chosen]
        if not np.isfinite(champion + challenger):
            tally.unknown += 1
            return
        best = float(np.nanmax(list(slack.values())))
        tally.joined += 1
        tally.champion.regret += best - float(champion)
        tally.challenger.regret += best - float(challenger)

    def _expire(self, now: float) -> None:
        """Forget pods that were never bound, and refreshes that nothing waits for."""
        state = self._state
        state.choices = {
            uid: found for uid, found in state.choices.items() if now - found.time < UNBOUND_SECONDS
        }
        used = {found.refresh for found in (*state.bound, *state.choices.values())}
        state.pending = [p for p in state.pending if p.waits or p.time in used]
        kept = {pending.time for pending in state.pending}
        self._watched = {time: pods for time, pods in self._watched.items() if time in kept}

    def _log(self, version: str, now: float) -> None:
        """Hand figures to the registry; while it is away they wait, the oldest goes first."""
        state = self._state
        if self._publish is None:
            return
        if now - state.logged >= LOG_SECONDS and version.isdecimal() and version in state.tallies:
            point = Point(version, now, figures(state.tallies[version]))
            state.unlogged = [*state.unlogged, point][-MAX_UNLOGGED:]
            state.logged = now
        while state.unlogged:
            point = state.unlogged[0]
            try:
                self._publish(point.version, point.figures, point.time)
            except ArchimedesError as e:
                log.warning("figures wait for the registry", error=str(e))
                return
            state.unlogged = state.unlogged[1:]


def _patch(values: Floats) -> Patch:
    return Patch(values.dtype.str, values.shape, np.ascontiguousarray(values).tobytes())


def _array(patch: Patch) -> Floats:
    return np.frombuffer(patch.values, patch.dtype).reshape(patch.shape)
