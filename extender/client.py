"""Questions to a running extender, over HTTP: what the command line knows of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from models.errors import ArchimedesError

_SECONDS = aiohttp.ClientTimeout(total=30.0, connect=5.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Extender:
    """Where it listens, and the files that prove who calls and whom to trust; empty for none."""

    url: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def ask(self, *paths: str) -> list[bytes | None]:
        """The bodies at these paths, None where there is no such thing.

        Raises:
            ArchimedesError: it cannot be reached, or answers with an error.
        """
        return asyncio.run(self._ask(paths, self._tls()))

    async def _ask(self, paths: Sequence[str], tls: ssl.SSLContext | bool) -> list[bytes | None]:
        try:
            async with aiohttp.ClientSession(timeout=_SECONDS) as session:
                return [await self._get(session, path, tls) for path in paths]
        except (aiohttp.ClientError, OSError, UnicodeError) as e:  # a host that is no name, too
            why = getattr(e, "strerror", None) or str(e) or type(e).__name__
            raise ArchimedesError(
                f"the extender at {self.url} cannot be reached: {why}; "
                "set --url, and for https --ca-file, --cert-file and --key-file"
            ) from e

    async def _get(
        self, session: aiohttp.ClientSession, path: str, tls: ssl.SSLContext | bool
    ) -> bytes | None:
        async with session.get(self.url.rstrip("/") + path, ssl=tls) as answer:
            body = await answer.read()
            if answer.status == HTTPStatus.NOT_FOUND:
                return None
            if answer.status != HTTPStatus.OK:
                said = body.decode(errors="replace").strip()[:200]
                raise ArchimedesError(f"{self.url}{path} answers {answer.status}: {said}")
            return body

    def _tls(self) -> ssl.SSLContext | bool:
        if not _is_address(self.url):
            raise ArchimedesError(f"--url: {self.url!r} is no http:// or https:// address")
        if not (self.ca_file or self.cert_file):
            return True
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except OSError as e:
            raise ArchimedesError(
                f"--ca-file, --cert-file and --key-file cannot be used: {e}"
            ) from e
        return context


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half of an IPv6 address, or a port that is none
        return False


def read(body: bytes | None, kind: type[T]) -> T:
    """What an answer holds.

    Raises:
        ArchimedesError: it is something else, so no extender of this version wrote it.
    """
    try:
        return msgspec.json.decode(body or b"", type=kind)
    except msgspec.DecodeError as e:
        raise ArchimedesError(f"the answer is not an extender's: {e}; is --url right?") from e
