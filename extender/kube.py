"""Requests to the Kubernetes API server, over aiohttp."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Protocol

import aiohttp
import msgspec

from extender.ports import ClusterError
from models.kube.types import Status

_CONNECT_SECONDS = 10.0
_REQUEST_SECONDS = 60.0
_SILENT_SECONDS = 90.0
"""A watch that is silent for longer is half-open: bookmarks come about once a minute."""

_MAX_LINE = 2**25
"""Bytes of one watch event at most; etcd keeps objects under 2 MB."""

_LONGEST_WAIT = 60.0
"""Seconds for which an API server is left alone at most, whatever it asks for."""

_MAX_TEXT = 500

_status = msgspec.json.Decoder(Status)


class Identity(Protocol):
    """Where the API server is, and who calls it."""

    @property
    def server(self) -> str:
        """Its URL, without a slash at its end."""

    @property
    def tls(self) -> ssl.SSLContext | bool:
        """Whom to trust."""

    @property
    def server_name(self) -> str | None:
        """The name in the server's certificate, where it is not that of the URL."""

    async def headers(self, renew: bool = False) -> dict[str, str]:
        """What to send with each request; read anew where the server refused it."""


class KubeApi:
    """An API server; every failure is a ClusterError."""

    def __init__(self, identity: Identity, silent_seconds: float = _SILENT_SECONDS) -> None:
        """``silent_seconds``: after which a watch without a byte counts as dead."""
        self._identity = identity
        self._silent_seconds = silent_seconds
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> bytes:
        """The body of a successful answer. Raises ClusterError."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": content_type}
        limits = aiohttp.ClientTimeout(total=_REQUEST_SECONDS, connect=_CONNECT_SECONDS)
        async with self._open(method, path, params, data, headers, limits) as answer:
            return await answer.read()

    async def watch(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The lines of a watch, and an empty one when it has begun. Raises ClusterError.

        A line that was cut off is left out: the watch that resumes brings it again.
        """
        limits = aiohttp.ClientTimeout(connect=_CONNECT_SECONDS, sock_read=self._silent_seconds)
        async with self._open("GET", path, params, None, {}, limits) as answer:
            yield b""
            rest = bytearray()
            async for part in answer.content.iter_any():
                *lines, last = part.split(b"\n")
                for line in lines:
                    yield bytes(rest + line)
                    rest.clear()
                rest += last
                if len(rest) > _MAX_LINE:
                    raise ClusterError(0, "a watch event is larger than any object can be")

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose status is a success; credentials that were refused are renewed once."""
        if self._session is None:
            # Compressing costs the API server more than the bytes between neighbours.
            own = {"Accept": "application/json", "Accept-Encoding": "identity"}
            self._session = aiohttp.ClientSession(headers=own, cookie_jar=aiohttp.DummyCookieJar())
        try:
            for renew in (False, True):
                identity = await self._identity.headers(renew)
                async with self._session.request(
                    method,
                    self._identity.server + path,
                    params=params,
                    data=data,
                    headers={**identity, **headers},
                    ssl=self._identity.tls,
                    server_hostname=self._identity.server_name,
                    timeout=limits,
                ) as answer:
                    if answer.status == HTTPStatus.UNAUTHORIZED and not renew:
                        continue
                    if answer.status >= HTTPStatus.BAD_REQUEST:
                        raise await _refusal(answer)
                    yield answer
                    return
        except TimeoutError as e:
            raise ClusterError(0, "the API server did not answer in time") from e
        except (aiohttp.ClientError, OSError) as e:
            why = getattr(e, "strerror", None) or str(e) or type(e).__name__
            raise ClusterError(0, f"the API server cannot be reached: {why}"[:_MAX_TEXT]) from e


async def _refusal(answer: aiohttp.ClientResponse) -> ClusterError:
    """What the API server said was wrong, and for how long it wants to be left alone."""
    body = await answer.read()
    try:
        text = _status.decode(body).message or ""
    except (ValueError, RecursionError):
        text = ""
    wait = answer.headers.get("Retry-After", "")
    return ClusterError(
        answer.status,
        (text or f"status {answer.status}")[:_MAX_TEXT],
        min(float(wait), _LONGEST_WAIT) if wait.isascii() and wait.isdigit() else 0.0,
    )
