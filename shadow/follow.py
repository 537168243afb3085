"""The live shadow: reads what production decided, decides it with the challenger, waits, judges.

One `cycle` reads what is new, joins what has resolved and saves one state. It may be killed at any
moment: what it has not saved, it does again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import numpy as np
import structlog

from extender.decision_log import Binding, Decision
from extender.recording import Recorded, Refresh
from models.arrays import Packed
from models.errors import ArchimedesError, UnknownVersionError
from models.model import Model
from models.policy import HORIZONS
from models.truth import STEP
from models.usage_source import PrometheusSettings, UsageError, UsageSource
from models.usage_store import UsageReader, UsageStore
from shadow.batch import BatchReader, Event
from shadow.challenge import challenged, choice, judge, real_peaks, resolved
from shadow.live_figures import figures
from shadow.live_state import Choice, Forecasts, LiveState, Pending, Point, Tally, Versions
from shadow.state_file import StateFile
from shadow.trial import Trial

UNBOUND_SECONDS = 3600.0
MAX_BOUND = 5000
"""Bound pods whose outcome is awaited at once; more are counted in all but regret."""

MAX_UNLOGGED = 2000
LOG_SECONDS = 300.0

log = structlog.get_logger()

Publish = Callable[[str, str, dict[str, float], float], None]
"""Logs a challenger's figures against a champion at a time.

