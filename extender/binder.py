"""Bind: checks the ledger again, writes the binding, and finds out what really happened."""

from __future__ import annotations

import asyncio

import structlog

from extender.ask import PodFacts, pod_facts
from extender.calls import NOT_READY
from extender.decide import decide, explain
from extender.decision_log import Binding, DecisionLog
from extender.events import Events
from extender.ledger import Stage
from extender.ports import Clock, Cluster, ClusterError
from extender.settings import Settings
from extender.snapshot import Reason
from extender.state import State
from extender.telemetry import Telemetry
from extender.wire import BindingArgs
from models.policy import HORIZONS

CONFIRM_SECONDS = 600.0
"""Seconds for which a written binding stays charged until the watch shows the pod. Longer than any
silence after which the state still promises, so that a lagging watch never frees the CPU."""

_POST_SHARE = 0.7
"""Share of the time for a bind that the POST may take; the rest is for asking what became of it."""

log = structlog.get_logger()


class BindError(Exception):
    """Why the pod was not bound. ``certain``: the API server said so, or was never asked."""

    def __init__(self, text: str, certain: bool = True) -> None:
        super().__init__(text)
        self.certain = certain


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

    async def _bind(self, args: BindingArgs) -> str:
        pod, error = self._state.pod(args.pod_uid), ""
        outcome = "bound"
        try:
            async with asyncio.timeout(self._settings.bind_seconds):
                if pod is None or self._is_open(args.pod_uid):
                    pod = await self._read(args)
                if self._charge(pod, args.node):
                    await self._write(args)
                    self._state.ledger.extend(pod.uid, self._clock() + CONFIRM_SECONDS)
        except BindError as e:
            error, outcome = str(e), "refused" if e.certain else "failed"
            if e.certain:
                self._state.ledger.release_binding(args.pod_uid)
        except TimeoutError:
            error, outcome = "the API server did not answer in time", "failed"
        self._telemetry.binds.labels(outcome).inc()
        self._record(args, pod, error)
        return error

    def _is_open(self, uid: str) -> bool:
        """Whether nobody knows what became of an earlier bind: its charge stays until they do."""
        entry = self._state.ledger.get(uid)
        return entry is not None and entry.stage is Stage.BINDING

    async def _read(self, args: BindingArgs) -> PodFacts:
        """The pod as it is, where the watch has not shown it, or not what became of it."""
        try:
            pod = await self._cluster.read_pod(args.pod_namespace, args.pod_name)
        except ClusterError as e:
            raise BindError(f"the pod cannot be read: {e}", certain=False) from e
        facts = None if pod is None else pod_facts(pod, self._settings.resource)
        if facts is None or facts.uid != args.pod_uid:
            raise BindError("there is no pod of this name and UID")
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
            if pod.node == node:
                return False
            raise BindError(f"the pod is bound to {pod.node} already")
        if not pod.offline:
            return True
        if pod.problem:
            raise BindError(pod.problem)
        now = self._clock()
        snapshot = self._state.snapshot(now, without=pod.uid)
        row = snapshot.rows([node])
        verdicts = decide(snapshot, row, pod.ask, self._state.policy, 0)
        reason = Reason(int(verdicts.reason[0]))
        ledger = self._state.ledger
        if reason is not Reason.FITS:
            ledger.release_hold(pod.uid)
            raise BindError(explain(reason, pod.ask, self._state.policy))
        expires = now + self._settings.bind_seconds + self._settings.hold_seconds
        ledger.reserve(
            pod.uid,
            pod.key,
            pod.ask.millicpu,
            pod.ask.horizon,
            int(row[0]),
            int(verdicts.available[0]),
            now,
            expires,
        )
        return True

    async def _write(self, args: BindingArgs) -> None:
        """POST the binding; where the answer leaves it open, read whether the pod is bound."""
        try:
            async with asyncio.timeout(self._settings.bind_seconds * _POST_SHARE):
                await self._cluster.bind(args.pod_namespace, args.pod_name, args.pod_uid, args.node)
        except TimeoutError:
            await self._resolve(args, "the API server did not answer the binding")
        except ClusterError as e:
            if e.status not in (0, 409) and e.status < 500:
                raise BindError(f"the API server refused the binding: {e}") from e
            await self._resolve(args, str(e))

    async def _resolve(self, args: BindingArgs, problem: str) -> None:
        """Return where the pod is bound as wanted. Raises BindError."""
        try:
            pod = await self._cluster.read_pod(args.pod_namespace, args.pod_name)
        except ClusterError as e:
            raise BindError(f"{problem}, nor whether the pod is bound", certain=False) from e
        facts = None if pod is None else pod_facts(pod, self._settings.resource)
        if facts is None or facts.uid != args.pod_uid:
            raise BindError("the pod is gone")
        if facts.node and facts.node != args.node:
            raise BindError(f"the pod is bound to {facts.node} already")
        if not facts.node:
            raise BindError(problem)

    def _record(self, args: BindingArgs, pod: PodFacts | None, error: str) -> None:
        key = f"{args.pod_namespace}/{args.pod_name}"
        if error:
            log.warning("pod not bound", pod=key, node=args.node, error=error)
            self._events.not_bound(key, args.pod_uid, args.node, error)
        self._log.append(
            Binding(
                time=self._clock(),
                pod=key,
                uid=args.pod_uid,
                node=args.node,
                millicpu=pod.ask.millicpu if pod is not None else 0,
                horizon_hours=HORIZONS[pod.ask.horizon] if pod is not None else 0,
                model_version=self._state.model_version,
                error=error,
            )
        )
