"""A small synchronous HTTP client for loopback: one kept connection, no redirects, no retries."""

import http.client
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_IDLE_SECONDS = 30.0  # Go's servers close a connection that idles for 90 s


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    body: bytes


class WebClient:
    """Talks to one server, one request at a time. Usable from several threads."""

    def __init__(
        self, base_url: str, context: ssl.SSLContext | None = None, timeout: float = 30.0
    ) -> None:
        """`timeout` is in seconds, for connecting and for each read."""
        host = urlsplit(base_url).netloc
        self._connection: http.client.HTTPConnection
        if context is None:
            self._connection = http.client.HTTPConnection(host, timeout=timeout)
        else:
            self._connection = http.client.HTTPSConnection(host, timeout=timeout, context=context)
        self._lock = threading.Lock()
        self._used = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request. Raises OSError or http.client.HTTPException; a later one reconnects."""
        with self._lock:
            if time.monotonic() - self._used > _IDLE_SECONDS:
                self._connection.close()
            try:
                self._connection.request(method, path, body, dict(headers or {}))
                response = self._connection.getresponse()
                return Reply(response.status, response.read())
            except (OSError, http.client.HTTPException):
                self._connection.close()
                raise
            finally:
                self._used = time.monotonic()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        with self._lock:
            self._connection.close()


def answers(url: str, context: ssl.SSLContext | None = None) -> bool:
    """Say whether a GET of `url` is answered with 200 within two seconds."""
    with WebClient(url, context, timeout=2.0) as client:
        try:
            return client.request("GET", urlsplit(url).path).status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
