"""Connections, bounded in number, and in the time that a caller may take.

aiohttp bounds how large a request's head is, not how slowly it comes, nor how slowly an answer is
read. A connection on which nothing was begun stays open for five minutes, unless others need its
place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from extender.settings import Settings
from extender.telemetry import Telemetry

KEEPALIVE_SECONDS = 300.0
"""kube-scheduler keeps idle connections for 90 s; closing first would cost it a failed call."""

_ANSWER_SECONDS = 30.0
"""In which an answer must be read. The largest, /v1/nodes of 5,000 nodes, is 6 MB."""

_TEXT = b"the request's head did not arrive in time\n"
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)


class Connections:
    """Makes the protocol of each new connection of an aiohttp server.

    Beyond ``max_connections``, of those that have no whole request at work, the one that has said
    nothing for longest is closed; where all have one, the new one is.
    """

    def __init__(self, server: web.Server, settings: Settings, telemetry: Telemetry) -> None:
        self.head_seconds = settings.request_seconds
        self.telemetry = telemetry
        self._server = server
        self._limit = settings.max_connections
        self._open: dict[_Connection, None] = {}  # those that said something last come last

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one more connection."""
        return _Connection(self, self._server)

    def enter(self, connection: _Connection) -> None:
        """A connection is open, or has said something."""
        self._open.pop(connection, None)
        self._open[connection] = None
        if len(self._open) > self._limit:
            self.telemetry.crowded_out.inc()
            least = next((each for each in self._open if each.expendable), connection)
            del self._open[least]  # at once, as the event loop tells of its end only later
            least.drop()

    def leave(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._open.pop(connection, None)


class _Connection(web.RequestHandler):
    """aiohttp's protocol with two deadlines: for a request's head, and for reading an answer."""

    __slots__ = ("_answer", "_connections", "_head")

    def __init__(self, connections: Connections, server: web.Server) -> None:
        options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # encoded bodies are refused, and may inflate a thousandfold
            "keepalive_timeout": KEEPALIVE_SECONDS,
            "lingering_time": connections.head_seconds,  # for what is left of a refused body
        }
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._connections = connections
        self._head = _Timer()
        self._answer = _Timer()

    @property
    def waits(self) -> bool:
        """Whether no request is at work: none was sent, or its head is not complete."""
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    @property
    def expendable(self) -> bool:
        """Whether nothing is lost by closing it: it has no whole request at work."""
        request = self._current_request
        return self.waits or (request is not None and not request.content.is_eof())

    def drop(self) -> None:
        """Close it now, whether what was written has been read or not."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.leave(self)
        self._head.stop()
        self._answer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._connections.enter(self)
        if self.waits:
            self._head.start(self._connections.head_seconds, self._too_slow)
        else:
            self._head.stop()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        self._connections.telemetry.bad_requests.inc()  # what came is not HTTP: no error of ours
        answer = web.Response(status=status, text=message)
        answer.force_close()
        return answer

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer.start(_ANSWER_SECONDS, self._unread)

    def resume_writing(self) -> None:
        self._answer.stop()
        super().resume_writing()

    def _too_slow(self) -> None:
        self._connections.telemetry.bad_requests.inc()
        if self.transport is not None:
            self.transport.write(_TOO_SLOW)
        self.force_close()

    def _unread(self) -> None:
        self._connections.telemetry.disconnects.inc()
        self.drop()


class _Timer:
    """A call that comes later, unless it is stopped."""

    __slots__ = ("_handle",)

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], None]) -> None:
        """Begin to wait, unless it waits already."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, call)

    def stop(self) -> None:
        """Forget it."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
