"""Everything that changes: nodes, pods, promises, forecasts. One request sees one snapshot of it.

All methods are called from the event loop and never wait, so each is atomic to the others. What is
handed out cannot be written to. A capture never changes; a snapshot holds for one call, in which
nothing else happens, unless it is asked for to be kept.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np

from extender.ask import PodFacts, pod_facts, uid_of
from extender.decide import Alone, Habit
from extender.homes import Homes
from extender.learned import Learned
from extender.ledger import Entry, Ledger, Stage
from extender.locks import Lock
from extender.nodes import NodeTable, View, node_facts
from extender.pods import ChangedPods, PodTable
from extender.ports import Clock, Feed
from extender.replicas import Replicas
from extender.runs import Runs
from extender.settings import Settings
from extender.snapshot import Reason, Snapshot
from extender.under_way import UnderWay
from extender.withheld import LockTable
from models.arrays import Floats, Floats32, Ints
from models.habits import NO_HABITS, Rhythm, no_rhythm
from models.kube.types import Metadata, Node, Pod, version_of
from models.policy import Policy
from models.rolling import Forecast

_PART = 1000
"""Objects or promises that are looked at in one go: a fraction of a millisecond."""

_UNNOTICED = 2.0
"""Seconds for which a clock that was set goes unnoticed at most: a tick that may be late."""

NO_MODEL = "none"
"""The model version where none serves: online pods count with their requests, nothing is given."""


class Basis(NamedTuple):
    """What a decision rests on besides what is charged.

    A snapshot's id, the policy, and the count of runs from which durations are expected.
    """

    snapshot: int
    policy: Policy
    runs: int


@dataclass(frozen=True, slots=True)
class Capture:
    """What a refresh forecasts for, taken in one moment.

    nodes: N names; allocatable: [N] cores; changes: of pods, see `State.changes`.
    """

    nodes: tuple[str, ...]
    allocatable: Floats
    changes: ChangedPods


@dataclass(frozen=True, slots=True)
class Renewals:
    """Some bound promises whose horizon had passed.

    Those that were renewed, and those that are overdue: what is reclaimable on their node does not
    cover all its promises any more.
    """

    renewed: tuple[Entry, ...]
    overdue: tuple[Entry, ...]


class State:
    """The mutable heart of the server; see the module's text for the rules."""

    def __init__(self, settings: Settings, clock: Clock, ended: Callable[[PodFacts], None]) -> None:
        """``ended``: told of each bound offline pod that is gone or finished."""
        self.ledger = Ledger()
        self.runs = Runs()
        self.under_way = UnderWay()
        self.policy = settings.policy
        self.model_version = NO_MODEL
        self.draining = False
        self.synced = asyncio.Event()
        self._settings = settings
        self._clock = clock
        self._ended = ended
        self._nodes = NodeTable(settings.advertise_share)
        self._locks = LockTable()
        self._pods = PodTable()
        self._replicas = Replicas()  # of the pods on known nodes
        self._habits = NO_HABITS
        self._homes = Homes()
        self._heard = {"nodes": -np.inf, "pods": -np.inf}
        self._unlisted = {"nodes", "pods"}

    # What the cluster reports

    def node_feed(self) -> Feed[Node]:
        """Where a cluster reports nodes."""
        return Feed(
            self._put_node, self._remove_node, self._sift_nodes, lambda: self._hear("nodes")
        )

    def pod_feed(self) -> Feed[Pod]:
        """Where a cluster reports pods."""
        return Feed(self._put_pod, self._remove_pod, self._sift_pods, lambda: self._hear("pods"))

    def expect_locks(self) -> None:
        """Somebody reads resource locks: until they are known, the server is not ready."""
        self._unlisted.add("locks")

    def lock(self, locks: Sequence[Lock], problems: Mapping[str, str]) -> None:
        """Put these resource locks into force; ``problems`` of unreadable ones, by name."""
        self._locks.replace(locks, problems, self._pods.bound())
        self._unlisted.discard("locks")
        self._check_synced()

    @property
    def ready(self) -> bool:
        """Whether all has been listed, so that every promise and every lock is known."""
        return self.synced.is_set()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many nodes, pods and ledger entries there are."""
        return {"nodes": len(self._nodes), "pods": len(self._pods), "entries": len(self.ledger)}

    @property
    def locks(self) -> tuple[Lock, ...]:
        """The resource locks that were read last."""
        return self._locks.locks

    @property
    def lock_problems(self) -> Mapping[str, str]:
        """What is wrong with the locks that cannot be read, by name."""
        return self._locks.problems

    def locks_on(self, node: str, allocatable: float, now: float) -> list[tuple[Lock, int]]:
        """The locks that concern a node now or later, with the millicores they withhold there."""
        return self._locks.on(node, allocatable, now)

    def locks_astray(self, now: float) -> list[str]:
        """The locks that are not over and concern no node that is known, by name."""
        return self._locks.astray(self._view(now).index, now)

    @property
    def unlisted(self) -> tuple[str, ...]:
        """What the API server has not listed yet: nodes, pods, locks."""
        return tuple(sorted(self._unlisted))

    def silence(self, now: float) -> float:
        """Seconds since the API server was last heard, on the quieter of both watches."""
        return float(now - min(self._heard.values()))

    def facts(self, pod: Pod) -> PodFacts:
        """What counts of a pod, with the duration that its workload's runs let expect.

        An online pod, of which no duration is expected, is not read again in the same version.
        """
        metadata = pod.metadata or Metadata()
        known = self._pods.get(uid_of(metadata))
        if known and not known.offline and 0 < known.version == version_of(metadata):
            return known
        return pod_facts(pod, self._settings.resource, self.runs.expected)

    def last_row(self, node: str) -> int | None:
        """The ledger's row of a node, also of one that is gone while a binding to it is open."""
        return self._nodes.last_row(node)

    def pod(self, uid: str) -> PodFacts | None:
        """A pod by its UID, or None where no watch event has shown it."""
        return self._pods.get(uid)

    def is_gone(self, uid: str) -> bool:
        """Whether a pod is known to be gone for good, unlike one that has not been shown yet."""
        return self._pods.is_gone(uid)

    def unadvertised(self) -> dict[str, int]:
        """Nodes whose status does not advertise their ceiling, with that ceiling."""
        return self._nodes.unadvertised() if self._settings.advertise else {}

    def learn(self, learned: Learned) -> None:
        """Take over what an earlier process had learned."""
        self.runs, self._homes = Runs(learned.runs), Homes(learned.homes)

    def learned(self) -> Learned:
        """What the next process could not learn at once."""
        return Learned(runs=self.runs.record(), homes=self._homes.record())

    # What the refresh computes

    def capture(self) -> Capture:
        """What to forecast for; what is served next was forecast for the newest capture."""
        names, allocatable = self._nodes.capture()
        return Capture(names, allocatable, self.changes())

    def changes(self) -> ChangedPods:
        """What has changed of pods since this, or a capture, was asked for.

        All pods would be too many to list between two calls.
        """
        return self._pods.changes()

    def serve(
        self,
        capture: Capture,
        forecast: Forecast,
        newest: Floats,
        model_version: str,
        policy: Policy,
        rhythm: Rhythm | None = None,
    ) -> None:
        """Put a forecast into service, with the model that made it.

        Args:
            capture: what was forecast for. Nodes that are gone since are left out; pods that came
                since stay added.
            forecast: of the capture's nodes.
            newest: [N] seconds since the epoch at which the newest usage window ended.
            model_version, policy: of the model.
            rhythm: when the capture's nodes and workloads use CPU, where that is known.
        """
        rhythm = rhythm or no_rhythm(len(capture.nodes))
        self._habits = rhythm.habits
        self.model_version, self.policy = model_version, policy
        self._nodes.serve(capture.nodes, forecast, newest, rhythm.usage, rhythm.shape)

    # As time passes

    def expire(self, now: float) -> list[Entry]:
        """Drop the holds whose time has run out, and return them."""
        late = self.ledger.expire(now)
        self.under_way.expire(now)
        self._nodes.unpark(self.ledger.has_open)
        return late

    def renew(self, now: float) -> Iterator[Renewals]:
        """Look at the promises that outlived their horizon: their pods run longer than expected.

        One is renewed where its node could make all its promises again for that horizon; what it
        takes stays charged either way, until the pod ends. All are looked at in parts, each of
        which takes a fraction of a millisecond.
        """
        for some in _batched(self.ledger.bound()):
            late = self.ledger.overdue(some, now)
            yield self._renew(late, now) if late else Renewals((), ())

    def _renew(self, late: Sequence[Entry], now: float) -> Renewals:
        snapshot = self.snapshot(now)
        rows = np.array([entry.rows[0] for entry in late])
        asks = np.array([entry.millicpu for entry in late])
        left = snapshot.free[rows, [entry.horizon for entry in late]]
        left -= self.ledger.promised(len(snapshot.free))[rows]
        covered = (asks == 0) | ((left >= 0) & (snapshot.blocked[rows] == Reason.FITS))
        renewed = tuple(compress(late, covered))
        for entry in renewed:
            self.ledger.renew(entry.uid, now)
        return Renewals(renewed, tuple(compress(late, ~covered)))

    def shift(self, seconds: float) -> None:
        """The clock has gone on by so much more than this process did.

        It was set back (negative) or forward, or the process stood still. What waits goes on
        waiting for as long as it had left. After a step forward, promises count as overdue and the
        API server as silent: whether time has really passed is not known. What was noted in the
        last `_UNNOTICED` seconds was noted by the new time.
        """
        now = self._clock()

        def is_new(time: float) -> bool:
            return now - _UNNOTICED <= time <= now

        self.under_way.shift(seconds, is_new)
        if seconds < 0:
            self.ledger.shift(seconds, tuple(Stage), is_new)
            self._heard = {
                kind: heard if is_new(heard) else heard + seconds
                for kind, heard in self._heard.items()
            }
        else:
            self.ledger.shift(seconds, (Stage.HELD, Stage.BINDING), is_new)

    # What requests see

    def snapshot(self, now: float, without: str = "", keep: bool = False) -> Snapshot:
        """What is known, without the charge of the pod that is being decided.

        Its arrays stay as they are where ``keep``, else until something changes: until whoever
        asks gives the event loop back. Copying them for each decision would cost more than that.
        """
        view = self._view(now, keep)
        promised = self.ledger.charged(len(view.free), without, keep)
        withheld = self._locks.of(view, now)
        return Snapshot(
            id=view.id + withheld.changes,
            time=now,
            index=view.index,
            allocatable=view.allocatable,
            forecast=view.forecast,
            expected=view.expected,
            profile=view.profile,
            usage=view.usage,
            free=withheld.free,
            emptied=view.emptied,
            promised=promised,
            blocked=view.blocked,
            usage_age=view.usage_age,
            model_version=self.model_version,
            locked=withheld.wanted,
            zone=view.zone if self._nodes.zoned else None,
        )

    def basis(self, now: float) -> Basis:
        """What a decision of this moment rests on; equal as long as nothing but charges changes."""
        view = self._view(now)
        snapshot = view.id + self._locks.of(view, now).changes
        return Basis(snapshot, self.policy, self.runs.added)

    def alone(self, pod: PodFacts, owner: str, now: float) -> Alone | None:
        """By what one node is chosen for a pod, which is spread beside those of ``owner``, if any.

        Passed over are nodes that pods should rather avoid, and for an online pod those that other
        online pods are on their way to: what they will use is not in the forecast yet. None where
        too little is known to choose any: not all is listed yet, or the API server is silent, or
        does not show in time where pods go.
        """
        if not self.ready or self._lost(now) or self.under_way.lost:
            return None
        passed_over, replicas = list(self._nodes.shunned), self._replicas.rows(owner)
        if others := self.under_way.others(pod.uid):
            if not pod.offline:
                passed_over += [sent.row for sent in others if not sent.offline]
            if owner:
                coming = [sent.row for sent in others if sent.replica_of == owner]
                replicas = np.append(replicas, np.array(coming, np.int64))
        return Alone(np.array(passed_over, np.int64), replicas)

    def settled(self, uid: str) -> bool:
        """Whether a pod is bound or gone: a call about it comes too late to hold anything."""
        pod = self._pods.get(uid)
        return self._pods.is_gone(uid) or (pod is not None and bool(pod.node))

    def let_go(self, uid: str) -> None:
        """A pod will not come: what was held for it is free, and nobody expects it anywhere."""
        self.ledger.release_hold(uid)
        self.under_way.end(uid)

    def habit(self, pod: PodFacts, names: Sequence[str], snapshot: Snapshot) -> Habit:
        """What is known of a pod's workload; of the offered nodes it is given one that was left."""
        profile = None if pod.offline else self._habits.of(pod.workload)
        home = ""
        if pod.rebuild:
            home = self._homes.claim(pod.workload, pod.uid, names.__contains__, self._clock())
        return Habit(profile, snapshot.index.get(home, -1))

    def withheld(self, now: float) -> Ints:
        """Millicores that resource locks take from what is reclaimable, [N, H].

        Rows are the snapshot's, whose ``free`` is without them.
        """
        return self._locks.of(self._view(now), now).taken

    def _view(self, now: float, keep: bool = False) -> View:
        return self._nodes.view(self.policy, now, self._lost(now), keep)

    def _lost(self, now: float) -> bool:
        """Whether the API server has been silent for too long."""
        return self.silence(now) > self._settings.watch_max_age

    # Nodes

    def _sift_nodes(self, listed: Collection[str]) -> Iterator[None]:
        for some in _batched(self._nodes.names()):
            for name in some:
                if name not in listed:
                    self._drop_node(name)
            yield
        self._listed("nodes")

    def _put_node(self, node: Node) -> str:
        facts = node_facts(node, self._settings.resource)
        row = self._nodes.put(facts)
        if row is not None:
            for pod in self._pods.on(facts.name).values():
                self._charge(pod, row, None)
                self._replicas.add(pod.replica_of, row)
        self._hear("nodes")
        return facts.name

    def _remove_node(self, node: Node) -> None:
        self._drop_node(node_facts(node, self._settings.resource).name)
        self._hear("nodes")

    def _drop_node(self, name: str) -> None:
        row = self._nodes.row(name)
        if row is not None:
            there = self._pods.on(name)
            for pod in there.values():
                self._replicas.remove(pod.replica_of, row)
            self.under_way.forget_node(row)
            self._nodes.remove(name, park=self.ledger.drop_row(row, there))

    # Pods

    def _sift_pods(self, listed: Collection[str]) -> Iterator[None]:
        for some in _batched(self._pods.uids()):
            for uid in some:
                if uid not in listed:
                    self._drop_pod(uid)
            yield
        self._listed("pods")

    def _put_pod(self, pod: Pod) -> str:
        new = self.facts(pod)
        old = self._pods.get(new.uid)
        self._hear("pods")
        if self._pods.outdated(new):
            return new.uid
        if new.finished:
            self._bury(new.uid)
            return new.uid
        if old is not None and old.node and old.node != new.node:
            self._drop_pod(new.uid)
            old = None
        self._pods.put(new)
        if new.node:
            self.under_way.end(new.uid)
            if old is None or not old.node:
                self._locks.moved(new, 1)
                self._homes.settle(new.workload, new.uid, new.node)
            elif old.workload != new.workload:  # it was adopted, or its owner has let go of it
                self._locks.moved(old, -1)
                self._locks.moved(new, 1)
            row = self._nodes.row(new.node)
            if row is not None:
                before = old if old is not None and old.node else None
                if before is not None:
                    self._replicas.remove(before.replica_of, row)
                self._replicas.add(new.replica_of, row)
                self._charge(new, row, before)
            else:
                self.ledger.release(new.uid)  # it is charged when the node comes
        return new.uid

    def _remove_pod(self, pod: Pod) -> None:
        self._bury(uid_of(pod.metadata or Metadata()))
        self._hear("pods")

    def _bury(self, uid: str) -> None:
        """A pod is gone for good."""
        self._drop_pod(uid)
        self._pods.bury(uid)

    def _charge(self, pod: PodFacts, row: int, before: PodFacts | None) -> None:
        """Count a bound pod on its node: its promise exactly, its need until measured.

        Until the next refresh the node's forecast rises by what the pod's workload is known to
        need, or by what the pod requests where it is not known; later by what it requests more
        than ``before``. It never falls.
        """
        if pod.offline:
            ask = pod.ask
            made = min(pod.started, self._clock())  # after a restart: when the pod began
            self.ledger.confirm(pod.uid, pod.key, ask.millicpu, ask.horizon, row, made)
        millicpu = round(pod.request * 1000)
        more = millicpu - (round(before.request * 1000) if before is not None else 0)
        added = max(more, 0)
        profile: Floats32 | float = added / 1000
        known = None if before is not None or pod.offline else self._habits.of(pod.workload)
        if known is not None:
            added, profile = math.ceil(float(known.max()) * 1000), known
        if more or added:
            self._nodes.request(row, more, added, profile)

    def _drop_pod(self, uid: str) -> None:
        """Forget a pod that is gone or finished, and give back its promise.

        What it added to its node's forecast stays until the next refresh.
        """
        self.ledger.release(uid)
        self.under_way.end(uid)
        pod = self._pods.remove(uid)
        if pod is None or not pod.node:
            return
        if pod.offline:
            self._ended(pod)
        self._locks.moved(pod, -1)
        if pod.rebuild:
            self._homes.leave(pod.workload, uid, pod.node, self._clock())
        row = self._nodes.row(pod.node)
        if row is None:
            return
        self._replicas.remove(pod.replica_of, row)
        if pod.request:
            self._nodes.request(row, -round(pod.request * 1000), 0, 0.0)

    def _listed(self, kind: str) -> None:
        self._hear(kind)
        self._unlisted.discard(kind)
        self._check_synced()

    def _check_synced(self) -> None:
        if not self._unlisted:
            self.synced.set()

    def _hear(self, kind: str) -> None:
        self._heard[kind] = self._clock()


def _batched(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """The keys in parts of `_PART`."""
    return (keys[first : first + _PART] for first in range(0, len(keys), _PART))
