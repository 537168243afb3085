"""HTTP: the extender's verbs, health, metrics, and what people look at."""

from __future__ import annotations

import asyncio
import re
import select
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from extender.binder import Binder
from extender.calls import Calls
from extender.decision_log import DecisionLog, as_array
from extender.inspection import describe_node, describe_nodes, health, observe
from extender.ports import Clock, ModelSource
from extender.settings import Settings
from extender.state import State
from extender.telemetry import Telemetry
from extender.wire import BadRequestError, decode_binding, encode_binding

_JSON = "application/json"
_MAX_DECISIONS = 10_000
_VERBS = ("filter", "prioritize", "bind", "preempt")

T = TypeVar("T")


class Verbs:
    """POST /v1/filter, /v1/prioritize, /v1/bind and /v1/preempt: what kube-scheduler calls."""

    def __init__(
        self, calls: Calls, binder: Binder, state: State, settings: Settings, telemetry: Telemetry
    ) -> None:
        self._calls = calls
        self._binder = binder
        self._state = state
        self._telemetry = telemetry
        self._body_seconds = settings.request_seconds
        self._body_bytes = settings.max_body_bytes
        self._seconds = {verb: telemetry.seconds.labels(verb) for verb in _VERBS}

    def routes(self) -> Iterable[web.RouteDef]:
        """The verbs' routes."""
        return (
            web.post("/v1/filter", self.filter),
            web.post("/v1/prioritize", self.prioritize),
            web.post("/v1/bind", self.bind),
            web.post("/v1/preempt", self.preempt),
        )

    async def filter(self, request: web.Request) -> web.StreamResponse:
        """Answer a filter call; nobody there to read the answer means that nothing is held."""
        body = await self._body(request)
        with self._seconds["filter"].time():
            answer = self._attempt(lambda: self._calls.filter(body))
        response = _json(answer.body)
        if answer.held and _has_left(request):
            self._let_go(answer.held)
            return response
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            self._let_go(answer.held)
        except asyncio.CancelledError:
            self._let_go(answer.held)
            raise
        return response

    async def prioritize(self, request: web.Request) -> web.StreamResponse:
        """Answer a prioritize call."""
        body = await self._body(request)
        with self._seconds["prioritize"].time():
            return _json(self._attempt(lambda: self._calls.prioritize(body)))

    async def bind(self, request: web.Request) -> web.StreamResponse:
        """Answer a bind call once it is known what became of it."""
        body = await self._body(request)
        args = self._attempt(lambda: decode_binding(body))
        with self._seconds["bind"].time():
            return _json(encode_binding(await self._binder.bind(args)))

    async def preempt(self, request: web.Request) -> web.StreamResponse:
        """Answer a preempt call."""
        body = await self._body(request)
        with self._seconds["preempt"].time():
            return _json(self._attempt(lambda: self._calls.preempt(body)))

    async def _body(self, request: web.Request) -> bytes:
        """The request's body, bounded in size and time; kube-scheduler never encodes it."""
        if "Content-Encoding" in request.headers:
            raise self._unread(web.HTTPUnsupportedMediaType, "the body must not be encoded")
        try:
            if request.content.is_eof():
                return await request.read()  # it is all here: nothing to wait for
            async with asyncio.timeout(self._body_seconds):
                return await request.read()
        except TimeoutError as e:
            text = "the request's body did not arrive in time"
            raise self._unread(web.HTTPRequestTimeout, text) from e
        except web.RequestPayloadError as e:
            text = "the request's body cannot be read as HTTP"
            raise self._unread(web.HTTPBadRequest, text) from e
        except web.HTTPRequestEntityTooLarge as e:
            text = f"the request's body is larger than max_body_bytes, {self._body_bytes} bytes"
            too_large = partial(web.HTTPRequestEntityTooLarge, self._body_bytes)
            raise self._unread(too_large, text) from e

    def _unread(self, error: Callable[..., web.HTTPException], text: str) -> web.HTTPException:
        """An answer after which the connection is closed: what is left of the body is not read."""
        refused = self._refused(error, text)
        refused.force_close()
        return refused

    def _refused(self, error: Callable[..., web.HTTPException], text: str) -> web.HTTPException:
        self._telemetry.bad_requests.inc()
        return error(text=f"{text}\n")

    def _attempt(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except BadRequestError as e:
            raise self._refused(web.HTTPBadRequest, str(e)) from e

    def _let_go(self, uid: str) -> None:
        """Nobody reads the answer: what was held for it is free again."""
        self._telemetry.disconnects.inc()
        self._state.let_go(uid)


class Pages:
    """Everything that is read with GET."""

    def __init__(
        self,
        state: State,
        decisions: DecisionLog,
        models: ModelSource,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._state = state
        self._decisions = decisions
        self._models = models
        self._telemetry = telemetry
        self._clock = clock

    def probes(self) -> Iterable[web.RouteDef]:
        """Health and metrics: what a kubelet and Prometheus read."""
        return (
            web.get("/livez", self.live),
            web.get("/healthz", self.live),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        )

    def routes(self) -> Iterable[web.RouteDef]:
        """The pages' routes, health and metrics among them."""
        return (
            *self.probes(),
            web.get("/v1/nodes", self.nodes),
            web.get("/v1/nodes/{name}", self.node),
            web.get("/v1/decisions", self.decisions),
        )

    async def live(self, _: web.Request) -> web.StreamResponse:
        """200 as long as the event loop turns."""
        return web.Response(text="ok\n")

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """200 once every promise is known, and until SIGTERM; with ?verbose, why."""
        found = health(self._state, self._models.status, self._clock())
        status = 200 if found.ready else 503
        if "verbose" in request.query:
            return web.Response(text=found.text, status=status)
        return web.Response(text="ok\n" if found.ready else "not ready\n", status=status)

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """All metrics in Prometheus' text format."""
        observe(self._state, self._telemetry, self._clock())
        body = self._telemetry.render()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def nodes(self, _: web.Request) -> web.StreamResponse:
        """Each node's reclaimable, promised and free millicores by horizon."""
        now = self._clock()
        taken = self._state.snapshot(now, keep=True), self._state.withheld(now), self._state.policy
        described = await asyncio.to_thread(describe_nodes, *taken)
        return _json(msgspec.json.encode(described))

    async def node(self, request: web.Request) -> web.StreamResponse:
        """The arithmetic of one node, term by term."""
        name = request.match_info["name"]
        found = describe_node(self._state, name, self._clock())
        if found is None:
            raise web.HTTPNotFound(text=f"no node {name!r} is known\n")
        return _json(msgspec.json.encode(found))

    async def decisions(self, request: web.Request) -> web.StreamResponse:
        """The newest decisions first, of ?pod=namespace/name or of all, at most ?limit=100."""
        limit = request.query.get("limit", "100")
        number = int(limit) if re.fullmatch("[0-9]{1,5}", limit) else 0
        if not 0 < number <= _MAX_DECISIONS:
            raise web.HTTPBadRequest(text=f"limit must be a number from 1 to {_MAX_DECISIONS}\n")
        found = self._decisions.recent(request.query.get("pod", ""), number)
        return _json(await asyncio.to_thread(as_array, found))


def _json(body: bytes | bytearray) -> web.Response:
    return web.Response(body=body, content_type=_JSON)


def _has_left(request: web.Request) -> bool:
    """Whether the caller has closed its side of the connection already.

    Only the socket knows that before the event loop has read the end of the stream.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        return True
    if sys.platform != "linux":
        return False
    socket = transport.get_extra_info("socket")
    poller = select.poll()
    poller.register(socket.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))