Raises UnknownVersionError where the challenger was deleted, another RegistryError where the
registry cannot be used.
"""


class Follower:
    """One live shadow.

    A trial is one challenger against one champion, with figures of its own. While there is no
    challenger, or while it is what serves, the log is read and nothing is scored; what waits for
    its outcome is judged all the same.

    Args:
        decisions, recording: the decision log, and the folder of its recording.
        source: of usage.
        challenger: the model on trial now, None for none; asked for once in each cycle.
        publish: where figures go; None for nowhere.
    """

    def __init__(
        self,
        decisions: Path,
        recording: Path,
        source: UsageSource,
        usage: PrometheusSettings,
        state: StateFile,
        challenger: Callable[[], Model | None],
        publish: Publish | None,
    ) -> None:
        self._decisions = decisions
        self._file = state
        self._state = state.load()
        self._recording = recording
        self._events = self._begin()
        self._store = UsageStore()
        self._reader = UsageReader(source, self._store, usage)
        self._challenger = challenger
        self._publish = publish
        self._refresh: Refresh | None = None
        self._trial: Trial | None = None
        self._said: tuple[str, str] | None = None
        self._watched = {
            pending.time: frozenset(state.forecasts(pending.time).pods)
            for pending in self._state.pending
        }

    @property
    def state(self) -> LiveState:
        """What is known so far."""
        return self._state

    async def cycle(self, now: float) -> bool:
        """Do what can be done now; whether there may be more to read at once.

        Raises:
            ArchimedesError: a file cannot be used, or the challenger cannot be read.
            UsageError: usage cannot be read; the next cycle tries again.
        """
        trial, state = self._on_trial(), self._state
        batch = self._events.read(state.position, state.read, now)
        refreshes = [*batch.refreshes, *([] if self._refresh is None else [self._refresh])]
        pods = frozenset[str]().union(*self._watched.values(), *(r.pods for r in refreshes))
        if pods:
            # While we are behind, usage is read no further than the log: pods that are in the log's
            # next stretch only would never be asked for. But as far as any refresh knew it, also
            # where the extender waits less long for late samples, or its clock is ahead of ours.
            until = min(now, batch.time) if batch.full else now
            known = max((refresh.usage_end for refresh in refreshes), default=0)
            try:
                await self._reader.catch_up(until, pods, known)
            except UsageError:
                self._events = self._begin()
                raise  # what was read is read again
        for event in batch.events:
            self._take(event, trial)
        state.position, state.read = batch.position, batch.time
        self._join()
        self._expire()
        if not batch.full:
            self._say(trial)
            self._note(now)
        self._hand_over()
        self._save(trial)
        return batch.full

    def _begin(self) -> BatchReader:
        """A reader from where the state stands."""
        return BatchReader(self._decisions, self._recording, self._state.refreshed)

    def _save(self, trial: Trial | None) -> None:
        """Save what was learned where that is more than before, then the state."""
        if trial and (trial.version, trial.forecast_until) != self._state.learned:
            progress = trial.progress()
            if progress:
                self._file.keep_progress(progress)
                self._state.learned = (trial.version, progress.time)
        self._file.save(self._state)

    def _on_trial(self) -> Trial | None:
        """The challenger of now, with what it has learned."""
        model, (version, time) = self._challenger(), self._state.learned
        if model is None:
            return None
        if self._trial is None or self._trial.version != model.version:
            known = version == model.version
            self._trial = Trial(model, self._file.progress(time) if known else None)
        return self._trial

    def _take(self, event: Event, trial: Trial | None) -> None:
        match event:
            case Refresh():
                self._refreshed(event, trial)
            case Binding():
                self._bound(event)
            case Decision():
                self._decided(event, None, trial)
            case decision, recorded:
                self._decided(decision, recorded, trial)

    def _tally(self, versions: Versions) -> Tally:
        return self._state.tallies.setdefault(versions, Tally())

    def _refreshed(self, refresh: Refresh, trial: Trial | None) -> None:
        """Go on with a newer refresh; the first of each half hour is judged later."""
        self._refresh = refresh
        if refresh.time <= self._state.refreshed:
            return
        if refresh.usage_end and trial and trial.version != refresh.model_version:
            trial.forecast(refresh, self._store)
            if refresh.time // STEP > self._state.refreshed // STEP:
                self._follow(refresh, trial, HORIZONS)
        self._state.refreshed = refresh.time

    def _follow(self, refresh: Refresh, trial: Trial, waits: tuple[int, ...]) -> None:
        """Keep both sides' forecasts of a refresh until what waits for them has resolved."""
        if any(pending.time == refresh.time for pending in self._state.pending):
            return
        row = {name: at for at, name in enumerate(refresh.nodes)}
        pods = [pod for pod in refresh.pods.values() if pod.node in row]
        kept = Forecasts(
            refresh.nodes,
            Packed.of(refresh.allocatable),
            Packed.of(refresh.forecast),
            Packed.of(trial.forecast(refresh, self._store).forecast),
            trial.model.policy,
            tuple(pod.key for pod in pods),
            Packed.smallest(np.array([row[pod.node] for pod in pods], np.int64)),
        )
        self._file.keep(refresh.time, kept)
        versions = Versions(refresh.model_version, trial.version)
        self._state.pending.append(Pending(refresh.time, versions, waits))
        self._watched[refresh.time] = frozenset(kept.pods)

    def _decided(self, decision: Decision, recorded: Recorded | None, trial: Trial | None) -> None:
        if trial is None or trial.version == decision.model_version:
            return
        versions = Versions(decision.model_version, trial.version)
        refresh, tally = self._refresh, self._tally(versions)
        if recorded is None or refresh is None or not refresh.usage_end:
            tally.unscored += 1
        else:
            self._score(versions, decision, recorded, refresh, trial)

    def _score(
        self,
        versions: Versions,
        decision: Decision,
        recorded: Recorded,
        refresh: Refresh,
        trial: Trial,
    ) -> None:
        forecast, model = trial.forecast(refresh, self._store), trial.model
        own = challenged(recorded, refresh, forecast, model.policy)
        champions = [candidate.node for candidate in decision.candidates]
        found, overlap = choice(recorded, own, champions, versions, refresh.time)
        tally = self._tally(versions)
        tally.decisions += 1
        tally.overlap += overlap
        if decision.offline and found.nodes:
            self._follow(refresh, trial, ())
            self._state.choices[decision.uid] = found

    def _bound(self, binding: Binding) -> None:
        if binding.error:
            return
        found = self._state.choices.pop(binding.uid, None)
        if found is None:
            return
        tally = self._tally(found.trial)
        tally.bound += 1
        tally.agreed += found.chosen == binding.node
        waits = found.chosen and binding.node in found.nodes
        if waits and len(self._state.bound) < MAX_BOUND:
            self._state.bound.append(msgspec.structs.replace(found, bound=binding.node))
        else:
            tally.unknown += 1

    def _join(self) -> None:
        """Judge what has resolved."""
        for pending in self._state.pending:
            due = [hours for hours in pending.waits if resolved(pending.time, hours, self._store)]
            if due:
                self._judge(pending, due)
                pending.waits = tuple(hours for hours in pending.waits if hours not in due)
        waiting = []
        for found in self._state.bound:
            if resolved(found.time, found.hours, self._store):
                self._regret(found)
            else:
                waiting.append(found)
        self._state.bound = waiting

    def _judge(self, pending: Pending, due: list[int]) -> None:
        kept = self._file.forecasts(pending.time)
        tally = self._tally(pending.trial)
        allocatable, row, count = kept.allocatable.array(), kept.row.array(), len(kept.nodes)
        here = self._here()
        sides = (tally.champion, kept.champion.array()), (tally.challenger, kept.challenger.array())
        for hours in due:
            at = HORIZONS.index(hours)
            truth = real_peaks(self._store, kept.pods, here, row, count, pending.time, hours)
            for side, forecast in sides:
                judge(side, forecast[:, at], truth, allocatable, kept.policy)

    def _here(self) -> Collection[str]:
        """The pods that the newest refresh lists."""
        return () if self._refresh is None else self._refresh.pods

    def _regret(self, found: Choice) -> None:
        """By how much the chosen node's real slack is below that of the best candidate."""
        tally, kept = self._tally(found.trial), self._file.forecasts(found.refresh)
        pods, row = kept.on(found.nodes)
        here, count = self._here(), len(found.nodes)
        peaks = real_peaks(self._store, pods, here, row, count, found.time, found.hours)
        slack = dict(zip(found.nodes, np.array(found.room) - peaks, strict=True))
        champion, challenger = slack[found.bound], slack[found.chosen]
        if not np.isfinite(champion + challenger):
            tally.unknown += 1
            return
        best = float(np.nanmax(list(slack.values())))
        tally.joined += 1
        tally.champion.regret += best - float(champion)
        tally.challenger.regret += best - float(challenger)

    def _expire(self) -> None:
        """Forget pods that were not bound in the log's next hour, and what nothing waits for."""
        state = self._state
        since = state.read - UNBOUND_SECONDS
        state.choices = {uid: found for uid, found in state.choices.items() if found.time > since}
        used = {found.refresh for found in (*state.bound, *state.choices.values())}
        state.pending = [p for p in state.pending if p.waits or p.time in used]
        kept = {pending.time for pending in state.pending}
        self._watched = {time: pods for time, pods in self._watched.items() if time in kept}

    def _say(self, trial: Trial | None) -> None:
        """Tell once who is on trial against whom, or why nobody is."""
        if self._refresh is None:
            return
        champion, challenger = self._refresh.model_version, trial.version if trial else ""
        if self._said == (champion, challenger):
            return
        self._said = (champion, challenger)
        if not challenger:
            log.info("there is no challenger: waiting for one", champion=champion)
        elif challenger == champion:
            log.info("the challenger serves: its trial has ended", version=challenger)
        else:
            log.info("on trial", challenger=challenger, champion=champion)

    def _note(self, now: float) -> None:
        """Keep the figures of each trial for the registry where they are new and it is time to."""
        state = self._state
        for trial, tally in state.tallies.items():
            point, before = Point(trial, now, figures(tally)), state.logged.get(trial)
            if not trial.challenger.isdecimal():
                continue
            if before and (now - before.time < LOG_SECONDS or before.figures == point.figures):
                continue
            state.unlogged = [*state.unlogged, point][-MAX_UNLOGGED:]
            state.logged[trial] = point

    def _hand_over(self) -> None:
        """Give the registry the figures that wait for it, the oldest first.

        While it is away they wait; those of a version that was deleted have nowhere to go.
        """
        while self._publish is not None and self._state.unlogged:
            point = self._state.unlogged[0]
            challenger, champion = point.trial.challenger, point.trial.champion
            try:
                self._publish(challenger, champion, point.figures, point.time)
            except UnknownVersionError as e:
                log.warning("figures are dropped", challenger=challenger, error=str(e))
            except ArchimedesError as e:
                log.warning("figures wait for the registry", error=str(e))
                return
            self._state.unlogged = self._state.unlogged[1:]
