"""TLS for callers with a client certificate, renewed while calls go on.

A rotated file gives a new `ssl.SSLContext` and with it a new listener on the same socket: an old
context cannot forget an authority, nor the sessions that clients may resume without being verified
again. Connections that were made under the old one get one more answer, which ends them.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from extender.connections import Connections
from extender.settings import TlsSettings
from extender.telemetry import Telemetry
from models.errors import SettingsError

_HANDSHAKE_SECONDS = 3.0
"""A handshake takes milliseconds; kube-scheduler gives up after 3 s at the latest."""

log = structlog.get_logger()


class Gate:
    """Lets in whoever has a certificate of the client authority, as the files are now."""

    def __init__(self, settings: TlsSettings, telemetry: Telemetry) -> None:
        """Raises SettingsError where the files cannot be used."""
        self._settings = settings
        self._telemetry = telemetry
        self._digest = _digest(settings)
        self._context = load_context(settings)
        self._problem = ""
        self._connections: Connections | None = None
        self._servers: list[asyncio.Server] = []

    async def open(self, connections: Connections, host: str, port: int) -> tuple[str, int]:
        """Take connections; returns the address. Raises OSError."""
        server = await asyncio.get_running_loop().create_server(
            connections,
            host,
            port,
            ssl=self._context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS,
        )
        self._connections, self._servers = connections, [server]
        address: tuple[str, int] = self._servers[0].sockets[0].getsockname()[:2]
        return address

    def close(self) -> None:
        """Take no new connections."""
        for server in self._servers:
            server.close()
        self._servers = []

    def guard(self, app: web.Application) -> None:
        """Have an application refuse other names, and end connections of an older context."""
        if self._settings.client_names:
            app.middlewares.append(self._authorize)
        app.on_response_prepare.append(self._retire)

    async def watch(self) -> None:
        """Look at the files for ever."""
        while True:
            await asyncio.sleep(self._settings.reload_seconds)
            await self.reload()

    async def reload(self) -> None:
        """Use the files as they are now, where they have changed and are good."""
        try:
            digest = await asyncio.to_thread(_digest, self._settings)
            if digest != self._digest:
                context = await asyncio.to_thread(load_context, self._settings)
                await self._renew(context)
                self._digest = digest
            self._problem = ""
        except SettingsError as e:
            self._telemetry.tls_reloads.labels("failed").inc()
            if str(e) != self._problem:
                self._problem = str(e)
                log.warning("certificates not renewed, the old ones stay in use", error=str(e))

    async def _renew(self, context: ssl.SSLContext) -> None:
        """New listeners on the same sockets, then no old ones: nobody waits at a closed door."""
        self._context = context
        if self._connections is not None:
            loop, old = asyncio.get_running_loop(), self._servers
            self._servers = [
                await loop.create_server(
                    self._connections,
                    sock=_shared(listening),
                    ssl=context,
                    ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                )
                for server in old
                for listening in server.sockets
            ]
            for server in old:
                server.close()
        self._telemetry.tls_reloads.labels("renewed").inc()
        log.info("certificates renewed")

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _common_name(request)
        if name not in self._settings.client_names:
            self._telemetry.bad_requests.inc()
            raise web.HTTPForbidden(text=f"the certificate's name {name!r} is not let in\n")
        return await handler(request)

    async def _retire(self, request: web.Request, response: web.StreamResponse) -> None:
        transport = request.transport
        if transport is None or transport.get_extra_info("sslcontext") is self._context:
            return
        response.force_close()
        response.headers["Connection"] = "close"


def load_context(settings: TlsSettings) -> ssl.SSLContext:
    """A server's context that demands client certificates. Raises SettingsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    except (OSError, ValueError) as e:
        raise SettingsError(
            f"tls.cert_file: {settings.cert_file} and {settings.key_file} cannot be used: {e}"
        ) from e
    try:
        context.load_verify_locations(settings.client_ca_file)
    except (OSError, ValueError) as e:
        raise SettingsError(
            f"tls.client_ca_file: {settings.client_ca_file} cannot be used: {e}"
        ) from e
    return context


def _digest(settings: TlsSettings) -> bytes:
    """What the files hold. Raises SettingsError."""
    digest = hashlib.sha256()
    for path in (settings.cert_file, settings.key_file, settings.client_ca_file):
        try:
            content = Path(path).read_bytes()
        except OSError as e:
            raise SettingsError(f"tls: {path} cannot be read: {e.strerror}") from e
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.digest()


def _shared(listening: socket.socket) -> socket.socket:
    """Another handle of a listening socket: callers wait in the same queue."""
    handle = listening.dup()
    handle.setblocking(False)
    return handle


def _common_name(request: web.Request) -> str:
    """The common name in the caller's certificate, empty where it has none."""
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""
