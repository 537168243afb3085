"""Filter, prioritize and preempt: from a request's bytes to the answer's, without waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from typing import NamedTuple

import numpy as np
import structlog

from extender.ask import PodFacts
from extender.decide import Alone, Verdicts, decide, explain, scores, to_wire_scores
from extender.decision_log import MAX_NODES, Candidate, Decision, DecisionLog, Preemption
from extender.events import Events
from extender.ledger import Stage
from extender.ports import Clock
from extender.preemption import rooms
from extender.recorder import Recorder
from extender.recording import Recorded
from extender.settings import Settings
from extender.snapshot import Reason, Snapshot
from extender.state import Basis, State
from extender.telemetry import Telemetry
from extender.victims import Victims, decode_preemption, encode_preemption
from extender.wire import (
    Offer,
    decode_args,
    encode_filter,
    encode_filter_error,
    encode_prioritize,
    offered,
)
from models.arrays import Floats, Ints
from models.kube.preferences import has_preferences, may_be_spread
from models.kube.types import OfferedPod
from models.policy import HORIZONS

log = structlog.get_logger()

NOT_READY = "the extender has not listed all nodes and pods yet; try again"

_RESOLVABLE = (Reason.NOT_ENOUGH, Reason.UNKNOWN_NODE)
"""Reasons that pods' leaving, or waiting, may lift; preemption cannot make usage data fresh."""

_TIERS = ("offline", "online")
_OUTCOMES = ("placeable", "refused", "error")

