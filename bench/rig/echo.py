"""The cheapest extender in aiohttp: all names pass, or the first of them, with equal scores.

python -m bench.rig.echo PORT [NUMBER]
"""

from __future__ import annotations

import sys

import msgspec
import uvloop
from aiohttp import web


class _Args(msgspec.Struct):
    node_names: list[str] = msgspec.field(name="NodeNames")


_decode = msgspec.json.Decoder(_Args).decode
_encode = msgspec.json.Encoder().encode


_left = int(sys.argv[2]) if len(sys.argv) > 2 else None


async def filter_(request: web.Request) -> web.Response:
    """The first of them."""
    names = _decode(await request.read()).node_names[:_left]
    return _json({"NodeNames": names, "FailedNodes": {}, "Error": ""})


async def prioritize(request: web.Request) -> web.Response:
    """All alike."""
    names = _decode(await request.read()).node_names
    return _json([{"Host": name, "Score": 5} for name in names])


async def live(_: web.Request) -> web.Response:
    """Alive."""
    return web.Response()


def _json(answer: object) -> web.Response:
    return web.Response(body=_encode(answer), content_type="application/json")


if __name__ == "__main__":
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/filter", filter_)
    app.router.add_post("/v1/prioritize", prioritize)
    app.router.add_get("/livez", live)
    loop = uvloop.new_event_loop()
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None, loop=loop
    )
