"""Bind: checks the ledger again, writes the binding, and finds out what really happened."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus

import structlog
from msgspec.structs import replace

from extender.ask import PodFacts
from extender.calls import NOT_READY
from extender.decide import Ask, explain, room
from extender.decision_log import Binding, DecisionLog
from extender.events import Events
from extender.ledger import Entry, Stage
from extender.ports import Clock, Cluster, ClusterError
from extender.settings import Settings
from extender.snapshot import Reason
from extender.state import State
from extender.telemetry import Telemetry
from extender.wire import BindingArgs
from models.policy import HORIZONS

CONFIRM_SECONDS = 60.0
"""Seconds in which the watch should have shown a binding that was written; then the API server is
asked. It stays charged until the watch has shown it, or the pod is gone."""

_POST_SHARE = 0.7
"""Share of the time for a bind that the POST may take; the rest is for asking what became of it."""

_NOT_REACHED = (
    0,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""No answer, or that of somebody on the way, for an API server that may stand still."""

log = structlog.get_logger()


class BindError(Exception):
    """Why the pod was not bound: nothing was sent, or the API server refused it."""

    outcome = "refused"


class GoneError(BindError):
    """There is no such pod any more, so nothing that was sent for it can be carried out."""


class ElsewhereError(BindError):
    """Some other binding of the pod was carried out."""


class UnansweredError(BindError):
    """The binding was sent but not answered; a moment later the pod was not bound.

    As the API server has answered since, what it had received is carried out soon or never.
    """

    outcome = "failed"


class UnknownFateError(BindError):
    """The binding was sent, or may have been earlier; the API server has not said what came of it.

    However long that takes, it may still be carried out: a server that stood still goes on where
    it was.
    """

    outcome = "failed"


class UnreadableError(UnknownFateError):
    """The API server has answered, but not with the pod: it cannot read this one, say."""


