"""A simulated Prometheus of a simulated cluster: python -m bench.rig.usage --port 9090.

It writes answers of 135,000 series, for which it takes a second in one go. So it is a process of
its own, and gives way to others on these cores: in a real cluster it has its own.
"""

from __future__ import annotations

import os

from aiohttp import web

from bench.rig.objects import NAMESPACE, resident
from bench.rig.serving import arguments, serve

_SHAPES = 64
"""How many different usage patterns there are; each pod has one of them."""

_NICENESS = 19


class SimulatedPrometheus:
    """Answers range queries."""

    def __init__(self, nodes: int, pods: int) -> None:
        self._nodes = nodes
        self._pods = pods

    def app(self) -> web.Application:
        """Its HTTP application."""
        app = web.Application(client_max_size=2**24)
        app.add_routes([web.post("/api/v1/query_range", self._usage), web.get("/-/ready", _ready)])
        return app

    async def _usage(self, request: web.Request) -> web.StreamResponse:
        """Every online resident's cores, one of a few patterns each, as Prometheus writes them."""
        form = await request.post()
        times = range(int(str(form["start"])), int(str(form["end"])) + 1, int(str(form["step"])))
        shapes = [
            ",".join(f'[{at},"{_cores(shape, at):.4f}"]' for at in times).encode()
            for shape in range(_SHAPES)
        ]
        series = b'{"metric":{"namespace":"%s","pod":"%s"},"values":[%s]}'
        pods = (resident(number, self._nodes) for number in range(self._pods))
        rows = [
            series % (NAMESPACE.encode(), pod.name.encode(), shapes[at % _SHAPES])
            for at, pod in enumerate(pods)
            if not pod.offline
        ]
        head = b'{"status":"success","data":{"resultType":"matrix","result":['
        return web.Response(body=head + b",".join(rows) + b"]}}", content_type="application/json")


async def _ready(_: web.Request) -> web.StreamResponse:
    return web.Response()


def _cores(shape: int, at: int) -> float:
    """A tide with the shape's own hour and height, and a little that looks like noise."""
    hour = (at / 3600 + shape) % 24
    return 0.1 + 0.1 * (shape % 4) * abs(hour - 12) / 12 + (at // 300 * 7919 + shape) % 100 / 2000


if __name__ == "__main__":
    os.nice(_NICENESS)
    sizes = arguments(__doc__)
    serve(SimulatedPrometheus(sizes.nodes, sizes.pods).app(), sizes.port)