_NO_REFUSAL = int(Reason.RANKED_OUT)
_NO_VERDICTS = Verdicts(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


class Answer(NamedTuple):
    """A reply, and the UID of the pod that comes nowhere if nobody is there to read it."""

    body: bytes
    held: str


@dataclass(frozen=True)
class Latest:
    """The newest filter decision that passed nodes.

    kube-scheduler asks about these nodes at once, up to three times: the second entry of its
    configuration filters them again, and both have them ranked. Nodes are ranked by the figures by
    which they were chosen, as kube-scheduler's own plugins do; whether they may be offered once
    more is decided anew when nodes or the policy have changed. What an offline pod may take is
    held for it meanwhile.

    Fields:
        time: seconds since the epoch.
        sent, pod: the pod as it came, and what counts of it.
        names, rows, score: [K] of the nodes that passed, in order.
        basis: what was decided on.
    """

    time: float
    sent: OfferedPod
    pod: PodFacts
    names: list[str]
    rows: tuple[int, ...]
    score: Floats
    basis: Basis

    @cached_property
    def ranking(self) -> bytes:
        """The answer to prioritize."""
        found = to_wire_scores(self.score, self.basis.policy, offline=self.pod.offline)
        return encode_prioritize(self.names, found)


class Calls:
    """Answers filter, prioritize and preempt from one snapshot each."""

    def __init__(
        self,
        state: State,
        settings: Settings,
        clock: Clock,
        decisions: DecisionLog,
        telemetry: Telemetry,
        events: Events,
        recorder: Recorder | None = None,
    ) -> None:
        """``recorder``: None where decisions are not to be made again."""
        self._state = state
        self._settings = settings
        self._clock = clock
        self._log = decisions
        self._telemetry = telemetry
        self._events = events
        self._recorder = recorder
        self._latest: Latest | None = None
        self._counts = {
            (tier, outcome): telemetry.decisions.labels(tier, outcome)
            for tier, outcome in product(_TIERS, _OUTCOMES)
        }

    def filter(self, body: bytes) -> Answer:
        """Which of the offered nodes may take the pod; holds its ask on each of them.

        Raises:
            BadRequestError: the body is no filter request.
        """
        args = decode_args(body)
        offer = offered(args)
        latest = self._decided(args.pod, offer.names)
        if latest is not None and latest.basis == self._state.basis(self._clock()):
            return self._again(latest, offer)
        pod = self._state.facts(args.pod)
        for name in pod.bad_annotations:
            self._telemetry.bad_annotations.labels(name).inc()
            log.warning("malformed annotation ignored", pod=pod.key, annotation=name)
        if pod.problem:
            return self._refuse(pod, offer)
        if pod.offline and not self._state.ready:
            self._count(pod, "error")
            return Answer(encode_filter_error(NOT_READY), "")
        return self._decide(args.pod, pod, offer)

    def prioritize(self, body: bytes) -> bytes:
        """How good a home each offered node is, as integers from 0 to 10.

        Raises:
            BadRequestError: the body is no prioritize request.
        """
        args = decode_args(body)
        names = offered(args).names
        if (latest := self._decided(args.pod, names)) is not None:
            return latest.ranking
        pod = self._state.facts(args.pod)
        snapshot = self._state.snapshot(self._clock(), without=pod.uid)
        rows = snapshot.rows(names)
        if not _all_differ(rows, len(snapshot.promised)):
            names = list(dict.fromkeys(names))
            rows = snapshot.rows(names)
        habit = self._state.habit(pod, names, snapshot)
        policy = self._state.policy
        raw = scores(snapshot, rows, pod.ask, policy, habit)
        return encode_prioritize(names, to_wire_scores(raw, policy, offline=pod.offline))

    def preempt(self, body: bytes) -> bytes:
        """The proposed nodes that would have room for the pod without their victims.

        Raises:
            BadRequestError: the body is no preempt request.
        """
        proposal = decode_preemption(body)
        pod = self._state.facts(proposal.pod)
        snapshot = self._state.snapshot(self._clock(), without=pod.uid)
        refused = self._without_room(pod, proposal.victims, snapshot)
        kept = {name: of for name, of in proposal.victims.items() if name not in refused}
        self._log.append(
            Preemption(
                time=snapshot.time,
                pod=pod.key,
                uid=pod.uid,
                offline=pod.offline,
                millicpu=pod.ask.millicpu,
                horizon_hours=HORIZONS[pod.ask.horizon],
                snapshot=snapshot.id,
                model_version=snapshot.model_version,
                proposed=len(proposal.victims),
                kept=len(kept),
                nodes=tuple(islice(kept, MAX_NODES)),
                rejected=_tally(refused),
            )
        )
        return encode_preemption(kept)

    def _without_room(
        self, pod: PodFacts, victims: Mapping[str, Victims], snapshot: Snapshot
    ) -> dict[str, str]:
        """Failure texts of the proposed nodes that have no room even without their victims."""
        if pod.offline and (pod.problem or not self._state.ready):
            return dict.fromkeys(victims, pod.problem or NOT_READY)
        policy = self._state.policy
        uids = {name: set(of.uids) - {pod.uid} for name, of in victims.items()}
        reasons = rooms(snapshot, pod.ask, uids, self._state.ledger.get)
        texts = {reason: explain(reason, pod.ask, policy) for reason in set(reasons.values())}
        return {
            name: texts[reason] for name, reason in reasons.items() if reason is not Reason.FITS
        }

    def _decided(self, sent: OfferedPod, names: list[str]) -> Latest | None:
        """The newest decision where it left this pod these nodes, no longer ago than a hold lasts.

        None where what it held for the pod is held no longer.
        """
        latest = self._latest
        if latest is None or names != latest.names or sent != latest.sent:
            return None
        if latest.pod.offline and not self._is_repeat(latest.pod, latest.rows):
            return None
        age = self._clock() - latest.time
        return latest if 0 <= age < self._settings.hold_seconds else None

    def _again(self, latest: Latest, offer: Offer) -> Answer:
        """Pass all nodes of the newest decision once more; it is logged already."""
        pod = latest.pod
        if pod.offline:
            self._hold(pod, latest.rows, self._clock())
        return Answer(encode_filter(offer, range(len(offer.names)), {}, {}), pod.uid)

    def _decide(self, sent: OfferedPod, pod: PodFacts, offer: Offer) -> Answer:
        now, policy = self._clock(), self._state.policy
        snapshot = self._state.snapshot(now, pod.uid, keep=self._recorder is not None)
        rows = snapshot.rows(offer.names)
        limit = self._settings.candidates if pod.candidates is None else pod.candidates
        habit = self._state.habit(pod, offer.names, snapshot)
        alone = self._alone(sent, pod, now) if 0 < limit < len(offer.names) else None
        verdicts = decide(snapshot, rows, pod.ask, policy, limit, habit, alone)
        passed = _once(verdicts.passed.tolist(), offer.names)
        failed, unresolvable = self._refusals(pod, offer.names, verdicts)
        if not self._is_repeat(pod, held := tuple(rows[passed].tolist())):
            rejected = _tally(failed, unresolvable)
            self._record(pod, offer.names, passed, verdicts, snapshot, rejected)
            if self._recorder is not None:
                ask = pod.ask
                self._recorder.put(
                    Recorded(now, pod.uid, snapshot, rows, ask, policy, limit, habit, alone)
                )
        if not self._state.settled(pod.uid):
            self._expect(pod, held, now, alone=alone is not None)
        if passed:
            names, score = [offer.names[at] for at in passed], verdicts.score[passed]
            basis = Basis(snapshot.id, policy, self._state.runs.added)
            self._latest = Latest(now, sent, pod, names, held, score, basis)
        return Answer(encode_filter(offer, passed, failed, unresolvable), pod.uid)

    def _expect(self, pod: PodFacts, held: tuple[int, ...], now: float, *, alone: bool) -> None:
        """Hold what an offline pod asks for; expect a pod that was left one node there.

        What an offline pod takes is held; that it is a sibling of others is not known from that.
        """
        if pod.offline:
            self._hold(pod, held, now)
        counts = pod.replica_of or not pod.offline
        if alone and counts and len(held) == 1 and held[0] >= 0:
            self._state.under_way.send(pod, held[0], now, now + self._settings.hold_seconds)
        else:
            self._state.under_way.narrow(pod.uid, held)

    def _alone(self, sent: OfferedPod, pod: PodFacts, now: float) -> Alone | None:
        """By what a pod is left one node; None where kube-scheduler is to choose among several.

        It is where a pod has preferences, and where it may be spread beside pods that are not
        known. A pod with constraints of its own is not spread by default.
        """
        if not self._settings.choose_alone or pod.candidates is not None:
            return None
        if sent.spec and has_preferences(sent.spec):
            return None
        owner = pod.replica_of
        if sent.spec and sent.spec.topology_spread_constraints:
            owner = ""
        elif not owner and may_be_spread(pod.workload, pod.offline):
            return None
        return self._state.alone(pod, owner, now)

    def _hold(self, pod: PodFacts, rows: tuple[int, ...], now: float) -> None:
        """Charge the pod on every node that was offered, until it is bound or time runs out."""
        self._state.ledger.hold(
            pod.uid,
            pod.key,
            pod.ask.millicpu,
            pod.ask.horizon,
            rows,
            now,
            now + self._settings.hold_seconds,
        )

    def _refuse(self, pod: PodFacts, offer: Offer) -> Answer:
        """No node anywhere can meet what the pod asks for."""
        snapshot = self._state.snapshot(self._clock(), without=pod.uid)
        unresolvable = dict.fromkeys(offer.names, pod.problem)
        self._record(pod, offer.names, [], _NO_VERDICTS, snapshot, _tally(unresolvable))
        return Answer(encode_filter(offer, (), {}, unresolvable), "")

    def _refusals(
        self, pod: PodFacts, names: Sequence[str], verdicts: Verdicts
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Failure texts by node: where preemption may help, and where it cannot."""
        failed: dict[str, str] = {}
        unresolvable: dict[str, str] = {}
        if not names or verdicts.reason.max() <= _NO_REFUSAL:
            return failed, unresolvable
        for code in np.unique(verdicts.reason[verdicts.reason > _NO_REFUSAL]).tolist():
            reason = Reason(code)
            text = explain(reason, pod.ask, self._state.policy)
            where = np.flatnonzero(verdicts.reason == code).tolist()
            texts = failed if reason in _RESOLVABLE else unresolvable
            texts.update(dict.fromkeys([names[at] for at in where], text))
            self._telemetry.refused_nodes.labels(reason.name.lower()).inc(len(where))
        return failed, unresolvable

    def _is_repeat(self, pod: PodFacts, held: tuple[int, ...]) -> bool:
        """Whether the pod holds exactly these nodes already.

        kube-scheduler's second extender entry offers an offline pod what the first left: the same
        decision, which is logged once.
        """
        entry = self._state.ledger.get(pod.uid)
        return entry is not None and entry.stage is Stage.HELD and entry.rows == held

    def _record(
        self,
        pod: PodFacts,
        names: Sequence[str],
        passed: Sequence[int],
        verdicts: Verdicts,
        snapshot: Snapshot,
        rejected: dict[str, int],
    ) -> None:
        self._count(pod, "placeable" if passed else "refused")
        refused: tuple[str, ...] = ()
        if pod.offline and rejected and not passed:
            self._events.refused(pod.key, pod.uid, len(names), rejected)
            if len(names) <= MAX_NODES and len(names) < len(snapshot.index):
                refused = tuple(names)
        score, available = verdicts.score[passed].tolist(), verdicts.available[passed].tolist()
        spread = [verdicts.spread] * len(passed)
        candidates = map(Candidate, [names[at] for at in passed], score, available, spread)
        self._log.append(
            Decision(
                time=snapshot.time,
                pod=pod.key,
                uid=pod.uid,
                offline=pod.offline,
                millicpu=pod.ask.millicpu,
                horizon_hours=HORIZONS[pod.ask.horizon],
                snapshot=snapshot.id,
                model_version=snapshot.model_version,
                offered=len(names),
                candidates=tuple(candidates),
                rejected=rejected,
                hot=verdicts.hot,
                refused=refused,
            )
        )

    def _count(self, pod: PodFacts, outcome: str) -> None:
        self._counts["offline" if pod.offline else "online", outcome].inc()


def _all_differ(rows: Ints, nodes: int) -> bool:
    """Whether the rows are those of so many different nodes, all known."""
    offered = np.zeros(nodes + 1, np.bool_)  # the last place is for row -1, an unknown node
    offered[rows] = True
    return not offered[-1] and np.count_nonzero(offered) == len(rows)


def _once(positions: list[int], names: Sequence[str]) -> list[int]:
    """Positions with each name once, the first of it."""
    first: dict[str, int] = {}
    for at in positions:
        first.setdefault(names[at], at)
    return list(first.values())


def _tally(*texts: dict[str, str]) -> dict[str, int]:
    """How many nodes got each text."""
    counts: dict[str, int] = {}
    for by_node in texts:
        for text in by_node.values():
            counts[text] = counts.get(text, 0) + 1
    return counts