class Binder:
    """Binds each pod at most once, whatever is repeated, refused or lost on the way."""

    def __init__(
        self,
        state: State,
        cluster: Cluster,
        settings: Settings,
        clock: Clock,
        decisions: DecisionLog,
        telemetry: Telemetry,
        events: Events,
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._log = decisions
        self._telemetry = telemetry
        self._events = events
        self._under_way: dict[str, tuple[str, asyncio.Task[str]]] = {}
        self._unbound: set[str] = set()

    async def bind(self, args: BindingArgs) -> str:
        """Bind a pod; returns the error for kube-scheduler, empty where the pod is bound.

        A repeat of a call that is still under way gets that call's result. The work goes on when
        the caller leaves: a binding that was begun must be known to the ledger.
        """
        node, task = self._under_way.get(args.pod_uid, ("", None))
        if task is None:
            task = asyncio.create_task(self._bind(args))
            self._under_way[args.pod_uid] = (args.node, task)
            task.add_done_callback(lambda _: self._under_way.pop(args.pod_uid, None))
        elif node != args.node:
            return f"the pod is being bound to {node}"
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Wait until no bind is under way."""
        await asyncio.gather(*(task for _, task in self._under_way.values()))

    async def chase(self) -> None:
        """Ask what became of bindings that the watch should have shown by now.

        What is charged for them stays until the API server has answered, however long that takes.
        Where it stands still, what it said before counts for nothing: it goes on where it was.
        """
        self._unbound = {uid for uid in self._unbound if self._open(uid) is not None}
        for entry in self._state.ledger.late_bindings(self._clock()):
            if entry.uid not in self._under_way:
                try:
                    async with asyncio.timeout(self._settings.bind_seconds):
                        await self._ask(entry)
                except UnreadableError:
                    self._unbound.discard(entry.uid)
                except (UnknownFateError, TimeoutError):
                    self._unbound.clear()
                    return  # it answers nothing else either; the next chase asks again

    async def _ask(self, entry: Entry) -> None:
        """Let a binding's charge follow its fate. Raises UnknownFateError.

        An answer that comes after anything has changed of the charge says nothing of what is new.
        """
        uid = entry.uid
        namespace, name = entry.pod.split("/", 1)
        try:
            pod = await self._read(BindingArgs(name, namespace, uid, ""))
        except GoneError:
            self._let_go(uid)
            return
        if uid in self._under_way or self._state.ledger.get(uid) is not entry:
            return
        if pod.node and not pod.finished:
            self._settle(uid, pod.node)
        elif pod.finished or uid in self._unbound:
            self._let_go(uid)
        else:
            self._unbound.add(uid)
            now = self._clock()
            self._state.ledger.extend(uid, now, now + self._settings.hold_seconds)

    async def _bind(self, args: BindingArgs) -> str:
        uid = args.pod_uid
        pod, error, outcome = self._state.pod(uid), "", "bound"
        earlier = self._open(uid)
        self._unbound.discard(uid)
        try:
            async with asyncio.timeout(self._settings.bind_seconds):
                if pod is None or earlier is not None:
                    pod = await self._read(args)
                if self._charge(pod, args.node):
                    await self._write(args)
                    self._settle(uid, args.node)
        except BindError as e:
            error, outcome = str(e), e.outcome
            self._give_back(uid, e, earlier)
        except TimeoutError:
            error, outcome = "the API server did not answer in time", "failed"
        finally:
            now = self._clock()
            self._state.ledger.conclude(uid, now, now + self._settings.hold_seconds)
        self._telemetry.binds.labels(outcome).inc()
        self._record(args, pod, error)
        return error

    def _give_back(self, uid: str, why: BindError, earlier: Entry | None) -> None:
        """Release what the failed bind has charged, and nothing that may still be carried out."""
        match why:
            case GoneError():
                self._let_go(uid)
            case ElsewhereError():
                self._state.let_go(uid)
            case UnansweredError():
                self._unbound.add(uid)
            case UnknownFateError():
                pass
            case _:
                self._state.ledger.withdraw(uid, earlier)
                self._state.under_way.end(uid)

    def _let_go(self, uid: str) -> None:
        """No binding of the pod can be carried out any more, and nothing is held for it."""
        self._unbound.discard(uid)
        self._state.ledger.withdraw(uid, None)
        self._state.let_go(uid)

    def _open(self, uid: str) -> Entry | None:
        """The charge of an earlier bind, until it is known what became of that."""
        entry = self._state.ledger.get(uid)
        return entry if entry is not None and entry.stage is Stage.BINDING else None

    def _settle(self, uid: str, node: str) -> None:
        """The API server has the pod on the node; its watch event is on the way."""
        row, now = self._state.last_row(node), self._clock()
        if row is not None:
            self._state.ledger.settle(uid, row, now, now + CONFIRM_SECONDS)

    async def _read(self, args: BindingArgs) -> PodFacts:
        """The pod as it is, where the watch has not shown it, or not what became of it."""
        try:
            pod = await self._cluster.read_pod(args.pod_namespace, args.pod_name)
        except ClusterError as e:
            unknown = UnknownFateError if e.status in _NOT_REACHED else UnreadableError
            raise unknown(f"the pod cannot be read: {e}") from e
        facts = None if pod is None else self._state.facts(pod)
        if facts is None or facts.uid != args.pod_uid:
            raise GoneError("there is no pod of this name and UID")
        return facts

    def _charge(self, pod: PodFacts, node: str) -> bool:
        """Charge the pod on the chosen node; False where it is bound there already.

        Check and charge happen without a wait between them, so no two pods pass on the same CPU.

        Raises:
            BindError: it is bound elsewhere, or the node cannot be promised any more.
        """
        if not self._state.ready:
            raise BindError(NOT_READY)
        if pod.node:
            self._charge_bound(pod)
            if pod.node == node:
                return False
            raise ElsewhereError(f"the pod is bound to {pod.node} already")
        if not pod.offline:
            return True
        if pod.problem:
            raise BindError(pod.problem)
        now, ledger = self._clock(), self._state.ledger
        ask = _as_filtered(pod.ask, ledger.get(pod.uid))
        if self._open(pod.uid) is not None:  # filter may have decided again, for a longer horizon
            ask = replace(ask, horizon=max(ask.horizon, pod.ask.horizon))
        snapshot = self._state.snapshot(now, without=pod.uid)
        row = snapshot.rows([node])
        reasons, available = room(snapshot, row, ask)
        reason = Reason(int(reasons[0]))
        if reason is not Reason.FITS:
            self._state.let_go(pod.uid)
            raise BindError(explain(reason, ask, self._state.policy))
        ledger.reserve(
            pod.uid,
            pod.key,
            ask.millicpu,
            ask.horizon,
            int(row[0]),
            int(available[0]),
            now,
            math.inf,  # until it is known what became of the binding
        )
        return True

    def _charge_bound(self, pod: PodFacts) -> None:
        """Charge a pod where it is bound, which the watch has not shown yet."""
        ledger, now = self._state.ledger, self._clock()
        row, entry = self._state.last_row(pod.node), ledger.get(pod.uid)
        if row is None or pod.finished:
            return
        if pod.offline and (entry is None or entry.stage is Stage.HELD):
            ask, until = _as_filtered(pod.ask, entry), now + CONFIRM_SECONDS
            ledger.reserve(
                pod.uid, pod.key, ask.millicpu, ask.horizon, row, ask.millicpu, now, until
            )
        else:
            self._settle(pod.uid, pod.node)

    async def _write(self, args: BindingArgs) -> None:
        """POST the binding; where the answer leaves it open, read whether the pod is bound."""
        try:
            async with asyncio.timeout(self._settings.bind_seconds * _POST_SHARE):
                await self._cluster.bind(args.pod_namespace, args.pod_name, args.pod_uid, args.node)
        except TimeoutError:
            await self._resolve(args, "the API server did not answer the binding")
        except ClusterError as e:
            if e.status in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                await self._resolve(args, str(e), BindError)
            elif 0 < e.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise BindError(f"the API server refused the binding: {e}") from e
            else:
                await self._resolve(args, str(e))

    async def _resolve(
        self, args: BindingArgs, problem: str, unbound: type[BindError] = UnansweredError
    ) -> None:
        """Return where the pod is bound as wanted.

        Raises:
            BindError: it is bound elsewhere, gone or unknown; ``unbound`` where it is not bound.
        """
        pod = await self._read(args)
        if not pod.node:
            raise unbound(problem)
        if pod.node != args.node:
            self._settle(pod.uid, pod.node)
            raise ElsewhereError(f"the pod is bound to {pod.node} already")

    def _record(self, args: BindingArgs, pod: PodFacts | None, error: str) -> None:
        key = f"{args.pod_namespace}/{args.pod_name}"
        if error:
            log.warning("pod not bound", pod=key, node=args.node, error=error)
            self._events.not_bound(key, args.pod_uid, args.node, error)
        entry = self._state.ledger.get(args.pod_uid)
        ask = _as_filtered(pod.ask, entry) if pod is not None else None
        self._log.append(
            Binding(
                time=self._clock(),
                pod=key,
                uid=args.pod_uid,
                node=args.node,
                millicpu=ask.millicpu if ask is not None else 0,
                horizon_hours=HORIZONS[ask.horizon] if ask is not None else 0,
                model_version=self._state.model_version,
                error=error,
            )
        )


def _as_filtered(ask: Ask, entry: Entry | None) -> Ask:
    """The ask for the horizon on which filter decided: what is expected may have changed since."""
    return ask if entry is None else replace(ask, horizon=entry.horizon)
