"""A simulated API server: python -m bench.rig.cluster --port 9000.

A real one cannot be made to send 10,000 pod events a second here, nor to hold 150,000 pods. This
one lists in pages, streams watches, binds, and does what a benchmark asks for under /bench: create
pods, and let events rain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from aiohttp import web

from bench.rig.objects import NAMESPACE, PodRow, arriving, render_node, resident
from bench.rig.serving import arguments, serve

_RUN_SECONDS = 20.0
"""Seconds for which an arrived pod runs: keeps the number of pods bounded."""

_BOOKMARK_SECONDS = 5.0
_STORM_TICK = 0.01


class SimulatedCluster:
    """Resident pods are rendered when asked for; only arrivals are remembered."""

    def __init__(self, nodes: int, pods: int) -> None:
        self._nodes = nodes
        self._pods = pods
        self._arrivals: dict[str, PodRow] = {}
        self._version = max(nodes, pods) + 1
        self._watchers: set[asyncio.Queue[bytes]] = set()

    def app(self) -> web.Application:
        """Its HTTP application."""
        app = web.Application(client_max_size=2**24)
        one = f"/api/v1/namespaces/{NAMESPACE}/pods/{{name}}"
        app.add_routes(
            [
                web.get("/api/v1/nodes", self._nodes_page),
                web.get("/api/v1/pods", self._pods_page),
                web.get("/api/v1/namespaces/{namespace}/configmaps", self._nothing),
                web.post("/apis/events.k8s.io/v1/namespaces/{namespace}/events", self._event),
                web.get(one, self._pod),
                web.post(f"{one}/binding", self._bind),
                web.post("/bench/create", self._create),
                web.post("/bench/storm", self._storm),
            ]
        )
        return app

    async def _nodes_page(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, self._nodes, render_node)

    async def _pods_page(self, request: web.Request) -> web.StreamResponse:
        """Those that have not finished; none has succeeded."""
        if "status.phase=Succeeded" in request.query.get("fieldSelector", ""):
            return await self._nothing(request)
        if "watch" in request.query:
            queue: asyncio.Queue[bytes] = asyncio.Queue()
            self._watchers.add(queue)
            try:
                return await self._watch(request, queue)
            finally:
                self._watchers.discard(queue)
        return await self._page(
            request, self._pods, lambda number: resident(number, self._nodes).render()
        )

    async def _nothing(self, request: web.Request) -> web.StreamResponse:
        """A kind of which there is no object."""
        return await self._page(request, 0, lambda _: b"")

    async def _event(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=201)

    async def _page(
        self, request: web.Request, count: int, render: Callable[[int], bytes]
    ) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request, asyncio.Queue())
        first = int(request.query.get("continue", "0"))
        stop = min(first + (int(request.query.get("limit", "0")) or count), count)
        after = str(stop) if stop < count else ""
        head = b'{"metadata":{"resourceVersion":"%d","continue":"%s"},"items":['
        body = head % (self._version, after.encode()) + b",".join(map(render, range(first, stop)))
        return web.Response(body=body + b"]}", content_type="application/json")

    async def _watch(self, request: web.Request, queue: asyncio.Queue[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            try:
                async with asyncio.timeout(_BOOKMARK_SECONDS):
                    events = await queue.get()
            except TimeoutError:
                mark = b'{"metadata":{"resourceVersion":"%d"}}' % self._version
                events = _event(b"BOOKMARK", mark)
            await response.write(events)

    async def _pod(self, request: web.Request) -> web.StreamResponse:
        pod = self._arrivals.get(request.match_info["name"])
        if pod is None:
            return web.json_response({"code": 404, "message": "not found"}, status=404)
        return web.Response(body=pod.render(), content_type="application/json")

    async def _bind(self, request: web.Request) -> web.StreamResponse:
        pod = self._arrivals.get(request.match_info["name"])
        if pod is None or pod.node:
            return web.json_response({"code": 409, "message": "bound already"}, status=409)
        node = (await request.json())["target"]["name"]
        self._put(b"MODIFIED", replace(pod, node=node))
        asyncio.get_running_loop().call_later(_RUN_SECONDS, self._end, pod.name)
        return web.json_response({"status": "Success"}, status=201)

    def _put(self, kind: bytes, pod: PodRow) -> None:
        self._version += 1
        pod = replace(pod, version=self._version)
        self._arrivals[pod.name] = pod
        self._send(_event(kind, pod.render()))

    def _end(self, name: str) -> None:
        self._version += 1
        pod = replace(self._arrivals.pop(name), version=self._version)
        self._send(_event(b"DELETED", pod.render()))

    def _send(self, events: bytes) -> None:
        for queue in self._watchers:
            queue.put_nowait(events)

    # What a benchmark asks for

    async def _create(self, request: web.Request) -> web.StreamResponse:
        first, count = int(request.query["first"]), int(request.query["count"])
        for number in range(first, first + count):
            self._put(b"ADDED", arriving(number))
        return web.Response()

    async def _storm(self, request: web.Request) -> web.StreamResponse:
        """Change residents' status at a rate; answers with the events sent when it is over."""
        rate, seconds = int(request.query["rate"]), float(request.query["seconds"])
        clock, began, sent = time.monotonic, time.monotonic(), 0
        while (elapsed := clock() - began) < seconds:
            due = int(elapsed * rate) - sent
            self._version += due
            pods = (resident((sent + at) % self._pods, self._nodes) for at in range(due))
            changed = (replace(pod, version=self._version).render() for pod in pods)
            self._send(b"".join(_event(b"MODIFIED", pod) for pod in changed))
            sent += due
            await asyncio.sleep(_STORM_TICK)
        return web.json_response({"sent": sent})


def _event(kind: bytes, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind, body)


if __name__ == "__main__":
    sizes = arguments(__doc__)
    serve(SimulatedCluster(sizes.nodes, sizes.pods).app(), sizes.port)
