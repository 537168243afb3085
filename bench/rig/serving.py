"""What the simulated servers have in common: how they are told their sizes, and how they serve."""

from __future__ import annotations

import argparse

import uvloop
from aiohttp import web


def arguments(text: str | None) -> argparse.Namespace:
    """``port``, ``nodes`` and ``pods``; ``text`` is what --help says."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=20_000)
    return parser.parse_args()


def serve(app: web.Application, port: int) -> None:
    """Serve until ended."""
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=loop)
